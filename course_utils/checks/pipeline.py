"""Checks of notebook 06: the sampling loop, what its first step knows, mixing noises, strength, blending in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
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
    gradients_of,
    name_it,
    one_number,
    random_tensor,
)
from course_utils.diffusion import editing as package
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
    *_, one = candidate(_Recorder(), schedule, x_T, torch.tensor([59]), "sample")
    if not close(one, list(_draw_latents(_Recorder(), schedule, x_T, torch.tensor([59]), "sample"))[-1]):
        raise Mistake("with a single timestep it must go from there to −1 at once")
    # A denoiser that knows the one picture there is must lead to it, wherever the walk begins.
    x_0 = random_tensor(1, 4, 2, 2)
    *_, last = candidate(
        lambda x, t: x_0.expand_as(x), schedule, random_tensor(3, 4, 2, 2), schedule.timesteps(5), "sample"
    )
    if not close(last, x_0.expand(3, -1, -1, -1)):
        raise Mistake("a denoiser that always answers with the same x_0 must end in that x_0, and yours does not")


# --- first_guess --------------------------------------------------------------------------------------------


def _first_guess() -> str:
    return "C"  # where x_T says nothing, the least squared error is the mean


_first_guess.__name__ = "first_guess"


@check_for(_first_guess)
def first_guess(candidate: Callable[[], Any]) -> None:
    """A choice of four, made before the plot is shown."""
    replies = {
        "a": "the noise is what the prediction leaves out: x̂_0 is an estimate of the clean latent",
        "b": "for that it would have to know which dog; x_T was drawn without looking at any",
        "d": "it does know something: the sentence. What would you answer if you saw nothing but the caption?",
    }
    choice(candidate(), "c", replies)


# --- doubled_steps ------------------------------------------------------------------------------------------


def _doubled_steps() -> tuple[float, float]:
    """Reference: the errors of methods of order 1 and 2 go with the step and with its square."""
    return 1 / 2, 1 / 4


_doubled_steps.__name__ = "doubled_steps"


@check_for(_doubled_steps)
def doubled_steps(candidate: Callable[[], Any]) -> None:
    """What is left of the error with twice the steps: DDIM's, and that of a method that gets the slope right."""
    answer = candidate()
    try:
        first, second = (float(x) for x in answer)
    except (TypeError, ValueError):
        raise Mistake(
            f"return two numbers, (share left of DDIM's error, share left of the other's), got {answer!r}"
        ) from None
    slips = {
        "those are the factors by which the errors shrink; the shares that are left are their inverses": (2.0, 4.0),
        "the two are swapped: the method that gets the slope right gains more": (1 / 4, 1 / 2),
        "those are errors of single steps, as h² and h³; with twice the steps there are twice as many of them": (
            1 / 4,
            1 / 8,
        ),
        "the one that gets the slope right must gain more: its step errs as h³, DDIM's as h²": (1 / 2, 1 / 2),
        "both shrink: a step half as long errs less than half as much, even if there are twice as many": (1.0, 1 / 2),
    }
    for message, wrong in slips.items():
        if abs(first - wrong[0]) < 0.02 and abs(second - wrong[1]) < 0.02:
            raise Mistake(message)
    if abs(first - 1 / 2) > 0.02 or abs(second - 1 / 4) > 0.02:
        raise Mistake("DDIM's step errs as h², the other's as h³; halve h, and count how many steps there are then")


# --- mix_std ------------------------------------------------------------------------------------------------


def _mix_std(weight: float) -> float:
    return math.sqrt((1 - weight) ** 2 + weight**2)


_mix_std.__name__ = "mix_std"


@check_for(_mix_std)
def mix_std(candidate: Callable[[float], Any]) -> None:
    """Against the closed form and against a Monte-Carlo estimate."""
    for weight in (0.25, 0.9, 0.5, 0.0, 1.0):
        result = one_number(candidate(weight), "mix_std(weight)")
        if abs(result - _mix_std(weight)) < 1e-4:
            continue
        a, b = random_tensor(2, 40000)
        measured = ((1 - weight) * a + weight * b).std().item()
        slips = {
            "that is the variance; its square root is wanted": (1 - weight) ** 2 + weight**2,
            "standard deviations do not add; variances of independent numbers do": 1.0,
            "the weights are squared in the variance, and the root is that of the sum, not of each part": math.sqrt(
                1 - weight
            )
            + math.sqrt(weight),
            "nothing is subtracted: variances of independent numbers add": abs(1 - 2 * weight),
            "that holds for halfway only": math.sqrt(0.5),
            "the smaller part counts, too: the variances add": max(weight, 1 - weight),
        }
        for message, wrong in slips.items():
            if abs(result - wrong) < 1e-4:
                raise Mistake(message)
        raise Mistake(f"at weight {weight} it gives {result:.3f}; 40,000 draws have a spread of {measured:.3f}")


# --- slerp --------------------------------------------------------------------------------------------------


@check_for(package.slerp)
def slerp(candidate: Callable[..., Any]) -> None:
    """By hand on two unit vectors, by length, at the ends, for equal noises, and against the formula in float64."""
    e1, e2 = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    noise = 0.04 * random_tensor(4, 8, 8)
    other = 0.5 * noise + 0.03 * random_tensor(4, 8, 8)  # short and not at right angles: no two slips look alike
    blunt = 0.02 * random_tensor(4, 8, 8) - 0.6 * noise  # more than a right angle away
    a_little = torch.tensor([10.0, 0.8])  # 0.08 from the first axis: an arc still
    for a, b, weight in (
        (noise, other, 0.3), (e1, e2, 0.5), (e1, e2, 1 / 3), (noise, blunt, 0.3), (10 * e1, a_little, 0.5)
    ):  # fmt: skip
        before = [a.clone(), b.clone()]
        result = candidate(a, b, weight)
        expect_shape(result, tuple(a.shape))
        expect_untouched("a, b", before, [a, b])
        x, y = a.double().flatten(), b.double().flatten()
        angle = math.acos(float(x @ y / (x.norm() * y.norm())))
        first, second = math.sin((1 - weight) * angle) / math.sin(angle), math.sin(weight * angle) / math.sin(angle)
        right = first * a.double() + second * b.double()
        cosine = float(x @ y / (x.norm() * y.norm()))
        far, sharp = math.acos(max(-1.0, min(1.0, float(x @ y)))), math.acos(abs(cosine))
        from_a, from_b = (math.sin(w * sharp) / math.sin(sharp) * z for w, z in ((1 - weight, a), (weight, b)))
        slips = {
            "divide by both lengths: the cosine of the angle is a · b / (‖a‖ ‖b‖)": (
                math.sin((1 - weight) * far) * a + math.sin(weight * far) * b
            )
            / max(math.sin(far), 1e-9),
            "the angle is the arc cosine of that quotient": (
                math.sin((1 - weight) * cosine) * a + math.sin(weight * cosine) * b
            )
            / math.copysign(max(abs(math.sin(cosine)), 1e-9), cosine),
            "cos and sin of w · angle would do for right angles only; see the two equations": (
                math.cos(weight * angle) * a + math.sin(weight * angle) * b
            ),
            "a straight line made longer keeps the length only if they are at right angles, and not an even pace": (
                (1 - weight) * a + weight * b
            )
            / math.hypot(1 - weight, weight),
            "that is a straight line: the weights are sines of parts of the angle": (1 - weight) * a + weight * b,
            "the two are swapped: weight 0 must give a": second * a + first * b,
            "the angle may be obtuse: its cosine keeps its sign": from_a + from_b,
            "neither end is turned round: for an obtuse angle the arc is simply longer": from_a - from_b,
            "the division by sin(angle) is missing": (first * a + second * b) * math.sin(angle),
            "the result is brought to length 1; the arc keeps the length of a and b": right / right.norm(),
        }
        if a.ndim > 1:
            rows = (a * b).sum(-1, keepdim=True) / (a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True))
            theta = torch.acos(rows)
            slips["the angle is taken row by row; a and b are one long vector each: sum and norm over all numbers"] = (
                torch.sin((1 - weight) * theta) * a + torch.sin(weight * theta) * b
            ) / torch.sin(theta)
        if not close(result.double(), right):
            values = {message: wrong.double() for message, wrong in slips.items()}
            example = [round(v, 3) for v in candidate(e1, e2, 0.5).flatten().tolist()]
            raise name_it(
                result.double(), values, f"halfway from (1, 0) to (0, 1) lies (0.707, 0.707); yours gives {example}"
            )
    expect_dtype(candidate(e1.double(), e2.double(), 0.5), torch.float64, "a and b")
    a = torch.tensor([3.0, 4.0])  # length 5 without rounding, so the cosine with itself is exactly 1
    for weight, end in ((0.0, e1), (1.0, e2)):
        if not close(candidate(e1, e2, weight), end):
            raise Mistake(f"at weight {weight:g} it must give {'a' if weight == 0 else 'b'} itself")
    same = candidate(a, a.clone(), 0.4)
    if not bool(same.isfinite().all()) or not close(same, a, 1e-3):
        raise Mistake(
            "between two equal noises it gives nan or nonsense: their angle is 0, and you divide by its sine. "
            "Clamp the cosine to [-1, 1], and take the straight line where the angle is tiny"
        )


# --- strength_timesteps -------------------------------------------------------------------------------------


@check_for(package.strength_timesteps)
def strength_timesteps(candidate: Callable[..., Any]) -> None:
    """The end of the list, as much of it as strength says; nothing at 0; no strength outside [0, 1]."""
    timesteps = torch.arange(950, -1, -50)  # 20 of them
    for strength in (0.6, 1.0, 0.05, 0.29, 0.31, 0.0):
        n = round(strength * len(timesteps))
        result = candidate(timesteps, strength)
        if not isinstance(result, Tensor):
            raise Mistake(f"it must give a tensor of timesteps, got {type(result).__name__} (is a return missing?)")
        if n and result.is_floating_point():  # an empty list becomes a float tensor
            raise Mistake(f"timesteps are whole numbers, as in the list that is given; got {result.dtype}")
        right = timesteps[len(timesteps) - n :]
        if result.shape == right.shape and torch.equal(result.to(right.dtype), right):
            continue
        listed = result.tolist()
        if strength == 0 and listed == timesteps.tolist():
            raise Mistake(
                "strength 0 gives all timesteps: timesteps[-0:] is timesteps[0:], the whole list; "
                "count from the front instead, timesteps[len(timesteps) - n:]"
            )
        if n and listed == timesteps[:n].tolist():
            raise Mistake("that is the noisy beginning; the walk starts midway and goes on to the END of the list")
        if listed == timesteps[n:].tolist():
            raise Mistake("strength is the share that is run, not the share that is left out")
        if listed == timesteps[len(timesteps) - int(strength * len(timesteps)) :].tolist():
            raise Mistake(f"{strength} · 20 = {strength * 20:.6g} is rounded to the nearest whole number: {n}, not cut")
        if listed == timesteps[len(timesteps) - math.ceil(strength * len(timesteps)) :].tolist():
            raise Mistake(
                f"{strength} · 20 = {strength * 20:.6g} goes to the nearest whole number, {n}, not rounded up"
            )
        if listed == timesteps[timesteps <= strength * timesteps[0]].tolist():
            raise Mistake(
                f"choose the times by their place in the list (the last {n} of 20), not by how large they are"
            )
        if n > 1 and listed == right.flip(0).tolist():
            raise Mistake("the times must fall, as in the list that is given; yours rise")
        raise Mistake(f"strength {strength} of 20 timesteps: the last {n} are wanted, got {listed}")
    for strength in (-0.2, 1.5):
        try:
            candidate(timesteps, strength)
        except ValueError:
            continue
        except Exception as error:
            raise Mistake(f"strength {strength} should raise a ValueError, not an {type(error).__name__}") from None
        raise Mistake(f"strength {strength} should raise a ValueError: it has to lie in [0, 1]")


# --- inpaint_blend ------------------------------------------------------------------------------------------


@check_for(package.inpaint_blend)
def inpaint_blend(candidate: Callable[..., Any]) -> None:
    """Where the mask is 1 the sampler's value, where it is 0 the known one; one mask may serve for all."""
    for mask_shape in ((3, 1, 8, 8), (1, 1, 8, 8), (3, 4, 8, 8), (8, 8)):
        x_t, known_t = random_tensor(3, 4, 8, 8), random_tensor(3, 4, 8, 8)
        mask = (random_tensor(*mask_shape) > 0).float()
        before = [x_t.clone(), known_t.clone(), mask.clone()]
        result = candidate(x_t, known_t, mask)
        expect_shape(result, (3, 4, 8, 8))
        expect_untouched("x_t, known_t, mask", before, [x_t, known_t, mask])
        right = torch.where(mask.bool(), x_t, known_t)
        slips = {
            "the two are swapped: mask is 1 where something new is wanted": torch.where(mask.bool(), known_t, x_t),
            "the known part is not masked: it needs the factor 1 − mask": mask * x_t + known_t,
            "the new part is not masked: it needs the factor mask": x_t + (1 - mask) * known_t,
            "where the mask is 0 yours is 0: add the known part there": mask * x_t,
            "where the mask is 1 yours is 0: add the new part there": (1 - mask) * known_t,
            "both parts have the factor mask; the known one needs 1 − mask": mask * (x_t + known_t),
            "the mask is not used: that is the mean of the two": (x_t + known_t) / 2,
            "the mask is not used: that is x_t": x_t,
            "a minus between the two parts: add them": mask * x_t - (1 - mask) * known_t,
            "the first sample's mask is used for all": torch.where(mask[:1].bool(), x_t, known_t),
        }
        if mask.ndim == 4:
            slips["a mask may differ from channel to channel: the first channel's is used for all"] = torch.where(
                mask[:, :1].bool(), x_t, known_t
            )
        if not close(result, right):
            raise name_it(result, slips, "it must be x_t where the mask is 1 and known_t where it is 0")
    expect_dtype(candidate(x_t.double(), known_t.double(), mask.double()), torch.float64, "x_t")
    leaves = {"x_t": x_t.requires_grad_(), "known_t": known_t.requires_grad_()}
    gradients_of(candidate(x_t, known_t, mask).sum(), leaves)
