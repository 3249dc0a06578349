"""DPM-Solver++ (2M): a second-order solver of the sampling ODE, at one network call a step (Lu et al. 2022).

Write α = √ᾱ, σ = √(1 − ᾱ), and λ = log(α / σ), half the logarithm of the signal-to-noise ratio; λ grows while
the picture forms. With the guess x̂_0 as a function of λ, the exact solution over a step from t to t_prev is

    x_prev = σ_prev / σ_t · x_t + σ_prev ∫ e^λ x̂_0(λ) dλ        (arXiv 2211.01095, proposition 4.1)

 1. If x̂_0 were constant over the step, the integral would be (e^λ_prev − e^λ_t) x̂_0, and so
    x_prev = σ_prev / σ_t · x_t + α_prev (1 − e^−h) x̂_0  with h = λ_prev − λ_t. That is DDIM: order 1.
 2. x̂_0 changes, and the step before has left a second value of it. On the line through the two, half a step ahead,
    lies x̂_0 + h / 2h_last · (x̂_0 − x̂_0,last), where h_last is the length of the step before. In x̂_0's place in 1
    it gives order 2 (algorithm 2 of the paper).

It is x̂_0 that is held fixed or extended, and not the noise, since x_t then keeps the factor σ_prev / σ_t < 1, which
shrinks what earlier steps got wrong (with the noise it is α_prev / α_t > 1, and strong guidance makes much wrong:
section 3 of the paper), and since the last step, into λ = ∞, ends in x̂_0 itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.diffusion.reverse import check_t_prev, predict_x0
from course_utils.diffusion.schedule import NoiseSchedule, check_count, check_inputs


def half_log_snr(schedule: NoiseSchedule, t: int | Tensor, like: Tensor | None = None) -> Tensor:
    """λ_t = log(√ᾱ_t / √(1 − ᾱ_t)) for t in −1 … T−1; infinite at −1, where no noise is left."""
    return 0.5 * schedule.snr(t, like).log()


def log_snr_timesteps(schedule: NoiseSchedule, n: int, lowest: float = -4.0, highest: float = 3.5) -> Tensor:
    """About n times whose λ lie evenly, falling from T−1, LongTensor: a solver of order 2 does best on such steps.

    λ is kept within lowest … highest, a range a little wider than that of Stable Diffusion's schedule. A cosine
    schedule goes far beyond both, where x_t is all noise or all picture and steps are wasted (diffusers clips λ for
    it, too: ``lambda_min_clipped``). Where two of the n fall on the same time, one is left out.

    Raises ValueError if n is not in 2 … T, or lowest is not below highest.
    """
    check_count("n (the number of inference steps)", n, schedule.num_train_timesteps)
    if n < 2 or not lowest < highest:
        raise ValueError(f"wanted 2 steps or more and lowest below highest, got {n}, {lowest} and {highest}")
    table = half_log_snr(schedule, torch.arange(schedule.num_train_timesteps))  # [T], falling
    wanted = torch.linspace(max(lowest, table[-1].item()), min(highest, table[0].item()), n)  # [n]
    nearest = (table[None].cpu() - wanted[:, None]).abs().argmin(dim=1)
    nearest[0] = schedule.num_train_timesteps - 1
    return torch.unique(nearest).flip(0)


def dpmpp_2m_step(
    schedule: NoiseSchedule,
    prediction: Tensor,
    x_t: Tensor,
    t: int | Tensor,
    t_prev: int | Tensor,
    last: tuple[Tensor, int | Tensor] | None = None,
    prediction_type: str = "epsilon",
) -> Tensor:
    """One step of DPM-Solver++ (2M) from t back to t_prev, without fresh noise.

    Lu et al. 2022 (arXiv 2211.01095), algorithm 2: of second order with `last`, of first order (DDIM) without it,
    and into t_prev = −1, where λ is infinite and no line reaches (diffusers: ``final_sigmas_type="zero"``).

    Args:
        last: the x_0 [B, …] that the step before guessed, and its time, above t. None at the first step.

    Returns x at t_prev [B, …]. Raises ValueError for bad times or shapes.
    """
    t = check_inputs(schedule, t, x_t=x_t, prediction=prediction)
    t_prev = check_t_prev(schedule, t, t_prev)
    x_0 = predict_x0(schedule, x_t, t, prediction, prediction_type)
    here, there = half_log_snr(schedule, t, x_t), half_log_snr(schedule, t_prev, x_t)  # λ, [B, 1, 1, 1]
    h = there - here
    if last is not None:
        x_0_last, t_last = last
        t_last = check_inputs(schedule, t_last, x_t=x_t, last_x_0=x_0_last)
        if bool((t_last <= t).any()):
            raise ValueError(f"last must be of a time above t = {t.tolist()}, got {t_last.tolist()}")
        h_last = here - half_log_snr(schedule, t_last, x_t)
        x_0 = x_0 + torch.where(h.isinf(), 0.0, h / (2 * h_last)) * (x_0 - x_0_last)
    alpha_bar, alpha_bar_prev = schedule.alpha_bar(t, like=x_t), schedule.alpha_bar(t_prev, like=x_t)
    shrink = ((1 - alpha_bar_prev) / (1 - alpha_bar)).sqrt()  # σ_prev / σ_t
    return (shrink * x_t - alpha_bar_prev.sqrt() * torch.expm1(-h) * x_0).to(x_t.dtype)
