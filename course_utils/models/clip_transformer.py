"""The transformer inside both of CLIP's encoders: pre-norm blocks of self-attention and an MLP.

Sources: Vaswani et al. 2017 (arXiv 1706.03762), section 3; Radford et al. 2021 (CLIP, arXiv 2103.00020),
section 2.4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from course_utils.models.layers import attention, merge_heads, split_heads


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), CLIP's quick form of the GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415,
    section 2)."""
    return x * torch.sigmoid(1.702 * x)


def causal_mask(length: int, device: torch.device | str | None = None) -> Tensor:
    """Bool [L, L], True where token i (row) may look at token j (column): itself and what came before, j ≤
    i."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


class SelfAttention(nn.Module):
    """Each token gathers from all tokens that the mask lets it see, in several heads at once.

    `forward` maps x [B, L, D] and an optional mask, bool [L, L] (True = may look), to [B, L, D].
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query = split_heads(self.query(x), self.heads)  # [B, heads, L, D / heads]
        key = split_heads(self.key(x), self.heads)
        value = split_heads(self.value(x), self.heads)
        return self.out(merge_heads(attention(query, key, value, mask)))  # [B, L, D]


class MLP(nn.Module):
    """Two linear layers with CLIP's GELU between them, applied to each token alone. [B, L, D] -> [B, L,
    D]."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(quick_gelu(self.expand(x)))


class TransformerBlock(nn.Module):
    """Attention, then the MLP. Each reads a normalised copy of x and adds its result to x. [B, L, D] -> [B,
    L, D]."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio * width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


def transformer_blocks(width: int, layers: int, heads: int, mlp_ratio: int = 4) -> nn.ModuleList:
    """A stack of blocks with CLIP's starting weights; biases start at zero.

    The two layers of each block that add to x start smaller by √(2 · layers), the square root of how many
    such additions there are, so that x does not grow with depth. Source: GPT-2, section 2.3; CLIP's code.
    """
    blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio) for _ in range(layers))
    std = width**-0.5
    std_residual = std * (2 * layers) ** -0.5
    for block in blocks:
        nn.init.normal_(block.attention.query.weight, std=std)
        nn.init.normal_(block.attention.key.weight, std=std)
        nn.init.normal_(block.attention.value.weight, std=std)
        nn.init.normal_(block.attention.out.weight, std=std_residual)
        nn.init.normal_(block.mlp.expand.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(block.mlp.contract.weight, std=std_residual)
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
    return blocks
