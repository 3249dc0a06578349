"""The U-Net's transformer block: pixels look at one another, then at the words, then think on their own.

Source: Rombach et al. 2022 (arXiv 2112.10752), section 3.3 and appendix E.2.1; GEGLU: Shazeer 2020 (arXiv 2002.05202).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.models.layers import attention, merge_heads, split_heads, to_picture, to_tokens


class CrossAttention(nn.Module):
    """Attention with queries from `x` and keys and values from `context` (without one, from x: self-attention).

    `forward` maps x [B, N, width] and context [B, L, context_width] to [B, N, width].
    """

    def __init__(self, width: int, context_width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context_width, width, bias=False)
        self.value = nn.Linear(context_width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        query = split_heads(self.query(x), self.heads)  # [B, heads, N, d]
        key = split_heads(self.key(context), self.heads)  # [B, heads, L, d]
        value = split_heads(self.value(context), self.heads)
        return self.out(merge_heads(attention(query, key, value)))


class GEGLU(nn.Module):
    """A linear layer whose output is gated by a second one: a(x) · gelu(b(x))."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linear = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.linear(x).chunk(2, dim=-1)
        return a * F.gelu(b)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each normalised first and added to its input."""

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = CrossAttention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, context_width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(GEGLU(width, 4 * width), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), context)
        return x + self.feed_forward(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block applied to a feature map: [B, C, h, w] and context [B, L, D] -> [B, C, h, w]."""

    def __init__(self, channels: int, heads: int, context_width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, 1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.block = TransformerBlock(channels, heads, context_width)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = to_tokens(self.proj_in(self.norm(x)))  # [B, h·w, C]
        tokens = self.block(tokens, context)
        return x + self.proj_out(to_picture(tokens, *x.shape[-2:]))
