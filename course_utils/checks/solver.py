"""Check of notebook 06, second part: one step of DPM-Solver++ (2M)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.base import Mistake, check_for, close, expect_shape, expect_untouched, name_it, random_tensor
from course_utils.checks.oracles import alpha_bar, short_schedule
from course_utils.diffusion import dpm_solver as package

SHAPE = (2, 4, 3, 3)


def _step(
    x: Tensor, x_0: Tensor, last: tuple[Tensor, Tensor] | None, bars: tuple[Tensor, Tensor], kind: str = ""
) -> Tensor:
    """x at t_prev in float64, by the formula for x / σ of the notebook, or wrong in a way that people get it wrong.

    last: the x_0 guessed one step before, and ᾱ at its time. bars: ᾱ at t and at t_prev.
    """

    def lam(bar: Tensor) -> Tensor:
        return (bar / (1 - bar)).log() * (1.0 if kind == "whole" else 0.5)

    bar, prev = bars
    h = lam(prev) - lam(bar)
    guess = x_0
    if last is not None and kind != "forgets":
        x_0_last, bar_last = last
        h_last = lam(bar) - lam(bar_last)
        share = {"whole step": h / h_last, "upside down": h_last / (2 * h), "even": torch.full_like(h, 0.5)}.get(
            kind, h / (2 * h_last)
        )
        guess = x_0 + (-share if kind == "backwards" else share) * (x_0 - x_0_last)
        if kind == "last's":
            guess = x_0_last + share * (x_0 - x_0_last)
    sigma, sigma_prev = (1 - bar).sqrt(), (1 - prev).sqrt()
    if kind in ("whole", "sign", "alpha"):
        alpha = bar.sqrt() if kind == "alpha" else prev.sqrt()
        return sigma_prev / sigma * x - alpha * torch.expm1(h if kind == "sign" else -h) * guess
    growth = (bar / (1 - bar)).sqrt() * torch.expm1(h)  # e^λ' − e^λ
    if kind == "ratio":
        return sigma / sigma_prev * x + sigma_prev * growth * guess
    return sigma_prev / sigma * x + sigma_prev * growth * guess


@check_for(package.dpmpp_2m_step)
def dpmpp_2m_step(candidate: Callable[..., Any]) -> None:
    """With and without a last guess, for strides of unlike length and every prediction type; the step to −1."""
    schedule = short_schedule()
    for prediction_type, t_last, t, t_prev in (
        ("sample", 15, 11, 4), ("v_prediction", 18, 9, 6), ("epsilon", 16, 12, 7),
    ):  # fmt: skip
        x_0, x_0_last, noise = (random_tensor(*SHAPE).double() for _ in range(3))
        bar_last, bar, prev = (alpha_bar(schedule, torch.tensor([time]), x_0) for time in (t_last, t, t_prev))
        x_t = bar.sqrt() * x_0 + (1 - bar).sqrt() * noise
        v = bar.sqrt() * noise - (1 - bar).sqrt() * x_0
        prediction = {"sample": x_0, "epsilon": noise, "v_prediction": v}[prediction_type]
        inputs = [prediction.float(), x_t.float(), x_0_last.float()]
        before = [value.clone() for value in inputs]
        taken_for_noise = (x_t - (1 - bar).sqrt() * prediction) / bar.sqrt()
        for last in (None, (x_0_last, bar_last)):
            given = None if last is None else (inputs[2], t_last)
            result = candidate(schedule, inputs[0], inputs[1], t, t_prev, given, prediction_type)
            expect_shape(result, SHAPE)
            expect_untouched("prediction, x_t, last", before, inputs)
            if close(result.double(), _step(x_t, x_0, last, (bar, prev)), 1e-3):
                continue
            slips = {
                "the guess of the step before is not used: with last given, go half a step along the line": "forgets",
                "half a step ahead is wanted: the factor is h / (2 h_last)": "whole step",
                "the ratio is upside down: h / (2 h_last), with h the step to come": "upside down",
                "that would do for steps of one length; the factor is h / (2 h_last)": "even",
                "it goes backwards: the line leads from the last guess to the new one and on": "backwards",
                "the line goes on from the new guess, not from the last one": "last's",
                "λ is half the logarithm of the signal-to-noise ratio: log(α / σ)": "whole",
                "a wrong sign in the exponent: the guess enters with −α' · expm1(−h)": "sign",
                "the guess enters with α at t_prev, where the step arrives": "alpha",
                "the old x enters with σ' / σ, which is below 1": "ratio",
            }
            wrong = {message: _step(x_t, x_0, last, (bar, prev), kind) for message, kind in slips.items()}
            wrong |= {
                "the prediction is taken for x_0: predict_x0 turns it into one": _step(
                    x_t, prediction, last, (bar, prev)
                ),
                "the prediction is taken for the noise: hand prediction_type on to predict_x0": _step(
                    x_t, taken_for_noise, last, (bar, prev)
                ),
            }
            known = (
                "with last = None it must be the DDIM step" if last is None else "compare your step with the formula"
            )
            raise name_it(result.double(), wrong, known, lambda a, b: close(a, b, 1e-3))
    for given in (None, (inputs[2], t_last)):
        end = candidate(schedule, inputs[0], inputs[1], t, -1, given, prediction_type)
        expect_shape(end, SHAPE, "the last step's result")
        if not bool(end.isfinite().all()):
            raise Mistake("into t_prev = −1 it gives nan or infinity: λ is infinite there, so take the plain guess")
        if not close(end.double(), x_0, 1e-3):
            raise Mistake("the step to −1 must end in the guess x_0 itself, whatever was guessed before")
    for t_before, t, t_prev in ((None, 19, 0), (19, 12, 0)):
        x_0, x_0_last, noise = (3 * random_tensor(3, 5).double() for _ in range(3))
        bar, prev = (alpha_bar(schedule, torch.tensor([time]), x_0) for time in (t, t_prev))
        x_t = bar.sqrt() * x_0 + (1 - bar).sqrt() * noise
        last = None if t_before is None else (x_0_last, alpha_bar(schedule, torch.tensor([t_before]), x_0))
        given = None if t_before is None else (x_0_last.float(), t_before)
        result = candidate(schedule, noise.float(), x_t.float(), t, t_prev, given)
        expect_shape(result, (3, 5))
        if not close(result.double(), _step(x_t, x_0, last, (bar, prev)), 1e-3):
            raise Mistake(
                f"for x_t of shape [3, 5] and the step from {t} to {t_prev} of 20 the numbers are off: T − 1 = 19 and "
                "0 are times as any other, only −1 is the clean end, and no guess is clipped"
            )
