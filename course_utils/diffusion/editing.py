"""Small pieces that turn a sampler into an editor: where to start, what to keep, how to walk between two noises."""

from __future__ import annotations

import torch
from torch import Tensor


def strength_timesteps(timesteps: Tensor, strength: float) -> Tensor:
    """The part of a sampling schedule that image-to-image runs: the last `strength` of it.

    Args:
        timesteps: [n], falling.
        strength: 0 keeps the picture as it is (no step is left), 1 starts from pure noise (all of them).

    Returns:
        [round(strength · n)] timesteps; the picture is noised to the first of them.

    Raises:
        ValueError: strength outside [0, 1].

    Source: Meng et al. 2021 (SDEdit, arXiv 2108.01073), algorithm 1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    steps = round(strength * len(timesteps))
    return timesteps[len(timesteps) - steps :]


def inpaint_blend(x_t: Tensor, known_t: Tensor, mask: Tensor) -> Tensor:
    """Keep what is known: the sampler's x_t where `mask` is 1, the known picture at the same noise level where it is 0.

    Args:
        x_t, known_t: [B, C, h, w].
        mask: broadcastable to them, 1 where something new is wanted.

    Source: Lugmayr et al. 2022 (RePaint, arXiv 2201.09865), eq. 8.
    """
    return mask * x_t + (1 - mask) * known_t


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation from `a` (weight 0) to `b` (weight 1) along the arc between them.

    Gaussian noise of n numbers has length about √n; a straight line between two noises passes through shorter vectors,
    which no sampler ever starts from. The arc keeps the length.

    Args:
        a, b: [...] of one shape, treated as one long vector each.
        weight: in [0, 1].

    Source: Shoemake 1985 (doi 10.1145/325334.325242), section 3.3.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle < 1e-4:  # parallel: the arc is a line
        return (1 - weight) * a + weight * b
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)
