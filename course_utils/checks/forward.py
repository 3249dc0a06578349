"""Checks of notebook 02: one noising step, the closed form, jumps between steps, schedules, signal-to-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.base import (
    Mistake,
    check_for,
    choice,
    expect_dtype,
    expect_shape,
    expect_untouched,
    fresh_generator,
    gradients_of,
    name_it,
    one_number,
)
from course_utils.diffusion import forward as package
from course_utils.diffusion import schedule as schedules
from course_utils.diffusion.schedule import NoiseSchedule

Mix = Callable[[NoiseSchedule, Tensor, "int | Tensor", Tensor], Any]


def _random_schedule(T: int = 7) -> NoiseSchedule:
    """Betas far enough from 0, from 1 and from one another that no two slips look alike."""
    order = torch.randperm(T, generator=fresh_generator())
    return NoiseSchedule(torch.linspace(0.08, 0.62, T)[order])


def _agree(a: Tensor, b: Tensor, rtol: float = 1e-4, atol: float = 1e-5) -> bool:
    return a.shape == b.shape and torch.allclose(a.detach().double(), b.detach().double(), rtol=rtol, atol=atol)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))  # [B] -> [B, 1, …]


def _expect_float(result: Any, shape: tuple[int, ...], what: str) -> None:
    expect_shape(result, shape, what)
    if not result.is_floating_point():
        raise Mistake(f"{what} must hold floats, got {result.dtype}")
    if not bool(result.isfinite().all()):
        raise Mistake(f"{what} holds NaN or infinity")


def _check_mix(candidate: Mix, keep: Callable[[NoiseSchedule], Tensor], name: str, slips: Callable[..., dict]) -> None:
    """What forward_step and add_noise share: x_t = √keep · x + √(1 − keep) · noise, with `keep` looked up at each t."""
    schedule, g = _random_schedule(), fresh_generator()
    table = keep(schedule)
    x, noise = torch.randn(3, 2, 4, 4, generator=g), torch.randn(3, 2, 4, 4, generator=g)
    t = 1 + torch.randperm(5, generator=g)[:3]  # three different steps, with a step on either side of each
    before = [x.clone(), noise.clone(), t.clone()]
    call = f"{name}(schedule, x, t, noise)"
    result = candidate(schedule, x, t, noise)
    _expect_float(result, (3, 2, 4, 4), call)
    expect_untouched("x, noise, t", before, [x, noise, t])

    def mix(k: Tensor, x: Tensor = x, noise: Tensor = noise) -> Tensor:
        return _column(k, x).sqrt() * x + (1 - _column(k, x)).sqrt() * noise

    k = table[t]
    if not _agree(result, mix(k)):
        if not _agree(result, candidate(schedule, x, t, noise)):
            raise Mistake("two calls with the same arguments differ: use the noise that is given, draw none")
        common = {
            "the noise is left out, or multiplied by 0": _column(k, x).sqrt() * x,
            "every sample of the batch has its own t: you used the first one's for all": mix(table[t[:1]].expand(3)),
            "you looked the table up at t − 1; our tables are indexed by t itself": mix(table[t - 1]),
            "you looked the table up at t + 1; our tables are indexed by t itself": mix(table[t + 1]),
            "the two factors are swapped: the noise has the picture's": mix(1 - k),
            "a minus before the noise: right in distribution, but not what this noise asks for": mix(k, noise=-noise),
        }
        spread = candidate(schedule, torch.zeros(1, 1), 3, torch.ones(1, 1)) ** 2
        spread = spread + candidate(schedule, torch.ones(1, 1), 3, torch.zeros(1, 1)) ** 2
        otherwise = (
            "the numbers are off. For x of variance 1 and noise of variance 1 your result has variance "
            f"{float(spread.reshape(-1)[0]):.3f}; it should be 1"
        )
        raise name_it(result, {**slips(schedule, t, x, noise), **common}, otherwise, _agree)

    flat = candidate(schedule, x[:, :, 0, 0], 4, noise[:, :, 0, 0])
    expect_shape(flat, (3, 2), "with x of shape [3, 2] and t = 4, the result")
    if not _agree(flat, mix(table[[4, 4, 4]], x[:, :, 0, 0], noise[:, :, 0, 0])):
        raise Mistake("with t given as one int (here 4) the numbers are off: it holds for all samples")
    expect_dtype(candidate(schedule, x.double(), t, noise.double()), torch.float64, "x")
    ends = torch.tensor([0, 6, 0])
    for t_end, k_end, which in [(ends, table[ends], "t = 0 and t = T − 1"), (0, table[[0] * 3], "t = 0, an int")]:
        if not _agree(candidate(schedule, x, t_end, noise), mix(k_end)):
            raise Mistake(
                f"at the ends of the table ({which}) the numbers are off: t = 0 is the first step and adds noise as "
                "any other does, and T − 1 is the last; nothing is clamped or left out there"
            )
    square = candidate(schedule, x[:, 0], t, noise[:, 0])
    expect_shape(square, (3, 4, 4), "with x of shape [3, 4, 4] the result")
    if not _agree(square, mix(k, x[:, 0], noise[:, 0])):
        raise Mistake("for x of shape [3, 4, 4] the numbers are off: x is [B, …], whatever follows B")

    x_leaf = x.clone().requires_grad_()
    (gradient,) = gradients_of(candidate(schedule, x_leaf, t, noise).sum(), {"x": x_leaf})
    if not _agree(gradient, _column(k, x).sqrt().expand_as(x)):
        raise Mistake("the gradient with respect to x is off: it is the factor in front of x")


@check_for(package.forward_step)
def forward_step(candidate: Mix) -> None:
    """√(1 − β_t) · x_{t−1} + √β_t · noise, with each sample's own t."""

    def slips(schedule: NoiseSchedule, t: Tensor, x: Tensor, noise: Tensor) -> dict[str, Tensor]:
        beta, bar = _column(schedule.betas[t], x), _column(schedule.alphas_cumprod[t], x)
        return {
            "x_{t−1} is not shrunk: without √(1 − β) in front of it the variance grows": x + beta.sqrt() * noise,
            "the square root of 1 − β is missing": (1 - beta) * x + beta.sqrt() * noise,
            "the square root of β is missing: β is the noise's variance, √β its size": (1 - beta).sqrt() * x
            + beta * noise,
            "both square roots are missing: β and 1 − β are variances": (1 - beta) * x + beta * noise,
            "that is ᾱ_t, all steps up to t at once; one step takes β_t": bar.sqrt() * x + (1 - bar).sqrt() * noise,
        }

    _check_mix(candidate, lambda schedule: 1 - schedule.betas, "forward_step", slips)


@check_for(package.add_noise)
def add_noise(candidate: Mix) -> None:
    """√ᾱ_t · x_0 + √(1 − ᾱ_t) · noise, with each sample's own t."""

    def slips(schedule: NoiseSchedule, t: Tensor, x: Tensor, noise: Tensor) -> dict[str, Tensor]:
        beta, bar = _column(schedule.betas[t], x), _column(schedule.alphas_cumprod[t], x)
        spread = float((bar**2 + (1 - bar) ** 2).flatten()[0])
        return {
            "x_0 is not shrunk: √ᾱ in front of it is missing": x + (1 - bar).sqrt() * noise,
            "the square root of ᾱ is missing": bar * x + (1 - bar).sqrt() * noise,
            "the square root of 1 − ᾱ is missing": bar.sqrt() * x + (1 - bar) * noise,
            f"both square roots are missing: the variance is {spread:.2f}, should be 1": bar * x + (1 - bar) * noise,
            "the noise has 1 − √ᾱ in front; it should be √(1 − ᾱ)": bar.sqrt() * x + (1 - bar.sqrt()) * noise,
            "β where ᾱ belongs: β_t is the noise of one step, ᾱ_t what is left of x_0 after all": beta.sqrt() * x
            + (1 - beta).sqrt() * noise,
            "that is β_t, one step only; the way from x_0 takes ᾱ_t": (1 - beta).sqrt() * x + beta.sqrt() * noise,
        }

    _check_mix(candidate, lambda schedule: schedule.alphas_cumprod, "add_noise", slips)


def _jump(schedule: NoiseSchedule, x_s: Tensor, s: int, t: int, noise: Tensor) -> Tensor:
    """Reference: from step s to a later step t at once."""
    keep = schedule.alpha_bar(t) / schedule.alpha_bar(s)
    return keep.sqrt() * x_s + (1 - keep).sqrt() * noise


_jump.__name__ = "jump"


@check_for(_jump)
def jump(candidate: Callable[..., Any]) -> None:
    """√(ᾱ_t / ᾱ_s) · x_s + √(1 − ᾱ_t / ᾱ_s) · noise; the oracle is the product of the α in between."""
    schedule, g = _random_schedule(), fresh_generator()
    x, noise = torch.randn(3, 2, 4, 4, generator=g), torch.randn(3, 2, 4, 4, generator=g)
    before = [x.clone(), noise.clone()]
    for s, t in [(1, 4), (2, 3), (0, 5), (3, 6)]:
        keep = math.prod(schedule.alphas[s + 1 : t + 1].tolist())
        bar, bar_s = schedule.alphas_cumprod[t].item(), schedule.alphas_cumprod[s].item()
        with_s = math.prod(schedule.alphas[s : t + 1].tolist())
        result = candidate(schedule, x, s, t, noise)
        _expect_float(result, (3, 2, 4, 4), "jump(schedule, x_s, s, t, noise)")
        expect_untouched("x_s, noise", before, [x, noise])

        def mix(k: float) -> Tensor:
            return k**0.5 * x + (1 - k) ** 0.5 * noise

        if not _agree(result, candidate(schedule, x, s, t, noise)):
            raise Mistake("two calls with the same arguments differ: use the noise that is given, draw none")
        walk = x
        for step in range(s + 1, t + 1):
            beta = schedule.betas[step].item()
            walk = (1 - beta) ** 0.5 * walk + beta**0.5 * noise
        slips = {
            "that is the way from x_0 to x_t; the steps up to s lie behind x_s already, so divide ᾱ_t by ᾱ_s": mix(bar),
            "that is one step with β_t; there are t − s of them between s and t": mix(schedule.alphas[t].item()),
            "step s is taken twice: x_s has been through betas 0 … s, so begin at s + 1": mix(with_s),
            "the square roots are missing": keep * x + (1 - keep) * noise,
            "x_s has the right factor, the noise still 1 − ᾱ_t; it needs 1 − ᾱ_t / ᾱ_s": keep**0.5 * x
            + (1 - bar) ** 0.5 * noise,
            "the noise's factor should be √(1 − ᾱ_t / ᾱ_s), so that variance 1 stays 1": keep**0.5 * x
            + (bar_s - bar) ** 0.5 * noise,
            "ᾱ_t is to be divided by ᾱ_s, not subtracted from it": (1 - bar_s + bar) ** 0.5 * x
            + (bar_s - bar) ** 0.5 * noise,
            "the two factors are swapped: the noise has that of x_s": mix(1 - keep),
            "it stops a step short: step t itself belongs to the way": mix(
                math.prod(schedule.alphas[s + 1 : t].tolist())
            ),
            "that is the walk with one noise for all steps; the noises of different steps are not the same but "
            "independent, so their variances add up": walk,
            "that is x_s itself": x,
        }
        if not _agree(result, mix(keep)):
            hint = f"the numbers are off for s = {s}, t = {t}: x_s should have the factor {keep**0.5:.4f} in front"
            raise name_it(result, slips, hint, _agree)
    thousand, row, other = NoiseSchedule.linear(), x[:, :, 0, 0], noise[:, :, 0, 0]
    for s, t in [(0, 999), (1, 2)]:
        keep = (1 - thousand.betas[s + 1 : t + 1].double()).prod().item()
        result = candidate(thousand, row, s, t, other)
        expect_shape(result, (3, 2), "for x_s of shape [3, 2] the result")
        if not _agree(result, keep**0.5 * row + (1 - keep) ** 0.5 * other, rtol=1e-5, atol=2e-5):
            raise Mistake(f"for s = {s} and t = {t} of 1,000 steps the numbers are off: nothing is clamped or left out")
    expect_dtype(candidate(schedule, x.double(), 1, 4, noise.double()), torch.float64, "x_s")
    x_leaf = x.clone().requires_grad_()
    gradients_of(candidate(schedule, x_leaf, 1, 4, noise).sum(), {"x_s": x_leaf})


@check_for(schedules.linear_betas)
def linear_betas(candidate: Callable[..., Any]) -> None:
    """T equal steps from beta_start to beta_end, both included."""
    for T, start, end in [(5, 0.1, 0.3), (12, 0.02, 0.5), (1000, 1e-4, 0.02)]:
        result = candidate(T, start, end)
        expect_shape(result, (T,), f"linear_betas({T}, {start:g}, {end:g})")
        _expect_float(result, (T,), "linear_betas(…)")
        i = torch.arange(T, dtype=torch.float64)
        right = start + (end - start) * i / (T - 1)
        slips = {
            "the last value should be beta_end itself: divide by T − 1, or use torch.linspace": start
            + (end - start) * i / T,
            "the first value should be beta_start itself": start + (end - start) * (i + 1) / T,
            "it falls; the noise should grow, from beta_start to beta_end": right.flip(0),
            "that is scaled linear (the square roots grow evenly); here β itself does": (
                start**0.5 + (end**0.5 - start**0.5) * i / (T - 1)
            )
            ** 2,
            "that is 1 − β": 1 - right,
            "each step multiplies by the same factor; here each adds the same": start * (end / start) ** (i / (T - 1)),
            "beta_start and beta_end are not used": torch.linspace(1e-4, 0.02, T),
        }
        if not _agree(result, right, rtol=1e-4, atol=1e-9):
            message = next((m for m, wrong in slips.items() if _agree(result, wrong, rtol=1e-4, atol=1e-9)), None)
            otherwise = f"linear_betas({T}, {start:g}, {end:g}) should begin {_three(right)}, got {_three(result)}"
            raise Mistake(message or otherwise)
    if not _agree(candidate(), torch.linspace(1e-4, 0.02, 1000), atol=1e-9):
        raise Mistake("without arguments it should be DDPM's: T = 1000, from 1e-4 to 0.02")


def _three(values: Tensor) -> str:
    return ", ".join(f"{v:.4g}" for v in values[:3].tolist()) + ", …" * (len(values) > 3)


@check_for(schedules.cosine_betas)
def cosine_betas(candidate: Callable[..., Any]) -> None:
    """1 − f(after) / f(before), at most max_beta, with f a squared cosine; the oracle is f in float64."""
    for T, s, max_beta, rtol in [(8, 0.008, 0.999, 1e-3), (20, 0.1, 0.8, 1e-3), (1000, 0.008, 0.999, 2e-2)]:
        result = candidate(T, s, max_beta)
        _expect_float(result, (T,), f"cosine_betas({T}, s={s:g}, max_beta={max_beta:g})")
        u = torch.arange(T + 1, dtype=torch.float64) / T

        def f(u: Tensor, s: float = s, power: int = 2) -> Tensor:
            return torch.cos((u + s) / (1 + s) * math.pi / 2) ** power

        def betas(f: Tensor, most: float = max_beta) -> Tensor:
            return (1 - f[1:] / f[:-1]).clamp(max=most)

        right = betas(f(u))
        slips = {
            "no β may exceed max_beta; your largest does": betas(f(u), 2.0),
            "the cosine is not squared": betas(f(u, power=1)),
            "the offset s is left out": betas(f(u, s=0.0)),
            "that is ᾱ; β is one minus the ratio of two neighbours": f(u[1:]) / f(u[:1]),
            "that is 1 − ᾱ, the noise of all steps up to t; β is one minus the ratio of neighbours": 1
            - f(u[1:]) / f(u[:1]),
            "that is α; β = 1 − α": f(u)[1:] / f(u)[:-1],
            "the cosine's argument runs from 0 to π/2, not to π": betas(torch.cos((u + s) / (1 + s) * math.pi) ** 2),
            "the ratio is upside down: f after the step goes over f before it": 1 - f(u)[:-1] / f(u)[1:],
            "the last f belongs to u = 1 (step = T): u is step / T, not step / (T − 1) or step / (T + 1)": betas(
                f(torch.arange(T + 1, dtype=torch.float64) / (T + 1))
            ),
            "the difference of two f is not yet β: divide by f before the step": f(u)[:-1] - f(u)[1:],
        }
        if not _agree(result, right, rtol=rtol, atol=1e-6):
            message = next((m for m, wrong in slips.items() if _agree(result, wrong, rtol=rtol, atol=1e-6)), None)
            raise Mistake(message or f"for T = {T}, s = {s:g} it should begin {_three(right)}, got {_three(result)}")
    if not _agree(candidate(), schedules.cosine_betas(), rtol=2e-2, atol=1e-6):
        raise Mistake("without arguments it should be T = 1000, s = 0.008, max_beta = 0.999")


def _noisy_latent() -> str:
    """Reference: one latent number stands for a patch of pixels and its neighbourhood."""
    return "b"


_noisy_latent.__name__ = "noisy_latent"


@check_for(_noisy_latent)
def noisy_latent(candidate: Callable[[], Any]) -> None:
    """What the decoder makes of a latent with noise on it."""
    replies = {
        "a": "grain differs from pixel to pixel; how many pixels does one latent number stand for?",
        "c": "paler is what the factor √ᾱ alone would do; but noise was added, and the decoder has to draw it somehow",
        "d": "noise is added to each latent number by itself; it does not know of any other picture",
    }
    choice(candidate(), "b", replies)


@check_for(schedules.snr)
def snr(candidate: Callable[[Tensor], Any]) -> None:
    """ᾱ / (1 − ᾱ), for any shape."""
    g = fresh_generator()
    for shape in [(), (6,), (2, 3)]:
        alpha_bar = 0.05 + 0.4 * torch.rand(shape, generator=g)
        before, right = alpha_bar.clone(), alpha_bar / (1 - alpha_bar)
        result = candidate(alpha_bar)
        _expect_float(result, shape, f"snr of a tensor of shape {list(shape)}")
        expect_untouched("alpha_bar", [before], [alpha_bar])
        slips = {
            "that is noise over signal; the signal goes on top": 1 / right,
            "that is a ratio of sizes; take variances, without the square root": right.sqrt(),
            "that is its square; ᾱ and 1 − ᾱ are variances already": right**2,
            "that is the logarithm of it": right.log(),
            "that is in decibels; the plain ratio is asked for": 10 * right.log10(),
            "the noise's variance is 1 − ᾱ; you divided by its root": alpha_bar / (1 - alpha_bar).sqrt(),
            "the signal is missing: its variance, ᾱ, goes on top": 1 / (1 - alpha_bar),
            "that is the difference; the ratio is asked for": 2 * alpha_bar - 1,
            "that is the signal's share, ᾱ itself; divide it by the noise's": alpha_bar,
        }
        if not _agree(result, right):
            first = alpha_bar.flatten()[0].item()
            raise name_it(result, slips, f"for alpha_bar = {first:.3f} it should be {first / (1 - first):.3f}", _agree)
    ends = torch.tensor([0.0, 0.002, 0.998], dtype=torch.float64)
    right = torch.tensor([0.0, 0.002 / 0.998, 499.0], dtype=torch.float64)
    result = candidate(ends)
    if not _agree(result, right):
        raise Mistake(
            f"for alpha_bar = 0, 0.002 and 0.998 it should be 0, 0.002004 and 499, got {_three(result)}: "
            "the ratio has no upper or lower bound here"
        )


def _half_noise() -> int:
    """Reference: the first t of DDPM's linear schedule with ᾱ_t ≤ 1/2, plus one."""
    return int((NoiseSchedule.linear().alphas_cumprod > 0.5).sum()) + 1


_half_noise.__name__ = "half_noise"


@check_for(_half_noise)
def half_noise(candidate: Callable[[], Any]) -> None:
    """A prediction: within 8 % of the true count passes."""
    guess = one_number(candidate(), "the number of steps")
    right = _half_noise()
    if abs(guess - right) <= 0.08 * right:
        print(f"you said {guess:.0f}; counted one by one, it takes {right} steps")
        return
    slips = {
        500: "half of the steps is not half of the variance: the β add up, and α multiply",
        69: "that takes every β for the average one, 0.01; the first ones are much smaller",
        35: "that takes every β for the last one, 0.02; the first ones are much smaller",
        6931: "that takes every β for the first one, 0.0001; they grow",
        368: "that is where a quarter is left (the β sum to ln 4); half is where they sum to ln 2",
        219: "that is where the β sum to 1/2; but −ln ᾱ is about their sum, so half is where they sum to ln 2",
    }
    for wrong, message in slips.items():
        if abs(guess - wrong) <= 0.03 * wrong:
            raise Mistake(message)
    way = "few" if guess < right else "many"
    raise Mistake(f"{guess:.0f} is too {way}: set the sum of the first n β equal to ln 2 and solve for n")
