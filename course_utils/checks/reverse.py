"""Checks of notebook 03: the posterior, Gaussian KL, x_0 out of a prediction, the loss, the DDPM and the DDIM step.

The right values are worked out in float64 from the betas alone, most of them by another road than the package's:
the posterior as a product of two Gaussians, x_0 by building x_t from it, the KL by torch.distributions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from course_utils.checks.base import (
    Mistake,
    check_for,
    close,
    expect_shape,
    expect_untouched,
    gradients_of,
    name_it,
    random_tensor,
)
from course_utils.checks.loop import draw
from course_utils.checks.oracles import SHAPE, alpha_bar, short_schedule, true_posterior
from course_utils.checks.predictions import denoising_loss, predict_x0
from course_utils.checks.steps import ddim_step, ddpm_step, five_steps
from course_utils.diffusion import reverse as package
from course_utils.diffusion.schedule import NoiseSchedule

__all__ = [
    "ddim_step",
    "ddpm_step",
    "denoising_loss",
    "draw",
    "five_steps",
    "gaussian_kl",
    "posterior",
    "predict_x0",
]


def _posterior_slips(
    schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: Tensor, t_prev: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Wrong means and wrong variances that people write, by what to say about them."""
    bar, prev = alpha_bar(schedule, t, x_t), alpha_bar(schedule, t_prev, x_t)
    alpha, one = bar / prev, torch.ones_like(x_t, dtype=torch.float64)
    beta, a, b = 1 - alpha, x_0.double(), x_t.double()
    own = 1 - alpha_bar(schedule, t, x_t) / alpha_bar(schedule, t - 1, x_t)  # β_t, the right one for a stride of 1 only
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
        "that is the mean of q(x_prev | x_0): x_t belongs in it, too": prev.sqrt() * a,
        "the factor of x_t has 1 − ᾱ_prev on top, not 1 − ᾱ_t: ᾱ off by one step": of_0 * a + alpha.sqrt() * b,
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


@check_for(package.posterior)
def posterior(candidate: Callable[..., Any]) -> None:
    """Mean and variance of q(x_prev | x_t, x_0): one step, longer strides, and the last step."""
    schedule = short_schedule()
    cases = [
        ("t_prev left out, t an int", (5, 4), torch.tensor([13]).expand(5), None, 13),
        ("t a LongTensor", SHAPE, torch.tensor([4, 11, 19]), None, None),
        ("longer strides", SHAPE, torch.tensor([6, 12, 19]), torch.tensor([2, 3, 9]), None),
    ]
    for case, shape, t, t_prev, as_int in cases:
        x_0, x_t = random_tensor(*shape), random_tensor(*shape)
        given = (t if as_int is None else as_int, *(() if t_prev is None else (t_prev,)))
        before = [x_0.clone(), x_t.clone()]
        mean, variance = _pair(candidate(schedule, x_0, x_t, *given), x_t)
        expect_untouched("x_0, x_t", before, [x_0, x_t])
        t_prev = t - 1 if t_prev is None else t_prev
        right_mean, right_variance = true_posterior(schedule, x_0, x_t, t, t_prev)
        means, variances = _posterior_slips(schedule, x_0, x_t, t, t_prev)
        variances["the mean and the variance are the other way round: return (mean, variance)"] = right_mean
        if not close(variance, right_variance.expand(shape)):
            raise name_it(variance, variances, f"the variance is wrong ({case}); it is (1 − ᾱ_prev) / (1 − ᾱ_t) · β")
        if not close(mean, right_mean):
            raise name_it(
                mean, means, f"the mean is wrong ({case}); compare each factor with the last line of the proof"
            )
    x_0, x_t = random_tensor(*SHAPE), random_tensor(*SHAPE)
    mean, variance = _pair(candidate(schedule, x_0, x_t, 0), x_t)
    if not close(mean, x_0.double()) or not close(variance, torch.zeros_like(variance)):
        raise Mistake(
            "at t = 0 the step before is the clean x_0 (ᾱ_prev is 1): mean x_0, variance 0. "
            "schedule.alpha_bar(−1) is 1; alphas_cumprod[−1] is the last one"
        )
    if bool((variance.abs() > 1e-7).any()):
        raise Mistake("at t = 0 the variance is 0, not a small number: nothing is uncertain there; no floor is wanted")
    thousand, t = NoiseSchedule.linear(), torch.tensor([1, 2, 40])
    mean, variance = _pair(candidate(thousand, x_0, x_t, t), x_t)
    right_mean, right_variance = true_posterior(thousand, x_0, x_t, t, t - 1)
    if not bool(((variance / right_variance - 1).abs() < 1e-2).all()) or not close(mean, right_mean, 1e-3):
        raise Mistake(
            "near t = 0 of the linear schedule of 1,000 steps the numbers are off: variances of 0.00005 are right "
            "there, no floor is wanted"
        )
    x_0.requires_grad_()
    x_t.requires_grad_()
    gradients_of(candidate(schedule, x_0, x_t, 9)[0].sum(), {"x_0": x_0, "x_t": x_t})


def _pair(result: Any, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, variance) in float64, the variance in x_t's shape."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Mistake(f"return two tensors, (mean, variance), got {type(result).__name__}")
    mean, variance = result
    if isinstance(mean, Tensor) and mean.shape != x_t.shape and getattr(variance, "shape", None) == x_t.shape:
        raise Mistake("the mean and the variance are the other way round: return (mean, variance)")
    expect_shape(mean, tuple(x_t.shape), "the mean")
    try:
        whole = torch.as_tensor(variance).double().expand(x_t.shape)
    except RuntimeError:
        raise Mistake(
            f"the variance must have a shape that multiplies x_t, [B, 1, …], got {list(variance.shape)}: "
            "schedule.alpha_bar(t, like=x_t) answers in that shape"
        ) from None
    return mean.double(), whole


@check_for(package.gaussian_kl)
def gaussian_kl(candidate: Callable[..., Any]) -> None:
    """KL of two Gaussians, element by element, against torch.distributions."""
    for shape, other in [((4, 6), (4, 6)), ((2, 3, 4), (2, 1, 1))]:
        mean1, mean2 = random_tensor(*shape), random_tensor(*other)
        var1, var2 = random_tensor(*shape).exp(), random_tensor(*other).exp()
        before = [mean1.clone(), var1.clone(), mean2.clone(), var2.clone()]
        result = candidate(mean1, var1, mean2, var2)
        expect_untouched("mean1, var1, mean2, var2", before, [mean1, var1, mean2, var2])
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
            "the arguments are variances, they are not logarithms: no exp": kl_divergence(
                Normal(a, (v / 2).exp()), Normal(b, (w / 2).exp())
            ),
            "var1 / var2 is missing: what the first Gaussian spreads counts too": right - 0.5 * v / w,
            "the difference of the means must be squared": 0.5 * (w.log() - v.log() + (v + (a - b)) / w - 1),
            "the difference of the means is divided by var2, as var1 is": 0.5
            * (w.log() - v.log() + v / w + (a - b) ** 2 - 1),
            "divide by var2, not by var1": 0.5 * (w.log() - v.log() + (w + (a - b) ** 2) / v - 1),
            "the logarithms of the variances are missing": right - 0.5 * (w.log() - v.log()),
        }
        raise name_it(result.double(), slips, "wrong values. KL(N(0, 1) ‖ N(1, 1)) must be 0.5")
    narrow = [torch.tensor(x) for x in ([0.01, 0.3, 2.0], [1e-6, 3.0, 50.0], [0.0, 0.3, -1.0], [1e-5, 1e-6, 90.0])]
    a, v, b, w = (x.double() for x in narrow)
    right = kl_divergence(Normal(a, v.sqrt()), Normal(b, w.sqrt()))
    if not bool(((candidate(*narrow).double() - right).abs() < 1e-3 * right).all()):
        raise Mistake(
            "for variances of 0.000001 and of 90 the numbers are off: the formula holds for any variance, nothing is "
            "added to it or clamped"
        )
    inputs = {"mean1": mean1, "var1": var1, "mean2": mean2, "var2": var2}
    gradients_of(candidate(*(x.requires_grad_() for x in inputs.values())).sum(), inputs)
