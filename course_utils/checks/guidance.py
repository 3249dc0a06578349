"""Checks of notebook 05, second part: the conditional training step, guidance, and what it aims at."""

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
    random_tensor,
)
from course_utils.diffusion import guidance as package
from course_utils.diffusion.schedule import NoiseSchedule

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


# --- conditional_loss ---------------------------------------------------------------------------------------


class _Listening:
    """A denoiser that keeps what it was given, and answers with numbers made of the noisy latents and one weight."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []
        self.weight = torch.ones((), requires_grad=True)

    def __call__(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        if not isinstance(t, Tensor) or t.ndim != 1 or not len(x_t) == len(t) == len(context):
            given = f"{list(x_t.shape)}, {list(t.shape) if isinstance(t, Tensor) else t!r}, {list(context.shape)}"
            raise Mistake(f"the denoiser wants x_t [B, C, h, w], t [B] and context [B, L, D], and was given {given}")
        self.calls.append((x_t.detach().clone(), t.clone(), context.detach().clone()))
        return self.weight * (0.5 * x_t + 0.25)


@check_for(package.conditional_loss)
def conditional_loss(candidate: Callable[..., Any]) -> None:
    """What the denoiser is given (t, noise, context), and what its answer is compared with."""
    schedule, batch, p = NoiseSchedule.cosine(1000), 4000, 0.25
    x_0, context, uncond = 2 * random_tensor(batch, 2, 2, 2), random_tensor(batch, 3, 2), random_tensor(1, 3, 2)
    before = [x.clone() for x in (x_0, context, uncond)]
    denoiser = _Listening()
    result = candidate(denoiser, schedule, x_0, context, uncond, p, torch.Generator().manual_seed(3))
    expect_untouched("x_0, context, uncond", before, [x_0, context, uncond])
    if len(denoiser.calls) != 1:
        raise Mistake(f"the denoiser must be asked once a step, and was asked {len(denoiser.calls)} times")
    x_t, t, words = denoiser.calls[0]
    if x_t.shape != x_0.shape:
        raise Mistake(
            f"the denoiser must be given x_t, shaped as x_0 {list(x_0.shape)}, and was given {list(x_t.shape)}"
        )
    _expect_timesteps(t, batch)
    noise = _expect_noise(schedule, x_0, x_t, t)
    dropped = (words == uncond).flatten(1).all(dim=1)
    if not bool((dropped | (words == context).flatten(1).all(dim=1)).all()):
        raise Mistake("each sample must be given its own caption's states, or all of uncond")
    share = dropped.float().mean().item()
    if abs(share - p) > 0.05:  # 7 standard errors
        why = "is the condition dropped, and is its result used?" if share == 0 else "p is how many are dropped"
        raise Mistake(f"with p = {p} the denoiser was given the empty prompt for a share of {share:.2f}: {why}")
    alpha_bar = schedule.alpha_bar(t, like=x_0)
    answer = (0.5 * x_t + 0.25).double()
    v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_0
    expect_shape(result, (), "the loss")
    slips = {
        "the target is the noise in yours; this network predicts v": noise,
        "the target is x_0 in yours; this network predicts v": x_0,
        "the sign of v is turned round: v = √ᾱ · noise − √(1 − ᾱ) · x_0": -v,
        "the roots of v are swapped, or its sign: √ᾱ belongs to the noise": (1 - alpha_bar).sqrt() * noise
        - alpha_bar.sqrt() * x_0,
        "the target is x_t in yours: that is what goes in": x_t,
    }
    errors = {why: (answer - wrong.double()).square().mean() for why, wrong in slips.items()}
    off = answer - v.double()
    errors |= {
        "the loss is a sum in yours: take the mean, so that it does not grow with the batch": off.square().sum(),
        "the errors are summed over a sample: take the mean over all numbers": off.square().flatten(1).sum(1).mean(),
        "the error is not squared": off.abs().mean(),
        "that is the root of the mean squared error; training takes the square": off.square().mean().sqrt(),
    }
    if not close(result.detach().double(), off.square().mean(), 1e-3):
        raise name_it(result.detach().double(), errors, "wrong value: the mean of (prediction − v)² over all numbers")
    if not result.requires_grad:
        raise Mistake("no gradient reaches the denoiser: is there a .detach(), an .item() or a torch.no_grad()?")
    for p, words in ((0.0, context[:40]), (1.0, uncond.expand(40, -1, -1))):
        denoiser = _Listening()
        candidate(denoiser, schedule, x_0[:40], context[:40], uncond, p, fresh_generator())
        if not torch.equal(denoiser.calls[0][2], words):
            raise Mistake(f"with p = {p:g} every sample must be given " + ("the empty prompt" if p else "its caption"))
    _expect_chance(candidate, schedule, x_0[:40], context[:40], uncond)


def _expect_timesteps(t: Tensor, batch: int) -> None:
    if t.is_floating_point() or int(t.min()) < 0 or int(t.max()) > 999:
        raise Mistake("t must be whole numbers from 0 to T − 1: logit_normal_timesteps gives them")
    if len(t.unique()) < batch / 10:
        raise Mistake("the samples share their timestep: draw one for each, logit_normal_timesteps(len(x_0), …)")
    middle, low = (((t > 333) & (t < 667)).float().mean().item(), (t < 90).float().mean().item())
    if middle < 0.45 or low > 0.03:
        raise Mistake(
            f"{middle:.0%} of the timesteps lie in the middle third, where half of them should: draw them with "
            "logit_normal_timesteps"
        )


def _expect_noise(schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The noise that must have been added, if it was: standard normal at each t, another for each sample."""
    if close(x_t, x_0, 1e-6):
        raise Mistake("the denoiser was given x_0: add the noise first")
    alpha_bar = schedule.alpha_bar(t, like=x_0)
    noise = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
    if len(noise.flatten(1)[:, 0].mul(1e3).round().unique()) < 10:
        raise Mistake("all samples got the same noise: draw it in the shape of x_0")
    for part in (t < 400, t > 600):
        if abs(noise[part].std().item() - 1) > 0.05 or abs(noise[part].mean().item()) > 0.05:
            raise Mistake(
                "x_t is not x_0 noised to the t that the denoiser is told: add_noise(schedule, x_0, t, noise), with "
                "standard normal noise (randn) and the same t"
            )
    return noise


def _expect_chance(candidate: Callable[..., Any], *given: Any) -> None:
    """All randomness comes from the generator, and each call goes on in it."""

    def value(generator: torch.Generator) -> float:
        return candidate(_Listening(), *given, 0.25, generator).item()

    if value(torch.Generator().manual_seed(3)) != value(torch.Generator().manual_seed(3)):
        raise Mistake("two calls with equally seeded generators differ: give the generator to each draw")
    generator = torch.Generator().manual_seed(3)
    if value(generator) == value(generator):
        raise Mistake("two calls in a row with one generator are alike: do not seed it inside")


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
