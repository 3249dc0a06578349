"""Checks of notebook 05: waves of time, cross-attention, dropping the condition, guidance and what it aims at."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.checks.base import Mistake, check_for, close, expect_shape
from course_utils.diffusion import guidance as package
from course_utils.models import unet
from course_utils.models.layers import attention, merge_heads, split_heads


def _seeded(seed: int | None = None) -> torch.Generator:
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    return generator


def _random(*shape: int) -> Tensor:
    """Fresh numbers on each call, drawn without touching the global generator."""
    return torch.randn(*shape, generator=_seeded())


def _name_it(result: Tensor, slips: dict[str, Tensor], otherwise: str) -> Mistake:
    """The mistake whose wrong value the result is."""
    for message, wrong in slips.items():
        if wrong.shape == result.shape and close(result, wrong):
            return Mistake(message)
    return Mistake(otherwise)


def _untouched(names: str, before: list[Tensor], after: list[Tensor]) -> None:
    if any(not torch.equal(a.detach(), b) for a, b in zip(after, before, strict=True)):
        raise Mistake(f"it changes its arguments in place ({names}): write x + y, not x += y or x[i] = y")


# --- timestep_embedding -------------------------------------------------------------------------------------


def _follows_device(candidate: Callable[..., Any]) -> None:
    """A tensor on the "meta" device stands for one on a GPU: what is made inside the function must be there, too."""
    try:
        result = candidate(torch.zeros(3, device="meta"), 8)
    except RuntimeError as error:
        if "device" in str(error):
            raise Mistake(
                "the frequencies must lie on t's device, or it fails on a GPU: torch.arange(half, device=t.device)"
            ) from None
        return
    except Exception:  # a loop over t.tolist(), say, is right but has nothing to read here
        return
    if isinstance(result, Tensor) and result.device.type != "meta":
        raise Mistake("the result must lie on t's device: make the frequencies with device=t.device")


def _waves(t: Tensor, frequencies: Tensor) -> Tensor:
    angles = t[:, None].double() * frequencies.double()[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


@check_for(unet.timestep_embedding)
def timestep_embedding(candidate: Callable[..., Any]) -> None:
    """Cosines, then sines, of t times 10000^(−i / half)."""
    for dim, t in [(8, torch.tensor([0, 1, 7, 500, 999])), (32, torch.randint(0, 1000, (6,), generator=_seeded()))]:
        half = dim // 2
        before = t.clone()
        result = candidate(t, dim)
        expect_shape(result, (len(t), dim), f"timestep_embedding of {len(t)} timesteps and dim {dim}")
        if not result.is_floating_point():
            raise Mistake(f"the result must be floating point, got {result.dtype}: turn t into floats first")
        _untouched("t", [before], [t])
        i = torch.arange(half).double()
        right = _waves(t, 10000.0 ** (-i / half))
        slips = {
            "sines come first in yours; Stable Diffusion's order is all cosines, then all sines": right.roll(half, 1),
            "cosines and sines alternate in yours: torch.cat puts all cosines before all sines": torch.stack(
                right.chunk(2, dim=1), dim=2
            ).flatten(1),
            "the frequencies grow: the exponent is −i / half, so that ω falls from 1": _waves(t, 10000.0 ** (i / half)),
            "the exponent is −i / dim in yours; divide i by half = dim / 2": _waves(t, 10000.0 ** (-i / dim)),
            "the exponent is −2i / half in yours; it is −i / half": _waves(t, 10000.0 ** (-2 * i / half)),
            "you divide by half − 1 (the last frequency is then 1 / 10000); here it is −i / half": _waves(
                t, 10000.0 ** (-i / max(1, half - 1))
            ),
            "i runs from 1 to half in yours; it starts at 0, where ω is 1": _waves(t, 10000.0 ** (-(i + 1) / half)),
            "t is divided by 1000 in yours; the waves take the step itself": _waves(t / 1000, 10000.0 ** (-i / half)),
            "there is a factor 2π too many: the angle is t · ω": _waves(2 * math.pi * t, 10000.0 ** (-i / half)),
            "the frequencies are in reverse order: i = 0 (the fastest, ω = 1) comes first": _waves(
                t, 10000.0 ** (-i.flip(0) / half)
            ),
        }
        if not close(result.double(), right.double(), 1e-3):
            at_zero = candidate(torch.zeros(1, dtype=torch.int64), 4)
            raise _name_it(
                result.float(),
                slips,
                "wrong values: at t = 0 it must give [1, 1, 0, 0] for dim 4, and it gives "
                f"{[round(x, 3) for x in at_zero.flatten().tolist()]}; the angles are t · 10000^(−i / (dim / 2))",
            )
    between = candidate(torch.tensor([12.5]), 8)
    if not close(between.double(), _waves(torch.tensor([12.5]), 10000.0 ** (-torch.arange(4) / 4)).double(), 1e-3):
        raise Mistake("t need not be a whole number: at t = 12.5 yours is wrong (is there a .long() or .int()?)")
    _follows_device(candidate)


# --- cross_attention ----------------------------------------------------------------------------------------


def _cross_attention(
    pixels: Tensor, words: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor, heads: int
) -> Tensor:
    """Reference: the package's CrossAttention as a function, without its last linear layer."""
    query = split_heads(F.linear(pixels, query_weight), heads)  # [B, heads, N, d]
    key = split_heads(F.linear(words, key_weight), heads)  # [B, heads, L, d]
    value = split_heads(F.linear(words, value_weight), heads)
    return merge_heads(attention(query, key, value))


_cross_attention.__name__ = "cross_attention"


def _by_heads(query: Tensor, key: Tensor, value: Tensor, heads: int, **changes: Any) -> Tensor:
    """Attention head by head, written apart from the package; `changes` make it wrong in a way people get it wrong."""
    outputs = []
    size = query.shape[-1] // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2)  # [B, N, L]
        weights = (scores / changes.get("scale", math.sqrt(size))).softmax(dim=changes.get("dim", -1))
        outputs.append(weights @ value[..., part])
    return torch.cat(outputs, dim=-1)


@check_for(_cross_attention)
def cross_attention(candidate: Callable[..., Any]) -> None:
    """Queries from the pixels, keys and values from the words, in heads; against torch's own attention."""
    for batch, pixels_count, words_count, width, context_width, heads in [(2, 5, 3, 8, 6, 2), (3, 4, 7, 12, 12, 3)]:
        pixels, words = _random(batch, pixels_count, width), _random(batch, words_count, context_width)
        query_weight = _random(width, width) / width**0.5 * 2
        key_weight, value_weight = _random(2, width, context_width) / context_width**0.5 * 2
        inputs = [pixels, words, query_weight, key_weight, value_weight]
        before = [x.clone() for x in inputs]
        try:
            result = candidate(*inputs, heads)
        except RuntimeError as error:
            raise Mistake(
                f"the shapes do not fit ({str(error).splitlines()[0]}): queries come from pixels [B, N, width], keys "
                "and values from words [B, L, context_width], and F.linear(x, weight) is x @ weight.T"
            ) from None
        _untouched("pixels, words, weights", before, inputs)
        wanted = (batch, pixels_count, width)
        if isinstance(result, Tensor) and result.shape == (batch, words_count, width):
            raise Mistake("one row for each word came out: the pixels ask, so one row for each pixel is wanted")
        if isinstance(result, Tensor) and result.ndim == 4:
            raise Mistake(f"the heads are still apart, {list(result.shape)}: merge_heads puts them side by side")
        expect_shape(result, wanted)
        q, k, v = pixels @ query_weight.T, words @ key_weight.T, words @ value_weight.T
        parts = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
        by_parts = F.scaled_dot_product_attention(*parts)  # [B, heads, N, d]
        right = by_parts.transpose(1, 2).flatten(2)
        if not close(result.float(), right):
            slips = {
                "the heads are not split: each takes a softmax over its own slice of the width": _by_heads(q, k, v, 1),
                "the scores are not divided by √d": _by_heads(q, k, v, heads, scale=1.0),
                "the scores are divided by d: its square root is meant": _by_heads(q, k, v, heads, scale=width / heads),
                "the scores are divided by √width; d is the width of one head, width / heads": _by_heads(
                    q, k, v, heads, scale=math.sqrt(width)
                ),
                "the softmax runs over the pixels; each pixel shares out one unit among the words": _by_heads(
                    q, k, v, heads, dim=-2
                ),
                "the heads are merged without swapping back: transpose before you flatten": by_parts.reshape(wanted),
                "values and keys are mixed up: the softmax is taken with keys, the average over values": _by_heads(
                    q, v, k, heads
                ),
                "the values are the keys: use value_weight for them": _by_heads(q, k, k, heads),
                "query_weight is not transposed: F.linear(x, weight) is x @ weight.T": _by_heads(
                    pixels @ query_weight, k, v, heads
                ),
                "the pixels are added to the result; the residual sum belongs to the block around it": right + pixels,
            }
            if width == context_width:
                slips["that is self-attention: keys and values come from the words"] = _by_heads(
                    q, pixels @ key_weight.T, pixels @ value_weight.T, heads
                )
            raise _name_it(
                result.float(),
                slips,
                "wrong values. For one head they are softmax(q kᵀ / √width) v with q from pixels, k and v from words",
            )
        words.requires_grad_()
        result = candidate(pixels, words, query_weight, key_weight, value_weight, heads)
        if not result.requires_grad:
            raise Mistake("no gradient reaches the words: is there a .detach(), an .item() or a torch.no_grad()?")


# --- drop_condition -----------------------------------------------------------------------------------------


@check_for(package.drop_condition)
def drop_condition(candidate: Callable[..., Any]) -> None:
    """Whole samples, with the probability asked for, replaced by the empty prompt's states."""
    batch, length, width = 4000, 3, 2
    uncond = _random(1, length, width)
    context = _random(batch, length, width)
    before = [context.clone(), uncond.clone()]
    p = 0.25
    result = candidate(context, uncond, p, _seeded(3))
    _untouched("context, uncond", before, [context, uncond])
    expect_shape(result, (batch, length, width))
    if bool((result == 0).flatten(1).all(dim=1).any()):
        raise Mistake("dropped samples are zeros: they must become uncond, the states of the empty prompt")
    kept = (result == context).all(dim=2)  # [B, L]: tokens that stayed
    dropped = (result == uncond).all(dim=2)
    if not bool((kept | dropped).all()):
        scaled = (result * (1 - p) - context).abs().amax(dim=(1, 2)) < 1e-5
        if bool(scaled.any()):
            raise Mistake("kept samples are scaled by 1 / (1 − p), as in nn.Dropout: here they stay as they are")
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
    again = candidate(context, uncond, p, _seeded(3))
    if not torch.equal(result, again):
        raise Mistake("two calls with equally seeded generators differ: draw with torch.rand(…, generator=generator)")
    if torch.equal(candidate(context, uncond, p, _seeded(4)), again):
        raise Mistake("two differently seeded generators drop the same samples: the draw must come from the generator")
    generator = _seeded(3)
    first, second = (candidate(context, uncond, p, generator) for _ in range(2))
    if torch.equal(first, second):
        raise Mistake("two calls in a row with one generator drop the same samples: do not seed it inside")
    for p, expected, words in ((0.0, context, "p = 0 must drop none"), (1.0, uncond, "p = 1 must drop all")):
        if not torch.equal(candidate(context, uncond, p, _seeded()), expected.expand_as(context)):
            raise Mistake(words)
    each = _random(5, length, width)  # uncond may also come for each sample
    if not torch.equal(candidate(context[:5], each, 1.0, _seeded()), each):
        raise Mistake("uncond may be [B, L, D] as well: a sample that is dropped takes its own row of it")
    context = context[:50].clone().requires_grad_()
    if not candidate(context, uncond, 0.5, _seeded()).requires_grad:
        raise Mistake("no gradient reaches the context: is there a .detach() or a torch.no_grad()?")


# --- what w = 0 draws -----------------------------------------------------------------------------------------


def _w_zero() -> str:
    """Reference: uncond + 0 · (cond − uncond) is the unconditional prediction."""
    return "b"


_w_zero.__name__ = "w_zero"


@check_for(_w_zero)
def w_zero(candidate: Callable[..., Any]) -> None:
    """The letter of one of four answers."""
    answer = candidate()
    if not isinstance(answer, str) or answer.strip().lower() not in ("a", "b", "c", "d"):
        raise Mistake(f"return one letter, 'a', 'b', 'c' or 'd', got {answer!r}")
    replies = {
        "a": "the noise is still removed: put w = 0 into the formula and see which of the two predictions is left",
        "c": "that would take a w below 0, away from the prompt; put w = 0 into the formula",
        "d": "that is w = 1: put w = 0 into the formula and see which of the two predictions is left",
    }
    if reply := replies.get(answer.strip().lower()):
        raise Mistake(reply)


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
        x_t, t = _random(4, 2, 3, 3), torch.tensor([10, 400, 3, 999])
        cond, uncond = _random(rows, 5, 6), _random(blank_rows, 5, 6)
        before = [x_t.clone(), cond.clone(), uncond.clone()]
        denoiser = candidate(_toy_denoiser, cond, uncond, w)
        if not callable(denoiser):
            raise Mistake("guided must return a denoiser, a function of (x_t, t), not a prediction")
        try:
            result = denoiser(x_t, t)
        except TypeError as error:
            raise Mistake(f"the function that guided returns must take (x_t, t) alone ({error})") from None
        except RuntimeError as error:
            raise Mistake(
                f"the shapes do not fit ({str(error).splitlines()[0]}): cond has {rows} rows and uncond {blank_rows}, "
                "for a batch of 4; repeat each for the batch, as batch_context does"
            ) from None
        _untouched("x_t, cond, uncond", before, [x_t, cond, uncond])
        expect_shape(result, tuple(x_t.shape), "the guided prediction")
        with_condition = _toy_denoiser(x_t, t, cond.expand(4, -1, -1))
        without = _toy_denoiser(x_t, t, uncond.expand(4, -1, -1))
        right = without + w * (with_condition - without)
        if close(result, right):
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
        }
        example = "With uncond = 1, cond = 2 and w = 3 it must give 4"
        raise _name_it(result, slips, f"wrong values at w = {w:g}. {example}")


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
