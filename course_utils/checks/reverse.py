"""Checks of notebook 03: the posterior, Gaussian KL, x_0 out of a prediction, the loss, the DDPM and the DDIM step.

The right values are worked out here in float64 from the betas alone, most of them by another road than the package's:
the posterior as a product of two Gaussians, x_0 by building x_t from it, the KL by torch.distributions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from course_utils.checks.base import Mistake, check_for, close, expect_shape
from course_utils.diffusion import reverse, samplers
from course_utils.diffusion.schedule import NoiseSchedule

SHAPE = (3, 4, 5, 4)  # [B, C, h, w]: C = w on purpose is not B, so that a [B] that meets the last axis fails


def _random(*shape: int) -> Tensor:
    """Fresh numbers on each call, drawn without touching the global generator."""
    generator = torch.Generator()
    generator.seed()
    return torch.randn(*shape, generator=generator)


def _schedule() -> NoiseSchedule:
    return NoiseSchedule.linear(20, 0.02, 0.3)


def _alpha_bar(schedule: NoiseSchedule, t: Tensor, like: Tensor) -> Tensor:
    """ᾱ_t in float64, [B, 1, 1, 1]; 1 at t = −1. From the betas, so that a wrong table would be found, too."""
    table = torch.cat([torch.ones(1, dtype=torch.float64), (1 - schedule.betas.double()).cumprod(0)])
    return table[t + 1].reshape(-1, *[1] * (like.ndim - 1))


def _name_it(result: Tensor, slips: dict[str, Tensor], otherwise: str) -> Mistake:
    """The mistake whose wrong value the result is."""
    for message, wrong in slips.items():
        if wrong.shape == result.shape and bool(wrong.isfinite().all()) and close(result, wrong):
            return Mistake(message)
    if not bool(result.isfinite().all()):
        return Mistake(f"some values are not finite (a division by 0 or the root of a negative number?). {otherwise}")
    return Mistake(otherwise)


def _untouched(before: list[Tensor], after: list[Tensor]) -> None:
    if any(not torch.equal(a, b) for a, b in zip(after, before, strict=True)):
        raise Mistake("it changes its arguments in place: write x * y, not x *= y or x.mul_(y)")


# --- the posterior ------------------------------------------------------------------------------------------


def _posterior(schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor) -> tuple[Tensor, Tensor]:
    """The product of q(x_prev | x_0) and q(x_t | x_prev) as functions of x_prev: precisions add up."""
    bar, bar_prev = _alpha_bar(schedule, t, x_t), _alpha_bar(schedule, t_prev, x_t)
    alpha = bar / bar_prev
    precision = 1 / (1 - bar_prev) + alpha / (1 - alpha)
    mean = (bar_prev.sqrt() * x_0.double() / (1 - bar_prev) + alpha.sqrt() * x_t.double() / (1 - alpha)) / precision
    return mean, 1 / precision


def _posterior_slips(
    schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Wrong means and wrong variances that people write, by what to say about them."""
    bar, prev = _alpha_bar(schedule, t, x_t), _alpha_bar(schedule, t_prev, x_t)
    alpha, one = bar / prev, torch.ones_like(x_t, dtype=torch.float64)
    beta, a, b = 1 - alpha, x_0.double(), x_t.double()
    own = 1 - _alpha_bar(schedule, t, x_t) / _alpha_bar(
        schedule, t - 1, x_t
    )  # β_t, the right one for a stride of 1 only
    of_0, of_t = prev.sqrt() * beta / (1 - bar), alpha.sqrt() * (1 - prev) / (1 - bar)
    stride = (
        "for t_prev below t − 1 a step has α = ᾱ_t / ᾱ_prev and β = 1 − α; schedule.betas[t] is the stride of 1 only"
    )
    means = {
        "the two factors are swapped: √ᾱ_prev · β belongs to x_0, √α · (1 − ᾱ_prev) to x_t": of_t * a + of_0 * b,
        "the mean's factors have square roots, √ᾱ_prev and √α: they are missing": prev * beta / (1 - bar) * a
        + alpha * (1 - prev) / (1 - bar) * b,
        "the factor of x_0 has √ᾱ_prev, not √ᾱ_t: ᾱ off by one step": bar.sqrt() * beta / (1 - bar) * a + of_t * b,
        "the factor of x_t has √α of this step, not √ᾱ_t": of_0 * a + bar.sqrt() * (1 - prev) / (1 - bar) * b,
        "both factors are divided by 1 − ᾱ_t: it is missing": (of_0 * a + of_t * b) * (1 - bar),
        "both factors are divided by 1 − ᾱ_t, not by its square root": (of_0 * a + of_t * b) * (1 - bar).sqrt(),
        "the part of x_0 is missing": of_t * b,
        "the part of x_t is missing": of_0 * a,
        stride: prev.sqrt() * own / (1 - bar) * a + (1 - own).sqrt() * (1 - prev) / (1 - bar) * b,
    }
    variances = {
        "that is β; the posterior's variance is smaller, (1 − ᾱ_prev) / (1 − ᾱ_t) · β, for x_0 is known": beta * one,
        "that is the standard deviation; the variance is asked for": ((1 - prev) / (1 - bar) * beta).sqrt() * one,
        "the ratio is upside down: (1 − ᾱ_prev) / (1 − ᾱ_t) · β": (1 - bar) / (1 - prev) * beta * one,
        "that is the logarithm of the variance": ((1 - prev) / (1 - bar) * beta).log() * one,
        "that is the variance of q(x_prev | x_0), 1 − ᾱ_prev: x_t tells more": (1 - prev) * one,
        "β is missing: (1 − ᾱ_prev) / (1 − ᾱ_t) · β": (1 - prev) / (1 - bar) * one,
        stride: (1 - prev) / (1 - bar) * own * one,
    }
    return means, variances


@check_for(reverse.posterior)
def posterior(candidate: Callable[..., Any]) -> None:
    """Mean and variance of q(x_prev | x_t, x_0): one step, longer strides, and the last step."""
    schedule = _schedule()
    cases = [
        ("t_prev left out, t an int", (5, 4), torch.tensor([13]).expand(5), None, 13),
        ("t a LongTensor", SHAPE, torch.tensor([4, 11, 19]), None, None),
        ("longer strides", SHAPE, torch.tensor([6, 12, 19]), torch.tensor([2, 3, 9]), None),
    ]
    for case, shape, t, t_prev, as_int in cases:
        x_0, x_t = _random(*shape), _random(*shape)
        given = (t if as_int is None else as_int, *(() if t_prev is None else (t_prev,)))
        before = [x_0.clone(), x_t.clone()]
        mean, variance = _pair(candidate(schedule, x_0, x_t, *given), x_t)
        _untouched(before, [x_0, x_t])
        t_prev = t - 1 if t_prev is None else t_prev
        right_mean, right_variance = _posterior(schedule, x_0, x_t, t, t_prev)
        means, variances = _posterior_slips(schedule, x_0, x_t, t, t_prev)
        if not close(variance, right_variance.expand(shape)):
            raise _name_it(variance, variances, f"the variance is wrong ({case}); it is (1 − ᾱ_prev) / (1 − ᾱ_t) · β")
        if not close(mean, right_mean):
            raise _name_it(
                mean, means, f"the mean is wrong ({case}); compare each factor with the last line of the proof"
            )
    x_0, x_t = _random(*SHAPE), _random(*SHAPE)
    mean, variance = _pair(candidate(schedule, x_0, x_t, 0), x_t)
    if not close(mean, x_0.double()) or not close(variance, torch.zeros_like(variance)):
        raise Mistake(
            "at t = 0 the step before is the clean x_0 (ᾱ_prev is 1): mean x_0, variance 0. "
            "schedule.alpha_bar(−1) is 1; alphas_cumprod[−1] is the last one"
        )


def _pair(result: Any, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, variance) in float64, the variance in x_t's shape."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Mistake(f"return two tensors, (mean, variance), got {type(result).__name__}")
    mean, variance = result
    expect_shape(mean, tuple(x_t.shape), "the mean")
    try:
        whole = torch.as_tensor(variance).double().expand(x_t.shape)
    except RuntimeError:
        raise Mistake(
            f"the variance must have a shape that multiplies x_t, [B, 1, …], got {list(variance.shape)}: "
            "schedule.alpha_bar(t, like=x_t) answers in that shape"
        ) from None
    return mean.double(), whole


# --- Gaussian KL --------------------------------------------------------------------------------------------


@check_for(reverse.gaussian_kl)
def gaussian_kl(candidate: Callable[..., Any]) -> None:
    """KL of two Gaussians, element by element, against torch.distributions."""
    for shape, other in [((4, 6), (4, 6)), ((2, 3, 4), (2, 1, 1))]:
        mean1, mean2 = _random(*shape), _random(*other)
        var1, var2 = _random(*shape).exp(), _random(*other).exp()
        before = [mean1.clone(), var1.clone(), mean2.clone(), var2.clone()]
        result = candidate(mean1, var1, mean2, var2)
        _untouched(before, [mean1, var1, mean2, var2])
        a, v, b, w = (x.double() for x in before)
        right = kl_divergence(Normal(a, v.sqrt()), Normal(b, w.sqrt()))
        if isinstance(result, Tensor) and result.shape != right.shape:
            flat = right.flatten(1)
            for how, value in [
                ("summed", right.sum()),
                ("averaged", right.mean()),
                ("summed", flat.sum(1)),
                ("averaged", flat.mean(1)),
            ]:
                if result.shape == value.shape and close(result.double(), value):
                    raise Mistake(f"that is {how} over the elements; one number an element is asked for")
        expect_shape(result, tuple(right.shape))
        if close(result.double(), right):
            continue
        slips = {
            "the order is turned round: that is KL(second ‖ first)": kl_divergence(
                Normal(b, w.sqrt()), Normal(a, v.sqrt())
            ),
            "the sign is wrong: a KL divergence is never negative": -right,
            "½ stands before the whole bracket": 2 * right,
            "− 1 is missing: between two equal Gaussians the KL must be 0": right + 0.5,
            "the logarithm is upside down: log(var2 / var1)": right - (w.log() - v.log()),
            "the arguments are variances already: do not square them": 0.5
            * (2 * w.log() - 2 * v.log() + (v**2 + (a - b) ** 2) / w**2 - 1),
            "var1 / var2 is missing: what the first Gaussian spreads counts too": right - 0.5 * v / w,
            "the difference of the means must be squared": 0.5 * (w.log() - v.log() + (v + (a - b)) / w - 1),
            "the difference of the means is divided by var2, as var1 is": 0.5
            * (w.log() - v.log() + v / w + (a - b) ** 2 - 1),
            "divide by var2, not by var1": 0.5 * (w.log() - v.log() + (w + (a - b) ** 2) / v - 1),
            "the logarithms of the variances are missing": right - 0.5 * (w.log() - v.log()),
        }
        raise _name_it(result.double(), slips, "wrong values. KL(N(0, 1) ‖ N(1, 1)) must be 0.5")


# --- what a prediction says of x_0 --------------------------------------------------------------------------


@check_for(reverse.predict_x0)
def predict_x0(candidate: Callable[..., Any]) -> None:
    """x_t is built from a known x_0; the right prediction of each type must give that x_0 back."""
    schedule = _schedule()
    for shape, t, given in [
        (SHAPE, torch.tensor([2, 9, 15]), torch.tensor([2, 9, 15])),
        ((4, 3), torch.tensor([12]).expand(4), 12),
    ]:
        x_0, noise = _random(*shape), _random(*shape)
        bar = _alpha_bar(schedule, t, x_0)
        root, rest = bar.sqrt(), (1 - bar).sqrt()
        x_t = root * x_0 + rest * noise
        v = root * noise - rest * x_0
        own = 1 - schedule.betas.double()[t].reshape(bar.shape)  # α_t, not ᾱ_t
        of_noise = {
            "divide by √ᾱ_t: x_t holds √ᾱ_t · x_0": root * x_0.double(),
            "take √(1 − ᾱ_t) · noise from x_t, not (1 − ᾱ_t) · noise": (x_t - (1 - bar) * noise) / root,
            "divide by √ᾱ_t, not by ᾱ_t": x_0 / root,
            "the noise has to be taken away: a minus, not a plus": (x_t + rest * noise) / root,
            "that is a step with α_t; the whole way to x_0 has ᾱ_t": (x_t - (1 - own).sqrt() * noise) / own.sqrt(),
            "the noise has to be scaled by √(1 − ᾱ_t) before it is taken away": (x_t - noise) / root,
            "that is x_t with the noise multiplied by √ᾱ_t taken away": (x_t - root * noise) / rest,
        }
        of_v = {
            "for v_prediction there is a minus: √ᾱ_t · x_t − √(1 − ᾱ_t) · v": root * x_t + rest * v,
            "for v_prediction the roots are swapped: √ᾱ_t · x_t − √(1 − ᾱ_t) · v": rest * x_t - root * v,
            "that is the noise that v implies; x_0 is √ᾱ_t · x_t − √(1 − ᾱ_t) · v": noise.double(),
            "for v_prediction the square roots are missing": bar * x_t - (1 - bar) * v,
            "v is treated as noise: prediction_type 'v_prediction' has its own formula": (x_t - rest * v) / root,
            "the sign is wrong for v_prediction": -x_0.double(),
        }
        of_x0 = {
            "prediction_type 'sample' means that the prediction is x_0 already: give it back as it is": (
                x_t - rest * x_0
            )
            / root
        }
        for kind, prediction, slips in (
            ("epsilon", noise, of_noise),
            ("sample", x_0, of_x0),
            ("v_prediction", v, of_v),
        ):
            x, p = x_t.float(), prediction.float()
            before = [x.clone(), p.clone()]
            call = (schedule, x, given, p)
            result = candidate(*call) if kind == "epsilon" else candidate(*call, kind)
            _untouched(before, [x, p])
            expect_shape(result, shape, f"x_0 from {kind!r}")
            if not close(result.double(), x_0.double(), 1e-3):
                raise _name_it(
                    result.double(),
                    slips,
                    f"for prediction_type {kind!r} it does not give back the x_0 that "
                    "x_t was made of: solve x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · noise for x_0",
                )


# --- the loss -----------------------------------------------------------------------------------------------


class _Recorder(nn.Module):
    """A linear denoiser that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.x_t, self.t = torch.zeros(0), torch.zeros(0)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.x_t, self.t = x_t.detach().clone(), t
        return self.scale * x_t


@check_for(reverse.denoising_loss)
def denoising_loss(candidate: Callable[..., Any]) -> None:
    """What the denoiser is given, what it is compared with, how the squares are averaged and weighted, the gradient."""
    schedule, t = _schedule(), torch.tensor([3, 8, 17])
    x_0, noise, weight = _random(*SHAPE), _random(*SHAPE), torch.tensor([0.5, 2.0, 4.0])
    bar = _alpha_bar(schedule, t, x_0)
    x_t = bar.sqrt() * x_0 + (1 - bar).sqrt() * noise
    v = bar.sqrt() * noise - (1 - bar).sqrt() * x_0
    targets = {"epsilon": noise.double(), "sample": x_0.double(), "v_prediction": v}
    before = [x_0.clone(), noise.clone(), t.clone()]
    for kind, goal in targets.items():
        for w in (None, weight):
            model = _Recorder()
            loss = candidate(model, schedule, x_0, t, noise, kind, **({} if w is None else {"weight": w}))
            _untouched(before, [x_0, noise, t])
            _inputs_are_right(model, x_0, x_t, noise, t)
            square = (0.3 * x_t - goal) ** 2
            right = square.mean() if w is None else (square.flatten(1).mean(1) * w).mean()
            if not isinstance(loss, Tensor) or loss.ndim != 0:
                raise Mistake(f"the loss must be one number, a tensor of shape [], got {_describe(loss)}")
            if not close(loss.double(), right):
                raise Mistake(_why_this_loss(loss.double(), x_t, targets, kind, w, t))
            if not loss.requires_grad:
                raise Mistake(
                    "no gradient reaches the denoiser: is there a .detach(), an .item() or a torch.no_grad()?"
                )
            (gradient,) = torch.autograd.grad(loss, [model.scale])
            slope = 2 * (0.3 * x_t - goal) * x_t
            wanted = slope.mean() if w is None else (slope.flatten(1).mean(1) * w).mean()
            if not close(gradient.double(), wanted, 1e-3):
                raise Mistake("the value is right, but not its gradient: a part of it was detached")
    model = _Recorder()
    candidate(model, schedule, x_0, 7, noise)
    if not isinstance(model.t, Tensor) or model.t.tolist() != [7, 7, 7]:
        raise Mistake("for an int t the denoiser must be given a LongTensor [B] (check_inputs returns one)")


def _describe(value: Any) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _inputs_are_right(model: _Recorder, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor) -> None:
    if model.x_t.shape != x_t.shape:
        raise Mistake("the denoiser was not asked: prediction = denoiser(x_t, t)")
    if not close(model.x_t.double(), x_t):
        slips = {
            "the denoiser must see x_t = add_noise(schedule, x_0, t, noise); it was given the clean x_0": x_0.double(),
            "the denoiser must see x_t; it was given the noise alone": noise.double(),
            "x_t is not x_0 + noise: use add_noise(schedule, x_0, t, noise)": (x_0 + noise).double(),
        }
        raise _name_it(model.x_t.double(), slips, "the denoiser was not given x_t = add_noise(schedule, x_0, t, noise)")
    if not isinstance(model.t, Tensor) or model.t.tolist() != t.tolist():
        raise Mistake("the denoiser must be given the t that x_t was noised to, as it came")


def _why_this_loss(
    loss: Tensor, x_t: Tensor, targets: dict[str, Tensor], kind: str, weight: Tensor | None, t: Tensor
) -> str:
    prediction, one = 0.3 * x_t, torch.ones(len(t))

    def mean(square: Tensor, w: Tensor = one) -> Tensor:
        return (square.flatten(1).mean(1) * w).mean()

    w = one if weight is None else weight
    square = (prediction - targets[kind]) ** 2
    slips = {
        f"for {kind!r} compare with target(…, prediction_type); that is compared with {other!r}": mean(
            (prediction - goal) ** 2, w
        )
        for other, goal in targets.items()
        if other != kind
    }
    slips |= {
        "that is the sum over all elements; take the mean": (square.flatten(1).sum(1) * w).sum(),
        "that is summed over a sample's elements; take their mean, too": (square.flatten(1).sum(1) * w).mean(),
        "that is summed over the batch; take the mean": (square.flatten(1).mean(1) * w).sum(),
        "squares, not absolute values": mean((prediction - targets[kind]).abs(), w),
        "that is the root of the mean square; L_simple has no root": mean(square, w).sqrt(),
        "that is half the mean square; L_simple has no ½": mean(square, w) / 2,
        "the mean of the differences was squared; square first, then take the mean": (prediction - targets[kind]).mean()
        ** 2,
        "the weight is not used": mean(square),
        "the weight multiplies each sample's error before the mean over the batch, not the mean of all": mean(square)
        * w.mean(),
        "the weight is not normalised: multiply, then take the plain mean": mean(square, w) / w.mean(),
        "that compares the prediction with x_t": mean((prediction - x_t) ** 2, w),
    }
    for message, wrong in slips.items():
        if close(loss, wrong):
            return message
    weighted = "" if weight is None else " with a weight"
    return f"the loss for {kind!r}{weighted} is {loss.item():.4f}, should be {mean(square, w):.4f}"


# --- the two steps ------------------------------------------------------------------------------------------


def _step_case(kind: str) -> tuple[NoiseSchedule, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Times with strides, a prediction of this kind, and what it implies: x_0 and noise, all made up here."""
    schedule = _schedule()
    t, t_prev = torch.tensor([5, 12, 18]), torch.tensor([4, 7, 2])
    x_0, noise = _random(*SHAPE).double(), _random(*SHAPE).double()
    bar = _alpha_bar(schedule, t, x_0)
    x_t = bar.sqrt() * x_0 + (1 - bar).sqrt() * noise
    v = bar.sqrt() * noise - (1 - bar).sqrt() * x_0
    prediction = {"epsilon": noise, "sample": x_0, "v_prediction": v}[kind]
    return schedule, t, t_prev, x_0, noise, x_t, prediction


@check_for(samplers.ddpm_step)
def ddpm_step(candidate: Callable[..., Any]) -> None:
    """A draw from the posterior with x_0 as predicted, for any stride and every prediction type; the last step."""
    for kind in ("epsilon", "v_prediction", "sample"):
        schedule, t, t_prev, x_0, noise, x_t, prediction = _step_case(kind)
        fresh = _random(*SHAPE).double()
        mean, variance = _posterior(schedule, x_0, x_t, t, t_prev)
        bar, prev = _alpha_bar(schedule, t, x_t), _alpha_bar(schedule, t_prev, x_t)
        beta = 1 - bar / prev
        inputs = [prediction.float(), x_t.float(), fresh.float()]
        before = [x.clone() for x in inputs]
        result = candidate(schedule, inputs[0], inputs[1], t, t_prev, inputs[2], kind)
        _untouched(before, inputs)
        expect_shape(result, SHAPE)
        if close(result.double(), mean + variance.sqrt() * fresh, 1e-3):
            continue
        raw = _posterior(schedule, prediction, x_t, t, t_prev)[0]
        one_step = _posterior(schedule, x_0, x_t, t, t - 1)
        slips = {
            "the noise is multiplied by the standard deviation, the root of the variance": mean + variance * fresh,
            "the fresh noise is missing: that is the mean alone": mean,
            "the noise is added without being scaled: σ · noise with σ² the posterior's variance": mean + fresh,
            "that is σ² = β; here it is the posterior's variance β̃": mean + beta.sqrt() * fresh,
            "the prediction is used as x_0: turn it into x_0 with predict_x0 first, for this prediction_type": raw
            + variance.sqrt() * fresh,
            "t_prev is not used: pass it on to posterior": one_step[0] + one_step[1].sqrt() * fresh,
            "that is the predicted x_0, noised afresh to t_prev; draw from the posterior, which knows x_t": prev.sqrt()
            * x_0
            + (1 - prev).sqrt() * fresh,
            "the noise that was predicted went in where fresh noise belongs": mean + variance.sqrt() * noise,
            "a minus before the noise: right in distribution, but not the draw that this noise asks for": mean
            - variance.sqrt() * fresh,
        }
        raise _name_it(
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


@check_for(samplers.ddim_step)
def ddim_step(candidate: Callable[..., Any]) -> None:
    """The predicted x_0 noised again with its own noise; eta between 0 and 1; eta = 1 against the posterior."""
    for kind, eta in (("epsilon", 0.0), ("v_prediction", 0.0), ("epsilon", 0.6), ("sample", 1.0)):
        schedule, t, t_prev, x_0, noise, x_t, prediction = _step_case(kind)
        fresh = _random(*SHAPE).double()
        _, variance = _posterior(schedule, x_0, x_t, t, t_prev)
        bar, prev = _alpha_bar(schedule, t, x_t), _alpha_bar(schedule, t_prev, x_t)
        sigma = eta * variance.sqrt()
        kept = (1 - prev - sigma**2).sqrt()
        right = prev.sqrt() * x_0 + kept * noise + sigma * fresh
        inputs = [prediction.float(), x_t.float(), fresh.float()]
        before = [x.clone() for x in inputs]
        result = candidate(schedule, inputs[0], inputs[1], t, t_prev, eta, inputs[2] if eta else None, kind)
        _untouched(before, inputs)
        expect_shape(result, SHAPE)
        if close(result.double(), right, 1e-3):
            continue
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
        raise _name_it(
            result.double(),
            slips,
            f"wrong values for prediction_type {kind!r} and eta = {eta:g}: √ᾱ_prev · x_0 + "
            "√(1 − ᾱ_prev − σ²) · predicted noise + σ · noise, with σ = eta · √(posterior variance)",
        )
    schedule, t, _, x_0, _, x_t, noise = _step_case("epsilon")
    last = candidate(schedule, noise.float(), x_t.float(), t, -1)
    if not isinstance(last, Tensor) or not close(last.double(), x_0, 1e-3):
        raise Mistake("at the last step (t_prev = −1, where ᾱ is 1) the result must be the predicted x_0")


# --- a prediction -------------------------------------------------------------------------------------------


def _five_steps() -> str:
    """Reference: DDIM; the notebook measures it right after the question."""
    return "ddim"


_five_steps.__name__ = "five_steps"


@check_for(_five_steps)
def five_steps(candidate: Callable[[], Any]) -> None:
    """Which sampler comes closer in five steps, if the denoiser is perfect: "ddpm", "ddim" or "same"."""
    answer = candidate()
    if answer not in ("ddpm", "ddim", "same"):
        raise Mistake(f'return "ddpm", "ddim" or "same", got {answer!r}')
    if answer == "same":
        raise Mistake(
            "a perfect denoiser still knows the mean of x_0 only: a sampler that treats it as x_0 errs at each "
            "long step, and the two samplers err differently"
        )
    if answer == "ddpm":
        raise Mistake(
            "in long strides the fresh noise is large, and drawn around a mean that may lie between the arms; which "
            "sampler follows a smooth path from where it started?"
        )
