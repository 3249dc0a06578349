"""The perfect denoiser of a Gaussian mixture, in closed form: what a trained network is measured against.

Pick k with probability w_k and x_0 ~ N(μ_k, s_k² I). Let x_t = √ᾱ x_0 + √(1 − ᾱ) ε, d_k = x_t − √ᾱ μ_k.
 1. Given k, x_t ~ N(√ᾱ μ_k, v_k I) with v_k = ᾱ s_k² + 1 − ᾱ, as a sum of independent Gaussians.
 2. So k's share in x_t is r_k = softmax_k(log w_k − ‖d_k‖² / 2v_k − (D/2) log v_k), by Bayes' rule.
 3. Given k, all is jointly Gaussian, with Cov(x_0, x_t) = √ᾱ s_k² I and Cov(ε, x_t) = √(1 − ᾱ) I.
 4. So E[x_0 | x_t, k] = μ_k + √ᾱ s_k² / v_k · d_k  and  E[ε | x_t, k] = √(1 − ᾱ) / v_k · d_k.
 5. E[· | x_t] = Σ_k r_k E[· | x_t, k], the guess of least squared error. The score is −E[ε | x_t] / √(1 − ᾱ).
"""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.diffusion.reverse import Denoiser, check_prediction_type, target
from course_utils.diffusion.schedule import NoiseSchedule, check_inputs


def gaussian_mixture_denoiser(
    schedule: NoiseSchedule,
    means: Tensor,
    std: float | Tensor,
    weights: Tensor | None = None,
    prediction_type: str = "epsilon",
) -> Denoiser:
    """The denoiser with the least squared error on mixture data: E[noise | x_t], E[x_0 | x_t] or E[v | x_t].

    Args:
        means: centres [K, D].
        std: standard deviation of each component, one number or [K]; 0 makes the centres a finite data
            set, and the denoiser one that knows it by heart.
        weights: [K], 0 or above, normalised here; equal if None.

    Returns (x_t [B, …] with D elements a sample, t) -> prediction of x_t's shape. Raises ValueError for
    shapes that do not fit. The derivation is at the top of this module.
    """
    std, weights = check_mixture(means, std, weights)
    check_prediction_type(prediction_type)

    def denoise(x_t: Tensor, t: int | Tensor) -> Tensor:
        t = check_inputs(schedule, t, x_t=x_t)
        x = x_t.flatten(1)[:, None, :]  # [B, 1, D]
        if x.shape[2] != means.shape[1]:
            raise ValueError(f"x_t has {x.shape[2]} elements a sample, the means have D = {means.shape[1]}")
        centres, spread = means.to(x)[None], std.to(x).square()[None, :, None]  # [1, K, D], [1, K, 1]
        alpha_bar = schedule.alpha_bar(t, like=x)  # [B, 1, 1]
        variance = alpha_bar * spread + 1 - alpha_bar  # [B, K, 1]
        offset = x - alpha_bar.sqrt() * centres  # [B, K, D]
        log_share = weights.to(x).log()[None, :, None] - 0.5 * x.shape[2] * variance.log()
        log_share = log_share - 0.5 * (offset**2).sum(dim=2, keepdim=True) / variance
        share = log_share.softmax(dim=1)  # [B, K, 1]
        x_0 = (share * (centres + alpha_bar.sqrt() * spread / variance * offset)).sum(dim=1)  # [B, D]
        noise = (share * (1 - alpha_bar).sqrt() / variance * offset).sum(dim=1)  # [B, D]
        prediction = target(schedule, x_0, t, noise, prediction_type)  # linear, so of means it is the mean
        return prediction.reshape(x_t.shape)

    return denoise


def gaussian_mixture_sample(
    means: Tensor, std: float | Tensor, n: int, generator: torch.Generator, weights: Tensor | None = None
) -> Tensor:
    """n draws of x_0 from the mixture, [n, D]; arguments as in `gaussian_mixture_denoiser`."""
    std, weights = check_mixture(means, std, weights)
    weights = weights.to(generator.device)
    chosen = torch.multinomial(weights, n, replacement=True, generator=generator).to(means.device)  # [n]
    noise = torch.randn(n, means.shape[1], generator=generator, device=generator.device).to(means)
    return means[chosen] + std.to(means)[chosen, None] * noise  # [n, D]


def check_mixture(means: Tensor, std: float | Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """std and weights as [K], the weights summing to 1; ValueError if they do not fit the means [K, D]."""
    if means.ndim != 2 or len(means) == 0:
        raise ValueError(f"means must have shape [K, D], got {list(means.shape)}")
    count = len(means)
    std = torch.as_tensor(std, dtype=means.dtype, device=means.device)
    if std.ndim > 1 or (std.ndim == 1 and len(std) != count) or not bool((std >= 0).all()):
        raise ValueError(
            f"std must be 0 or above, one number or one for each of the {count} means, got {std.tolist()}"
        )
    weights = torch.ones(count) if weights is None else torch.as_tensor(weights)
    weights = weights.to(means)
    if weights.shape != (count,) or not bool((weights >= 0).all()) or not bool(weights.sum() > 0):
        raise ValueError(f"weights must be {count} numbers, 0 or above and not all 0, got {weights.tolist()}")
    return std.expand(count), weights / weights.sum()
