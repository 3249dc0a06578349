"""The checks of notebook 05: they take right answers, however written, and name wrong ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.checks import unet as check
from course_utils.diffusion.guidance import drop_condition, guided
from course_utils.models.layers import attention, attention_weights, merge_heads, split_heads
from course_utils.models.unet import timestep_embedding
from tests.unit.grading import grading, rejected  # noqa: F401 (the fixture works by being here)

# --- timestep_embedding


def waves(t: Tensor, dim: int, exponent: Callable[[Tensor, int], Tensor], sines_first: bool = False) -> Tensor:
    half = dim // 2
    angles = t.float()[:, None] * 10000 ** -exponent(torch.arange(half, device=t.device), half)
    parts = [angles.cos(), angles.sin()]
    return torch.cat(parts[::-1] if sines_first else parts, dim=1)


def with_loops(t: Tensor, dim: int) -> Tensor:
    half = dim // 2
    rows = [[f(float(s) * 10000 ** (-i / half)) for f in (math.cos, math.sin) for i in range(half)] for s in t.tolist()]
    return torch.tensor(rows)


def test_timestep_embedding_takes_right_ones() -> None:
    for right in (
        timestep_embedding,
        with_loops,
        lambda t, dim: waves(t, dim, lambda i, half: i / half),
        lambda t, dim: waves(t.double(), dim, lambda i, half: i.double() / half).double(),
    ):
        assert check.timestep_embedding(right) is right


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda t, dim: waves(t, dim, lambda i, half: i / half, sines_first=True), "sines come first"),
        (lambda t, dim: waves(t, dim, lambda i, half: i / (half - 1)), "half − 1"),
        (lambda t, dim: waves(t, dim, lambda i, half: -i / half), "grow"),
        (lambda t, dim: waves(t, dim, lambda i, half: i / (2 * half)), "divide i by half"),
        (lambda t, dim: waves(t.long(), dim, lambda i, half: i / half), "whole number"),
        (lambda t, dim: waves(t / 1000, dim, lambda i, half: i / half), "divided by 1000"),
        (lambda t, dim: waves(t, dim, lambda i, half: i / half).T, "shape"),
        (lambda t, dim: timestep_embedding(t.cpu() if t.device.type != "meta" else torch.zeros(3), dim), "device"),
        (lambda t, dim: None, "return missing"),
    ],
)
def test_timestep_embedding_names_wrong_ones(wrong: Callable, words: str) -> None:
    rejected(check.timestep_embedding, wrong, words)


# --- cross_attention


def heads_of(pixels: Tensor, words: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, heads: int) -> list[Tensor]:
    return [split_heads(F.linear(x, w), heads) for x, w in ((pixels, wq), (words, wk), (words, wv))]


def right_attention(*args) -> Tensor:
    return merge_heads(attention(*heads_of(*args)))


def einsum_attention(pixels, words, wq, wk, wv, heads):
    q, k, v = heads_of(pixels.double(), words.double(), wq.double(), wk.double(), wv.double(), heads)
    weights = (torch.einsum("bhnd,bhld->bhnl", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("bhnl,bhld->bnhd", weights, v).flatten(2)


def test_cross_attention_takes_right_ones() -> None:
    for right in (right_attention, einsum_attention):
        assert check.cross_attention(right) is right


def unscaled(*args):
    q, k, v = heads_of(*args)
    return merge_heads((q @ k.mT).softmax(-1) @ v)


def over_pixels(*args):
    q, k, v = heads_of(*args)
    return merge_heads((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-2) @ v)


def one_head(pixels, words, wq, wk, wv, heads):
    return attention(pixels @ wq.T, words @ wk.T, words @ wv.T)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (unscaled, "not divided"),
        (over_pixels, "over the pixels"),
        (one_head, "not split"),
        (lambda p, w, wq, wk, wv, h: right_attention(w, p, wq, wk, wv, h), "shapes do not fit"),
        (lambda p, w, wq, wk, wv, h: right_attention(p, w, wq.T, wk, wv, h), "not transposed"),
        (lambda p, w, wq, wk, wv, h: right_attention(p, w, wq, wk, wk, h), "values are the keys"),
        (lambda *a: attention(*heads_of(*a)), "still apart"),
        (lambda *a: attention(*heads_of(*a)).reshape(a[0].shape), "transpose before"),
        (lambda *a: right_attention(*a).detach(), "no gradient"),
        (lambda *a: right_attention(*a) + a[0], "residual"),
        (lambda *a: attention_weights(*heads_of(*a)[:2]).mean(1), "shape"),
    ],
)
def test_cross_attention_names_wrong_ones(wrong: Callable, words: str) -> None:
    rejected(check.cross_attention, wrong, words)


# --- drop_condition


def with_bernoulli(context, uncond, p, generator):
    drop = torch.bernoulli(torch.full((len(context),), float(p)), generator=generator)[:, None, None]
    return drop * uncond + (1 - drop) * context


def with_loop(context, uncond, p, generator):
    pairs = zip(context, uncond.expand_as(context), strict=True)
    return torch.stack([u if torch.rand((), generator=generator) < p else c for c, u in pairs])


def test_drop_condition_takes_right_ones() -> None:
    for right in (drop_condition, with_bernoulli, with_loop):
        assert check.drop_condition(right) is right


def dropping(shape, flip=False, value=None, generator=True, scale=1.0):
    def wrong(context, uncond, p, g):
        draws = torch.rand(shape(context), generator=g if generator else None)
        drop = (draws >= p) if flip else (draws < p)
        return torch.where(drop, uncond if value is None else torch.full_like(context, value), context * scale)

    return wrong


def in_place(context, uncond, p, g):
    context[torch.rand(len(context), generator=g) < p] = uncond[0]
    return context


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (dropping(lambda c: (len(c), c.shape[1], 1)), "single tokens"),
        (dropping(lambda c: (1, 1, 1)), "one draw"),
        (dropping(lambda c: (len(c), 1, 1), flip=True), "wrong way round"),
        (dropping(lambda c: (len(c), 1, 1), value=0.0), "zeros"),
        (dropping(lambda c: (len(c), 1, 1), generator=False), "equally seeded"),
        (dropping(lambda c: (len(c), 1, 1), scale=1 / 0.75), "scaled"),
        (in_place, "in place"),
        (lambda c, u, p, g: drop_condition(c, u, p, torch.Generator().manual_seed(0)), "differently seeded"),
        (lambda c, u, p, g: drop_condition(c, u, p / 2, g), "share"),
        (lambda c, u, p, g: drop_condition(c.detach(), u, p, g), "no gradient"),
    ],
)
def test_drop_condition_names_wrong_ones(wrong: Callable, words: str) -> None:
    rejected(check.drop_condition, wrong, words)


# --- guided


def guidance(combine: Callable[[Tensor, Tensor, float], Tensor]) -> Callable:
    def candidate(denoiser, cond, uncond, w):
        def denoise(x_t, t):
            c, u = (denoiser(x_t, t, x.expand(len(x_t), -1, -1)) for x in (cond, uncond))
            return combine(c, u, w)

        return denoise

    return candidate


def test_guided_takes_right_ones() -> None:
    for right in (guided, guidance(lambda c, u, w: w * c + (1 - w) * u), guidance(lambda c, u, w: torch.lerp(u, c, w))):
        assert check.guided(right) is right


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (guidance(lambda c, u, w: c + w * (u - c)), "swapped"),
        (guidance(lambda c, u, w: u - w * (c - u)), "sign"),
        (guidance(lambda c, u, w: c + w * (c - u)), "start from cond"),
        (guidance(lambda c, u, w: w * (c - u)), "uncond is missing"),
        (guidance(lambda c, u, w: u + w * c), "add up to 1"),
        (guidance(lambda c, u, w: c), "not used"),
        (lambda d, c, u, w: d(torch.zeros(4, 2, 3, 3), torch.zeros(4), c.expand(4, -1, -1)), "must return a denoiser"),
        (lambda d, c, u, w: lambda x, t: d(x, t, c) + w * (d(x, t, c) - d(x, t, u)), "start from cond"),
        (lambda d, c, u, w: lambda x, t: d(torch.cat([x, x]), t, torch.cat([u, c])), "equally long"),
    ],
)
def test_guided_names_wrong_ones(wrong: Callable, words: str) -> None:
    rejected(check.guided, wrong, words)


# --- the two questions


def test_questions_take_the_right_answer_alone() -> None:
    assert check.w_zero(lambda: "B")() == "B"
    for letter, words in (("a", "removed"), ("c", "below 0"), ("d", "w = 1"), ("e", "one letter")):
        rejected(check.w_zero, lambda letter=letter: letter, words)
    assert check.guidance_exponents(lambda w: (1 - w, w))(3) == (-2, 3)
    for wrong, words in (
        (lambda w: (w, 1 - w), "swapped"),
        (lambda w: (1, w), "Bayes|exponents of"),
        (lambda w: (w - 1, w), "sign"),
        (lambda w: (w - 1, 1), "Bayes"),
        (lambda w: w, "two numbers"),
        (lambda w: (1 - w, w) if w > 1 else (0, 0), "only"),
    ):
        rejected(check.guidance_exponents, wrong, words)
