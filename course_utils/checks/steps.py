"""Checks of notebook 03, third part: the DDPM step, the DDIM step, and who is better off with few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.base import (
    Mistake,
    check_for,
    choice,
    close,
    expect_dtype,
    expect_shape,
    expect_untouched,
    name_it,
    random_tensor,
)
from course_utils.checks.oracles import SHAPE, alpha_bar, short_schedule, true_posterior
from course_utils.diffusion import samplers as package
from course_utils.diffusion.schedule import NoiseSchedule


def _taken_for_noise(schedule: NoiseSchedule, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The x_0 that comes out if a prediction of any type is taken for the noise."""
    bar = alpha_bar(schedule, t, x_t)
    return (x_t - (1 - bar).sqrt() * prediction) / bar.sqrt()


def _step_case(kind: str) -> tuple[NoiseSchedule, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Times with strides, a prediction of this kind, and what it implies: x_0 and noise, all made up here."""
    schedule = short_schedule()
    t, t_prev = torch.tensor([5, 12, 18]), torch.tensor([4, 7, 2])
    x_0, noise = random_tensor(*SHAPE).double(), random_tensor(*SHAPE).double()
    bar = alpha_bar(schedule, t, x_0)
    x_t = bar.sqrt() * x_0 + (1 - bar).sqrt() * noise
    v = bar.sqrt() * noise - (1 - bar).sqrt() * x_0
    prediction = {"epsilon": noise, "sample": x_0, "v_prediction": v}[kind]
    return schedule, t, t_prev, x_0, noise, x_t, prediction


def _at_the_ends(step: Callable[..., Any], right: Callable[..., Tensor]) -> None:
    """The ends of a schedule of 1,000 steps, rows of numbers in the place of pictures, a batch of one, float64.

    Args:
        step: (schedule, prediction, x_t, t, t_prev, noise) -> x at t_prev, from a prediction of the noise.
        right: (schedule, x_0, predicted noise, x_t, t, t_prev, noise) -> the same in float64.
    """
    schedule = NoiseSchedule.linear()
    for shape, t, t_prev in [((3, 5), [1, 40, 999], [0, 2, 500]), ((1, 3, 4), [999], [0]), ((1, 3, 4), [1], [0])]:
        x_0, own, fresh = (random_tensor(*shape).double() for _ in range(3))
        times = [torch.tensor(t), torch.tensor(t_prev)]
        bar = alpha_bar(schedule, times[0], x_0)
        x_t = bar.sqrt() * x_0 + (1 - bar).sqrt() * own
        result = step(schedule, own.float(), x_t.float(), *times, fresh.float())
        expect_shape(result, shape)
        if not close(result.double(), right(schedule, x_0, own, x_t, *times, fresh), 3e-4):
            raise Mistake(
                f"for x_t of shape {list(shape)}, t = {t} and t_prev = {t_prev} of the 1,000 steps the numbers are "
                "off: the formula holds at the ends of the table as anywhere, with no floor and no other way out, and "
                "for x_t [B, …], whatever follows B"
            )
        expect_dtype(step(schedule, own, x_t, *times, fresh), torch.float64, "x_t")


@check_for(package.ddpm_step)
def ddpm_step(candidate: Callable[..., Any]) -> None:
    """A draw from the posterior with x_0 as predicted, for any stride and every prediction type; the last step."""
    for kind in ("epsilon", "v_prediction", "sample"):
        schedule, t, t_prev, x_0, noise, x_t, prediction = _step_case(kind)
        fresh = random_tensor(*SHAPE).double()
        mean, variance = true_posterior(schedule, x_0, x_t, t, t_prev)
        bar, prev = alpha_bar(schedule, t, x_t), alpha_bar(schedule, t_prev, x_t)
        beta = 1 - bar / prev
        inputs = [prediction.float(), x_t.float(), fresh.float()]
        before = [x.clone() for x in inputs]
        result = candidate(schedule, inputs[0], inputs[1], t, t_prev, inputs[2], kind)
        expect_untouched("prediction, x_t, noise", before, inputs)
        expect_shape(result, SHAPE)
        if close(result.double(), mean + variance.sqrt() * fresh, 1e-3):
            continue
        if not close(result, candidate(schedule, inputs[0], inputs[1], t, t_prev, inputs[2], kind)):
            raise Mistake("two calls with the same arguments differ: use the noise that is given, draw none")
        as_noise = true_posterior(schedule, _taken_for_noise(schedule, prediction, x_t, t), x_t, t, t_prev)[0]
        raw = true_posterior(schedule, prediction, x_t, t, t_prev)[0]
        one_step = true_posterior(schedule, x_0, x_t, t, t - 1)
        slips = {
            "the noise is multiplied by the standard deviation, the root of the variance": mean + variance * fresh,
            "the fresh noise is missing: that is the mean alone": mean,
            "the noise is added without being scaled: σ · noise with σ² the posterior's variance": mean + fresh,
            "that is σ² = β; here it is the posterior's variance β̃": mean + beta.sqrt() * fresh,
            "the prediction is used as x_0: turn it into x_0 with predict_x0 first, for this prediction_type": raw
            + variance.sqrt() * fresh,
            "prediction_type is not passed on to predict_x0 (its default is 'epsilon')": as_noise
            + variance.sqrt() * fresh,
            "t_prev is not used: pass it on to posterior": one_step[0] + one_step[1].sqrt() * fresh,
            "that is the predicted x_0, noised afresh to t_prev; draw from the posterior, which knows x_t": prev.sqrt()
            * x_0
            + (1 - prev).sqrt() * fresh,
            "the noise that was predicted went in where fresh noise belongs": mean + variance.sqrt() * noise,
            "a minus before the noise: right in distribution, but not the draw that this noise asks for": mean
            - variance.sqrt() * fresh,
        }
        raise name_it(
            result.double(),
            slips,
            f"wrong values for prediction_type {kind!r}: predict_x0, then posterior(schedule, "
            "x_0, x_t, t, t_prev), then mean + √variance · noise",
        )
    schedule, t, _, x_0, _, x_t, noise = _step_case("epsilon")
    try:
        last = candidate(schedule, noise.float(), x_t.float(), t, -1, None)
    except (TypeError, AttributeError) as error:
        raise Mistake(
            "the last step (t_prev = −1) has variance 0 and may be given no noise (None): check_noise(noise, variance, "
            f"x_t) gives 0 for it. It stopped with {type(error).__name__}: {error}"
        ) from None
    if not isinstance(last, Tensor) or not close(last.double(), x_0, 1e-3):
        raise Mistake("at the last step (t_prev = −1) the result must be the predicted x_0")
    _large_variance(candidate)

    def right(
        schedule: NoiseSchedule, x_0: Tensor, own: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor, fresh: Tensor
    ) -> Tensor:
        mean, variance = true_posterior(schedule, x_0, x_t, t, t_prev)
        return mean + variance.sqrt() * fresh

    _at_the_ends(candidate, right)


def _large_variance(candidate: Callable[..., Any]) -> None:
    """variance_type "fixed_large": the same mean, σ² = β of the stride, and still no noise at the last step."""
    schedule, t, t_prev, x_0, _, x_t, prediction = _step_case("epsilon")
    fresh = random_tensor(*SHAPE).double()
    mean, variance = true_posterior(schedule, x_0, x_t, t, t_prev)
    beta = 1 - alpha_bar(schedule, t, x_t) / alpha_bar(schedule, t_prev, x_t)
    own = 1 - alpha_bar(schedule, t, x_t) / alpha_bar(schedule, t - 1, x_t)
    inputs = (prediction.float(), x_t.float())
    try:
        result = candidate(schedule, *inputs, t, t_prev, fresh.float(), variance_type="fixed_large")
        last = candidate(schedule, *inputs, t, -1, None, variance_type="fixed_large")
    except ValueError as error:
        raise Mistake(f"for variance_type 'fixed_large' the last step still has variance 0; it says: {error}") from None
    expect_shape(result, SHAPE)
    if not close(result.double(), mean + beta.sqrt() * fresh, 1e-3):
        slips = {
            "variance_type is not used: 'fixed_large' asks for σ² = β instead of β̃": mean + variance.sqrt() * fresh,
            "for 'fixed_large' that is β, not its root, times the noise": mean + beta * fresh,
            "for 'fixed_large' the stride's own β is wanted, 1 − ᾱ_t / ᾱ_prev; betas[t] is a stride of 1": mean
            + own.sqrt() * fresh,
        }
        raise name_it(result.double(), slips, "for variance_type 'fixed_large' it is mean + √β · noise")
    if not close(last.double(), x_0, 1e-3):
        raise Mistake("with variance_type='fixed_large', too, the last step (t_prev = −1) gives the predicted x_0")


@check_for(package.ddim_step)
def ddim_step(candidate: Callable[..., Any]) -> None:
    """The predicted x_0 noised again with its own noise; eta between 0 and 1; eta = 1 against the posterior."""
    for kind, eta in (("epsilon", 0.0), ("v_prediction", 0.0), ("epsilon", 0.6), ("sample", 1.0)):
        schedule, t, t_prev, x_0, noise, x_t, prediction = _step_case(kind)
        fresh = random_tensor(*SHAPE).double()
        _, variance = true_posterior(schedule, x_0, x_t, t, t_prev)
        bar, prev = alpha_bar(schedule, t, x_t), alpha_bar(schedule, t_prev, x_t)
        sigma = eta * variance.sqrt()
        kept = (1 - prev - sigma**2).sqrt()
        true = prev.sqrt() * x_0 + kept * noise + sigma * fresh
        inputs = [prediction.float(), x_t.float(), fresh.float()]
        before = [x.clone() for x in inputs]
        result = candidate(schedule, inputs[0], inputs[1], t, t_prev, eta, inputs[2] if eta else None, kind)
        expect_untouched("prediction, x_t, noise", before, inputs)
        expect_shape(result, SHAPE)
        if close(result.double(), true, 1e-3):
            continue
        if not close(result, candidate(schedule, inputs[0], inputs[1], t, t_prev, eta, inputs[2], kind)):
            raise Mistake("two calls with the same arguments differ: use the noise that is given, draw none")
        one_before, own = alpha_bar(schedule, t - 1, x_t), eta * true_posterior(schedule, x_0, x_t, t, t - 1)[1].sqrt()
        slips = {
            "that stays at t: x_0 is noised again to t_prev's level, with ᾱ_prev": bar.sqrt() * x_0
            + (1 - bar).sqrt() * noise,
            "the square roots are missing: √ᾱ_prev · x_0 + √(1 − ᾱ_prev − σ²) · predicted noise": prev * x_0
            + (1 - prev - sigma**2) * noise
            + sigma * fresh,
            "that is the predicted x_0 alone: it has to be noised again, to t_prev's level": x_0,
            "the predicted noise is missing": prev.sqrt() * x_0 + sigma * fresh,
            "the prediction is used as noise: turn it with predict_noise first, for this prediction_type": prev.sqrt()
            * x_0
            + kept * prediction
            + sigma * fresh,
            "√(1 − ᾱ_prev) belongs to the noise and √ᾱ_prev to x_0: they are swapped": prev.sqrt() * noise
            + kept * x_0
            + sigma * fresh,
            "t_prev is not used: that is the step to t − 1": one_before.sqrt() * x_0
            + (1 - one_before - own**2).sqrt() * noise
            + own * fresh,
            "prediction_type is not passed on (the default is 'epsilon')": prev.sqrt()
            * _taken_for_noise(schedule, prediction, x_t, t)
            + kept * prediction
            + sigma * fresh,
            "√(1 − ᾱ_t) where √(1 − ᾱ_prev) belongs": prev.sqrt() * x_0
            + (1 - bar - sigma**2).sqrt() * noise
            + sigma * fresh,
        }
        if eta:
            slips |= {
                "room has to be made for the fresh noise: √(1 − ᾱ_prev − σ²), or the variance is too large": prev.sqrt()
                * x_0
                + (1 - prev).sqrt() * noise
                + sigma * fresh,
                "subtract σ², not σ, under the root": prev.sqrt() * x_0
                + (1 - prev - sigma).clamp(min=0).sqrt() * noise
                + sigma * fresh,
                "eta is not used: σ = eta · √variance": prev.sqrt() * x_0 + (1 - prev).sqrt() * noise,
                "the fresh noise is missing: + σ · noise": prev.sqrt() * x_0 + kept * noise,
                "σ is eta times the standard deviation, the root of the variance": prev.sqrt() * x_0
                + (1 - prev - (eta * variance) ** 2).sqrt() * noise
                + eta * variance * fresh,
                "σ is eta · √variance; eta is not under the root": prev.sqrt() * x_0
                + (1 - prev - eta * variance).clamp(min=0).sqrt() * noise
                + (eta * variance).sqrt() * fresh,
                "eta = 1 should have DDPM's σ² = β̃; that has σ² = eta² · β": prev.sqrt() * x_0
                + (1 - prev - eta**2 * (1 - bar / prev)).clamp(min=0).sqrt() * noise
                + eta * (1 - bar / prev).sqrt() * fresh,
            }
        raise name_it(
            result.double(),
            slips,
            f"wrong values for prediction_type {kind!r} and eta = {eta:g}: √ᾱ_prev · x_0 + "
            "√(1 − ᾱ_prev − σ²) · predicted noise + σ · noise, with σ = eta · √(posterior variance)",
        )
    schedule, t, _, x_0, _, x_t, noise = _step_case("epsilon")
    last = candidate(schedule, noise.float(), x_t.float(), t, -1)
    if not isinstance(last, Tensor) or not close(last.double(), x_0, 1e-3):
        raise Mistake("at the last step (t_prev = −1, where ᾱ is 1) the result must be the predicted x_0")

    def half_random(
        schedule: NoiseSchedule, prediction: Tensor, x_t: Tensor, t: Any, t_prev: Any, noise: Tensor
    ) -> Any:
        return candidate(schedule, prediction, x_t, t, t_prev, 0.5, noise)

    def right(
        schedule: NoiseSchedule, x_0: Tensor, own: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor, fresh: Tensor
    ) -> Tensor:
        sigma = 0.5 * true_posterior(schedule, x_0, x_t, t, t_prev)[1].sqrt()
        prev = alpha_bar(schedule, t_prev, x_t)
        return prev.sqrt() * x_0 + (1 - prev - sigma**2).sqrt() * own + sigma * fresh

    _at_the_ends(half_random, right)


# --- a prediction -------------------------------------------------------------------------------------------


def _five_steps() -> str:
    """Reference: DDPM with σ² = β; the notebook measures it right after the question."""
    return "large"


_five_steps.__name__ = "five_steps"


@check_for(_five_steps)
def five_steps(candidate: Callable[[], Any]) -> None:
    """Which step comes closest in five strides, if the denoiser is perfect: "ddim", "small" (β̃) or "large" (β)?"""
    replies = {
        "ddim": "DDIM adds no noise at all, so the doubt about x_0 that is left at each long stride is nowhere made "
        "up for: its points end too close together. What would widen them again?",
        "small": "β̃ is the spread of one who knows x_0. The sampler knows a mean only, so the true step back is wider "
        "by the doubt about x_0, and in long strides that doubt is large: β̃ adds too little noise",
    }
    choice(candidate(), "large", replies)
