"""Notebook 02: one noising step, the closed form, jumps, schedules, the signal-to-noise ratio."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from course_utils.checks import forward as checks
from course_utils.diffusion import add_noise, cosine_betas, extract, forward_step, linear_betas, snr

__all__ = ["RIGHT", "WRONG", "checks"]


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


def sample_by_sample(table: str, keep: Callable, let_in: Callable) -> Callable:
    def candidate(schedule, x, t, noise):
        ks = getattr(schedule, table).tolist()
        steps = [int(s) for s in torch.as_tensor(t).expand(len(x))]
        rows = [keep(ks[s]) * a + let_in(ks[s]) * b for s, a, b in zip(steps, x, noise, strict=True)]
        return torch.stack(rows)

    return candidate


def by_einsum(table: str, keep: Callable, let_in: Callable) -> Callable:
    """In float64 and back."""

    def candidate(schedule, x, t, noise):
        k = getattr(schedule, table).double()[torch.as_tensor(t).expand(len(x))]
        mixed = torch.einsum("b...,b->b...", x.double(), keep(k)) + torch.einsum(
            "b...,b->b...", noise.double(), let_in(k)
        )
        return mixed.to(x.dtype)

    return candidate


def step_by_step(schedule, x_0, t, noise):
    """The factors by walking; no cumulative product."""
    rows = []
    for a, s, n in zip(x_0, torch.as_tensor(t).expand(len(x_0)).tolist(), noise, strict=True):
        factor, variance = 1.0, 0.0
        for beta in schedule.betas[: s + 1].tolist():
            factor, variance = factor * math.sqrt(1 - beta), (1 - beta) * variance + beta
        rows.append(factor * a + math.sqrt(variance) * n)
    return torch.stack(rows)


def first_time_for_all(function: Callable) -> Callable:
    return lambda s, x, t, n: function(s, x, torch.as_tensor(t).reshape(-1)[:1].expand(len(x)), n)


def at(t, x):
    return torch.as_tensor(t).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))


def only_for_pictures(function: Callable) -> Callable:
    """Pictures [B, C, h, w] and rows [B, n]; of anything else the first sample's t is taken."""
    return lambda s, x, t, n: (first_time_for_all(function) if x.ndim == 3 else function)(s, x, t, n)


def with_t_of_the_first_call(function: Callable) -> Callable:
    kept: list = []

    def candidate(s, x, t, n):
        kept.append(t)
        return function(s, x, kept[0], n)

    return candidate


def mistakes_of_both(function: Callable) -> list[tuple[Callable, str]]:
    """Slips that have nothing to do with which table is used."""
    return [
        (lambda s, x, t, n: function(s, x, t, torch.randn_like(x)), "draw none"),
        (first_time_for_all(function), "first one's"),
        (lambda s, x, t, n: x.mul_(0.5) + n, "in place"),
        (lambda s, x, t, n: function(s, x.detach(), t, n), "gradient"),
        (lambda s, x, t, n: None, "return missing"),
        (lambda s, x, t, n: 3 * function(s, x, t, n), "variance 9.000"),
        (lambda s, x, t, n: function(s, x, t, n).float(), "dtype"),
        (lambda s, x, t, n: function(s, x, t, -n), "a minus before the noise"),
        (lambda s, x, t, n: torch.where(at(t, x) == 0, x, function(s, x, t, n)), "at the ends"),
        (lambda s, x, t, n: function(s, x, torch.as_tensor(t).clamp(min=1), n), "at the ends"),
        (lambda s, x, t, n: function(s, x, torch.as_tensor(t).clamp(max=5), n), "at the ends"),
        (lambda s, x, t, n: function(s, x, t or 1, n) if isinstance(t, int) else function(s, x, t, n), "an int"),
        (only_for_pictures(function), "[3, 4, 4]"),
        (with_t_of_the_first_call(function), "the numbers are off"),
        (lambda s, x, t, n: function(s, x, t, n).half(), "half precision"),
    ]


def jump_with(keep: Callable, let_in: Callable) -> Callable:
    def candidate(schedule, x_s, s, t, noise):
        a, b = schedule.alpha_bar(s), schedule.alpha_bar(t)
        return keep(a, b) * x_s + let_in(a, b) * noise

    return candidate


def jump_by_products(schedule, x_s, s, t, noise):
    keep = math.prod(1 - b for b in schedule.betas.tolist()[s + 1 : t + 1])
    return (math.sqrt(keep) * x_s.double() + math.sqrt(1 - keep) * noise.double()).to(x_s)


def jump_by_logarithms(schedule, x_s, s, t, noise):
    keep = schedule.alphas[s + 1 : t + 1].log().sum().exp()
    return torch.lerp(torch.zeros_like(x_s), x_s, keep.sqrt().item()) + (1 - keep).sqrt() * noise


def walk_with_one_noise(schedule, x, s, t, noise):
    for step in range(s + 1, t + 1):
        x = forward_step(schedule, x, step, noise)
    return x


def float32_cosine(T=1000, s=0.008, max_beta=0.999):
    f = torch.cos((torch.arange(T + 1) / T + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)


def numpy_cosine(T=1000, s=0.008, max_beta=0.999):
    f = np.cos((np.linspace(0, 1, T + 1) + s) / (1 + s) * np.pi / 2) ** 2
    return torch.from_numpy(np.minimum(1 - f[1:] / f[:-1], max_beta)).float()


def cosine_with(power=2, offset=True, clip=True, last=lambda f: 1 - f[1:] / f[:-1], steps=0, half=2) -> Callable:
    def candidate(T=1000, s=0.008, max_beta=0.999):
        s = s if offset else 0.0
        u = torch.arange(T + 1, dtype=torch.float64) / (T + steps)
        f = torch.cos((u + s) / (1 + s) * math.pi / half) ** power
        return last(f).clamp(max=max_beta) if clip else last(f)

    return candidate


def counted_one_by_one():
    left, steps = 1.0, 0
    while left > 0.5:
        left, steps = left * (1 - 1e-4 - (0.02 - 1e-4) * steps / 999), steps + 1
    return steps


RIGHT = {
    "noisy_latent": [lambda: "b", lambda: "B", lambda: "b "],
    "forward_step": [
        forward_step,
        mix("betas", rest, root),
        mix("alphas", root, rest),
        sample_by_sample("betas", rest, root),
        by_einsum("betas", rest, root),
    ],
    "add_noise": [
        add_noise,
        mix("alphas_cumprod", root, rest),
        sample_by_sample("alphas_cumprod", root, rest),
        by_einsum("alphas_cumprod", root, rest),
        step_by_step,
    ],
    "jump": [checks._jump, jump_by_products, jump_by_logarithms],
    "linear_betas": [
        linear_betas,
        lambda T=1000, a=1e-4, b=0.02: a + (b - a) * torch.arange(T) / (T - 1),
        lambda T=1000, a=1e-4, b=0.02: torch.tensor([a + (b - a) * i / (T - 1) for i in range(T)], dtype=torch.float64),
    ],
    "half_noise": [lambda: 260, lambda: 250.0, lambda: torch.tensor(264), counted_one_by_one],
    "cosine_betas": [cosine_betas, float32_cosine, numpy_cosine],
    "snr": [
        snr,
        lambda a: 1 / (1 / a - 1),
        lambda a: torch.logit(a).exp(),
        lambda a: (a.double() / (1 - a.double())).float(),
    ],
}

WRONG = {
    "noisy_latent": [
        (lambda: "a", "how many pixels"),
        (lambda: "c", "paler"),
        (lambda: "d", "any other picture"),
        (lambda: "snow", "return one of"),
        (lambda: None, "return one of"),
    ],
    "forward_step": [
        (mix("betas", lambda b: 1, root), "not shrunk"),
        (mix("betas", lambda b: 1 - b, root), "square root of 1 − β"),
        (mix("betas", rest, lambda b: b), "square root of β"),
        (mix("betas", lambda b: 1 - b, lambda b: b), "both square roots"),
        (mix("alphas_cumprod", root, rest), "all steps up to t"),
        (mix("betas", rest, root, shift=-1), "t − 1"),
        (mix("betas", rest, root, shift=1), "t + 1"),
        (mix("betas", root, rest), "swapped"),
        *mistakes_of_both(forward_step),
    ],
    "add_noise": [
        (mix("alphas_cumprod", lambda a: 1, rest), "not shrunk"),
        (mix("alphas_cumprod", lambda a: a, rest), "square root of ᾱ"),
        (mix("alphas_cumprod", root, lambda a: 1 - a), "square root of 1 − ᾱ"),
        (mix("alphas_cumprod", root, lambda a: 1 - a**0.5), "1 − √ᾱ"),
        (mix("alphas_cumprod", lambda a: a, lambda a: 1 - a), "both square roots"),
        (mix("alphas", root, rest), "one step only"),
        (mix("betas", root, rest), "β where ᾱ belongs"),
        (mix("alphas_cumprod", rest, root), "swapped"),
        (mix("alphas_cumprod", root, lambda a: 0), "left out"),
        (mix("alphas_cumprod", root, rest, shift=1), "t + 1"),
        (mix("alphas_cumprod", root, rest, shift=-1), "t − 1"),
        *mistakes_of_both(add_noise),
    ],
    "jump": [
        (lambda schedule, x, s, t, noise: add_noise(schedule, x, t, noise), "divide"),
        (lambda schedule, x, s, t, noise: forward_step(schedule, x, t, noise), "one step"),
        (jump_with(lambda a, b: (b / a) ** 0.5, lambda a, b: (1 - b) ** 0.5), "the noise still"),
        (jump_with(lambda a, b: (b / a) ** 0.5, lambda a, b: (a - b) ** 0.5), "variance 1"),
        (jump_with(lambda a, b: b / a, lambda a, b: 1 - b / a), "square roots"),
        (jump_with(lambda a, b: (1 - a + b) ** 0.5, lambda a, b: (a - b) ** 0.5), "not subtracted"),
        (jump_with(lambda a, b: (1 - b / a) ** 0.5, lambda a, b: (b / a) ** 0.5), "swapped"),
        (lambda schedule, x, s, t, noise: checks._jump(schedule, x, s - 1, t, noise), "taken twice"),
        (lambda schedule, x, s, t, noise: checks._jump(schedule, x, s, t - 1, noise), "stops a step short"),
        (walk_with_one_noise, "independent"),
        (lambda schedule, x, s, t, noise: checks._jump(schedule, x.mul_(1.0).add_(1), s, t, noise), "in place"),
        (lambda schedule, x, s, t, noise: checks._jump(schedule, x, s, t, torch.randn_like(x)), "draw none"),
        (lambda schedule, x, s, t, noise: checks._jump(schedule, x.detach(), s, t, noise), "gradient"),
        (lambda schedule, x, s, t, noise: checks._jump(schedule, x, max(s, 1), t, noise), "are off for s = 0"),
        (lambda schedule, x, s, t, noise: checks._jump(schedule, x, s, min(t, 998), noise), "for s = 0 and t = 999"),
        (jump_with(lambda a, b: (b / a).clamp(min=1e-3) ** 0.5, lambda a, b: (1 - b / a) ** 0.5), "s = 0 and t = 999"),
        (jump_with(lambda a, b: (b / a) ** 0.5, lambda a, b: (1 - b / a).clamp(min=1e-3) ** 0.5), "s = 1 and t = 2"),
        (lambda schedule, x, s, t, noise: checks._jump(schedule, x.reshape(len(x), -1, 1, 1), s, t, noise), "stops"),
        (lambda schedule, x, s, t, noise: checks._jump(schedule, x, s, t, noise).float(), "dtype"),
    ],
    "linear_betas": [
        (lambda T=1000, a=1e-4, b=0.02: a + (b - a) * torch.arange(T) / T, "beta_end itself"),
        (lambda T=1000, a=1e-4, b=0.02: a + (b - a) * torch.arange(1, T + 1) / T, "beta_start itself"),
        (lambda T=1000, a=1e-4, b=0.02: torch.linspace(a**0.5, b**0.5, T) ** 2, "scaled linear"),
        (lambda T=1000, a=1e-4, b=0.02: torch.linspace(a, b, T + 1), "shape"),
        (lambda T=1000, a=1e-4, b=0.02: [a] * T, "tensor"),
        (lambda T=1000, a=1e-4, b=0.03: torch.linspace(a, b, T), "without arguments"),
        (lambda T=1000, a=1e-4, b=0.02: torch.linspace(b, a, T), "it falls"),
        (lambda T=1000, a=1e-4, b=0.02: 1 - torch.linspace(a, b, T), "1 − β"),
        (lambda T=1000, a=1e-4, b=0.02: torch.logspace(math.log10(a), math.log10(b), T), "factor"),
        (lambda T=1000, a=1e-4, b=0.02: torch.linspace(1e-4, 0.02, T), "beta_start and beta_end are not used"),
        (lambda T=1000, a=1e-4, b=0.02: torch.linspace(a, b, T).half(), "half precision"),
        (lambda T=1000, a=1e-4, b=0.02: torch.linspace(a, b, 1000), "shape"),
    ],
    "half_noise": [
        *[
            (lambda guess=guess: guess, words)
            for guess, words in [
                (500, "add up"),
                (35, "last one"),
                (69, "average"),
                (6931, "first one"),
                (219, "ln 2"),
                (368, "a quarter"),
                (300, "too many"),
                (120, "too few"),
                (None, "return missing"),
                ("260", "one number"),
                (False, "one number"),
            ]
        ],
    ],
    "cosine_betas": [
        (cosine_with(power=1), "not squared"),
        (cosine_with(offset=False), "offset"),
        (cosine_with(clip=False), "exceed max_beta"),
        (cosine_with(last=lambda f: f[1:] / f[0], clip=False), "that is ᾱ"),
        (cosine_with(last=lambda f: f[:-1] - f[1:]), "difference"),
        (cosine_with(last=lambda f: f[1:] / f[:-1], clip=False), "that is α"),
        (cosine_with(last=lambda f: 1 - f[1:] / f[0], clip=False), "all steps up to t"),
        (cosine_with(last=lambda f: 1 - f[:-1] / f[1:]), "upside down"),
        (cosine_with(steps=1), "step = T"),
        (cosine_with(half=1), "π/2"),
        (cosine_with(last=lambda f: 1 - f / f[0]), "shape"),
        (lambda T=1000, s=0.01, max_beta=0.999: cosine_betas(T, s, max_beta), "without arguments"),
        (lambda T=1000, s=0.008, max_beta=0.999: cosine_betas(T, s, 0.999), "max_beta"),
        (lambda T=1000, s=0.008, max_beta=0.999: cosine_betas(1000, s, max_beta), "shape"),
        (lambda T=1000, s=0.008, max_beta=0.999: cosine_betas(T, s, max_beta).half(), "half precision"),
        (lambda T=1000, s=0.008, max_beta=0.999: cosine_betas(T, s, max_beta).clamp(min=1e-4), "for T = 1000"),
    ],
    "snr": [
        (lambda a: (1 - a) / a, "on top"),
        (lambda a: (a / (1 - a)).clamp(max=5), "bound"),
        (lambda a: (a / (1 - a)).clamp(max=100), "bound"),
        (lambda a: a / (1 - a).clamp(min=1e-2), "bound"),
        (lambda a: a.clamp(min=1e-2) / (1 - a), "bound"),
        (lambda a: (a / (1 - a)) ** 0.5, "without the square root"),
        (lambda a: (a / (1 - a)).log(), "logarithm"),
        (lambda a: 10 * (a / (1 - a)).log10(), "decibels"),
        (lambda a: a / (1 - a).sqrt(), "divided by its root"),
        (lambda a: a**2 / (1 - a) ** 2, "square"),
        (lambda a: 1 / (1 - a), "signal is missing"),
        (lambda a: a - (1 - a), "difference"),
        (lambda a: a.clone(), "share"),
        (lambda a: a.div_(1 - a), "in place"),
        (lambda a: (a / (1 - a)).mean(), "shape"),
        (lambda a: float((a / (1 - a)).mean()), "tensor"),
        (lambda a: (a / (1 - a)).half(), "half precision"),
        (lambda a: a / (1 - a + 1e-6), "no upper or lower bound"),
        (lambda a: (a / (1 - a)).reshape(-1), "shape"),
    ],
}
