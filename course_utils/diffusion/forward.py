"""The forward process q: from a picture to noise, one step at a time or in one jump. Nothing here is learned.

Results have x's dtype; the factors are worked out in float32.
"""

from __future__ import annotations

from torch import Tensor

from course_utils.diffusion.schedule import NoiseSchedule, check_inputs


def forward_step(schedule: NoiseSchedule, x_prev: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
    """One step of the Markov chain: x_t = √(1 − β_t) · x_{t−1} + √β_t · noise (Ho et al. 2020, equation 2).

    Args:
        x_prev: x_{t−1} [B, …]; for t = 0 that is the clean x_0.
        t: the step taken, in 0 … T−1, an int or a LongTensor [B].
        noise: standard normal, x_prev's shape.

    Returns x_t [B, …]. Raises ValueError for a t out of range or shapes that differ.
    """
    t = check_inputs(schedule, t, x_prev=x_prev, noise=noise)
    beta = schedule.beta(t, like=x_prev)  # [B, 1, 1, 1]
    x_t = (1 - beta).sqrt() * x_prev + beta.sqrt() * noise
    return x_t.to(x_prev.dtype)


def add_noise(schedule: NoiseSchedule, x_0: Tensor, t: int | Tensor, noise: Tensor) -> Tensor:
    """All steps up to t at once: x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · noise (Ho et al. 2020, equation 4).

    Args:
        x_0: clean pictures or latents [B, …].
        t: how far to go, in 0 … T−1, an int or a LongTensor [B].
        noise: standard normal, x_0's shape.

    Returns x_t [B, …]. Raises ValueError for a t out of range or shapes that differ.
    """
    t = check_inputs(schedule, t, x_0=x_0, noise=noise)
    alpha_bar = schedule.alpha_bar(t, like=x_0)  # [B, 1, 1, 1]
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
    return x_t.to(x_0.dtype)
