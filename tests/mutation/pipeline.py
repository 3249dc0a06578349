"""Notebook 06: the sampling loop, what its first step knows, between noises, strength, inpainting, the solver."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from course_utils.checks import pipeline as checks
from course_utils.checks.walking import _draw_latents, _inpaint
from course_utils.diffusion.dpm_solver import dpmpp_2m_step, half_log_snr
from course_utils.diffusion.editing import inpaint_blend, slerp, strength_timesteps
from course_utils.diffusion.forward import add_noise
from course_utils.diffusion.reverse import predict_x0
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


# --- painting into a hole


def inpaint_as_a_list(denoiser, schedule, x, timesteps, known, mask, noise, prediction_type="v_prediction"):
    found = []
    for i, t in enumerate(timesteps.tolist()):
        last = i + 1 == len(timesteps)
        t_prev = -1 if last else int(timesteps[i + 1])
        x = ddim_step(schedule, denoiser(x, torch.tensor([t] * len(x))), x, t, t_prev, prediction_type=prediction_type)
        x = torch.where(mask > 0.5, x, known if last else add_noise(schedule, known, t_prev, noise))
        found.append(x)
    return found


def inpaint_by_single_walks(denoiser, schedule, x, timesteps, known, mask, noise, prediction_type="v_prediction"):
    """Each step is the first of a walk of two."""
    for i in range(len(timesteps)):
        x = next(iter(walk(denoiser, schedule, x, timesteps[i : i + 2], prediction_type)))
        back = add_noise(schedule, known, int(timesteps[i + 1]), noise) if i + 1 < len(timesteps) else known
        x = inpaint_blend(x, back, mask)
        yield x


def painted(level=None, blend=None, known_type=None, start=None, ends=-1):
    """The loop with one thing wrong; blend is (x, known_t, mask, whether it is the last step) -> x."""

    def candidate(denoiser, schedule, x, timesteps, known, mask, noise, prediction_type="v_prediction"):
        for t, after in right_pairs(timesteps.tolist()):
            t_prev = max(after, ends)
            x = start(schedule, x, known, mask, noise, t) if start else x
            prediction = denoiser(x, torch.full((len(x),), t))
            x = ddim_step(schedule, prediction, x, t, t_prev, prediction_type=known_type or prediction_type)
            at = level(t, t_prev) if level else t_prev
            known_t = known if at < 0 else add_noise(schedule, known, at, noise)
            x = (blend or (lambda x, k, m, last: inpaint_blend(x, k, m)))(x, known_t, mask, after < 0)
            yield x

    return candidate


def put_back_before(schedule, x, known, mask, noise, t):
    return inpaint_blend(x, add_noise(schedule, known, t, noise), mask)


def fresh_each_time(denoiser, schedule, x, timesteps, known, mask, noise, prediction_type="v_prediction"):
    yield from painted(blend=lambda x, k, m, last: inpaint_blend(x, k + (0 if last else 0.1) * torch.randn_like(k), m))(
        denoiser, schedule, x, timesteps, known, mask, noise, prediction_type
    )


def shown_but_not_kept(denoiser, schedule, x, timesteps, known, mask, noise, prediction_type="v_prediction"):
    for t, t_prev in right_pairs(timesteps.tolist()):
        x = ddim_step(schedule, denoiser(x, torch.full((len(x),), t)), x, t, t_prev, prediction_type=prediction_type)
        yield inpaint_blend(x, known if t_prev < 0 else add_noise(schedule, known, t_prev, noise), mask)


def with_mask(change: Callable) -> Callable:
    def candidate(denoiser, schedule, x, timesteps, known, mask, *rest):
        return _inpaint(denoiser, schedule, x, timesteps, known, change(mask), *rest)

    return candidate


def known_in_place(denoiser, schedule, x, timesteps, known, mask, noise, prediction_type="v_prediction"):
    yield from _inpaint(denoiser, schedule, x, timesteps, known, mask, noise, prediction_type)
    known.mul_(1 - mask)


# --- the step of second order


def step_with_a_scaled_guess(schedule, prediction, x_t, t, t_prev, last=None, prediction_type="epsilon"):
    """By x / σ, as the notebook derives it."""
    x_0 = predict_x0(schedule, x_t, t, prediction, prediction_type)
    if t_prev < 0:
        return x_0
    here, there = half_log_snr(schedule, t, x_t), half_log_snr(schedule, t_prev, x_t)
    if last is not None:
        x_0 = x_0 + (there - here) / (2 * (here - half_log_snr(schedule, last[1], x_t))) * (x_0 - last[0])
    sigma, sigma_prev = ((1 - schedule.alpha_bar(time, like=x_t)).sqrt() for time in (t, t_prev))
    return sigma_prev * (x_t / sigma + (there.exp() - here.exp()) * x_0)


def step_through_ddim(schedule, prediction, x_t, t, t_prev, last=None, prediction_type="epsilon"):
    """DDIM's step, with another guess in the guess's place."""
    x_0 = predict_x0(schedule, x_t, t, prediction, prediction_type)
    if last is not None and t_prev >= 0:
        now, then, before = (half_log_snr(schedule, time, x_t) for time in (t, t_prev, last[1]))
        x_0 = torch.lerp(last[0], x_0, (1 + (then - now) / (2 * (now - before))).expand_as(x_0))
    return ddim_step(schedule, x_0, x_t, t, t_prev, prediction_type="sample")


def second_order(
    factor=lambda h, h_last: h / (2 * h_last), lam=half_log_snr, on=lambda x_0, last: x_0, exponent=-1,
    at=lambda t, t_prev: t_prev, shrink=lambda s, s_prev: s_prev / s, x0=predict_x0, given=None, guard=True,
):  # fmt: skip
    """The step with one thing wrong."""

    def candidate(schedule, prediction, x_t, t, t_prev, last=None, prediction_type="epsilon"):
        x_0 = x0(schedule, x_t, t, prediction, given or prediction_type)
        h = lam(schedule, t_prev, x_t) - lam(schedule, t, x_t)
        if last is not None and (t_prev >= 0 or not guard):
            h_last = lam(schedule, t, x_t) - lam(schedule, last[1], x_t)
            x_0 = on(x_0, last[0]) + factor(h, h_last) * (x_0 - last[0])
        sigma, sigma_prev = ((1 - schedule.alpha_bar(time, like=x_t)).sqrt() for time in (t, t_prev))
        alpha = schedule.alpha_bar(at(t, t_prev), like=x_t).sqrt()
        return shrink(sigma, sigma_prev) * x_t - alpha * torch.expm1(exponent * h) * x_0

    return candidate


def in_place_step(schedule, prediction, x_t, t, t_prev, last=None, prediction_type="epsilon"):
    result = dpmpp_2m_step(schedule, prediction, x_t, t, t_prev, last, prediction_type)
    return result if last is None else (result, last[0].mul_(0))[0]


def whole_log_snr(schedule, t, like=None):
    return 2 * half_log_snr(schedule, t, like)


RIGHT = {
    "draw_latents": [_draw_latents, by_the_package, as_a_list, recursively, walk],
    "first_guess": [lambda: "C", lambda: "c ", lambda: "c"],
    "slerp": [slerp, slerp_in_float64, slerp_by_turning],
    "strength_timesteps": [strength_timesteps, strength_in_a_loop, strength_by_flip],
    "inpaint": [_inpaint, inpaint_as_a_list, inpaint_by_single_walks, painted()],
    "dpmpp_2m_step": [dpmpp_2m_step, step_with_a_scaled_guess, step_through_ddim, second_order()],
}

WRONG = {
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
        (lambda d, s, x, ts, p="": [y * (len(x) > 1) for y in as_a_list(d, s, x, ts, p)], "a batch of one"),
    ],
    "first_guess": [
        (lambda: "A", "estimate of the clean latent"),
        (lambda: "B", "which dog"),
        (lambda: "D", "the sentence"),
        (lambda: 3, "return one of"),
        (lambda: "AC", "return one of"),
        (lambda: None, "return one of"),
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
        (lambda a, b, w: slerp(a, b, max(w, 0.05)), "at weight 0"),
        (lambda a, b, w: slerp(a, b, min(w, 0.95)), "at weight 1"),
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
        (within(lambda ts, s: strength_timesteps(ts, s) if s < 1 else ts[1:]), "strength 1.0"),
        (within(lambda ts, s: strength_timesteps(ts, s) if round(s * len(ts)) else []), "tensor of timesteps"),
    ],
    "inpaint": [
        (painted(level=lambda t, t_prev: t if t_prev >= 0 else -1), "x is not right"),
        (painted(level=lambda t, t_prev: t), "noised to t"),
        (painted(level=lambda t, t_prev: -1), "clean all the way"),
        (painted(blend=lambda x, k, m, last: inpaint_blend(k, x, m)), "swapped"),
        (painted(blend=lambda x, k, m, last: x), "never put back"),
        (painted(blend=lambda x, k, m, last: x if last else inpaint_blend(x, k, m)), "at the end"),
        (painted(blend=lambda x, k, m, last: inpaint_blend(x, k, m) if last else x), "not only at the end"),
        (painted(blend=lambda x, k, m, last: m * x + k), "x is not right"),
        (painted(start=put_back_before, blend=lambda x, k, m, last: x), "not before it"),
        (painted(known_type="epsilon"), "prediction_type does not reach"),
        (painted(known_type="v_prediction"), "prediction_type does not reach"),
        (painted(ends=0), "stops at 0"),
        (shown_but_not_kept, "what the next step starts from"),
        (fresh_each_time, "noise that is given"),
        (known_in_place, "in place"),
        (with_mask(lambda m: m[:1].expand_as(m)), "every sample gets the first one's mask"),
        (with_mask(lambda m: m[:, :1]), "every channel gets the first one's mask"),
        (with_mask(lambda m: m if bool(m.any()) else m + 1), "0 everywhere"),
        (with_mask(lambda m: m if not bool(m.all()) else m - 1), "1 everywhere"),
        (lambda d, s, x, ts, *rest: _inpaint(d, s, x, ts if len(ts) > 1 else ts // 2, *rest), "a single timestep"),
        (lambda d, s, x, ts, k, m, n, p="": list(_inpaint(d, s, x, ts, k, m, n, p))[-1], "after each step"),
        (lambda d, s, x, ts, k, m, n, p="": list(_inpaint(d, s, x, ts, k, m, n, p))[-1:], "should give"),
        (lambda d, s, x, ts, k, m, n, p="": list(_inpaint(d, s, x, ts[:-1], k, m, n, p)), "asked once at each"),
        (lambda d, s, x, ts, k, m, n, p="": None, "after each step"),
    ],
    "dpmpp_2m_step": [
        (lambda s, e, x, t, u, last=None, p="epsilon": dpmpp_2m_step(s, e, x, t, u, None, p), "is not used"),
        (second_order(factor=lambda h, h_last: h / h_last), "half a step ahead"),
        (second_order(factor=lambda h, h_last: h_last / (2 * h)), "upside down"),
        (second_order(factor=lambda h, h_last: 0.5), "steps of one length"),
        (second_order(factor=lambda h, h_last: -h / (2 * h_last)), "backwards"),
        (second_order(on=lambda x_0, last: last), "not from the last one"),
        (second_order(lam=whole_log_snr), "half the logarithm"),
        (second_order(exponent=1), "wrong sign"),
        (second_order(at=lambda t, t_prev: t), "where the step arrives"),
        (second_order(shrink=lambda s, s_prev: s / s_prev), "below 1"),
        (second_order(x0=lambda s, x, t, e, p: e), "taken for x_0"),
        (second_order(given="epsilon"), "hand prediction_type on"),
        (second_order(guard=False), "nan or infinity"),
        (lambda s, e, x, t, u, last=None, p="epsilon": None, "is a return missing"),
        (lambda s, e, x, t, u, last=None, p="epsilon": dpmpp_2m_step(s, e, x, t, max(u, 0), last, p), "must end in"),
        (lambda s, e, x, t, u, last=None, p="epsilon": dpmpp_2m_step(s, e, x, t, u or -1, last, p), "from 19 to 0"),
        (lambda s, e, x, t, u, last=None, p="epsilon": dpmpp_2m_step(s, e, x, min(t, 18), u, last, p), "from 19 to 0"),
        (second_order(x0=lambda *args: predict_x0(*args).clamp(-5, 5)), "no guess is clipped"),
        (lambda *args: dpmpp_2m_step(*args) + torch.zeros(len(args[2]), 1, 1, 1), "shape"),
        (in_place_step, "in place"),
    ],
}
