"""The checks of notebook 02: they take right answers, however written, and name wrong ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from course_utils.checks import forward as check
from course_utils.diffusion import NoiseSchedule, add_noise, cosine_betas, extract, forward_step, linear_betas, snr
from tests.unit.grading import grading, rejected  # noqa: F401 (the fixture works by being here)


def mix(table: str, keep: Callable, let_in: Callable, shift: int = 0) -> Callable:
    """keep(k) · x + let_in(k) · noise with k looked up in the schedule's table at t + shift."""

    def candidate(schedule, x, t, noise):
        t = torch.as_tensor(t).expand(len(x))
        k = extract(getattr(schedule, table), t + shift, like=x)
        return keep(k) * x + let_in(k) * noise

    return candidate


def root(k):
    return k**0.5


def rest(k):
    return (1 - k) ** 0.5


def test_right_ones_are_taken() -> None:
    for name, right in [
        ("forward_step", forward_step),
        ("forward_step", mix("betas", rest, root)),
        ("forward_step", mix("alphas", root, rest)),
        ("add_noise", add_noise),
        ("add_noise", mix("alphas_cumprod", root, rest)),
        ("jump", check._jump),
        ("linear_betas", linear_betas),
        ("linear_betas", lambda T=1000, a=1e-4, b=0.02: a + (b - a) * torch.arange(T) / (T - 1)),
        ("cosine_betas", cosine_betas),
        ("cosine_betas", float32_cosine),
        ("snr", snr),
        ("snr", lambda a: 1 / (1 / a - 1)),
        ("half_noise", lambda: 260),
        ("half_noise", lambda: 250.0),
    ]:
        assert getattr(check, name)(right) is right


def float32_cosine(T=1000, s=0.008, max_beta=0.999):
    f = torch.cos((torch.arange(T + 1) / T + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (mix("betas", lambda b: 1, root), "not shrunk"),
        (mix("betas", lambda b: 1 - b, root), "square root of 1 − β"),
        (mix("betas", rest, lambda b: b), "square root of β"),
        (mix("betas", lambda b: 1 - b, lambda b: b), "both square roots"),
        (mix("alphas_cumprod", root, rest), "all steps up to t"),
        (mix("betas", rest, root, shift=-1), "t − 1"),
        (mix("betas", root, rest), "swapped"),
        (lambda s, x, t, n: forward_step(s, x, t, torch.randn_like(x)), "draw none"),
        (lambda s, x, t, n: forward_step(s, x, torch.as_tensor(t).reshape(-1)[:1].expand(len(x)), n), "first one's"),
        (lambda s, x, t, n: x.mul_(0.5) + n, "in place"),
        (lambda s, x, t, n: forward_step(s, x.detach(), t, n), "gradient"),
        (lambda s, x, t, n: None, "return missing"),
        (lambda s, x, t, n: 3 * forward_step(s, x, t, n), "variance 9.000"),
    ],
)
def test_forward_step_names_slips(wrong: Callable, words: str) -> None:
    rejected(check.forward_step, wrong, words)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (mix("alphas_cumprod", lambda a: 1, rest), "not shrunk"),
        (mix("alphas_cumprod", lambda a: a, rest), "square root of ᾱ"),
        (mix("alphas_cumprod", root, lambda a: 1 - a), "square root of 1 − ᾱ"),
        (mix("alphas_cumprod", root, lambda a: 1 - a**0.5), "1 − √ᾱ"),
        (mix("alphas_cumprod", lambda a: a, lambda a: 1 - a), "both square roots"),
        (mix("alphas", root, rest), "one step only"),
        (mix("alphas_cumprod", rest, root), "swapped"),
        (mix("alphas_cumprod", root, lambda a: 0), "left out"),
        (mix("alphas_cumprod", root, rest, shift=1), "t [+] 1"),
    ],
)
def test_add_noise_names_slips(wrong: Callable, words: str) -> None:
    rejected(check.add_noise, wrong, words)


def jump_with(keep: Callable, let_in: Callable) -> Callable:
    def candidate(schedule, x_s, s, t, noise):
        a, b = schedule.alpha_bar(s), schedule.alpha_bar(t)
        return keep(a, b) * x_s + let_in(a, b) * noise

    return candidate


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda schedule, x, s, t, noise: add_noise(schedule, x, t, noise), "divide"),
        (lambda schedule, x, s, t, noise: forward_step(schedule, x, t, noise), "one step"),
        (jump_with(lambda a, b: (b / a) ** 0.5, lambda a, b: (1 - b) ** 0.5), "the noise still"),
        (jump_with(lambda a, b: (b / a) ** 0.5, lambda a, b: (a - b) ** 0.5), "variance 1"),
        (jump_with(lambda a, b: b / a, lambda a, b: 1 - b / a), "square roots"),
    ],
)
def test_jump_names_slips(wrong: Callable, words: str) -> None:
    rejected(check.jump, wrong, words)


def test_jump_may_walk_step_by_step_only_with_one_noise() -> None:
    def walk(schedule, x, s, t, noise):
        for step in range(s + 1, t + 1):
            x = forward_step(schedule, x, step, noise)  # the same noise each time is not independent noise
        return x

    rejected(check.jump, walk, "numbers are off|one step")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda T=1000, a=1e-4, b=0.02: a + (b - a) * torch.arange(T) / T, "beta_end itself"),
        (lambda T=1000, a=1e-4, b=0.02: torch.linspace(a**0.5, b**0.5, T) ** 2, "scaled linear"),
        (lambda T=1000, a=1e-4, b=0.02: torch.linspace(a, b, T + 1), "shape"),
        (lambda T=1000, a=1e-4, b=0.02: [a] * T, "tensor"),
        (lambda T=1000, a=1e-4, b=0.03: torch.linspace(a, b, T), "without arguments"),
    ],
)
def test_linear_betas_names_slips(wrong: Callable, words: str) -> None:
    rejected(check.linear_betas, wrong, words)


def cosine_with(power=2, offset=True, clip=True, last=lambda f: 1 - f[1:] / f[:-1]) -> Callable:
    def candidate(T=1000, s=0.008, max_beta=0.999):
        s = s if offset else 0.0
        f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * math.pi / 2) ** power
        return last(f).clamp(max=max_beta) if clip else last(f)

    return candidate


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (cosine_with(power=1), "not squared"),
        (cosine_with(offset=False), "offset"),
        (cosine_with(clip=False), "exceed max_beta"),
        (cosine_with(last=lambda f: f[1:] / f[0], clip=False), "that is ᾱ"),
        (cosine_with(last=lambda f: f[:-1] - f[1:]), "difference"),
    ],
)
def test_cosine_betas_names_slips(wrong: Callable, words: str) -> None:
    rejected(check.cosine_betas, wrong, words)


def test_snr_and_half_noise_name_slips() -> None:
    rejected(check.snr, lambda a: (1 - a) / a, "on top")
    rejected(check.snr, lambda a: (a / (1 - a)) ** 0.5, "without the square root")
    rejected(check.snr, lambda a: (a / (1 - a)).log(), "logarithm")
    for guess, words in [(500, "add up"), (35, "last one"), (219, "ln 2"), (300, "too many"), (120, "too few")]:
        rejected(check.half_noise, lambda guess=guess: guess, words)
    rejected(check.half_noise, lambda: None, "number of steps")


def test_half_noise_is_counted_one_by_one() -> None:
    assert check.half_noise_steps(NoiseSchedule([0.25, 0.25, 0.25])) == 3  # 0.75, 0.5625, 0.421875
    left, steps = 1.0, 0
    while left > 0.5:
        left, steps = left * (1 - NoiseSchedule.linear().betas[steps].item()), steps + 1
    assert check._half_noise() == steps == 260
    with pytest.raises(ValueError, match="more than half"):
        check.half_noise_steps(NoiseSchedule([0.1]))
