"""What the checks of notebook 03 share: right answers in float64, out of the betas alone."""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.diffusion.schedule import NoiseSchedule

SHAPE = (3, 4, 5, 4)  # [B, C, h, w]; w is not B, so that a factor [B] set against the last axis fails


def short_schedule() -> NoiseSchedule:
    return NoiseSchedule.linear(20, 0.02, 0.3)


def alpha_bar(schedule: NoiseSchedule, t: Tensor, like: Tensor) -> Tensor:
    """ᾱ_t in float64, [B, 1, 1, 1]; 1 at t = −1. From the betas, so that a wrong table would be found, too."""
    table = torch.cat([torch.ones(1, dtype=torch.float64), (1 - schedule.betas.double()).cumprod(0)])
    return table[t + 1].reshape(-1, *[1] * (like.ndim - 1))


def true_posterior(
    schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor
) -> tuple[Tensor, Tensor]:
    """The product of q(x_prev | x_0) and q(x_t | x_prev) as functions of x_prev: precisions add up."""
    bar, bar_prev = alpha_bar(schedule, t, x_t), alpha_bar(schedule, t_prev, x_t)
    alpha = bar / bar_prev
    precision = 1 / (1 - bar_prev) + alpha / (1 - alpha)
    mean = (bar_prev.sqrt() * x_0.double() / (1 - bar_prev) + alpha.sqrt() * x_t.double() / (1 - alpha)) / precision
    return mean, 1 / precision
