"""Checks of notebook 06, first part: the sampling loop, and the loop that paints into a hole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.base import (
    Mistake,
    check_for,
    close,
    expect_shape,
    expect_untouched,
    name_it,
    random_tensor,
)
from course_utils.diffusion.forward import add_noise
from course_utils.diffusion.samplers import ddim_step
from course_utils.diffusion.schedule import NoiseSchedule

# --- draw_latents -------------------------------------------------------------------------------------------


def _draw_latents(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    x: Tensor,
    timesteps: Tensor,
    prediction_type: str = "v_prediction",
) -> Iterator[Tensor]:
    """Reference: DDIM from timesteps[0] down to the last one, and from there to −1."""
    times = timesteps.tolist()
    for t, t_prev in zip(times, [*times[1:], -1], strict=True):
        prediction = denoiser(x, torch.full((len(x),), t, device=x.device))
        x = ddim_step(schedule, prediction, x, t, t_prev, prediction_type=prediction_type)
        yield x


_draw_latents.__name__ = "draw_latents"


class _Recorder:
    """A denoiser whose prediction depends on x and t, and that remembers the times it was asked for."""

    def __init__(self) -> None:
        self.times: list[int] = []

    def __call__(self, x: Any, t: Any) -> Tensor:
        if not isinstance(t, Tensor) or t.is_floating_point() or t.shape != (len(x),):
            given = f"{list(t.shape)} {t.dtype}" if isinstance(t, Tensor) else f"{t!r}"
            raise Mistake(
                f"the denoiser wants t as a LongTensor [B], one time a sample; it got {given}: "
                "torch.full((len(x),), t, device=x.device)"
            )
        if t.device != x.device:
            raise Mistake("on a GPU it would fail, for t is made on the CPU: torch.full((len(x),), t, device=x.device)")
        if x.device.type != "cpu":
            return x
        self.times.append(int(t[0]))
        return torch.tanh(x.roll(1, dims=-1)) + 0.003 * t.reshape(-1, 1, 1, 1)


def _wrong_walk(kind: str, schedule: NoiseSchedule, x_T: Tensor, times: list[int], prediction_type: str) -> Tensor:
    """Where the loop ends if it is wrong in a way that people get it wrong."""
    denoiser, x = _Recorder(), x_T
    for t, after in zip(times, [*times[1:], -1], strict=True):
        t_prev = {"t-1": t - 1, "floor 0": max(after, 0)}.get(kind, after)
        prediction = denoiser(x_T if kind in ("shown", "stays") else x, torch.full((len(x),), t))
        start = x_T if kind == "stays" else x
        known_type = kind if kind in ("epsilon", "v_prediction") else prediction_type
        x = ddim_step(schedule, prediction, start, t, t_prev, prediction_type=known_type)
    return x


@check_for(_draw_latents)
def draw_latents(candidate: Callable[..., Any]) -> None:
    """The times asked for, x after each step, a case whose end is known, and a start midway."""
    schedule = NoiseSchedule.cosine(60)
    for prediction_type, timesteps in (("v_prediction", schedule.timesteps(6)), ("sample", torch.tensor([23, 11, 4]))):
        x_T, denoiser = random_tensor(2, 4, 3, 3), _Recorder()
        before = x_T.clone()
        result = candidate(denoiser, schedule, x_T, timesteps, prediction_type)
        if result is None:
            raise Mistake("it gives nothing back: yield x after each step (or return a list of them)")
        if isinstance(result, Tensor):
            raise Mistake("it gives one tensor; yield x inside the loop, after each step, so that all can be seen")
        steps, times = list(result), timesteps.tolist()
        expect_untouched("x", [before], [x_T])
        if denoiser.times == times[::-1]:
            raise Mistake(f"the times rise in yours; drawing goes from the noisiest, {times[0]}, down to {times[-1]}")
        if denoiser.times == times[:-1]:
            raise Mistake(
                f"the denoiser is never asked at the last time, {times[-1]}: there is one more step, from there to −1"
            )
        if denoiser.times != times:
            raise Mistake(f"the denoiser should be asked once at each of {times}; yours asks at {denoiser.times}")
        if len(steps) == len(times) + 1:
            raise Mistake("the noise you start from is among the results; yield only what comes after a step")
        if len(steps) != len(times):
            raise Mistake(f"{len(times)} steps should give {len(times)} latents, got {len(steps)}")
        for step in steps:
            expect_shape(step, tuple(x_T.shape), "each x")
        slips = {
            "after t comes the next of the timesteps, not t − 1: you take a stride of one and skip the rest": "t-1",
            "the last step goes to −1, where no noise is left; yours stops at 0": "floor 0",
            "the denoiser is shown x_T at every step; show it the x of the step before": "shown",
            "each step starts from x_T again: the result of a step is where the next one starts": "stays",
            "prediction_type does not reach ddim_step (its default is 'epsilon')": "epsilon",
            "prediction_type does not reach ddim_step: it is 'v_prediction' whatever is asked for": "v_prediction",
        }
        right = list(_draw_latents(_Recorder(), schedule, x_T, timesteps, prediction_type))
        if not close(steps[-1], right[-1]):
            *_, again = candidate(_Recorder(), schedule, x_T, timesteps, prediction_type)
            if not close(steps[-1], again):
                raise Mistake("two walks from the same x differ: DDIM (eta = 0) draws nothing on its way")
            wrong = {m: _wrong_walk(k, schedule, x_T, times, prediction_type) for m, k in slips.items()}
            raise name_it(steps[-1], wrong, "the last x is not what DDIM gives; compare your loop with the formula")
        if not all(close(a, b) for a, b in zip(steps, right, strict=True)):
            raise Mistake("only the last x is right: an x that was yielded is changed later; write x = …, not x[…] = …")
    far = torch.zeros(2, 4, 3, 3, device="meta")  # stands for a GPU
    with suppress(RuntimeError, TypeError, ValueError):  # what has to read numbers stops there, which is no mistake
        list(candidate(_Recorder(), schedule, far, torch.tensor([30, 10]), "sample"))
    *_, one = candidate(_Recorder(), schedule, x_T[:1], torch.tensor([59]), "sample")
    if not close(one, list(_draw_latents(_Recorder(), schedule, x_T[:1], torch.tensor([59]), "sample"))[-1]):
        raise Mistake("with a single timestep (and a batch of one) it must go from there to −1 at once")
    # A denoiser that knows the one picture there is must lead to it, wherever the walk begins.
    x_0 = random_tensor(1, 4, 2, 2)
    *_, last = candidate(
        lambda x, t: x_0.expand_as(x), schedule, random_tensor(3, 4, 2, 2), schedule.timesteps(5), "sample"
    )
    if not close(last, x_0.expand(3, -1, -1, -1)):
        raise Mistake("a denoiser that always answers with the same x_0 must end in that x_0, and yours does not")


# --- inpaint ------------------------------------------------------------------------------------------------


def _inpaint(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    x: Tensor,
    timesteps: Tensor,
    known: Tensor,
    mask: Tensor,
    noise: Tensor,
    prediction_type: str = "v_prediction",
) -> Iterator[Tensor]:
    """Reference: after each DDIM step the known part is put back, noised to where the step has arrived."""
    times = timesteps.tolist()
    for t, t_prev in zip(times, [*times[1:], -1], strict=True):
        prediction = denoiser(x, torch.full((len(x),), t, device=x.device))
        x = ddim_step(schedule, prediction, x, t, t_prev, prediction_type=prediction_type)
        known_t = known if t_prev < 0 else add_noise(schedule, known, t_prev, noise)
        x = mask * x + (1 - mask) * known_t
        yield x


_inpaint.__name__ = "inpaint"


def _wrong_inpaint(kind: str, case: tuple[Any, ...]) -> list[Tensor]:
    """The latents of a loop that is wrong in a way that people get it wrong."""
    schedule, x, timesteps, known, mask, noise, prediction_type = case
    denoiser, times, found = _Recorder(), timesteps.tolist(), []
    for t, after in zip(times, [*times[1:], -1], strict=True):
        t_prev = max(after, 0) if kind == "floor 0" else after
        level = t if kind == "level of t" else t_prev
        known_t = known if level < 0 or kind == "clean" else add_noise(schedule, known, level, noise)
        if kind == "before":
            x = mask * x + (1 - mask) * add_noise(schedule, known, t, noise)
        prediction = denoiser(x, torch.full((len(x),), t))
        known_type = kind if kind in ("epsilon", "v_prediction") else prediction_type
        stepped = ddim_step(schedule, prediction, x, t, t_prev, prediction_type=known_type)
        first, second = (known_t, stepped) if kind == "swapped" else (stepped, known_t)
        mixed = mask * first + (1 - mask) * second
        keeps_out = (
            kind in ("never", "before", "not shown")
            or (kind == "not at the end" and after < 0)
            or (kind == "only at the end" and after >= 0)
        )
        x = stepped if keeps_out else mixed
        found.append(mixed if kind == "not shown" else x)
    return found


@check_for(_inpaint)
def inpaint(candidate: Callable[..., Any]) -> None:
    """x after each step, for masks of each shape, other ones for each sample and channel; masks of all 0 and all 1."""
    schedule = NoiseSchedule.cosine(60)
    for prediction_type, timesteps, shape in (
        ("v_prediction", schedule.timesteps(6), (1, 1, 4, 4)),
        ("sample", torch.tensor([23, 11, 4]), (2, 1, 4, 4)),
        ("v_prediction", torch.tensor([59, 20, 3]), (2, 4, 4, 4)),
    ):
        x_T, known, noise = random_tensor(2, 4, 4, 4), random_tensor(2, 4, 4, 4), random_tensor(2, 4, 4, 4)
        mask = torch.zeros(shape)
        mask[..., 1:, :2] = 1
        mask[1:] = mask[1:].flip(-1)
        mask[:, 2:] = mask[:, 2:].flip(-2)
        given, denoiser = [x_T, known, mask, noise], _Recorder()
        before = [value.clone() for value in given]
        result = candidate(denoiser, schedule, x_T, timesteps, known, mask, noise, prediction_type)
        if result is None or isinstance(result, Tensor):
            raise Mistake("it must give x after each step: yield x inside the loop (or return a list of them)")
        steps, times = list(result), timesteps.tolist()
        expect_untouched("x, known, mask, noise", before, given)
        if denoiser.times != times:
            raise Mistake(f"the denoiser should be asked once at each of {times}; yours asks at {denoiser.times}")
        if len(steps) != len(times):
            raise Mistake(f"{len(times)} steps should give {len(times)} latents, got {len(steps)}")
        for step in steps:
            expect_shape(step, tuple(x_T.shape), "each x")
        right = list(_inpaint(_Recorder(), schedule, x_T, timesteps, known, mask, noise, prediction_type))
        if all(close(a, b) for a, b in zip(steps, right, strict=True)):
            continue
        again = list(candidate(_Recorder(), schedule, x_T, timesteps, known, mask, noise, prediction_type))
        if not all(close(a, b) for a, b in zip(steps, again, strict=True)):
            raise Mistake("two walks from the same x differ: noise the known part with the noise that is given")
        case = (schedule, x_T, timesteps, known, mask, noise, prediction_type)
        slips = {
            "the known part is noised to t; the step has arrived at t_prev, and that is its level": "level of t",
            "the known part is put back clean all the way; noise it to the level of t_prev first": "clean",
            "the two are swapped: the mask is 1 where something new is wanted": "swapped",
            "the known part is never put back: that is plain sampling": "never",
            "at the end the known part is missing: at −1 it is known itself, without noise": "not at the end",
            "the known part must be put back after every step, not only at the end": "only at the end",
            "put the known part back after the step, not before it; the last step would leave it behind": "before",
            "x with the known part in it must be what the next step starts from": "not shown",
            "the last step goes to −1, where no noise is left; yours stops at 0": "floor 0",
            "prediction_type does not reach ddim_step (its default is 'epsilon')": "epsilon",
            "prediction_type does not reach ddim_step: it is 'v_prediction' whatever is asked for": "v_prediction",
        }
        stacked = {message: torch.stack(_wrong_inpaint(kind, case)) for message, kind in slips.items()}
        for message, one in (
            ("every sample gets the first one's mask: mask is [B, …], each has its own", mask[:1].expand_as(mask)),
            ("every channel gets the first one's mask: multiply by the whole of it", mask[:, :1].expand_as(mask)),
        ):
            stacked[message] = torch.stack(_wrong_inpaint("", (*case[:4], one, *case[5:])))
        raise name_it(
            torch.stack(steps), stacked,
            "x is not right: after each step, mask · x + (1 − mask) · known, noised to t_prev with the given noise",
        )  # fmt: skip
    for fill, timesteps in ((0.0, torch.tensor([59])), (1.0, torch.tensor([59])), (1.0, torch.tensor([40, 0]))):
        x_T, known, noise = (random_tensor(1, 4, 3, 3) for _ in range(3))
        case = (schedule, x_T, timesteps, known, torch.full((1, 1, 3, 3), fill), noise, "sample")
        pairs = zip(candidate(_Recorder(), *case), _inpaint(_Recorder(), *case), strict=True)
        if not all(close(a, b) for a, b in pairs):
            raise Mistake(
                f"with a mask that is {fill:g} everywhere and the timesteps {timesteps.tolist()} x is not right: "
                "with 1 nothing is known, with 0 everything is, and a single timestep goes to −1 at once"
            )
