"""Notebook 06: the sampling loop, what its first step knows, mixing noises, strength, blending in."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from course_utils.checks import pipeline as checks
from course_utils.diffusion.editing import inpaint_blend, slerp, strength_timesteps
from course_utils.diffusion.samplers import ddim_step, sample

__all__ = ["RIGHT", "WRONG", "checks"]

# --- the sampling loop


def by_the_package(denoiser, schedule, x, timesteps, prediction_type="v_prediction"):
    return sample(denoiser, schedule, x, None, timesteps=timesteps, prediction_type=prediction_type)


def as_a_list(denoiser, schedule, x, timesteps, prediction_type="v_prediction"):
    steps = []
    for i in range(len(timesteps)):
        t = int(timesteps[i])
        t_prev = int(timesteps[i + 1]) if i + 1 < len(timesteps) else -1
        t_batch = torch.tensor([t] * x.shape[0], device=x.device)
        x = ddim_step(schedule, denoiser(x, t_batch), x, t, t_prev, prediction_type=prediction_type)
        steps.append(x)
    return steps


def recursively(denoiser, schedule, x, timesteps, prediction_type="v_prediction"):
    if len(timesteps) == 0:
        return
    after = timesteps[1] if len(timesteps) > 1 else torch.tensor(-1)
    prediction = denoiser(x, timesteps[:1].expand(len(x)).to(x.device))
    x = ddim_step(schedule, prediction, x, int(timesteps[0]), int(after), prediction_type=prediction_type)
    yield x
    yield from recursively(denoiser, schedule, x, timesteps[1:], prediction_type)


def loop(pairs, start=lambda x, x_T: x, given=None, scalar=False, shown=lambda x, x_T: x, shift=0, clip=None):
    """A walk over pairs(times); `start` says where each step begins, `shown` what the denoiser sees."""

    def candidate(denoiser, schedule, x_T, timesteps, prediction_type="v_prediction"):
        x = x_T
        for t, t_prev in pairs(timesteps.tolist()):
            t_batch = t if scalar else torch.full((len(x),), t + shift, device=x.device)
            prediction = denoiser(shown(start(x, x_T), x_T), t_batch)
            x = ddim_step(schedule, prediction, start(x, x_T), t, t_prev, prediction_type=given or prediction_type)
            yield x

    return candidate


def time_on_the_cpu(denoiser, schedule, x, timesteps, prediction_type="v_prediction"):
    for t, t_prev in right_pairs(timesteps.tolist()):
        prediction = denoiser(x, torch.tensor([t] * len(x)))
        x = ddim_step(schedule, prediction, x, t, t_prev, prediction_type=prediction_type)
        yield x


def two_at_least(denoiser, schedule, x, timesteps, prediction_type="v_prediction"):
    """With a single time it stops short of −1."""
    yield from loop(lambda times: right_pairs(times) if times[1:] else [(times[0], 0)])(
        denoiser, schedule, x, timesteps, prediction_type
    )


def right_pairs(times):
    return zip(times, [*times[1:], -1], strict=True)


def walk(denoiser, schedule, x_T, timesteps, prediction_type="v_prediction"):
    return loop(right_pairs)(denoiser, schedule, x_T, timesteps, prediction_type)


def overwritten(denoiser, schedule, x_T, timesteps, prediction_type="v_prediction"):
    """One tensor for all steps."""
    x = x_T.clone()
    for step in walk(denoiser, schedule, x_T, timesteps, prediction_type):
        x.copy_(step)
        yield x


def in_place_from_the_start(denoiser, schedule, x_T, timesteps, prediction_type="v_prediction"):
    for step in walk(denoiser, schedule, x_T.clone(), timesteps, prediction_type):
        x_T.copy_(step)
        yield x_T.clone()


def adding_noise(denoiser, schedule, x_T, timesteps, prediction_type="v_prediction"):
    for step in walk(denoiser, schedule, x_T, timesteps, prediction_type):
        yield step + 0.1 * torch.randn_like(step)


# --- two noises


def slerp_in_float64(a, b, weight):
    x, y = a.double(), b.double()
    angle = torch.acos(((x / x.norm()) * (y / y.norm())).sum().clamp(-1, 1))
    if torch.sin(angle) < 1e-6:
        return a.clone()
    return ((torch.sin(angle - weight * angle) * x + torch.sin(weight * angle) * y) / torch.sin(angle)).to(a.dtype)


def slerp_by_turning(a, b, weight):
    """Turn a towards b in their plane; the length goes over from one to the other as slerp's does."""
    x, y = a.double().flatten(), b.double().flatten()
    u = x / x.norm()
    across = y - (u @ y) * u
    if across.norm() < 1e-4 * y.norm():
        return a.clone()
    v = across / across.norm()
    theta = math.atan2(float(v @ y), float(u @ y))
    first, second = math.sin((1 - weight) * theta) / math.sin(theta), math.sin(weight * theta) / math.sin(theta)
    along = first * x.norm() + second * (u @ y)
    return (along * u + second * (v @ y) * v).reshape(a.shape).to(a.dtype)


def slerp_with(angle: Callable, mix: Callable | None = None) -> Callable:
    def candidate(a, b, w):
        theta = angle(a, b)
        if mix:
            return mix(a, b, w, theta)
        return (torch.sin((1 - w) * theta) * a + torch.sin(w * theta) * b) / torch.sin(theta)

    return candidate


def between(a, b):
    return torch.acos((a * b).sum() / (a.norm() * b.norm()))


def safe_between(a, b):
    return torch.acos(((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1)).clamp(min=1e-3)


def straight_if_near(a, b, w):
    return (1 - w) * a + w * b if between(a, b) < 0.1 else slerp(a, b, w)


def slerp_turned_round(a, b, w):
    """The shorter way, as quaternions have it."""
    return slerp(a, -b if (a * b).sum() < 0 else b, w)


def slerp_in_place(a, b, w):
    result = slerp(a, b, w)
    a.mul_(1 - w)
    return result


# --- strength


def strength_in_a_loop(timesteps, strength):
    if strength < 0 or strength > 1:
        raise ValueError(strength)
    first = len(timesteps) - math.floor(strength * len(timesteps) + 0.5)
    return torch.tensor([t for i, t in enumerate(timesteps.tolist()) if i >= first])


def strength_by_flip(timesteps, strength):
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    return timesteps.flip(0)[: round(len(timesteps) * strength)].flip(0)


def within(function: Callable) -> Callable:
    """With the ValueError that is asked for."""

    def candidate(timesteps, strength):
        if not 0 <= strength <= 1:
            raise ValueError(strength)
        return function(timesteps, strength)

    return candidate


def clamps(timesteps, strength):
    return strength_timesteps(timesteps, min(max(strength, 0.0), 1.0))


def asserts(timesteps, strength):
    assert 0 <= strength <= 1
    return strength_timesteps(timesteps, strength)


# --- blending


def blend_in_a_loop(x_t, known_t, mask):
    rows = [
        [m * a + (1 - m) * b for a, b, m in zip(*channels, strict=True)]
        for channels in zip(x_t, known_t, mask.expand_as(x_t), strict=True)
    ]
    return torch.stack([torch.stack(row) for row in rows])


RIGHT = {
    "doubled_steps": [lambda: (1 / 2, 1 / 4), lambda: [0.5, 0.25], lambda: torch.tensor([2.0, 4.0]) ** -1],
    "draw_latents": [checks._draw_latents, by_the_package, as_a_list, recursively, walk],
    "first_guess": [lambda: "C", lambda: "c ", lambda: "c"],
    "mix_std": [
        checks._mix_std,
        lambda w: torch.tensor([1 - w, w]).norm(),
        lambda w: np.sqrt(1 - 2 * w * (1 - w)),
        lambda w: abs(complex(1 - w, w)),
    ],
    "slerp": [slerp, slerp_in_float64, slerp_by_turning],
    "strength_timesteps": [strength_timesteps, strength_in_a_loop, strength_by_flip],
    "inpaint_blend": [
        inpaint_blend,
        lambda x, k, m: torch.where(m > 0.5, x, k),
        lambda x, k, m: torch.lerp(k, x, m.expand_as(x)),
        lambda x, k, m: (k.double() + m * (x.double() - k.double())).to(x.dtype),
        blend_in_a_loop,
    ],
}

WRONG = {
    "doubled_steps": [
        (lambda: (2, 4), "inverses"),
        (lambda: (0.25, 0.5), "swapped"),
        (lambda: (0.25, 0.125), "errors of single steps"),
        (lambda: (0.5, 0.5), "must gain more"),
        (lambda: (1, 0.5), "both shrink"),
        (lambda: (0.5, 0.1), "halve h"),
        (lambda: 0.5, "two numbers"),
        (lambda: None, "two numbers"),
    ],
    "draw_latents": [
        (time_on_the_cpu, "on a GPU"),
        (two_at_least, "single timestep"),
        (loop(lambda ts: zip(ts, ts[1:], strict=False)), "never asked at the last time"),
        (loop(lambda ts: [(t, t - 1) for t in ts]), "not t − 1"),
        (loop(lambda ts: zip(ts, [*ts[1:], 0], strict=True)), "goes to −1"),
        (loop(right_pairs, start=lambda x, x_T: x_T), "starts from x_T again"),
        (loop(right_pairs, shown=lambda x, x_T: x_T), "shown x_T"),
        (loop(right_pairs, given="epsilon"), "prediction_type does not reach"),
        (loop(right_pairs, given="v_prediction"), "prediction_type does not reach"),
        (loop(right_pairs, scalar=True), "LongTensor [B]"),
        (loop(right_pairs, shift=-1), "should be asked once at each"),
        (loop(lambda ts: [(b, a) for a, b in zip([-1, *ts[::-1]], ts[::-1], strict=False)]), "the times rise"),
        (overwritten, "changed later"),
        (in_place_from_the_start, "in place"),
        (adding_noise, "draws nothing"),
        (lambda d, s, x, ts, p="": list(as_a_list(d, s, x, ts, p))[-1], "one tensor"),
        (lambda d, s, x, ts, p="": [x, *as_a_list(d, s, x, ts, p)], "start from is among"),
        (lambda d, s, x, ts, p="": as_a_list(d, s, x, ts, p)[-1:], "should give"),
        (lambda d, s, x, ts, p="": None, "gives nothing back"),
    ],
    "first_guess": [
        (lambda: "A", "estimate of the clean latent"),
        (lambda: "B", "which dog"),
        (lambda: "D", "the sentence"),
        (lambda: 3, "return one of"),
        (lambda: "AC", "return one of"),
        (lambda: None, "return one of"),
    ],
    "mix_std": [
        (lambda w: (1 - w) ** 2 + w**2, "that is the variance"),
        (lambda w: 1.0, "standard deviations do not add"),
        (lambda w: math.sqrt(1 - w + w), "standard deviations do not add"),
        (lambda w: math.sqrt(1 - w) + math.sqrt(w), "weights are squared"),
        (lambda w: abs(1 - 2 * w), "subtracted"),
        (lambda w: math.sqrt(0.5), "holds for halfway only"),
        (lambda w: max(w, 1 - w), "the smaller part counts, too"),
        (lambda w: None, "is a return missing"),
    ],
    "slerp": [
        (slerp_turned_round, "neither end is turned round"),
        (slerp_with(lambda a, b: torch.acos(((a * b).sum() / (a.norm() * b.norm())).abs())), "keeps its sign"),
        (straight_if_near, "a straight line"),
        (lambda a, b, w: slerp(a, b, w).to(torch.bfloat16), "half precision"),
        (lambda a, b, w: (1 - w) * a + w * b, "straight line"),
        (lambda a, b, w: slerp(b, a, w), "swapped"),
        (lambda a, b, w: slerp(a, b, w) / slerp(a, b, w).norm(), "length 1"),
        (slerp_with(between), "their angle is 0"),
        (
            slerp_with(
                lambda a, b: torch.acos(
                    (a * b).sum(-1, keepdim=True) / (a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True))
                )
            ),
            "row by row",
        ),
        (
            slerp_with(safe_between, lambda a, b, w, th: torch.sin((1 - w) * th) * a + torch.sin(w * th) * b),
            "division by sin",
        ),
        (slerp_with(safe_between, lambda a, b, w, th: torch.cos(w * th) * a + torch.sin(w * th) * b), "right angles"),
        (slerp_with(lambda a, b: ((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1)), "arc cosine"),
        (slerp_with(lambda a, b: torch.acos((a * b).sum().clamp(-1, 1)).clamp(min=1e-3)), "divide by both lengths"),
        (lambda a, b, w: ((1 - w) ** 2 + w**2) ** -0.5 * ((1 - w) * a + w * b), "only if they are at right angles"),
        (slerp_in_place, "in place"),
        (lambda a, b, w: slerp(a, b, w).flatten(), "shape"),
        (lambda a, b, w: slerp(a.float(), b.float(), w), "dtype"),
    ],
    "strength_timesteps": [
        (within(lambda ts, s: ts[: round(s * len(ts))]), "noisy beginning"),
        (within(lambda ts, s: ts[round(s * len(ts)) :]), "share that is run"),
        (within(lambda ts, s: ts[-round(s * len(ts)) :]), "whole list"),
        (within(lambda ts, s: ts[len(ts) - int(s * len(ts)) :]), "not cut"),
        (within(lambda ts, s: ts[len(ts) - math.ceil(s * len(ts)) :]), "not rounded up"),
        (within(lambda ts, s: ts[ts <= s * ts.max()]), "by their place in the list"),
        (lambda ts, s: ts[len(ts) - round(s * len(ts)) :], "should raise a ValueError"),
        (clamps, "should raise a ValueError"),
        (asserts, "ValueError, not an AssertionError"),
        (within(lambda ts, s: strength_timesteps(ts, s).float()), "whole numbers"),
        (within(lambda ts, s: round(s * len(ts))), "tensor of timesteps"),
        (within(lambda ts, s: strength_timesteps(ts, s).flip(0)), "fall"),
    ],
    "inpaint_blend": [
        (lambda x, k, m: inpaint_blend(x, k, m[:, :1] if m.ndim == 4 else m), "channel"),
        (lambda x, k, m: inpaint_blend(k, x, m), "swapped"),
        (lambda x, k, m: m * x + k, "1 − mask"),
        (lambda x, k, m: x + (1 - m) * k, "the factor mask"),
        (lambda x, k, m: m * x, "add the known part"),
        (lambda x, k, m: (1 - m) * k, "add the new part"),
        (lambda x, k, m: m * x + m * k, "both parts have the factor mask"),
        (lambda x, k, m: (x + k) / 2, "the mask is not used"),
        (lambda x, k, m: m * x - (1 - m) * k, "minus"),
        (lambda x, k, m: x.mul_(m).add_((1 - m) * k), "in place"),
        (lambda x, k, m: torch.where(m[:1].bool(), x, k), "first sample's mask"),
        (lambda x, k, m: torch.where(m.bool(), x, k).float(), "dtype"),
        (lambda x, k, m: x[m.expand_as(x) > 0], "shape"),
        (lambda x, k, m: m * x.detach() + (1 - m) * k, "reaches x_t"),
    ],
}
