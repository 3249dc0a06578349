"""The U-Net: noisy latents, a timestep and a text to a prediction of the noise.

Stable Diffusion's own denoiser (Rombach et al. 2022, arXiv 2112.10752, appendix E; after Ho et al. 2020, Dhariwal &
Nichol 2021), block for block, with the sizes in `UNetConfig`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.models.layers import Downsample, ResidualBlock, Upsample, init_convolutions
from course_utils.models.sizes import as_levels, check_sizes
from course_utils.models.transformer import SpatialTransformer


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a U-Net. `UNetConfig.sd15()` has Stable Diffusion 1.5's numbers."""

    channels: tuple[int, ...] = (128, 128)  # one level each; every level but the last halves the side
    attention: tuple[bool, ...] = (False, True)  # which levels look at the text
    layers_per_block: int = 1
    heads: int = 4
    context_width: int = 128  # diffusers calls it cross_attention_dim
    latent_channels: int = 4
    norm_groups: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", as_levels("channels", self.channels))
        object.__setattr__(self, "attention", as_levels("attention", self.attention, bool))
        if len(self.channels) != len(self.attention):
            raise ValueError(f"one entry a level is wanted: channels={self.channels}, attention={self.attention}")
        check_sizes(self)
        if any(c % self.norm_groups or c % self.heads for c in self.channels):
            raise ValueError(
                f"each of channels={self.channels} must be a multiple of norm_groups={self.norm_groups} "
                f"and of heads={self.heads}"
            )

    @property
    def factor(self) -> int:
        """Latent sides must be multiples of this, so that each level halves them evenly."""
        return 2 ** (len(self.channels) - 1)

    @classmethod
    def sd15(cls) -> UNetConfig:
        return cls(
            channels=(320, 640, 1280, 1280),
            attention=(True, True, True, False),
            layers_per_block=2,
            heads=8,
            context_width=768,
        )


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """A timestep as a vector of slow and fast waves, cosines first: [cos(t ω₀) … cos(t ω_k), sin(t ω₀) … sin(t ω_k)].

    Args:
        t: [B] timesteps, whole numbers or not.
        dim: an even width; ω_i = 10000^(−i / (dim/2)), i = 0 … dim/2 − 1.

    Returns:
        [B, dim] float32 in [-1, 1].

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5; the order is Stable Diffusion's.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device) / half)  # [dim / 2]
    angles = t.float()[:, None] * frequencies[None, :]  # [B, dim / 2]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeMLP(nn.Module):
    """Timesteps [B] to the embedding that every residual block reads, [B, 4 · width]."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, 4 * width)

    def forward(self, t: Tensor) -> Tensor:
        waves = timestep_embedding(t, self.width).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(waves)))


class Level(nn.Module):
    """One resolution on the way down or up: residual blocks, each followed by a look at the text where the level has
    attention, then a change of resolution where there is one."""

    def __init__(self, widths: list[tuple[int, int]], attends: bool, resample: nn.Module | None, config: UNetConfig):
        super().__init__()
        out, time = widths[-1][1], 4 * config.channels[0]
        self.blocks = nn.ModuleList(ResidualBlock(i, o, config.norm_groups, time, eps=1e-5) for i, o in widths)
        self.transformers = nn.ModuleList(
            SpatialTransformer(out, config.heads, config.context_width, config.norm_groups)
            for _ in (widths if attends else [])
        )
        self.resample = resample

    def layer(self, i: int, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        x = self.blocks[i](x, time)
        return self.transformers[i](x, context) if self.transformers else x


def unet_forward(unet: UNet, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """The way through a U-Net: in, down, middle, up, out; its parts are attributes of `unet`.

    Args:
        x_t: [B, latent_channels, h, w] noisy latents.
        t: [B] timesteps.
        context: [B, L, context_width], the text encoder's states.

    Returns:
        The prediction, shaped as x_t.

    Source: Ronneberger et al. 2015 (arXiv 1505.04597), figure 1; the order is Stable Diffusion's.
    """
    time = unet.time_mlp(t)  # [B, 4 · channels[0]]
    x = unet.conv_in(x_t)
    skips = [x]
    for level in unet.down:
        for i in range(len(level.blocks)):
            x = level.layer(i, x, time, context)
            skips.append(x)
        if level.resample is not None:
            x = level.resample(x)
            skips.append(x)
    x = unet.middle_block1(x, time)
    x = unet.middle_transformer(x, context)
    x = unet.middle_block2(x, time)
    for level in unet.up:
        for i in range(len(level.blocks)):
            x = level.layer(i, torch.cat([x, skips.pop()], dim=1), time, context)
        if level.resample is not None:
            x = level.resample(x)
    return unet.conv_out(F.silu(unet.norm_out(x)))


class UNet(nn.Module):
    """ε̂ = UNet(x_t, t, context): what is noise in x_t, given the step t and the text.

    On the way down each feature map is put aside; on the way up it is joined to the map of the same size, so that fine
    detail does not have to pass through the narrow middle.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels, layers = config.channels, config.layers_per_block
        time = 4 * channels[0]
        self.time_mlp = TimeMLP(channels[0])
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)

        width, skips = channels[0], [channels[0]]  # the widths of the maps put aside
        self.down = nn.ModuleList()
        for i, out in enumerate(channels):
            widths = [(width if j == 0 else out, out) for j in range(layers)]
            last = i == len(channels) - 1
            self.down.append(Level(widths, config.attention[i], None if last else Downsample(out), config))
            skips += [out] * (layers if last else layers + 1)
            width = out

        self.middle_block1 = ResidualBlock(width, width, config.norm_groups, time, eps=1e-5)
        self.middle_transformer = SpatialTransformer(width, config.heads, config.context_width, config.norm_groups)
        self.middle_block2 = ResidualBlock(width, width, config.norm_groups, time, eps=1e-5)

        self.up = nn.ModuleList()
        for i in reversed(range(len(channels))):
            out = channels[i]
            widths = [((width if j == 0 else out) + skips.pop(), out) for j in range(layers + 1)]
            self.up.append(Level(widths, config.attention[i], Upsample(out) if i > 0 else None, config))
            width = out

        self.norm_out = nn.GroupNorm(config.norm_groups, width, 1e-5)
        self.conv_out = nn.Conv2d(width, config.latent_channels, 3, padding=1)
        init_convolutions(self)

    def forward(self, x_t: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        """Args:
            x_t: [B, latent_channels, h, w] noisy latents.
            t: [B] timesteps, or one for all.
            context: [B, L, context_width], the text encoder's states.

        Returns:
            The prediction, shaped as x_t.

        Raises:
            ValueError: shapes that do not fit the config or one another.
        """
        return unet_forward(self, x_t, self._checked(x_t, t, context), context)

    def _checked(self, x_t: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        c, f = self.config, self.config.factor
        if x_t.ndim != 4 or x_t.shape[1] != c.latent_channels or x_t.shape[2] % f or x_t.shape[3] % f:
            raise ValueError(
                f"x_t must be [B, {c.latent_channels}, h, w] with h and w multiples of {f}, got {list(x_t.shape)}"
            )
        if context.ndim != 3 or context.shape[0] != len(x_t) or context.shape[2] != c.context_width:
            raise ValueError(f"context must be [B={len(x_t)}, L, {c.context_width}], got {list(context.shape)}")
        t = torch.as_tensor(t, device=x_t.device)
        if t.ndim > 1 or (t.ndim == 1 and len(t) != len(x_t)):
            raise ValueError(f"t must be one timestep or [B={len(x_t)}] of them, got shape {list(t.shape)}")
        return t.expand(len(x_t))
