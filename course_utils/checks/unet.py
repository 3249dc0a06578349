"""Checks of notebook 05: waves of time, cross-attention, the way through the U-Net; the rest is in `guidance.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.checks.base import (
    Mistake,
    check_for,
    close,
    expect_device,
    expect_dtype,
    expect_shape,
    expect_untouched,
    fresh_generator,
    gradients_of,
    name_it,
    random_tensor,
)
from course_utils.checks.guidance import conditional_loss, drop_condition, guidance_exponents, guided, w_zero
from course_utils.models import unet
from course_utils.models.layers import attention, merge_heads, split_heads

__all__ = [
    "conditional_loss",
    "cross_attention",
    "drop_condition",
    "guidance_exponents",
    "guided",
    "timestep_embedding",
    "unet_forward",
    "w_zero",
]

# --- timestep_embedding -------------------------------------------------------------------------------------


def _waves(t: Tensor, frequencies: Tensor) -> Tensor:
    angles = t[:, None].double() * frequencies.double()[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


@check_for(unet.timestep_embedding)
def timestep_embedding(candidate: Callable[..., Any]) -> None:
    """Cosines, then sines, of t times 10000^(−i / half)."""
    for dim, t in [
        (8, torch.tensor([0, 1, 7, 500, 999])),
        (32, torch.randint(0, 1000, (6,), generator=fresh_generator())),
    ]:
        half = dim // 2
        before = t.clone()
        result = candidate(t, dim)
        expect_shape(result, (len(t), dim), f"timestep_embedding of {len(t)} timesteps and dim {dim}")
        if not result.is_floating_point():
            raise Mistake(f"the result must be floating point, got {result.dtype}: turn t into floats first")
        expect_untouched("t", [before], [t])
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
            raise name_it(
                result.float(),
                slips,
                "wrong values: at t = 0 it must give [1, 1, 0, 0] for dim 4, and it gives "
                f"{[round(x, 3) for x in at_zero.flatten().tolist()]}; the angles are t · 10000^(−i / (dim / 2))",
            )
    between = candidate(torch.tensor([12.5]), 8)
    if not close(between.double(), _waves(torch.tensor([12.5]), 10000.0 ** (-torch.arange(4) / 4)).double(), 1e-3):
        raise Mistake("t need not be a whole number: at t = 12.5 yours is wrong (is there a .long() or .int()?)")
    remedy = "torch.arange(half, device=t.device)"
    expect_device(candidate, torch.zeros(3, device="meta"), 8, remedy=remedy)


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
        pixels, words = random_tensor(batch, pixels_count, width), random_tensor(batch, words_count, context_width)
        query_weight = random_tensor(width, width) / width**0.5 * 2
        key_weight, value_weight = random_tensor(2, width, context_width) / context_width**0.5 * 2
        inputs = [pixels, words, query_weight, key_weight, value_weight]
        before = [x.clone() for x in inputs]
        try:
            result = candidate(*inputs, heads)
        except NotImplementedError:  # a RuntimeError too, but it means "not solved yet"
            raise
        except RuntimeError as error:
            raise Mistake(
                f"the shapes do not fit ({str(error).splitlines()[0]}): queries come from pixels [B, N, width], keys "
                "and values from words [B, L, context_width], and F.linear(x, weight) is x @ weight.T"
            ) from None
        expect_untouched("pixels, words, weights", before, inputs)
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
            if not close(result, candidate(*inputs, heads)):
                raise Mistake("two calls with the same arguments differ: use the weights that are given, no new layers")
            earlier = torch.ones(pixels_count, words_count, dtype=torch.bool).tril()
            masked = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=earlier)
            slips = {
                "nothing is masked here: each pixel may look at every word": masked.transpose(1, 2).flatten(2),
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
            raise name_it(
                result.float(),
                slips,
                "wrong values. For one head they are softmax(q kᵀ / √width) v with q from pixels, k and v from words",
            )
        expect_dtype(candidate(*(x.double() for x in inputs), heads), torch.float64, "pixels")
        names = ("pixels", "words", "query_weight", "key_weight", "value_weight")
        leaves = {name: x.requires_grad_() for name, x in zip(names, inputs, strict=True)}
        gradients_of(candidate(*leaves.values(), heads).square().sum(), leaves)
    for size, words_count in ((1.0, 1), (1e4, 3)):
        pixels, words, weights = random_tensor(1, 4, 6) * size, random_tensor(1, words_count, 5), random_tensor(2, 6, 5)
        inputs = [pixels, words, torch.eye(6), *weights]
        right = F.scaled_dot_product_attention(pixels, *(words @ w.T for w in weights))
        if not close(candidate(*inputs, 1), right, 1e-3):
            raise Mistake(
                f"for a batch of one, one head, {words_count} words and pixels of about {size:g} the numbers are off: "
                "scores may be of any size, and softmax takes the largest away before exp, which would overflow"
            )


# --- unet_forward -------------------------------------------------------------------------------------------


def _walk(net: unet.UNet, x_t: Tensor, t: Tensor, context: Tensor, *, slip: str = "") -> Tensor:
    """The way through the U-Net, written apart from the package; `slip` makes it wrong in a way people get it wrong."""
    time = net.time_mlp(torch.zeros_like(t) if slip == "time" else t)
    context = torch.zeros_like(context) if slip == "context" else context
    x = x_t if slip == "conv_in" else net.conv_in(x_t)
    kept = [x]
    for level in net.down:
        for i in range(len(level.blocks)):
            x = level.layer(i, x, time, context)
            kept.append(x)
        if level.resample is not None:
            x = level.resample(x)
            kept.append(x)
    if slip != "middle":
        x = net.middle_block1(x, time)
        if slip != "middle_transformer":
            x = net.middle_transformer(x, context)
        x = x if slip == "middle_block2" else net.middle_block2(x, time)
    order = iter(_first_of_its_size(kept)) if slip == "queue" else iter(reversed(kept))
    for level in net.up:
        for i in range(len(level.blocks)):
            skip = next(order)
            skip = torch.zeros_like(skip) if slip == "zeros" else skip
            pair = [skip, x] if slip == "swapped" else [x, skip]
            x = level.layer(i, torch.cat(pair, dim=1), time, context)
        if level.resample is not None:
            x = level.resample(x)
    x = x if slip == "norm" else net.norm_out(x)
    return net.conv_out(x if slip == "silu" else F.silu(x))


def _first_of_its_size(kept: list[Tensor]) -> list[Tensor]:
    """The maps put aside, smallest first but, among those of one size, in the order in which they were put there."""
    return sorted(kept, key=lambda x: x.shape[-1])


_WALKS = {
    "swapped": "the map from below comes first and the one put aside second: torch.cat([x, skip], dim=1)",
    "queue": "maps of one size are taken in the wrong order: the last one put aside is the first one taken back",
    "zeros": "what was put aside does not reach the way up: take it off the stack, skips.pop(), and join it to x",
    "time": "the blocks are not told t: give unet.time_mlp(t), the embedding of the time, to each of them",
    "context": "the words do not reach the transformers: give context to each layer and to middle_transformer",
    "middle": "the middle is left out: middle_block1, middle_transformer, middle_block2",
    "middle_transformer": "middle_transformer is left out: the words are looked at between the two middle blocks",
    "middle_block2": "middle_block2 is left out, the second block of the middle",
    "norm": "norm_out is left out, before the last convolution",
    "silu": "F.silu is left out, between norm_out and conv_out",
}


@check_for(unet.unet_forward)
def unet_forward(candidate: Callable[..., Any]) -> None:
    """On two small U-Nets with random weights: all maps as wide as each other, so that shapes alone catch nothing."""
    for channels, attention_at, layers, batch, side in [
        ((8, 8), (True, True), 2, 2, 4), ((8, 16), (False, True), 1, 1, 8),
    ]:  # fmt: skip
        config = unet.UNetConfig(channels, attention_at, layers, heads=2, context_width=6, norm_groups=4)
        net = _random_unet(config)
        x_t, t, context = random_tensor(batch, 4, 4, side), torch.tensor([999, 0])[:batch], random_tensor(batch, 3, 6)
        before = [x_t.clone(), t.clone(), context.clone()]
        try:
            result = candidate(net, x_t, t, context)
        except NotImplementedError:  # a RuntimeError too, but it means "not solved yet"
            raise
        except (RuntimeError, ValueError) as error:
            raise Mistake(
                f"the maps do not fit ({str(error).splitlines()[0]}): put aside what comes out of conv_in, of each "
                "layer and of each halving on the way down, and join the last one put aside to x before each layer on "
                "the way up; double the side at the end of a level"
            ) from None
        except IndexError as error:
            raise Mistake(
                f"there are too few maps ({error}): one for each layer on the way up is wanted, that is the one out of "
                "conv_in, one for each layer on the way down and one for each halving"
            ) from None
        expect_untouched("x_t, t, context", before, [x_t, t, context])
        if isinstance(result, Tensor) and result.shape[1:2] == (channels[0],):
            raise Mistake(f"{channels[0]} channels come out, {list(result.shape)}: conv_out is missing at the end")
        expect_shape(result, tuple(x_t.shape), "the prediction")
        right = _walk(net, x_t, t, context)
        if not close(result.detach(), right.detach()):
            slips = {words: _walk(net, x_t, t, context, slip=slip).detach() for slip, words in _WALKS.items()}
            raise name_it(
                result.detach(),
                slips,
                "wrong values, of the right shape: is each part used once, and in the order in, down, middle, up, out?",
            )
        if not result.requires_grad:
            raise Mistake("no gradient passes through it: is there a .detach() or a torch.no_grad()?")


def _random_unet(config: unet.UNetConfig) -> unet.UNet:
    """A U-Net all of whose weights are random: at its start blocks are identities, and much would go unseen."""
    with torch.random.fork_rng(devices=[]):
        net = unet.UNet(config)
    generator = fresh_generator()
    with torch.no_grad():
        for weight in net.parameters():
            fan_in = weight[0].numel() if weight.ndim > 1 else 4
            weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 / fan_in**0.5)
    return net
