"""The way back: what a network predicts, the posterior it stands in for, and the bound that training lowers.

A denoiser is any callable (x_t, t: LongTensor [B]) -> prediction [B, …]. What it predicts has three names:
"epsilon" (the noise), "sample" (x_0) and "v_prediction" (√ᾱ · noise − √(1 − ᾱ) · x_0). With x_t known,
each of them gives the other two. Sums are in float32 even where the tensors are in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course_utils.diffusion.forward import add_noise
from course_utils.diffusion.schedule import NoiseSchedule, check_inputs

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
VARIANCE_TYPES = ("fixed_small", "fixed_large")  # σ² = β̃ or β (Ho et al. 2020, section 3.2), by diffusers' names
Denoiser = Callable[[Tensor, Tensor], Tensor]


def check_prediction_type(prediction_type: str) -> None:
    """ValueError unless it is one of the three names."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}")


def check_variance_type(variance_type: str) -> None:
    """ValueError unless it is one of the two names."""
    if variance_type not in VARIANCE_TYPES:
        raise ValueError(f"variance_type must be one of {VARIANCE_TYPES}, got {variance_type!r}")


def predict_x0(
    schedule: NoiseSchedule,
    x_t: Tensor,
    t: int | Tensor,
    prediction: Tensor,
    prediction_type: str = "epsilon",
) -> Tensor:
    """x_0 [B, …] as the prediction implies it (Ho et al. 2020, eq. 15; for v Salimans & Ho 2022, section 4).

    Raises ValueError for an unknown prediction_type, a bad t or shape, or "epsilon" where ᾱ_t is 0.
    """
    t = check_inputs(schedule, t, x_t=x_t, prediction=prediction)
    check_prediction_type(prediction_type)
    alpha_bar = schedule.alpha_bar(t, like=x_t)  # [B, 1, 1, 1]
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * prediction
    schedule.check_signal(t)
    return (x_t - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()


def predict_noise(
    schedule: NoiseSchedule,
    x_t: Tensor,
    t: int | Tensor,
    prediction: Tensor,
    prediction_type: str = "epsilon",
) -> Tensor:
    """The noise [B, …] in x_t as the prediction implies it; errors as `predict_x0`, but none at ᾱ_t = 0."""
    t = check_inputs(schedule, t, x_t=x_t, prediction=prediction)
    check_prediction_type(prediction_type)
    alpha_bar = schedule.alpha_bar(t, like=x_t)  # [B, 1, 1, 1]
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        return alpha_bar.sqrt() * prediction + (1 - alpha_bar).sqrt() * x_t
    return (x_t - alpha_bar.sqrt() * prediction) / (1 - alpha_bar).sqrt()


def target(
    schedule: NoiseSchedule, x_0: Tensor, t: int | Tensor, noise: Tensor, prediction_type: str = "epsilon"
) -> Tensor:
    """What the prediction is compared with: noise, x_0, or v = √ᾱ · noise − √(1 − ᾱ) · x_0, all [B, …]."""
    t = check_inputs(schedule, t, x_0=x_0, noise=noise)
    check_prediction_type(prediction_type)
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x_0
    alpha_bar = schedule.alpha_bar(t, like=x_0)  # [B, 1, 1, 1]
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_0


def denoising_loss(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_0: Tensor,
    t: int | Tensor,
    noise: Tensor,
    prediction_type: str = "epsilon",
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the prediction, a scalar (for "epsilon" L_simple, Ho et al. 2020, eq. 14).

    `weight` [B] multiplies each sample's error before the mean over the batch; it is not normalised.
    """
    t = check_inputs(schedule, t, x_0=x_0, noise=noise)
    x_t = add_noise(schedule, x_0, t, noise)
    prediction = denoiser(x_t, t)
    check_inputs(schedule, t, x_0=x_0, prediction=prediction)  # a wrong shape would broadcast, and train
    error = prediction - target(schedule, x_0, t, noise, prediction_type)
    per_sample = (error**2).flatten(1).mean(dim=1)  # [B]
    if weight is not None:
        per_sample = check_weight(weight, per_sample) * per_sample
    return per_sample.mean()


def posterior(
    schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: int | Tensor, t_prev: int | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """q(x_prev | x_t, x_0), a Gaussian: its mean [B, …] and variance β̃ [B, 1, …] (Ho et al. 2020, eq. 6–7).

    `t_prev` is the earlier time, −1 … t−1, by default t − 1. A longer stride is one step with
    α = ᾱ_t / ᾱ_prev. At t_prev = −1 the answer is known: the mean is x_0, the variance 0.
    """
    t = check_inputs(schedule, t, x_0=x_0, x_t=x_t)
    t_prev = check_t_prev(schedule, t, t_prev)
    alpha_bar, alpha_bar_prev = schedule.alpha_bar(t, like=x_t), schedule.alpha_bar(t_prev, like=x_t)
    alpha = alpha_bar / alpha_bar_prev  # [B, 1, 1, 1]; α_t itself for t_prev = t − 1
    beta = 1 - alpha
    x_0_factor = alpha_bar_prev.sqrt() * beta / (1 - alpha_bar)
    x_t_factor = alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar)
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta
    return x_0_factor * x_0 + x_t_factor * x_t, variance


def gaussian_kl(mean1: Tensor, var1: Tensor, mean2: Tensor, var2: Tensor) -> Tensor:
    """KL(N(mean1, var1) ‖ N(mean2, var2)) in nats, element by element; the four shapes broadcast.

    Raises ValueError where a variance is not above 0. With independent elements a sample's KL is the sum.
    """
    check_positive(var1=var1, var2=var2)
    return 0.5 * (var2.log() - var1.log() + (var1 + (mean1 - mean2) ** 2) / var2 - 1)


def prior_kl(schedule: NoiseSchedule, x_0: Tensor) -> Tensor:
    """L_T = KL(q(x_{T−1} | x_0) ‖ N(0, 1)) [B], nats: how far noised data are from where sampling starts.

    Has nothing to learn (Ho et al. 2020, equation 5, first term).
    """
    t = check_inputs(schedule, schedule.num_train_timesteps - 1, x_0=x_0)
    alpha_bar = schedule.alpha_bar(t, like=x_0)  # [B, 1, 1, 1]
    zero, one = torch.zeros_like(alpha_bar), torch.ones_like(alpha_bar)
    return gaussian_kl(alpha_bar.sqrt() * x_0, 1 - alpha_bar, zero, one).flatten(1).sum(dim=1)  # [B]


def decoder_nll(schedule: NoiseSchedule, x_0: Tensor, x_0_pred: Tensor) -> Tensor:
    """−log N(x_0; x_0_pred, β_0) in nats, element by element: the last step, out of the least noise.

    A Gaussian density (Ho et al. 2020 use a discretised one for 8-bit pictures), so the value can be
    negative. β̃_0 is 0, so its variance is β_0, the upper choice for σ² there.
    """
    beta = schedule.beta(0, like=x_0)
    return 0.5 * ((2 * math.pi * beta).log() + (x_0 - x_0_pred) ** 2 / beta)


def elbo_terms(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_0: Tensor,
    t: int | Tensor,
    noise: Tensor,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
) -> Tensor:
    """The term of the variational bound that belongs to step t, [B], in nats summed over a sample's elements.

    For t ≥ 1 it is KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)), where p has σ² = β̃ as q has ("fixed_small"),
    or σ² = β ("fixed_large"; Ho et al. 2020, equations 5–10 and section 3.2); for t = 0 the reconstruction,
    `decoder_nll`. One draw of noise estimates it without bias. Then −log p(x_0) ≤ prior_kl + the sum of the
    terms over t = 0 … T−1.
    """
    check_variance_type(variance_type)
    t = check_inputs(schedule, t, x_0=x_0, noise=noise)
    x_t = add_noise(schedule, x_0, t, noise)
    x_0_pred = predict_x0(schedule, x_t, t, denoiser(x_t, t), prediction_type)
    mean_true, variance = posterior(schedule, x_0, x_t, t)
    mean_model, _ = posterior(schedule, x_0_pred, x_t, t)
    last = (t == 0).reshape(variance.shape)  # [B, 1, 1, 1]
    variance = torch.where(last, 1.0, variance)  # β̃_0 is 0; any value will do where the KL is not used
    model_variance = schedule.beta(t, like=x_t) if variance_type == "fixed_large" else variance
    kl = gaussian_kl(mean_true, variance, mean_model, model_variance)
    terms = torch.where(last, decoder_nll(schedule, x_0, x_0_pred), kl)
    return terms.flatten(1).sum(dim=1)  # [B]


def elbo_weight(schedule: NoiseSchedule, t: int | Tensor) -> Tensor:
    """The factor in the bound's term for step t: weight · Σ (noise − predicted noise)², [] or [B]; see `elbo_terms`.

    For t ≥ 1 (the papers' L_1, L_2, …) it is β_t² / (2 β̃_t α_t (1 − ᾱ_t)) (Ho et al. 2020, equation 12), the same
    as ½ (SNR(t−1) / SNR(t) − 1). For t = 0 it is 1 / (2 α_0), and `elbo_terms` has ½ log(2π β_0) an element
    on top, which no model can change.
    """
    t = schedule.check_t(t)
    alpha_bar, alpha_bar_prev = schedule.alpha_bar(t), schedule.alpha_bar(t - 1)
    alpha = alpha_bar / alpha_bar_prev
    first = (t == 0).to(alpha.device)  # there σ² = β_0, which leaves 1 / (2 α_0)
    before = torch.where(first, 1 - alpha, 1 - alpha_bar_prev)
    return (1 - alpha) / (2 * alpha * before)


def check_t_prev(schedule: NoiseSchedule, t: Tensor, t_prev: int | Tensor | None) -> Tensor:
    """t_prev (t − 1 for None) as a LongTensor like t; ValueError unless −1 ≤ t_prev < t for each sample."""
    if t_prev is None:
        return t - 1
    before = schedule.check_t(t_prev, lowest=-1, like=t).to(t.device).expand_as(t)
    if bool((before >= t).any()):
        raise ValueError(f"t_prev must be before t, got t = {t.tolist()} and t_prev = {before.tolist()}")
    return before


def check_positive(**values: Tensor) -> None:
    """TypeError or ValueError for the first one that is no tensor or has an element that is not above 0."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if not bool((value > 0).all()):
            raise ValueError(f"{name} must be above 0 everywhere, its least value is {value.min().item():g}")


def check_weight(weight: Tensor, per_sample: Tensor) -> Tensor:
    """weight on the right device; ValueError unless its shape is [B], TypeError unless it is a tensor."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor [B], got {type(weight).__name__}")
    if weight.shape != per_sample.shape:
        raise ValueError(f"weight must have shape {list(per_sample.shape)} ([B]), got {list(weight.shape)}")
    return weight.to(per_sample.device)
