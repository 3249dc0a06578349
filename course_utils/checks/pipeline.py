"""Checks of notebook 06: what the first step knows, walking between noises, strength; with the loops and the solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.base import (
    Mistake,
    check_choice,
    check_for,
    close,
    expect_dtype,
    expect_shape,
    expect_untouched,
    name_it,
    random_tensor,
)
from course_utils.checks.solver import dpmpp_2m_step
from course_utils.checks.walking import draw_latents, inpaint
from course_utils.diffusion import editing as package

__all__ = ["dpmpp_2m_step", "draw_latents", "first_guess", "inpaint", "slerp", "strength_timesteps"]

# --- first_guess --------------------------------------------------------------------------------------------


# Where x_T says nothing, the least squared error is the mean.
first_guess = check_choice(
    "first_guess",
    "c",
    {
        "a": "the noise is what the prediction leaves out: x̂_0 is an estimate of the clean latent",
        "b": "for that it would have to know which dog; x_T was drawn without looking at any",
        "d": "it does know something: the sentence. What would you answer if you saw nothing but the caption?",
    },
)


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
