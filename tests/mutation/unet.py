"""Notebook 05: waves of time, cross-attention, dropping the condition, guidance and what it aims at."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.checks import unet as checks
from course_utils.diffusion.forward import add_noise
from course_utils.diffusion.guidance import conditional_loss, drop_condition, guided
from course_utils.diffusion.reverse import denoising_loss, target
from course_utils.diffusion.schedule import logit_normal_timesteps
from course_utils.models.layers import attention, attention_weights, merge_heads, split_heads
from course_utils.models.unet import timestep_embedding, unet_forward

__all__ = ["RIGHT", "WRONG", "checks"]

# --- timestep_embedding


def waves(t: Tensor, dim: int, exponent: Callable[[Tensor, int], Tensor], sines_first: bool = False) -> Tensor:
    half = dim // 2
    angles = t.float()[:, None] * 10000 ** -exponent(torch.arange(half, device=t.device), half)
    parts = [angles.cos(), angles.sin()]
    return torch.cat(parts[::-1] if sines_first else parts, dim=1)


def wave(exponent: Callable[[Tensor, int], Tensor], sines_first: bool = False) -> Callable:
    return lambda t, dim: waves(t, dim, exponent, sines_first)


def over_half(i, half):
    return i / half


def waves_with_loops(t: Tensor, dim: int) -> Tensor:
    half = dim // 2
    rows = [[f(float(s) * 10000 ** (-i / half)) for f in (math.cos, math.sin) for i in range(half)] for s in t.tolist()]
    return torch.tensor(rows)


def complex_waves(t: Tensor, dim: int) -> Tensor:
    frequencies = torch.logspace(0, -4 * (1 - 2 / dim), dim // 2, dtype=torch.float64, device=t.device)
    turned = torch.exp(1j * torch.outer(t.double(), frequencies))
    return torch.cat([turned.real, turned.imag], dim=1).float()


def interleaved(t: Tensor, dim: int) -> Tensor:
    cosines, sines = waves(t, dim, over_half).chunk(2, dim=1)
    return torch.stack([cosines, sines], dim=2).flatten(1)


# --- cross_attention


def heads_of(pixels: Tensor, words: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, heads: int) -> list[Tensor]:
    return [split_heads(F.linear(x, w), heads) for x, w in ((pixels, wq), (words, wk), (words, wv))]


def right_attention(*args) -> Tensor:
    return merge_heads(attention(*heads_of(*args)))


def einsum_attention(pixels, words, wq, wk, wv, heads):
    q, k, v = heads_of(pixels.double(), words.double(), wq.double(), wk.double(), wv.double(), heads)
    weights = (torch.einsum("bhnd,bhld->bhnl", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("bhnl,bhld->bnhd", weights, v).flatten(2)


def head_by_head(pixels, words, wq, wk, wv, heads):
    size, parts = wq.shape[0] // heads, []
    for h in range(heads):
        rows = slice(h * size, (h + 1) * size)
        q, k, v = pixels @ wq[rows].T, words @ wk[rows].T, words @ wv[rows].T
        parts.append((q @ k.mT * size**-0.5).softmax(-1) @ v)
    return torch.cat(parts, dim=2)


def by_torch(pixels, words, wq, wk, wv, heads):
    q, k, v = ((x @ w.T).unflatten(2, (heads, -1)).movedim(2, 1) for x, w in ((pixels, wq), (words, wk), (words, wv)))
    return F.scaled_dot_product_attention(q, k, v).movedim(1, 2).flatten(2)


def attention_with(scale: Callable[[Tensor, int], float] = lambda q, heads: math.sqrt(q.shape[-1]), dim: int = -1):
    def candidate(*args):
        q, k, v = heads_of(*args)
        return merge_heads((q @ k.mT / scale(q, args[-1])).softmax(dim) @ v)

    return candidate


def bare_attention(*args):
    """A softmax as it stands in the book."""
    q, k, v = heads_of(*args)
    shares = (q @ k.mT / math.sqrt(q.shape[-1])).exp()
    return merge_heads(shares / shares.sum(-1, keepdim=True) @ v)


def attention_with_clamped_scores(*args):
    q, k, v = heads_of(*args)
    return merge_heads((q @ k.mT / math.sqrt(q.shape[-1])).clamp(-50, 50).softmax(-1) @ v)


def one_head(pixels, words, wq, wk, wv, heads):
    return attention(pixels @ wq.T, words @ wk.T, words @ wv.T)


def own_weights(pixels, words, wq, wk, wv, heads):
    """Fresh layers in the place of the weights that are given."""
    layers = [nn.Linear(w.shape[1], w.shape[0], bias=False) for w in (wq, wk, wv)]
    return right_attention(pixels, words, *(layer.weight for layer in layers), heads)


def causal(*args):
    q, k, v = heads_of(*args)
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    return merge_heads(attention(q, k, v, mask))


# --- drop_condition


def with_bernoulli(context, uncond, p, generator):
    drop = torch.bernoulli(torch.full((len(context),), float(p)), generator=generator)[:, None, None]
    return drop * uncond + (1 - drop) * context


def with_loop(context, uncond, p, generator):
    pairs = zip(context, uncond.expand_as(context), strict=True)
    return torch.stack([u if torch.rand((), generator=generator) < p else c for c, u in pairs])


def with_index(context, uncond, p, generator):
    out = context.clone()
    hit = torch.rand(len(context), generator=generator, dtype=torch.float64) < p
    out[hit] = uncond.expand_as(context)[hit]
    return out


def dropping(shape, flip=False, value=None, generator=True, scale=1.0):
    def wrong(context, uncond, p, g):
        draws = torch.rand(shape(context), generator=g if generator else None)
        drop = (draws >= p) if flip else (draws < p)
        return torch.where(drop, uncond if value is None else torch.full_like(context, value), context * scale)

    return wrong


def each(context):
    return (len(context), 1, 1)


def drop_in_place(context, uncond, p, g):
    context[torch.rand(len(context), generator=g) < p] = uncond[0]
    return context


def drop_a_fixed_number(context, uncond, p, g):
    """As many as expected, exactly, chosen by lot."""
    hit = torch.randperm(len(context), generator=g) < round(p * len(context))
    return torch.where(hit[:, None, None], uncond, context)


def drop_one_at_least_two(context, uncond, p, g):
    if len(context) == 1:
        return context
    return drop_condition(context, uncond, p, g)


def drop_the_first(context, uncond, p, g):
    n = round(p * len(context))
    return torch.cat([uncond.expand_as(context)[:n], context[n:]])


def drop_with_mean(context, uncond, p, g):
    return (1 - p) * context + p * uncond


# --- guided


def guidance(combine: Callable[[Tensor, Tensor, float], Tensor]) -> Callable:
    def candidate(denoiser, cond, uncond, w):
        def denoise(x_t, t):
            c, u = (denoiser(x_t, t, x.expand(len(x_t), -1, -1)) for x in (cond, uncond))
            return combine(c, u, w)

        return denoise

    return candidate


def guided_in_one_batch(denoiser, cond, uncond, w):
    def denoise(x_t, t):
        contexts = torch.cat([x.expand(len(x_t), -1, -1) for x in (cond, uncond)])
        both = denoiser(x_t.repeat(2, 1, 1, 1), t.repeat(2), contexts).unflatten(0, (2, -1))
        return torch.einsum("kbchw,k->bchw", both.double(), torch.tensor([w, 1 - w], dtype=torch.float64)).float()

    return denoise


def guided_chunks_swapped(denoiser, cond, uncond, w):
    def denoise(x_t, t):
        contexts = torch.cat([x.expand(len(x_t), -1, -1) for x in (cond, uncond)])
        u, c = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), contexts).chunk(2)
        return u + w * (c - u)

    return denoise


def guided_context(denoiser, cond, uncond, w):
    """Mixes the contexts instead of the predictions."""
    return lambda x_t, t: denoiser(x_t, t, (uncond + w * (cond - uncond)).expand(len(x_t), -1, -1))


def guided_in_place(denoiser, cond, uncond, w):
    def denoise(x_t, t):
        result = guided(denoiser, cond, uncond, w)(x_t, t)
        return x_t.copy_(result)

    return denoise


def guided_that_remembers(denoiser, cond, uncond, w):
    """The unconditional prediction is made once."""
    known = []

    def denoise(x, t):
        if not known:
            known.append(denoiser(x, t, uncond.expand(len(x), -1, -1)))
        return known[0] + w * (denoiser(x, t, cond.expand(len(x), -1, -1)) - known[0])

    return denoise


def guided_at_first_time(denoiser, cond, uncond, w):
    first = []

    def denoise(x, t):
        first.append(t)
        return guided(denoiser, cond, uncond, w)(x, first[0])

    return denoise


# --- unet_forward


def by_recursion(net, x_t, t, context):
    """Without a stack: each level calls the next one in and keeps its maps to itself."""
    time = net.time_mlp(t)

    def through(depth: int, x: Tensor) -> Tensor:
        level, mirror = net.down[depth], net.up[len(net.up) - 1 - depth]
        entered, maps = [x], []
        for i in range(len(level.blocks)):
            x = level.layer(i, x, time, context)
            maps.append(x)
        if level.resample is None:
            x = net.middle_block2(net.middle_transformer(net.middle_block1(x, time), context), time)
        else:
            x = through(depth + 1, level.resample(x))
        for i, skip in enumerate([*reversed(maps), *entered]):
            x = mirror.layer(i, torch.cat([x, skip], dim=1), time, context)
        return mirror.resample(x) if mirror.resample is not None else x

    return net.conv_out(F.silu(net.norm_out(through(0, net.conv_in(x_t)))))


def walking(
    order=lambda kept: kept.pop(), join=lambda x, skip: torch.cat([x, skip], dim=1), embed=None, words=None,
    put_first=True, put_halved=True, put_early=False, middle=("middle_block1", "middle_transformer", "middle_block2"),
    double=True, out=lambda net, x: net.conv_out(F.silu(net.norm_out(x))),
):  # fmt: skip
    """The course's version with one thing done otherwise."""

    def candidate(net, x_t, t, context):
        time = net.time_mlp(t) if embed is None else embed(net, t)
        context = context if words is None else words(context)
        x = net.conv_in(x_t)
        kept = [x] if put_first else []
        for level in net.down:
            for i in range(len(level.blocks)):
                if put_early:
                    kept.append(x)
                x = level.layer(i, x, time, context)
                if not put_early:
                    kept.append(x)
            if level.resample is not None:
                x = level.resample(x)
                if put_halved:
                    kept.append(x)
        for name in middle:
            x = getattr(net, name)(x, context if "transformer" in name else time)
        for level in net.up:
            for i in range(len(level.blocks)):
                x = level.layer(i, join(x, order(kept)), time, context)
            if level.resample is not None and double:
                x = level.resample(x)
        return out(net, x)

    return candidate


def oldest_of_its_size(kept):
    """First in, first out among the maps of the smallest side that is left."""
    side = min(x.shape[-1] for x in kept)
    return kept.pop(next(i for i, x in enumerate(kept) if x.shape[-1] == side))


# --- conditional_loss


def step(
    times=lambda n, g: logit_normal_timesteps(n, g, 1000), noise=lambda x, g: torch.randn(x.shape, generator=g),
    told=lambda t: t, kind="v_prediction", drop=drop_condition, error=lambda a, b: F.mse_loss(a, b), sign=1,
):  # fmt: skip
    """A training step with one thing done otherwise."""

    def candidate(denoiser, schedule, x_0, context, uncond, p, g):
        t, e = times(len(x_0), g), noise(x_0, g)
        x_t = add_noise(schedule, x_0, t, e.expand_as(x_0))
        words = drop(context, uncond, p, g)
        return error(denoiser(x_t, told(t), words), sign * target(schedule, x_0, t, e.expand_as(x_0), kind))

    return candidate


def with_denoising_loss(denoiser, schedule, x_0, context, uncond, p, g):
    """The draws in another order, the rest by notebook 03's function."""
    words = drop_condition(context, uncond, p, g)
    noise = torch.randn(x_0.shape, generator=g)
    t = logit_normal_timesteps(len(x_0), g, schedule.num_train_timesteps)
    return denoising_loss(lambda x, s: denoiser(x, s, words), schedule, x_0, t, noise, "v_prediction")


def by_hand(denoiser, schedule, x_0, context, uncond, p, g):
    t = (1000 * torch.sigmoid(torch.randn(len(x_0), generator=g))).long()
    signal = schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    noise = torch.randn(x_0.shape, generator=g)
    lost = torch.rand(len(x_0), generator=g) < p
    words = torch.where(lost[:, None, None], uncond, context)
    said = denoiser(signal.sqrt() * x_0 + (1 - signal).sqrt() * noise, t, words)
    return torch.mean((signal.sqrt() * noise - (1 - signal).sqrt() * x_0 - said) ** 2)


def asked_twice(denoiser, schedule, x_0, context, uncond, p, g):
    args = (denoiser, schedule, x_0, context)
    return (1 - p) * conditional_loss(*args, uncond, 0.0, g) + p * conditional_loss(*args, uncond, 1.0, g)


def not_noised(denoiser, schedule, x_0, context, uncond, p, g):
    return conditional_loss(lambda x, t, c: denoiser(x_0, t, c), schedule, x_0, context, uncond, p, g)


RIGHT = {
    "timestep_embedding": [
        timestep_embedding,
        waves_with_loops,
        complex_waves,
        wave(over_half),
        lambda t, dim: waves(t.double(), dim, lambda i, half: i.double() / half).double(),
    ],
    "cross_attention": [checks._cross_attention, right_attention, einsum_attention, head_by_head, by_torch],
    "drop_condition": [drop_condition, with_bernoulli, with_loop, with_index],
    "unet_forward": [unet_forward, by_recursion, walking(), lambda *args: checks._walk(*args)],
    "conditional_loss": [conditional_loss, with_denoising_loss, by_hand, step()],
    "w_zero": [lambda: "b", lambda: "B", lambda: " b "],
    "guided": [
        guided,
        guidance(lambda c, u, w: w * c + (1 - w) * u),
        guidance(lambda c, u, w: torch.lerp(u, c, w)),
        guided_in_one_batch,
    ],
    "guidance_exponents": [
        lambda w: (1 - w, w),
        lambda w: [1.0 - w, float(w)],
        lambda w: torch.tensor([1 - w, w]),
        lambda w: np.array([1 - w, w]),
    ],
}

WRONG = {
    "unet_forward": [
        (walking(order=oldest_of_its_size), "wrong order"),
        (walking(order=lambda kept: kept.pop(0)), "do not fit"),
        (walking(join=lambda x, skip: torch.cat([skip, x], dim=1)), "comes first"),
        (walking(join=lambda x, skip: x), "do not fit"),
        (walking(join=lambda x, skip: x + skip), "do not fit"),
        (walking(join=lambda x, skip: torch.cat([x, x], dim=1)[:, : x.shape[1] + skip.shape[1]]), "wrong values"),
        (walking(join=lambda x, skip: torch.cat([x, 0 * skip], dim=1)), "does not reach"),
        (walking(embed=lambda net, t: net.time_mlp(0 * t)), "not told t"),
        (walking(words=torch.zeros_like), "words do not reach"),
        (walking(put_first=False), "too few"),
        (walking(put_halved=False), "do not fit"),
        (walking(put_early=True, put_first=True), "wrong values"),
        (walking(double=False), "do not fit"),
        (walking(middle=()), "middle is left out"),
        (walking(middle=("middle_block1", "middle_block2")), "middle_transformer is left out"),
        (walking(middle=("middle_block1", "middle_transformer")), "middle_block2 is left out"),
        (walking(middle=("middle_block1", "middle_block2", "middle_transformer")), "wrong values"),
        (walking(out=lambda net, x: F.silu(net.norm_out(x))), "conv_out is missing"),
        (walking(out=lambda net, x: net.conv_out(net.norm_out(x))), "silu is left out"),
        (walking(out=lambda net, x: net.conv_out(F.silu(x))), "norm_out is left out"),
        (walking(out=lambda net, x: net.conv_out(F.silu(net.norm_out(x))).detach()), "no gradient"),
        (lambda net, x_t, t, context: unet_forward(net, x_t.mul_(1.5), t, context), "in place"),
        (walking(embed=lambda net, t: net.time_mlp(t.clamp(min=1))), "wrong values"),
        (walking(embed=lambda net, t: net.time_mlp(t.clamp(max=998))), "wrong values"),
        (walking(embed=lambda net, t: net.time_mlp(t[:1]).expand(len(t), -1)), "wrong values"),
        (walking(words=lambda context: context[:1].expand_as(context)), "wrong values"),
        (lambda net, x_t, t, context: unet_forward(net, x_t, t, context).mT.reshape(x_t.shape), "wrong values"),
        (lambda net, x_t, t, context: None, "return missing"),
    ],
    "conditional_loss": [
        (step(times=lambda n, g: torch.randint(0, 1000, (n,), generator=g)), "logit_normal_timesteps"),
        (step(times=lambda n, g: logit_normal_timesteps(1, g, 1000).expand(n)), "share their timestep"),
        (step(noise=lambda x, g: torch.rand(x.shape, generator=g)), "noised to the t"),
        (step(noise=lambda x, g: torch.randn(x.shape[1:], generator=g)), "same noise"),
        (step(noise=lambda x, g: torch.zeros(x.shape)), "same noise"),
        (step(told=lambda t: 999 - t), "noised to the t"),
        (not_noised, "given x_0"),
        (step(drop=lambda c, u, p, g: c), "the condition dropped"),
        (step(drop=lambda c, u, p, g: drop_condition(c, u, 1 - p, g)), "p is how many"),
        (step(drop=lambda c, u, p, g: torch.lerp(c, u.expand_as(c), p)), "its own caption"),
        (step(kind="epsilon"), "target is the noise"),
        (step(kind="sample"), "target is x_0"),
        (step(sign=-1), "turned round"),
        (step(error=lambda a, b: F.mse_loss(a, b, reduction="sum")), "is a sum"),
        (step(error=lambda a, b: F.l1_loss(a, b)), "not squared"),
        (step(error=lambda a, b: F.mse_loss(a, b, reduction="none").flatten(1).mean(1)), "shape"),
        (step(error=lambda a, b: F.mse_loss(a.detach(), b)), "no gradient"),
        (step(noise=lambda x, g: torch.randn(x.shape)), "equally seeded"),
        (lambda *args: conditional_loss(*args[:-1], args[-1].manual_seed(0)), "do not seed"),
        (asked_twice, "asked once"),
        (step(drop=lambda c, u, p, g: drop_condition(c, u, min(p, 0.9), g)), "with p = 1"),
        (step(drop=lambda c, u, p, g: drop_condition(c, u, max(p, 0.1), g)), "with p = 0"),
        (step(drop=lambda c, u, p, g: drop_condition(c, u, p or 0.1, g)), "with p = 0"),
    ],
    "timestep_embedding": [
        (wave(over_half, sines_first=True), "sines come first"),
        (interleaved, "alternate"),
        (wave(lambda i, half: i / (half - 1)), "half − 1"),
        (wave(lambda i, half: -i / half), "grow"),
        (wave(lambda i, half: i / (2 * half)), "divide i by half"),
        (wave(lambda i, half: 2 * i / half), "−2i / half"),
        (wave(lambda i, half: (i + 1) / half), "starts at 0"),
        (wave(lambda i, half: (half - 1 - i) / half), "reverse order"),
        (lambda t, dim: waves(2 * math.pi * t, dim, over_half), "2π"),
        (lambda t, dim: waves(t.long(), dim, over_half), "whole number"),
        (lambda t, dim: waves(t / 1000, dim, over_half), "divided by 1000"),
        (lambda t, dim: waves(t, 2 * dim, over_half), "shape"),
        (lambda t, dim: waves(t, dim, over_half).T, "shape"),
        (lambda t, dim: waves(t, dim, over_half).long(), "floating point"),
        (lambda t, dim: timestep_embedding(t, dim) * torch.ones(dim), "device"),
        (lambda t, dim: timestep_embedding(t.clamp(min=1), dim), "wrong values"),
        (lambda t, dim: timestep_embedding(t.clamp(max=998), dim), "wrong values"),
        (lambda t, dim: timestep_embedding(t, dim).half(), "half precision"),
        (lambda t, dim: None, "return missing"),
    ],
    "cross_attention": [
        (attention_with(lambda q, heads: 1.0), "not divided"),
        (attention_with(lambda q, heads: q.shape[-1]), "its square root is meant"),
        (attention_with(lambda q, heads: math.sqrt(q.shape[-1] * heads)), "width of one head"),
        (attention_with(dim=-2), "over the pixels"),
        (one_head, "not split"),
        (lambda p, w, wq, wk, wv, h: right_attention(w, p, wq, wk, wv, h), "shapes do not fit"),
        (lambda p, w, wq, wk, wv, h: right_attention(p, w, wq.T, wk, wv, h), "not transposed"),
        (lambda p, w, wq, wk, wv, h: right_attention(p, w, wq, wk, wk, h), "values are the keys"),
        (lambda p, w, wq, wk, wv, h: right_attention(p, w, wq, wv, wk, h), "mixed up"),
        (lambda *a: attention(*heads_of(*a)), "still apart"),
        (lambda *a: attention(*heads_of(*a)).reshape(a[0].shape), "transpose before"),
        (lambda *a: right_attention(*a).detach(), "no gradient"),
        (lambda p, w, wq, wk, wv, h: right_attention(p, w, wq, wk.detach(), wv, h), "reaches key_weight"),
        (lambda *a: right_attention(*a) + a[0], "residual"),
        (lambda *a: attention_weights(*heads_of(*a)[:2]).mean(1), "shape"),
        (own_weights, "the weights that are given"),
        (causal, "nothing is masked"),
        (lambda p, *a: right_attention(p.mul_(1.5), *a), "in place"),
        (lambda *a: right_attention(*a).float(), "dtype"),
        (bare_attention, "would overflow"),
        (attention_with_clamped_scores, "of any size"),
        (lambda *a: right_attention(*a) if a[1].shape[1] > 1 else 0 * a[0], "1 words"),
    ],
    "drop_condition": [
        (drop_a_fixed_number, "the same number of samples"),
        (drop_one_at_least_two, "a batch of one"),
        (dropping(lambda c: (len(c), c.shape[1], 1)), "single tokens"),
        (dropping(lambda c: c.shape), "single numbers"),
        (dropping(lambda c: (1, 1, 1)), "one draw"),
        (dropping(each, flip=True), "wrong way round"),
        (dropping(each, value=0.0), "zeros"),
        (dropping(each, generator=False), "equally seeded"),
        (dropping(each, scale=1 / 0.75), "scaled"),
        (drop_in_place, "in place"),
        (drop_the_first, "the draw must come from the generator"),
        (drop_with_mean, "nothing in between"),
        (lambda c, u, p, g: drop_condition(c, u, p, torch.Generator().manual_seed(0)), "differently seeded"),
        (lambda c, u, p, g: drop_condition(c, u, p, g.manual_seed(3)), "differently seeded"),
        (lambda c, u, p, g: drop_condition(c, u, p / 2, g), "share"),
        (lambda c, u, p, g: drop_condition(c, u, 0.25, g), "p = 0 must drop none"),
        (lambda c, u, p, g: drop_condition(c, u, min(p, 0.99), g), "p = 1 must drop all"),
        (lambda c, u, p, g: drop_condition(c, u, max(p, 0.02), g), "p = 0 must drop none"),
        (lambda c, u, p, g: drop_condition(c, u[:1], p, g), "[B, L, D] as well"),
        (lambda c, u, p, g: drop_condition(c.detach(), u, p, g), "no gradient"),
    ],
    "w_zero": [
        (lambda: "a", "removed"),
        (lambda: "c", "below 0"),
        (lambda: "d", "w = 1"),
        (lambda: "e", "return one of"),
        (lambda: 0, "return one of"),
        (lambda: None, "return one of"),
    ],
    "guided": [
        (guided_that_remembers, "the second is not"),
        (guided_at_first_time, "the second is not"),
        (lambda d, c, u, w: guided(d, c, u, max(w, 0.1)), "w = 0"),
        (lambda d, c, u, w: guided(d, c, u[:1], w), "wrong values"),
        (lambda d, c, u, w: lambda x, t: guided(d, c, u, w)(x, t).clamp(-5, 5), "wrong values"),
        (guidance(lambda c, u, w: c + w * (u - c)), "swapped"),
        (guided_chunks_swapped, "swapped"),
        (guidance(lambda c, u, w: u - w * (c - u)), "sign"),
        (guidance(lambda c, u, w: c + w * (c - u)), "start from cond"),
        (guidance(lambda c, u, w: w * (c - u)), "uncond is missing"),
        (guidance(lambda c, u, w: u + w * c), "add up to 1"),
        (guidance(lambda c, u, w: w * u + w * (c - u)), "multiply the difference only"),
        (guidance(lambda c, u, w: c), "not used"),
        (guidance(lambda c, u, w: u), "unconditional prediction"),
        (guidance(lambda c, u, w: (c + u) / 2), "mean of the two"),
        (guidance(lambda c, u, w: (1 + w) * c - w * u), "start from cond"),
        (guided_context, "mixed contexts"),
        (lambda d, c, u, w: d(torch.zeros(4, 2, 3, 3), torch.zeros(4), c.expand(4, -1, -1)), "must return a denoiser"),
        (lambda d, c, u, w: lambda x, t, context: d(x, t, context), "(x_t, t) alone"),
        (lambda d, c, u, w: lambda x, t: d(x, t, c) + w * (d(x, t, c) - d(x, t, u)), "start from cond"),
        (lambda d, c, u, w: lambda x, t: d(torch.cat([x, x]), t, torch.cat([u, c])), "equally long"),
        (guided_in_place, "in place"),
    ],
    "guidance_exponents": [
        (lambda w: (w, 1 - w), "swapped"),
        (lambda w: (1, w), "exponents of p(x) and of p(c | x)"),
        (lambda w: (w - 1, w), "sign"),
        (lambda w: (-w, 1 + w), "one less than ours"),
        (lambda w: (1 - w, 1), "multiply out"),
        (lambda w: (1 - w, w) if w else (0, 1), "at w = 0 only p(x)"),
        (lambda w: (1 - w, w) if w != 1 else (1, 0), "at w = 1 only p(x | c)"),
        (lambda w: w, "two numbers"),
        (lambda w: None, "two numbers"),
        (lambda w: (1 - w, w) if w > 1 else (0, 0), "only"),
    ],
}
