"""Three small networks for notebooks 02 and 03, each told (or asked for) the noise level in the simplest way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.models.layers import ResidualBlock
from course_utils.models.vae import SelfAttention2d


class NoiseReader(nn.Module):
    """Reads the noise level off a noisy latent: [B, C, h, w] -> [B], an estimate of t / T.

    Convolutions, then the mean over all pixels: the noise level is the same everywhere.
    """

    def __init__(self, latent_channels: int = 4, width: int = 64, groups: int = 8):
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.block1 = ResidualBlock(width, width, groups)
        self.block2 = ResidualBlock(width, width, groups)
        self.out = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, x_t: Tensor) -> Tensor:
        x = self.block2(self.block1(self.conv_in(x_t)))
        return self.out(x.mean(dim=(2, 3)))[:, 0]


class ToyDenoiser(nn.Module):
    """A denoiser of points in the plane: (x_t [B, 2], t [B]) -> [B, 2].

    The step comes in through a table with one learned row for each t, added to the hidden layer.
    """

    def __init__(self, num_train_timesteps: int, width: int = 128):
        super().__init__()
        self.time = nn.Embedding(num_train_timesteps, width)
        self.point = nn.Linear(2, width)
        self.hidden1 = nn.Linear(width, width)
        self.hidden2 = nn.Linear(width, width)
        self.out = nn.Linear(width, 2)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        h = F.silu(self.point(x_t) + self.time(t))
        h = h + F.silu(self.hidden1(h))
        h = h + F.silu(self.hidden2(h))
        return self.out(h)


class LatentDenoiser(nn.Module):
    """An unconditional denoiser of latents: (x_t [B, C, h, w], t [B]) -> [B, C, h, w].

    Residual blocks at one resolution with attention between all pixels in the middle, told the step by a learned table.
    """

    def __init__(self, num_train_timesteps: int, latent_channels: int = 4, width: int = 96, groups: int = 8):
        super().__init__()
        self.time = nn.Embedding(num_train_timesteps, width)
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.block1 = ResidualBlock(width, width, groups, time_channels=width)
        self.block2 = ResidualBlock(width, width, groups, time_channels=width)
        self.attention = SelfAttention2d(width, groups)
        self.block3 = ResidualBlock(width, width, groups, time_channels=width)
        self.block4 = ResidualBlock(width, width, groups, time_channels=width)
        self.norm_out = nn.GroupNorm(groups, width)
        self.conv_out = nn.Conv2d(width, latent_channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        time = self.time(torch.as_tensor(t, device=x_t.device).expand(len(x_t)))
        x = self.conv_in(x_t)
        x = self.block2(self.block1(x, time), time)
        x = self.attention(x)
        x = self.block4(self.block3(x, time), time)
        return self.conv_out(F.silu(self.norm_out(x)))
