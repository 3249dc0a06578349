"""A critic that tells pictures from their copies, patch by patch, and the losses by which it and a decoder contend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchCritic(nn.Module):
    """Pictures [B, 3, H, W] to one score for each patch, [B, 1, H/4, W/4]: above 0 it says "real", below "copy".

    A score sees 26 × 26 pixels, because only convolutions lead to it. Source: Isola et al. 2017 (arXiv 1611.07004),
    section 3.2.2 ("PatchGAN"); ours is smaller and has no norms.
    """

    def __init__(self, channels: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 4, stride=2, padding=1),  # each number sees 4 × 4 pixels
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),  # 10 × 10
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1),  # 18 × 18
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, 1, 3, padding=1),  # 26 × 26
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def hinge_loss(real: Tensor, copy: Tensor) -> Tensor:
    """What the critic minimises, a scalar: its scores of real pictures should be above 1, those of copies below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + copy).mean())


def adaptive_weight(similar: Tensor, fool: Tensor, last: Tensor) -> Tensor:
    """The weight at which the loss `fool` pulls at the weights `last` as strongly as the loss `similar` does.

    Both are scalars that depend on `last`, the weights of the decoder's last layer; their graphs are kept. No gradient
    flows through the weight, and it is 10,000 at most.

    Source: Esser et al. 2021 (arXiv 2012.09841), section 3.1, λ.
    """
    strengths = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (similar, fool)]
    return (strengths[0] / (strengths[1] + 1e-6)).clamp(max=1e4).detach()
