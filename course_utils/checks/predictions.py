"""Checks of notebook 03, second part: x_0 out of a prediction, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.checks.base import (
    Mistake,
    check_for,
    close,
    expect_dtype,
    expect_shape,
    expect_untouched,
    gradients_of,
    name_it,
    random_tensor,
)
from course_utils.checks.oracles import SHAPE, alpha_bar, short_schedule
from course_utils.diffusion import reverse as package
from course_utils.diffusion.schedule import NoiseSchedule


@check_for(package.predict_x0)
def predict_x0(candidate: Callable[..., Any]) -> None:
    """x_t is built from a known x_0; the right prediction of each type must give that x_0 back."""
    short, ends = short_schedule(), torch.tensor([0, 19, 999])
    for schedule, shape, t, given in [
        (short, SHAPE, torch.tensor([2, 9, 15]), torch.tensor([2, 9, 15])),
        (short, (4, 3), torch.tensor([12]).expand(4), 12),
        (NoiseSchedule.linear(), SHAPE, ends, ends),  # ᾱ from 0.9999 down to 0.00004
        (short, (4, 3, 2), torch.tensor([0]).expand(4), 0),
    ]:
        x_0, noise = 3 * random_tensor(*shape), random_tensor(*shape)
        bar = alpha_bar(schedule, t, x_0)
        root, rest = bar.sqrt(), (1 - bar).sqrt()
        x_t = root * x_0 + rest * noise
        v = root * noise - rest * x_0
        after = (t + 1).clamp(max=schedule.num_train_timesteps - 1)
        before_t, after_t = alpha_bar(schedule, t - 1, x_0), alpha_bar(schedule, after, x_0)
        own = 1 - schedule.betas.double()[t].reshape(bar.shape)  # α_t, not ᾱ_t
        of_noise = {
            "divide by √ᾱ_t: x_t holds √ᾱ_t · x_0": root * x_0.double(),
            "take √(1 − ᾱ_t) · noise from x_t, not (1 − ᾱ_t) · noise": (x_t - (1 - bar) * noise) / root,
            "divide by √ᾱ_t, not by ᾱ_t": x_0 / root,
            "the noise has to be taken away: a minus, not a plus": (x_t + rest * noise) / root,
            "that is a step with α_t; the whole way to x_0 has ᾱ_t": (x_t - (1 - own).sqrt() * noise) / own.sqrt(),
            "the noise has to be scaled by √(1 − ᾱ_t) before it is taken away": (x_t - noise) / root,
            "the roots are swapped: √(1 − ᾱ_t) belongs to the noise, √ᾱ_t to x_0": (x_t - root * noise) / rest,
            "x_t is not x_0 + noise: neither has its factor, √ᾱ_t and √(1 − ᾱ_t)": x_t - noise,
            "ᾱ off by one: you looked it up at t − 1": (x_t - (1 - before_t).sqrt() * noise) / before_t.sqrt(),
            "ᾱ off by one: you looked it up at t + 1": (x_t - (1 - after_t).sqrt() * noise) / after_t.sqrt(),
        }
        of_v = {
            "for v_prediction there is a minus: √ᾱ_t · x_t − √(1 − ᾱ_t) · v": root * x_t + rest * v,
            "for v_prediction the roots are swapped: √ᾱ_t · x_t − √(1 − ᾱ_t) · v": rest * x_t - root * v,
            "that is the noise that v implies; x_0 is √ᾱ_t · x_t − √(1 − ᾱ_t) · v": noise.double(),
            "for v_prediction the square roots are missing": bar * x_t - (1 - bar) * v,
            "v is treated as noise: prediction_type 'v_prediction' has its own formula": (x_t - rest * v) / root,
            "the sign is wrong for v_prediction": -x_0.double(),
        }
        of_x0 = {
            "prediction_type 'sample' means that the prediction is x_0 already: give it back as it is": (
                x_t - rest * x_0
            )
            / root
        }
        for kind, prediction, slips in (
            ("epsilon", noise, of_noise),
            ("sample", x_0, of_x0),
            ("v_prediction", v, of_v),
        ):
            x, p = x_t.float(), prediction.float()
            before = [x.clone(), p.clone()]
            call = (schedule, x, given, p)
            result = candidate(*call) if kind == "epsilon" else candidate(*call, kind)
            expect_untouched("x_t, prediction", before, [x, p])
            expect_shape(result, shape, f"x_0 from {kind!r}")
            if not close(result.double(), x_0.double(), 1e-3):
                raise name_it(
                    result.double(),
                    slips,
                    f"for prediction_type {kind!r} it does not give back the x_0 that "
                    "x_t was made of: solve x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · noise for x_0",
                )
            expect_dtype(candidate(schedule, x.double(), given, p.double(), kind), torch.float64, "x_t")
            p.requires_grad_()
            gradients_of(candidate(schedule, x, given, p, kind).sum(), {"prediction": p})


# --- the loss -----------------------------------------------------------------------------------------------


class _Recorder(nn.Module):
    """A linear denoiser that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.x_t, self.t = torch.zeros(0), torch.zeros(0)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.x_t, self.t = x_t.detach().clone(), t
        return self.scale * x_t


@check_for(package.denoising_loss)
def denoising_loss(candidate: Callable[..., Any]) -> None:
    """What the denoiser is given, what it is compared with, how the squares are averaged and weighted, the gradient."""
    schedule, t = short_schedule(), torch.tensor([3, 8, 17])
    # of sizes so unlike that no wrong mean comes out right by chance, as |d| and d² can when d is near 1
    x_0, noise, weight = 2 * random_tensor(*SHAPE), 5 * random_tensor(*SHAPE), torch.tensor([0.5, 2.0, 4.0])
    bar = alpha_bar(schedule, t, x_0)
    x_t = bar.sqrt() * x_0 + (1 - bar).sqrt() * noise
    v = bar.sqrt() * noise - (1 - bar).sqrt() * x_0
    targets = {"epsilon": noise.double(), "sample": x_0.double(), "v_prediction": v}
    before = [x_0.clone(), noise.clone(), t.clone()]
    first, second = _Recorder(), _Recorder()
    for model in (first, second):
        candidate(model, schedule, x_0, t, noise)
        expect_untouched("x_0, t, noise", before, [x_0, noise, t])
    if first.x_t.shape != second.x_t.shape or not close(first.x_t, second.x_t):
        raise Mistake("in two calls alike the denoiser sees two different x_t: use the noise that is given, draw none")
    for kind, goal in targets.items():
        for w in (None, weight):
            model = _Recorder()
            loss = candidate(model, schedule, x_0, t, noise, kind, **({} if w is None else {"weight": w}))
            expect_untouched("x_0, t, noise", before, [x_0, noise, t])
            _inputs_are_right(model, x_0, x_t, noise, t)
            square = (0.3 * x_t - goal) ** 2
            right = square.mean() if w is None else (square.flatten(1).mean(1) * w).mean()
            if not isinstance(loss, Tensor) or loss.ndim != 0:
                raise Mistake(f"the loss must be one number, a tensor of shape [], got {_describe(loss)}")
            if not close(loss.double(), right):
                raise Mistake(_why_this_loss(loss.double(), x_t, targets, kind, w, t))
            if not loss.requires_grad:
                raise Mistake(
                    "no gradient reaches the denoiser: is there a .detach(), an .item() or a torch.no_grad()?"
                )
            (gradient,) = torch.autograd.grad(loss, [model.scale])
            slope = 2 * (0.3 * x_t - goal) * x_t
            wanted = slope.mean() if w is None else (slope.flatten(1).mean(1) * w).mean()
            if not close(gradient.double(), wanted, 1e-3):
                raise Mistake("the value is right, but not its gradient: a part of it was detached")
    model = _Recorder()
    candidate(model, schedule, x_0, 7, noise)
    if not isinstance(model.t, Tensor) or model.t.tolist() != [7, 7, 7]:
        raise Mistake("for an int t the denoiser must be given a LongTensor [B] (check_inputs returns one)")
    for case, shape, t, weight in [
        ("at the ends of the table, t = 0 and t = T − 1,", (2, 4, 5, 4), torch.tensor([0, 19]), None),
        ("with a weight of 0 and one of 20", (2, 4, 5, 4), torch.tensor([3, 8]), torch.tensor([0.0, 20.0])),
        ("for a batch of one", (1, 4, 5, 4), torch.tensor([5]), torch.tensor([3.0])),
    ]:
        x_0, noise = 2 * random_tensor(*shape), 5 * random_tensor(*shape)
        bar = alpha_bar(schedule, t, x_0)
        square = (0.3 * (bar.sqrt() * x_0 + (1 - bar).sqrt() * noise) - noise) ** 2
        right = (square.flatten(1).mean(1) * (1.0 if weight is None else weight)).mean()
        loss = candidate(_Recorder(), schedule, x_0, t, noise, weight=weight)
        if not close(loss.detach().double(), right):
            raise Mistake(f"{case} the loss is {loss.item():.4f}, should be {right:.4f}: the formula holds there, too")


def _describe(value: Any) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _inputs_are_right(model: _Recorder, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor) -> None:
    if model.x_t.shape != x_t.shape:
        raise Mistake("the denoiser was not asked: prediction = denoiser(x_t, t)")
    if not close(model.x_t.double(), x_t):
        slips = {
            "the denoiser must see x_t = add_noise(schedule, x_0, t, noise); it was given the clean x_0": x_0.double(),
            "the denoiser must see x_t; it was given the noise alone": noise.double(),
            "x_t is not x_0 + noise: use add_noise(schedule, x_0, t, noise)": (x_0 + noise).double(),
        }
        raise name_it(model.x_t.double(), slips, "the denoiser was not given x_t = add_noise(schedule, x_0, t, noise)")
    if not isinstance(model.t, Tensor) or model.t.tolist() != t.tolist():
        raise Mistake("the denoiser must be given the t that x_t was noised to, as it came")


def _why_this_loss(
    loss: Tensor, x_t: Tensor, targets: dict[str, Tensor], kind: str, weight: Tensor | None, t: Tensor
) -> str:
    prediction, one = 0.3 * x_t, torch.ones(len(t))

    def mean(square: Tensor, w: Tensor = one) -> Tensor:
        return (square.flatten(1).mean(1) * w).mean()

    w = one if weight is None else weight
    square = (prediction - targets[kind]) ** 2
    slips = {
        f"for {kind!r} compare with target(…, prediction_type); that is compared with {other!r}": mean(
            (prediction - goal) ** 2, w
        )
        for other, goal in targets.items()
        if other != kind
    }
    slips |= {
        "that is the sum over all elements; take the mean": (square.flatten(1).sum(1) * w).sum(),
        "that is summed over a sample's elements; take their mean, too": (square.flatten(1).sum(1) * w).mean(),
        "that is summed over the batch; take the mean": (square.flatten(1).mean(1) * w).sum(),
        "squares, not absolute values": mean((prediction - targets[kind]).abs(), w),
        "that is the root of the mean square; L_simple has no root": mean(square, w).sqrt(),
        "that is half the mean square; L_simple has no ½": mean(square, w) / 2,
        "the mean of the differences was squared; square first, then take the mean": (prediction - targets[kind]).mean()
        ** 2,
        "the weight is not used": mean(square),
        "the weight multiplies each sample's error before the mean over the batch, not the mean of all": mean(square)
        * w.mean(),
        "the weight is not normalised: multiply, then take the plain mean": mean(square, w) / w.mean(),
        "that compares the prediction with x_t": mean((prediction - x_t) ** 2, w),
    }
    for message, wrong in slips.items():
        if close(loss, wrong):
            return message
    weighted = "" if weight is None else " with a weight"
    return f"the loss for {kind!r}{weighted} is {loss.item():.4f}, should be {mean(square, w):.4f}"
