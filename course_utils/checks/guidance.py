"""Checks of notebook 05, second part: dropping the condition, guidance, and what it aims at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.base import (
    Mistake,
    check_for,
    choice,
    close,
    expect_shape,
    expect_untouched,
    fresh_generator,
    name_it,
    one_number,
    random_tensor,
)
from course_utils.diffusion import guidance as package

# --- drop_condition -----------------------------------------------------------------------------------------


@check_for(package.drop_condition)
def drop_condition(candidate: Callable[..., Any]) -> None:
    """Whole samples, with the probability asked for, replaced by the empty prompt's states."""
    batch, length, width = 4000, 3, 2
    uncond = random_tensor(1, length, width)
    context = random_tensor(batch, length, width)
    before = [context.clone(), uncond.clone()]
    p = 0.25
    result = candidate(context, uncond, p, torch.Generator().manual_seed(3))
    expect_untouched("context, uncond", before, [context, uncond])
    expect_shape(result, (batch, length, width))
    if bool((result == 0).flatten(1).all(dim=1).any()):
        raise Mistake("dropped samples are zeros: they must become uncond, the states of the empty prompt")
    kept = (result == context).all(dim=2)  # [B, L]: tokens that stayed
    dropped = (result == uncond).all(dim=2)
    if not bool((kept | dropped).all()):
        scaled = (result * (1 - p) - context).abs().amax(dim=(1, 2)) < 1e-5
        if bool(scaled.any()):
            raise Mistake("kept samples are scaled by 1 / (1 − p), as in nn.Dropout: here they stay as they are")
        if bool(((result == context) | (result == uncond)).all()):
            raise Mistake("single numbers are dropped: draw one number for each sample, and drop all of it or nothing")
        raise Mistake("each sample must be its own context or uncond, nothing in between")
    if bool((kept.any(dim=1) & dropped.any(dim=1)).any()):
        raise Mistake("single tokens are dropped: draw one number for each sample, and drop all of its tokens or none")
    share = dropped.all(dim=1).float().mean().item()
    if share in (0.0, 1.0):
        raise Mistake("all samples share one draw: draw one number for each of them, torch.rand(B, …)")
    if abs(share - (1 - p)) < 0.05:
        raise Mistake(f"with p = {p} a share of {share:.2f} is dropped: the comparison is the wrong way round")
    if abs(share - p) > 0.05:  # 7 standard errors
        raise Mistake(f"with p = {p} a share of {share:.2f} of {batch} samples is dropped")
    context = context[:100]  # only the share needs many
    result, again = (candidate(context, uncond, p, torch.Generator().manual_seed(3)) for _ in range(2))
    if not torch.equal(result, again):
        raise Mistake("two calls with equally seeded generators differ: draw with torch.rand(…, generator=generator)")
    if torch.equal(candidate(context, uncond, p, torch.Generator().manual_seed(4)), again):
        raise Mistake("two differently seeded generators drop the same samples: the draw must come from the generator")
    many = [candidate(context, uncond, 0.5, fresh_generator()) for _ in range(12)]
    if len({int((one == uncond).flatten(1).all(dim=1).sum()) for one in many}) == 1:
        raise Mistake(
            "the same number of samples is dropped in each batch: each sample is dropped by chance, on its own, so "
            "that the number differs from batch to batch"
        )
    one = [candidate(context[:1], uncond, 0.5, fresh_generator()) for _ in range(24)]
    if len({bool(torch.equal(o, uncond)) for o in one}) == 1:
        raise Mistake("a batch of one sample is never dropped, or always: p holds for each sample on its own")
    generator = torch.Generator().manual_seed(3)
    first, second = (candidate(context, uncond, p, generator) for _ in range(2))
    if torch.equal(first, second):
        raise Mistake("two calls in a row with one generator drop the same samples: do not seed it inside")
    for p, expected, words in ((0.0, context, "p = 0 must drop none"), (1.0, uncond, "p = 1 must drop all")):
        if not torch.equal(candidate(context, uncond, p, fresh_generator()), expected.expand_as(context)):
            raise Mistake(words)
    each = random_tensor(5, length, width)  # uncond may also come for each sample
    if not torch.equal(candidate(context[:5], each, 1.0, fresh_generator()), each):
        raise Mistake("uncond may be [B, L, D] as well: a sample that is dropped takes its own row of it")
    context = context[:50].clone().requires_grad_()
    if not candidate(context, uncond, 0.5, fresh_generator()).requires_grad:
        raise Mistake("no gradient reaches the context: is there a .detach() or a torch.no_grad()?")


# --- what w = 0 draws -----------------------------------------------------------------------------------------


def _w_zero() -> str:
    """Reference: uncond + 0 · (cond − uncond) is the unconditional prediction."""
    return "b"


_w_zero.__name__ = "w_zero"


@check_for(_w_zero)
def w_zero(candidate: Callable[..., Any]) -> None:
    """The letter of one of four answers."""
    replies = {
        "a": "the noise is still removed: put w = 0 into the formula and see which of the two predictions is left",
        "c": "that would take a w below 0, away from the prompt; put w = 0 into the formula",
        "d": "that is w = 1: put w = 0 into the formula and see which of the two predictions is left",
    }
    choice(candidate(), "b", replies)


# --- guided -------------------------------------------------------------------------------------------------


def _toy_denoiser(x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
    """Depends on all three of its inputs, not linearly, sample by sample."""
    if len({len(x_t), len(t), len(context)}) != 1:
        raise Mistake(
            f"the denoiser was given {len(x_t)} latents, {len(t)} timesteps and {len(context)} contexts: the three "
            "batches must be equally long"
        )
    ones = [1] * (x_t.ndim - 1)
    words = (context * torch.arange(1, context.shape[2] + 1)).mean(dim=(1, 2)).reshape(-1, *ones)
    return torch.tanh(x_t + words) + 0.01 * t.reshape(-1, *ones) * words


@check_for(package.guided)
def guided(candidate: Callable[..., Any]) -> None:
    """uncond + w · (cond − uncond), for contexts of one row or of one for each sample."""
    for rows, blank_rows, w in [(4, 4, 3.0), (1, 1, 3.0), (4, 1, 3.0), (4, 4, 0.0), (1, 1, 1.0), (4, 1, 7.5)]:
        x_t, t = random_tensor(4, 2, 3, 3), torch.tensor([10, 400, 3, 999])
        cond, uncond = random_tensor(rows, 5, 6), random_tensor(blank_rows, 5, 6)
        before = [x_t.clone(), cond.clone(), uncond.clone()]
        denoiser = candidate(_toy_denoiser, cond, uncond, w)
        if not callable(denoiser):
            raise Mistake("guided must return a denoiser, a function of (x_t, t), not a prediction")
        try:
            result = denoiser(x_t, t)
        except TypeError as error:
            raise Mistake(f"the function that guided returns must take (x_t, t) alone ({error})") from None
        except NotImplementedError:  # a RuntimeError too, but it means "not solved yet"
            raise
        except RuntimeError as error:
            raise Mistake(
                f"the shapes do not fit ({str(error).splitlines()[0]}): cond has {rows} rows and uncond {blank_rows}, "
                "for a batch of 4; repeat each for the batch, as batch_context does"
            ) from None
        expect_untouched("x_t, cond, uncond", before, [x_t, cond, uncond])
        expect_shape(result, tuple(x_t.shape), "the guided prediction")
        with_condition = _toy_denoiser(x_t, t, cond.expand(4, -1, -1))
        without = _toy_denoiser(x_t, t, uncond.expand(4, -1, -1))
        right = without + w * (with_condition - without)
        if close(result, right):
            again, later = random_tensor(4, 2, 3, 3), torch.tensor([7, 2, 800, 40])
            with_condition = _toy_denoiser(again, later, cond.expand(4, -1, -1))
            without = _toy_denoiser(again, later, uncond.expand(4, -1, -1))
            if not close(denoiser(again, later), without + w * (with_condition - without)):
                raise Mistake(
                    "the first call is right, the second is not: sampling calls it at every step, with another x_t and "
                    "t, so both predictions have to be made anew each time"
                )
            continue
        slips = {
            "conditional and unconditional are swapped: start from uncond and go towards cond": with_condition
            + w * (without - with_condition),
            "the sign is wrong: it goes away from the prompt; uncond + w · (cond − uncond)": without
            - w * (with_condition - without),
            "you start from cond; the formula starts from uncond: uncond + w · (cond − uncond)": with_condition
            + w * (with_condition - without),
            "uncond is missing: that is w · (cond − uncond) alone": w * (with_condition - without),
            "w must multiply the difference only, not uncond as well": w * without + w * (with_condition - without),
            "the weights must add up to 1: (1 − w) · uncond + w · cond": without + w * with_condition,
            "the scale is not used: that is the conditional prediction": with_condition,
            "the scale is not used, and neither is the condition: that is the unconditional prediction": without,
            "that is the mean of the two predictions": (with_condition + without) / 2,
            "you mixed contexts; mix the two predictions": _toy_denoiser(
                x_t, t, (uncond + w * (cond - uncond)).expand(4, -1, -1)
            ),
        }
        example = "With uncond = 1, cond = 2 and w = 3 it must give 4"
        raise name_it(result, slips, f"wrong values at w = {w:g}. {example}")


# --- how often chance is right ------------------------------------------------------------------------------


def _chance_right() -> float:
    """Reference: one object of 64 and one colour of 8."""
    return 1 / (64 * 8)


_chance_right.__name__ = "chance_right"


@check_for(_chance_right)
def chance_right(candidate: Callable[[], Any]) -> None:
    """The share within 15 %, so that whoever leaves the held-out pairs aside (1 / 461) is right as well."""
    share = one_number(candidate(), "the share")
    for message, wrong in {
        "that is the object alone; the colour has to be right as well": 1 / 64,
        "that is the colour alone; the object has to be right as well": 1 / 8,
        "both have to be right, so the two chances are multiplied, not added": 1 / 64 + 1 / 8,
        "64 · 8 pairs are possible, not 64 + 8": 1 / 72,
        "that is how many pairs there are; the share is one over it": 512.0,
        "that is in per cent; return a share between 0 and 1": 100 / 512,
    }.items():
        if abs(share - wrong) < 0.02 * wrong:
            raise Mistake(message)
    if abs(share - 1 / 512) > 0.15 / 512:
        raise Mistake(
            "at w = 0 the picture knows nothing of the prompt: one of 64 objects, and one of 8 colours, by luck"
        )


# --- what guidance follows ----------------------------------------------------------------------------------


def _guidance_exponents(guidance_scale: float) -> tuple[float, float]:
    """Reference: (1 − w) ∇log p(x) + w ∇log p(x | c) is the gradient of log p(x)^(1−w) p(x | c)^w."""
    return 1 - guidance_scale, guidance_scale


_guidance_exponents.__name__ = "guidance_exponents"


@check_for(_guidance_exponents)
def guidance_exponents(candidate: Callable[..., Any]) -> None:
    """The pair (1 − w, w)."""
    for w in (0.0, 1.0, 3.0, 7.5):
        answer = candidate(w)
        try:
            a, b = (float(x) for x in answer)
        except (TypeError, ValueError):
            raise Mistake(f"return two numbers (a, b), got {answer!r}") from None
        right = _guidance_exponents(w)
        if abs(a - right[0]) < 1e-6 and abs(b - right[1]) < 1e-6:
            continue
        call = f"guidance_exponents({w:g}) gives ({a:g}, {b:g})"
        for message, wrong in {
            "a belongs to p(x) and b to p(x | c): they are swapped": (w, 1 - w),
            "those are the exponents of p(x) and of p(c | x); b asks for the one of p(x | c)": (1.0, w),
            "those belong to p(x | c) p(c | x)^(w−1); write p(c | x) out with Bayes' rule and collect": (w - 1, 1.0),
            "those are the paper's, whose w is one less than ours": (-w, 1 + w),
            "the sign of a is wrong: what is added to cond is taken from uncond": (w - 1, w),
        }.items():
            if w not in (0.0, 1.0) and abs(a - wrong[0]) < 1e-6 and abs(b - wrong[1]) < 1e-6:
                raise Mistake(f"{call}: {message}")
        if w == 1.0 or w == 0.0:
            continue  # a slip may be right there by chance or hidden; the next scale names it
        raise Mistake(f"{call}: multiply out uncond + w · (cond − uncond) and read off what stands before each")
    for w in (0.0, 1.0):
        a, b = (float(x) for x in candidate(w))
        if abs(a - (1 - w)) > 1e-6 or abs(b - w) > 1e-6:
            call = f"guidance_exponents({w:g}) gives ({a:g}, {b:g})"
            raise Mistake(f"{call}: at w = 1 only p(x | c) is left, at w = 0 only p(x)")
