"""CLIP: a text encoder and a picture encoder that learn to agree (Radford et al. 2021, arXiv 2103.00020).

The text encoder is Stable Diffusion 1's: its states, one for each token, are what the U-Net looks at.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.models.clip_transformer import causal_mask, transformer_blocks
from course_utils.models.sizes import WIDEST, check_sizes


def check_encoder(config: CLIPTextConfig | CLIPVisionConfig) -> None:
    """Raise ValueError unless the sizes can be, and the heads divide the width."""
    check_sizes(config)
    if config.width % config.heads:
        raise ValueError(f"width must be a multiple of heads, got {config.width} and {config.heads}")


@dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes of the text encoder; the defaults are Stable Diffusion 1.5's (123 million parameters)."""

    vocab_size: int = 49408
    max_length: int = 77  # tokens in a text, start and end token included
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: int = 4  # hidden width of the MLP, in widths

    def __post_init__(self) -> None:
        check_encoder(self)


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of the picture encoder; the defaults are ViT-L/14's, which SD 1.5's text encoder was trained
    with."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        check_encoder(self)
        if self.image_size % self.patch_size:
            sizes = f"{self.image_size} and {self.patch_size}"
            raise ValueError(f"image_size must be a multiple of patch_size, got {sizes}")


@dataclass(frozen=True)
class CLIPConfig:
    """Both encoders, the width E of the space that they share, and ln(1 / temperature) to start from."""

    text: CLIPTextConfig = CLIPTextConfig()
    vision: CLIPVisionConfig = CLIPVisionConfig()
    embed_dim: int = 768
    logit_scale_init: float = math.log(1 / 0.07)

    def __post_init__(self) -> None:
        if type(self.embed_dim) is not int or not 1 <= self.embed_dim <= WIDEST:
            raise ValueError(f"embed_dim must be 1 or more, whole and at most {WIDEST:,}, got {self.embed_dim!r:.60}")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CLIPConfig:
        """The inverse of `to_dict`. Raises TypeError for a name that the config does not have."""
        text, vision = CLIPTextConfig(**values["text"]), CLIPVisionConfig(**values["vision"])
        return cls(**{**values, "text": text, "vision": vision})


class TextEncoder(nn.Module):
    """Token ids [B, L] -> states [B, L, D], one for each token, each of which knows the tokens up to its own.

    The states come after the final norm: they are what conditions the U-Net. Raises TypeError for ids that
    are not integers, ValueError for a wrong shape, more than `max_length` tokens, or an id outside the
    vocabulary.
    """

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)
        self.blocks = transformer_blocks(config.width, config.layers, config.heads, config.mlp_ratio)
        self.final_norm = nn.LayerNorm(config.width)
        # CLIP's own spreads, 0.02 and 0.01, suit months of training: beside the 0.4 that each block adds at the start,
        # such words are not heard, and the U-Net is given states that say little of their own word.
        nn.init.normal_(self.token_embedding.weight, std=1.0)
        nn.init.normal_(self.position_embedding.weight, std=0.5)

    def forward(self, ids: Tensor) -> Tensor:
        check_ids(ids, self.config)
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.position_embedding.weight[:length]  # [B, L, D]
        mask = causal_mask(length, ids.device)
        for block in self.blocks:
            x = block(x, mask)
        return self.final_norm(x)


def check_ids(ids: Tensor, config: CLIPTextConfig) -> None:
    """Raise TypeError or ValueError unless ids are integers [B, L] that such a text encoder can read."""
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        given = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"ids must be an int64 tensor (Tokenizer.encode makes one), got {given}")
    if ids.dim() != 2 or ids.numel() == 0:
        raise ValueError(f"ids must have shape [B, L] with at least one token, got {list(ids.shape)}")
    if ids.shape[1] > config.max_length:
        raise ValueError(f"the texts are {ids.shape[1]} tokens long, but max_length is {config.max_length}")
    # A GPU is not asked, for the answer would have to be waited for; meta tensors have no values to look at.
    if not ids.is_meta and not ids.is_cuda and (ids.min() < 0 or ids.max() >= config.vocab_size):
        span = f"{ids.min().item()} to {ids.max().item()}"
        raise ValueError(f"ids run from {span}, but the vocabulary has {config.vocab_size} tokens")


def pool_end(states: Tensor, ids: Tensor) -> Tensor:
    """The state at each text's first end token: states [B, L, D], ids [B, L] -> [B, D].

    Under a causal mask it is the first one that has read the whole text. The end token has the highest id
    of all, and argmax takes the first of equal maxima (as CLIP's own code does).
    """
    rows = torch.arange(len(ids), device=ids.device)
    return states[rows, ids.argmax(dim=1)]


def position_grid(side: int, width: int) -> Tensor:
    """[side², width]: sines and cosines of the column and of the row of each place in a square grid, row by row.

    `width // 4` frequencies, in equal ratios from 1 to 1/100 radian a step; what is left of the width stays zero.
    A start for learned position vectors: neighbours are alike, and the vectors are longer than the patches', so that
    they are heard beside them. Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, on two axes as in Beyer
    et al. 2022 (arXiv 2205.01580).
    """
    angles = torch.arange(side)[:, None] * torch.logspace(0, -2, max(1, width // 4))  # [side, width / 4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    column, row = waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)
    grid = torch.cat([column, row], dim=1)[:, :width]
    return F.pad(grid, (0, width - grid.shape[1]))


class VisionEncoder(nn.Module):
    """Pictures [B, 3, S, S] in [-1, 1] -> [B, D]: a vision transformer's normalised class token.

    The picture is cut into square patches, each becomes a token, and a learned class token that looks at
    all of them stands for the whole (Dosovitskiy et al. 2021, arXiv 2010.11929). `states` gives the
    patches' tokens too.
    """

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.config = config
        num_patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        patch = config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(num_patches + 1, config.width)
        self.pre_norm = nn.LayerNorm(config.width)
        self.blocks = transformer_blocks(config.width, config.layers, config.heads, config.mlp_ratio)
        self.post_norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.class_embedding, std=config.width**-0.5)
        grid = position_grid(config.image_size // patch, config.width)
        self.position_embedding.weight.data = torch.cat([torch.zeros(1, config.width), grid])

    def states(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 1 + patches, D]: the class token, then the patches row by row.

        Raises TypeError for pictures that are not floating-point, ValueError for a wrong shape or size.
        """
        check_images(images, self.config)
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)  # [B, patches, D]
        first = self.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.position_embedding.weight  # [B, 1 + patches, D]
        x = self.pre_norm(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        return self.post_norm(self.states(images)[:, 0])


def check_images(images: Tensor, config: CLIPVisionConfig) -> None:
    """Raise TypeError or ValueError unless images are floating-point [B, 3, image_size, image_size]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor in [-1, 1], got {given}")
    size = config.image_size
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise ValueError(f"images must have shape [B, 3, {size}, {size}], got {list(images.shape)}")


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Mean cross entropy of finding, within the batch, each picture's caption and each caption's picture.

    Args:
        image_features: [B, E] unit vectors.
        text_features: [B, E] unit vectors; row i belongs to picture i.
        logit_scale: scalar, ln(1 / temperature). The factor exp(logit_scale) is held at 100 at most
            (section 2.5).

    Returns:
        Scalar, nats; ln B for features that say nothing.

    Source: Radford et al. 2021 (CLIP), section 2.3 and figure 3.
    """
    if image_features.dim() != 2 or image_features.shape != text_features.shape:
        shapes = f"{list(image_features.shape)} and {list(text_features.shape)}"
        raise ValueError(f"image and text features must both have shape [B, E], got {shapes}")
    logits = logit_scale.exp().clamp(max=100) * image_features @ text_features.T  # [B pictures, B captions]
    partner = torch.arange(len(logits), device=logits.device)  # the right answers lie on the diagonal
    loss_images = F.cross_entropy(logits, partner)  # a row: one picture, all captions
    loss_texts = F.cross_entropy(logits.T, partner)  # a column: one caption, all pictures
    return (loss_images + loss_texts) / 2


def zero_shot(image_features: Tensor, text_features: Tensor, scale: float | Tensor = 100.0) -> Tensor:
    """Classify pictures by K captions: unit vectors [B, E] and [K, E] -> probabilities [B, K].

    `scale` is 1 / temperature; 100 is where CLIP's own training ended. Source: CLIP, section 3.1.2.
    """
    both_2d = image_features.dim() == text_features.dim() == 2
    if not both_2d or image_features.shape[1] != text_features.shape[1]:
        shapes = f"{list(image_features.shape)} and {list(text_features.shape)}"
        raise ValueError(f"features must have shapes [B, E] and [K, E], got {shapes}")
    return (scale * image_features @ text_features.T).softmax(dim=-1)


class CLIP(nn.Module):
    """Both encoders, each with a linear map into the space that they share, and the learned temperature.

    `text` and `vision` are the encoders. `forward` is `similarity`.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.text = TextEncoder(config.text)
        self.vision = VisionEncoder(config.vision)
        self.text_projection = nn.Linear(config.text.width, config.embed_dim, bias=False)
        self.image_projection = nn.Linear(config.vision.width, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init))
        nn.init.normal_(self.text_projection.weight, std=config.text.width**-0.5)
        nn.init.normal_(self.image_projection.weight, std=config.vision.width**-0.5)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids [B, L] -> unit vectors [B, E]."""
        return F.normalize(self.text_projection(pool_end(self.text(ids), ids)), dim=-1)

    def encode_image(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] in [-1, 1] -> unit vectors [B, E]."""
        return F.normalize(self.image_projection(self.vision(images)), dim=-1)

    def similarity(self, images: Tensor, ids: Tensor) -> Tensor:
        """Logits [pictures, texts]: the cosine of each picture with each text, times exp(logit_scale)."""
        scale = self.logit_scale.exp().clamp(max=100)
        return scale * self.encode_image(images) @ self.encode_text(ids).T

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        return self.similarity(images, ids)
