"""The checks of notebook 06: they take right answers, however written, and name wrong ones."""

from __future__ import annotations

import math

import torch

from course_utils.checks import pipeline as check
from course_utils.diffusion.editing import inpaint_blend, slerp, strength_timesteps
from course_utils.diffusion.samplers import ddim_step, sample
from tests.unit.grading import grading, rejected  # noqa: F401 (the fixture works by being here)


def by_the_package(denoiser, schedule, x, timesteps, prediction_type="v_prediction"):
    return sample(denoiser, schedule, x, None, timesteps=timesteps, prediction_type=prediction_type)


def as_a_list(denoiser, schedule, x, timesteps, prediction_type="v_prediction"):
    steps = []
    for i in range(len(timesteps)):
        t = int(timesteps[i])
        t_prev = int(timesteps[i + 1]) if i + 1 < len(timesteps) else -1
        t_batch = torch.tensor([t] * x.shape[0])
        x = ddim_step(schedule, denoiser(x, t_batch), x, t, t_prev, prediction_type=prediction_type)
        steps.append(x)
    return steps


def loop(pairs, start=lambda x, x_T: x, given=None, scalar=False):
    """A walk over pairs(times); `start` says where each step begins."""

    def candidate(denoiser, schedule, x_T, timesteps, prediction_type="v_prediction"):
        x = x_T
        for t, t_prev in pairs(timesteps.tolist()):
            at = start(x, x_T)
            t_batch = t if scalar else torch.full((len(x),), t)
            x = ddim_step(schedule, denoiser(at, t_batch), at, t, t_prev, prediction_type=given or prediction_type)
            yield x

    return candidate


def right_pairs(times):
    return zip(times, [*times[1:], -1], strict=True)


def test_the_sampling_loop():
    for right in (check._draw_latents, by_the_package, as_a_list):
        assert check.draw_latents(right) is right
    rejected(check.draw_latents, loop(lambda ts: zip(ts, ts[1:], strict=False)), "never asked at the last time")
    rejected(check.draw_latents, loop(lambda ts: [(t, t - 1) for t in ts]), "not t − 1")
    rejected(check.draw_latents, loop(lambda ts: zip(ts, [*ts[1:], 0], strict=True)), "goes to −1")
    rejected(check.draw_latents, loop(right_pairs, start=lambda x, x_T: x_T), "starts from x_T again")
    rejected(check.draw_latents, loop(right_pairs, given="epsilon"), "prediction_type does not reach")
    rejected(check.draw_latents, loop(right_pairs, scalar=True), r"LongTensor \[B\]")
    rejected(check.draw_latents, lambda d, s, x, ts, p="": list(as_a_list(d, s, x, ts, p))[-1], "one tensor")
    rejected(check.draw_latents, lambda d, s, x, ts, p="": [x, *as_a_list(d, s, x, ts, p)], "start from is among")
    rejected(check.draw_latents, lambda d, s, x, ts, p="": None, "gives nothing back")


def test_the_first_guess():
    for right in ("C", "c "):
        check.first_guess(lambda right=right: right)
    rejected(check.first_guess, lambda: "B", "which dog")
    rejected(check.first_guess, lambda: 3, "one letter")


def test_the_spread_of_a_mixture():
    check.mix_std(check._mix_std)
    check.mix_std(lambda w: torch.tensor([1 - w, w]).norm())
    rejected(check.mix_std, lambda w: (1 - w) ** 2 + w**2, "that is the variance")
    rejected(check.mix_std, lambda w: 1.0, "standard deviations do not add")
    rejected(check.mix_std, lambda w: None, "is a return missing")


def double_slerp(a, b, weight):
    x, y = a.double(), b.double()
    angle = torch.acos(((x / x.norm()) * (y / y.norm())).sum().clamp(-1, 1))
    if torch.sin(angle) < 1e-6:
        return a.clone()
    return ((torch.sin(angle - weight * angle) * x + torch.sin(weight * angle) * y) / torch.sin(angle)).float()


def careless_slerp(a, b, weight):
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)


def rowwise_slerp(a, b, weight):
    angle = torch.acos((a * b).sum(-1, keepdim=True) / (a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True)))
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)


def test_slerp():
    for right in (slerp, double_slerp):
        assert check.slerp(right) is right
    rejected(check.slerp, lambda a, b, w: (1 - w) * a + w * b, "straight line")
    rejected(check.slerp, lambda a, b, w: slerp(b, a, w), "swapped")
    rejected(check.slerp, lambda a, b, w: slerp(a, b, w) / slerp(a, b, w).norm(), "length 1")
    rejected(check.slerp, careless_slerp, "their angle is 0")
    rejected(check.slerp, rowwise_slerp, "row by row")


def test_strength():
    check.strength_timesteps(strength_timesteps)

    def another(timesteps, strength):
        if strength < 0 or strength > 1:
            raise ValueError(strength)
        first = len(timesteps) - math.floor(strength * len(timesteps) + 0.5)
        return torch.tensor([t for i, t in enumerate(timesteps.tolist()) if i >= first])

    check.strength_timesteps(another)
    rejected(check.strength_timesteps, lambda ts, s: ts[: round(s * len(ts))], "noisy beginning")
    rejected(check.strength_timesteps, lambda ts, s: ts[round(s * len(ts)) :], "share that is run")
    rejected(check.strength_timesteps, lambda ts, s: ts[-round(s * len(ts)) :], "whole list")
    rejected(check.strength_timesteps, lambda ts, s: ts[len(ts) - int(s * len(ts)) :], "not cut")
    rejected(check.strength_timesteps, lambda ts, s: ts[len(ts) - round(s * len(ts)) :], "should raise a ValueError")


def test_blending_in():
    check.inpaint_blend(inpaint_blend)
    check.inpaint_blend(lambda x, k, m: torch.where(m > 0.5, x, k))
    rejected(check.inpaint_blend, lambda x, k, m: inpaint_blend(k, x, m), "swapped")
    rejected(check.inpaint_blend, lambda x, k, m: m * x + k, "1 − mask")
    rejected(check.inpaint_blend, lambda x, k, m: m * x, "add the known part")
    rejected(check.inpaint_blend, lambda x, k, m: x.mul_(m).add_((1 - m) * k), "in place")
