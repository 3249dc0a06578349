"""The variational autoencoder: pictures [B, 3, H, W] to latents [B, 4, H/8, W/8] and back.

Stable Diffusion's own first stage (Rombach et al. 2022, arXiv 2112.10752, appendix G), block for block, with the
sizes in `VAEConfig`. The idea of a variational autoencoder is Kingma & Welling 2013 (arXiv 1312.6114).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.models.layers import (
    Downsample,
    ResidualBlock,
    Upsample,
    attention,
    init_convolutions,
    to_picture,
    to_tokens,
)
from course_utils.models.sizes import as_levels, check_sizes


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of a VAE. `VAEConfig.sd15()` has Stable Diffusion 1.5's numbers."""

    channels: tuple[int, ...] = (16, 32, 64, 128)  # one level each; every level but the last halves the side
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_groups: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", as_levels("channels", self.channels))
        check_sizes(self)
        if any(c % self.norm_groups for c in self.channels):
            raise ValueError(f"each of channels={self.channels} must be a multiple of norm_groups={self.norm_groups}")

    @property
    def factor(self) -> int:
        """How many pixels of a side become one latent: 8 with four levels."""
        return 2 ** (len(self.channels) - 1)

    @classmethod
    def sd15(cls) -> VAEConfig:
        return cls(channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, norm_groups=32)


class SelfAttention2d(nn.Module):
    """One-headed attention between all pixels of a feature map, added to its input: [B, C, h, w] -> the same."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, 1e-6)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_tokens(self.norm(x))  # [B, h·w, C]
        mixed = attention(self.query(tokens), self.key(tokens), self.value(tokens))
        return x + to_picture(self.out(mixed), *x.shape[-2:])


class Middle(nn.Module):
    """The bottom of the encoder and of the decoder, where every pixel can look at every other."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block1 = ResidualBlock(channels, channels, groups)
        self.attention = SelfAttention2d(channels, groups)
        self.block2 = ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(self.attention(self.block1(x)))


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] to the moments of a Gaussian over latents, [B, 2 · latent_channels, H/8, W/8]."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = config.channels, config.norm_groups
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.levels = nn.ModuleList()
        width = channels[0]
        for i, out in enumerate(channels):
            blocks = nn.Sequential()
            for _ in range(config.layers_per_block):
                blocks.append(ResidualBlock(width, out, groups))
                width = out
            last = i == len(channels) - 1
            resample = nn.Identity() if last else Downsample(out, asymmetric=True)
            self.levels.append(nn.ModuleDict({"blocks": blocks, "resample": resample}))
        self.middle = Middle(width, groups)
        self.norm_out = nn.GroupNorm(groups, width, 1e-6)
        self.conv_out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.levels:
            x = level["resample"](level["blocks"](x))
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Latents [B, latent_channels, h, w] to pictures [B, 3, 8h, 8w]: the encoder's mirror, one block a level deeper."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        channels, groups = config.channels[::-1], config.norm_groups
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.middle = Middle(channels[0], groups)
        self.levels = nn.ModuleList()
        width = channels[0]
        for i, out in enumerate(channels):
            blocks = nn.Sequential()
            for _ in range(config.layers_per_block + 1):
                blocks.append(ResidualBlock(width, out, groups))
                width = out
            last = i == len(channels) - 1
            resample = nn.Identity() if last else Upsample(out)
            self.levels.append(nn.ModuleDict({"blocks": blocks, "resample": resample}))
        self.norm_out = nn.GroupNorm(groups, width, 1e-6)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level["resample"](level["blocks"](x))
        return self.conv_out(F.silu(self.norm_out(x)))


def reparameterise(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """A sample of N(mean, exp(log_variance)) as a differentiable function of its parameters.

    Args:
        mean, log_variance, noise: tensors of one shape; `noise` is standard normal.

    Returns:
        mean + σ · noise with σ = exp(log_variance / 2), the same shape.

    Source: Kingma & Welling 2013 (arXiv 1312.6114), section 2.4.
    """
    return mean + torch.exp(0.5 * log_variance) * noise


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL( N(mean, exp(log_variance)) ‖ N(0, 1) ) of each picture, in nats.

    Args:
        mean, log_variance: [B, ...]; dimensions are independent, so their divergences add up.

    Returns:
        [B], zero or more.

    Source: Kingma & Welling 2013 (arXiv 1312.6114), appendix B.
    """
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).flatten(1).sum(dim=1)


class DiagonalGaussian:
    """What the encoder says of a picture: a mean and a variance for each latent number.

    Args:
        moments: [B, 2 · C, h, w], means in the first half of the channels, log-variances in the second.
    """

    def __init__(self, moments: Tensor):
        exact = torch.promote_types(moments.dtype, torch.float32)  # exp() in half precision would be coarse
        self.mean, log_variance = moments.to(exact).chunk(2, dim=1)
        self.log_variance = log_variance.clamp(-30.0, 20.0)  # exp() stays finite, as in Stable Diffusion

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One latent for each picture, [B, C, h, w]; gradients reach the encoder."""
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device)  # drawn where the generator lives
        return reparameterise(self.mean, self.log_variance, noise.to(self.mean.device))

    def mode(self) -> Tensor:
        """The most likely latent, [B, C, h, w]: the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """Divergence from the standard normal prior, [B], in nats."""
        return kl_to_standard_normal(self.mean, self.log_variance)


class VAE(nn.Module):
    """Encoder, decoder and the number that makes latents unit-sized.

    `latent_scale` is 1 until it is measured on data (`measure_latent_scale`); Stable Diffusion 1.x ships 0.18215.
    """

    latent_scale: Tensor

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.decoder = Decoder(config)
        self.register_buffer("latent_scale", torch.tensor(1.0))
        init_convolutions(self)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """The Gaussian over latents of each picture.

        Args:
            x: [B, 3, H, W] float in [-1, 1]; H and W multiples of `config.factor`.

        Raises:
            ValueError: another shape. TypeError: pictures that are not floating point.
        """
        f = self.config.factor
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % f or x.shape[3] % f:
            raise ValueError(f"pictures must be [B, 3, H, W] with H and W multiples of {f}, got {list(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"pictures must be floating point in [-1, 1], got {x.dtype}: use x.float() / 127.5 - 1")
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Pictures [B, 3, 8h, 8w], about in [-1, 1], from unscaled latents [B, C, h, w].

        Raises:
            ValueError: another number of channels or dimensions.
        """
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise ValueError(f"latents must be [B, {self.config.latent_channels}, h, w], got {list(z.shape)}")
        return self.decoder(self.post_quant_conv(z))

    def to_latents(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pictures to scaled latents, as the diffusion model sees them; a sample with a generator, else the mean.

        In the pictures' own precision, so that `from_latents` can take them back.
        """
        gaussian = self.encode(x)
        z = gaussian.mode() if generator is None else gaussian.sample(generator)
        return (z * self.latent_scale).to(x.dtype)

    def from_latents(self, z: Tensor) -> Tensor:
        """Scaled latents to pictures."""
        return self.decode(z / self.latent_scale)


def vae_loss(x: Tensor, reconstruction: Tensor, kl: Tensor, beta: float) -> Tensor:
    """The negative evidence lower bound of a VAE, up to a factor and a constant: squared error + β · KL.

    With a decoder N(reconstruction, σ²) over each of the D numbers of a picture, −ELBO = ‖x − x̂‖² / 2σ² + KL + const;
    multiplied by 2σ²/D that is the mean squared error plus β · KL / D with β = 2σ².

    Args:
        x, reconstruction: [B, ...] pictures.
        kl: [B] nats a picture.
        beta: 2σ², zero for a plain autoencoder.

    Returns:
        A scalar, the mean over the batch.

    Source: Kingma & Welling 2013 (arXiv 1312.6114), eq. 7; the weight: Higgins et al. 2017 (β-VAE), eq. 4.
    """
    numbers_per_picture = x[0].numel()
    error = (x - reconstruction).pow(2).mean()
    return error + beta * kl.mean() / numbers_per_picture


def measure_latent_scale(latents: Tensor) -> float:
    """1 / standard deviation of unscaled latents (any shape): times this, they have unit variance.

    Source: Rombach et al. 2022 (arXiv 2112.10752), appendix G, "rescale the latent".
    """
    if latents.numel() < 2:
        raise ValueError(f"a scale needs two numbers or more, got latents of shape {list(latents.shape)}")
    return 1.0 / latents.std().item()
