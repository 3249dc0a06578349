"""Notebook 04: merging pairs, attention, the causal mask, the contrastive loss, zero-shot classification."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from course_utils.checks import clip as checks
from course_utils.models import bpe, clip, clip_transformer, layers

__all__ = ["RIGHT", "WRONG", "checks"]

# --- merging pairs


def merge_recursively(symbols, pair):
    symbols = tuple(symbols)
    if len(symbols) < 2:
        return symbols
    if symbols[:2] == pair:
        return (symbols[0] + symbols[1], *merge_recursively(symbols[2:], pair))
    return (symbols[0], *merge_recursively(symbols[1:], pair))


def merge_on_a_stack(symbols, pair):
    stack, fresh = [], False  # fresh: the top was merged just now, and must not merge again
    for symbol in symbols:
        if stack and not fresh and (stack[-1], symbol) == tuple(pair):
            stack[-1], fresh = stack[-1] + symbol, True
        else:
            stack.append(symbol)
            fresh = False
    return tuple(stack)


def overlapping(symbols, pair):
    merged = [a + b if (a, b) == pair else a for a, b in zip(symbols, symbols[1:], strict=False)]
    return tuple(merged)


def by_string(symbols, pair):
    return tuple(" ".join(symbols).replace(" ".join(pair), "".join(pair)).split())


def joined_alike(symbols, pair):
    merged, i = [], 0
    while i < len(symbols):
        both = len(symbols) > i + 1 and len(symbols[i]) < sum(map(len, pair))
        both = both and "".join(symbols[i : i + 2]) == "".join(pair)
        merged.append("".join(symbols[i : i + 2]) if both else symbols[i])
        i += 2 if both else 1
    return tuple(merged)


def first_only(symbols, pair):
    for i in range(len(symbols) - 1):
        if tuple(symbols[i : i + 2]) == pair:
            return (*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :])
    return tuple(symbols)


def loses_the_last(symbols, pair):
    merged, i = [], 0
    while i < len(symbols) - 1:
        both = tuple(symbols[i : i + 2]) == pair
        merged.append("".join(symbols[i : i + 2]) if both else symbols[i])
        i += 2 if both else 1
    return tuple(merged)


def steps_by_one(symbols, pair):
    merged = []
    for i, symbol in enumerate(symbols):
        both = tuple(symbols[i : i + 2]) == pair
        if both:
            merged.append(symbol + symbols[i + 1])
        elif i == 0 or tuple(symbols[i - 1 : i + 1]) != pair:
            merged.append(symbol)
    return tuple(merged)


def any_order(symbols, pair):
    merged, i = [], 0
    while i < len(symbols):
        both = sorted(symbols[i : i + 2]) == sorted(pair)
        merged.append("".join(symbols[i : i + 2]) if both else symbols[i])
        i += 2 if both else 1
    return tuple(merged)


def from_the_right(symbols, pair):
    return tuple(s[::-1] for s in bpe.merge_pair([s[::-1] for s in symbols[::-1]], tuple(p[::-1] for p in pair[::-1])))[
        ::-1
    ]


def pops(symbols, pair):
    i = 0
    symbols = symbols if isinstance(symbols, list) else list(symbols)
    while i < len(symbols) - 1:
        if (symbols[i], symbols[i + 1]) == pair:
            symbols[i] += symbols.pop(i + 1)
        i += 1
    return tuple(symbols)


def merge_with_a_memory():
    """Merges each pair once and for all."""
    known = {}

    def candidate(symbols, pair):
        return known.setdefault(pair, bpe.merge_pair(symbols, pair))

    return candidate


# --- attention


def einsum_weights(query, key, mask=None):
    scores = torch.einsum("...id,...jd->...ij", query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = torch.where(mask, scores, -torch.inf)
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def weights_in_float64(query, key, mask=None):
    scores = (query.double() / math.sqrt(query.shape[-1])).matmul(key.double().mT)
    bias = 0 if mask is None else torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    return F.softmax(scores + bias, dim=-1).to(query.dtype)


def weights_row_by_row(query, key, mask=None):
    rows = []
    for i in range(query.shape[-2]):
        scores = (query[..., i : i + 1, :] * key).sum(-1) / math.sqrt(query.shape[-1])
        rows.append((scores if mask is None else scores.masked_fill(~mask[..., i, :], -torch.inf)).softmax(-1))
    return torch.stack(rows, dim=-2)


def softmax_of(change):
    def weights(query, key, mask=None):
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        return change(scores, mask)

    return weights


def scaled_by(power):
    return lambda q, k, mask=None: layers.attention_weights(q * q.shape[-1] ** power, k, mask)


def upside_down(scores, mask):
    return (scores if mask is None else scores.masked_fill(mask, -torch.inf)).softmax(-1)


def bare(scores):
    """A softmax as it stands in the book: in float32 exp(89) is infinite."""
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def filled_with(value):
    return softmax_of(lambda s, m: (s if m is None else s.masked_fill(~m, value)).softmax(-1))


def divided_by_keys(q, k, mask=None):
    return softmax_of(lambda s, m: (s if m is None else s.masked_fill(~m, -torch.inf)).softmax(-1))(
        q * math.sqrt(q.shape[-1] / k.shape[-2]), k, mask
    )


def in_place_weights(q, k, mask=None):
    with torch.no_grad():
        q /= math.sqrt(q.shape[-1])
    return softmax_of(lambda s, m: s.softmax(-1))(q * math.sqrt(q.shape[-1]), k, mask)


# --- the mask


def compared_indices(length, device=None):
    i = torch.arange(length, device=device)
    return i[:, None] >= i


def mask_in_a_loop(length, device=None):
    mask = torch.zeros(length, length, dtype=torch.bool, device=device)
    for i in range(length):
        mask[i, : i + 1] = True
    return mask


# --- the loss


def log_softmax_loss(x, y, s):
    logits = s.clamp(max=math.log(100)).exp() * (x @ y.mT)
    both = logits.log_softmax(0).diagonal() + logits.log_softmax(1).diagonal()
    return -both.mean() / 2


def loss_pair_by_pair(x, y, s):
    factor, total = s.exp().clamp(max=100), 0
    for i in range(len(x)):
        total = (
            total + 2 * factor * (x[i] @ y[i]) - (factor * (y @ x[i])).logsumexp(0) - (factor * (x @ y[i])).logsumexp(0)
        )
    return -total / (2 * len(x))


def loss_in_float64(x, y, s):
    logits = torch.einsum("ie,je->ij", x.double(), y.double()) * s.double().exp().clamp(max=100)
    one_hot = torch.eye(len(x), dtype=torch.float64, device=x.device)
    return (F.cross_entropy(logits, one_hot) + F.cross_entropy(logits.T, one_hot)) / 2


def logits_of(x, y, s):
    return s.exp().clamp(max=100) * x @ y.T


def partner(x):
    return torch.arange(len(x))


def both_ways(logits, target):
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def loss_of_bare_shares(logits, epsilon):
    shares = [bare(scores).diagonal() + epsilon for scores in (logits, logits.T)]
    return -(shares[0].log() + shares[1].log()).mean() / 2


def next_picture(x, y, s):
    return both_ways(logits_of(x, y, s), (partner(x) + 1) % len(x))


def zero_shot_in_loop(x, y, scale=100.0):
    rows = [torch.stack([(scale * (a * b).sum()).double().exp() for b in y]) for a in x]
    return torch.stack([row / row.sum() for row in rows]).to(x.dtype)


RIGHT = {
    "twins_loss": [
        math.log,
        lambda copies: -math.log(1 / copies),
        lambda copies: torch.zeros(copies).logsumexp(0),
    ],
    "merge_pair": [bpe.merge_pair, merge_recursively, merge_on_a_stack],
    "attention_weights": [layers.attention_weights, einsum_weights, weights_in_float64, weights_row_by_row],
    "causal_mask": [
        clip_transformer.causal_mask,
        compared_indices,
        mask_in_a_loop,
        lambda n, device=None: ~torch.ones(n, n, device=device).triu(1).bool(),
    ],
    "changed_tokens": [
        lambda: [5, 6, 7, 8, 9],
        lambda: range(5, 10),
        lambda: torch.arange(5, 10),
        lambda: {9, 8, 7, 6, 5},
    ],
    "perfect_loss": [
        lambda n, scale: F.cross_entropy(scale * torch.eye(n), torch.arange(n)),
        lambda n, scale: -torch.tensor([scale] + [0.0] * (n - 1)).log_softmax(0)[0].item(),
        lambda n, scale: math.log(1 + (n - 1) * math.exp(-scale)),
        lambda n, scale: -torch.tensor([scale] + [0.0] * (n - 1)).double().log_softmax(0)[0],
        lambda n, scale: -math.log(math.exp(scale) / (math.exp(scale) + n - 1)),
        lambda n, scale: np.logaddexp(0.0, np.log(n - 1) - scale),
    ],
    "contrastive_loss": [clip.contrastive_loss, log_softmax_loss, loss_pair_by_pair, loss_in_float64],
    "zero_shot": [
        clip.zero_shot,
        lambda x, y, scale=100.0: torch.einsum("be,ke->bk", scale * x, y).softmax(1),
        zero_shot_in_loop,
        lambda x, y, scale=100.0: F.linear(x.double(), y.double()).mul(scale).log_softmax(-1).exp(),
    ],
}

WRONG = {
    "twins_loss": [
        (lambda copies: 0.0, "has to guess"),
        (lambda copies: 1 / copies, "probability"),
        (lambda copies: -math.log(copies), "minus it"),
        (lambda copies: math.log2(copies), "bits"),
        (lambda copies: math.log(copies) / 2, "not half of it"),
        (lambda copies: 2 * math.log(copies), "not added"),
        (lambda copies: math.log(copies + 1), "not one more"),
        (lambda copies: math.log(2), "twins_loss(3)"),
        (lambda copies: math.log(copies) if copies > 1 else 1.0, "twins_loss(1)"),
        (lambda copies: None, "return missing"),
    ],
    "merge_pair": [
        (joined_alike, "both symbols"),
        (overlapping, "final symbol lost"),
        (by_string, "compared whole"),
        (first_only, "not only the first"),
        (loses_the_last, "final symbol lost"),
        (steps_by_one, "no symbol twice"),
        (any_order, "the order counts"),
        (from_the_right, "from left to right"),
        (pops, "changes the symbols"),
        (merge_with_a_memory(), "should be"),
        (lambda symbols, pair: bpe.merge_pair(symbols, pair) if len(symbols) > 1 else (), "a word of one symbol"),
        (lambda symbols, pair: bpe.merge_pair(symbols, pair) or ("",), "no symbols in"),
        (lambda symbols, pair: list(bpe.merge_pair(symbols, pair)), "tuple"),
        (lambda symbols, pair: None, "tuple"),
    ],
    "attention_weights": [
        (softmax_of(lambda s, m: bare(s if m is None else s.masked_fill(~m, -torch.inf))), "overflows"),
        (lambda q, k, mask=None: layers.attention_weights(q, k, mask).half(), "half precision"),
        (scaled_by(0.5), "not divided"),
        (scaled_by(-0.5), "by d"),
        (scaled_by(1.0), "multiplied by √d"),
        (divided_by_keys, "not the number of keys"),
        (softmax_of(lambda s, m: upside_down(s.clamp(-50, 50), None if m is None else ~m)), "for large scores"),
        (lambda q, k, mask=None: layers.attention_weights(q, k, mask) + (q.ndim < 4), "the numbers are off"),
        (softmax_of(lambda s, mask: s.softmax(-2)), "over the queries"),
        (softmax_of(lambda s, mask: s.softmax(0)), "over the batch"),
        (softmax_of(lambda s, mask: s.softmax(-1)), "mask is not used"),
        (softmax_of(upside_down), "MAY"),
        (softmax_of(lambda s, m: s.softmax(-1) * (1 if m is None else m)), "after the softmax"),
        (
            softmax_of(lambda s, m: (s if m is None else s.masked_fill(~m.mT, -torch.inf)).softmax(-1)),
            "the mask is transposed",
        ),
        (softmax_of(lambda s, m: (s if m is None else s * m).softmax(-1)), "exp(0) is 1"),
        (softmax_of(lambda s, m: (s if m is None else s + m).softmax(-1)), "added"),
        (lambda q, k, mask=None: layers.attention_weights(q, k.detach(), mask), "reaches key"),
        (
            softmax_of(lambda s, m: s if m is None else s.masked_fill(~m, -torch.inf)),
            "softmax over the keys is missing",
        ),
        (in_place_weights, "in place"),
        (lambda q, k, mask=None: layers.attention_weights(q.float(), k.float(), mask), "dtype"),
    ],
    "causal_mask": [
        (lambda n, device=None: compared_indices(n, device).T, "transposed"),
        (lambda n, device=None: torch.ones(n, n, dtype=torch.bool).tril(-1), "diagonal"),
        (lambda n, device=None: ~compared_indices(n, device), "upside down"),
        (lambda n, device=None: torch.ones(n, n).tril(), "bool"),
        (lambda n, device=None: compared_indices(n), "device"),
        (lambda n, device=None: torch.ones(n, n, dtype=torch.bool, device=device), "nothing is hidden"),
        (lambda n, device=None: torch.ones(n, n, dtype=torch.bool, device=device).tril(1), "one token ahead"),
        (lambda n, device=None: torch.full((n, n), -math.inf, device=device).triu(1), "bool"),
        (lambda n, device=None: compared_indices(n, device)[None], "shape"),
        (lambda n, device=None: compared_indices(n, device).triu(-15), "after; for length 80"),
        (lambda n, device=None: compared_indices(min(n, 77), device), "shape"),
        (lambda n, device=None: compared_indices(n, device) if n > 1 else torch.zeros(1, 1).bool(), "diagonal"),
    ],
    "changed_tokens": [
        (lambda: [5], "may look back"),
        (lambda: range(10), "before the change"),
        (lambda: [5, 6, 7], "padding"),
        (lambda: [6, 7, 8, 9], "own embedding"),
        (lambda: [0, 1, 2, 3, 4, 5], "before the change"),
        (lambda: [6, 7, 8, 9, 10], "positions run from 0"),
        (lambda: 5, "list of positions"),
        (lambda: None, "list of positions"),
    ],
    "perfect_loss": [
        (lambda n, scale: round(math.log(1 + (n - 1) * math.exp(-scale)), 4), "should be"),
        (lambda n, scale: math.log(1 + n * math.exp(-scale)), "n − 1"),
        (lambda n, scale: math.log(1 + (n - 1) * math.exp(scale)), "sign of the exponent"),
        (lambda n, scale: math.exp(scale) / (math.exp(scale) + n - 1), "probability"),
        (lambda n, scale: math.log(1 + math.exp(-scale)), "only one wrong caption"),
        (lambda n, scale: -math.log(1 + (n - 1) * math.exp(-scale)), "minus it"),
        (lambda n, scale: math.log2(1 + (n - 1) * math.exp(-scale)), "bits"),
        (lambda n, scale: 0.0, "not 0"),
        (lambda n, scale: -math.log(scale / (scale + n - 1) if scale else 1 / n), "e to the score"),
        (lambda n, scale: math.log(n), "ln n"),
        (lambda n, scale: math.log(1 + (n - 1) * math.exp(-min(scale, 10))), "should be"),
        (lambda n, scale: math.log(1 + (n - 1) * math.exp(-scale)) if scale else 0.0, "should be"),
    ],
    "contrastive_loss": [
        (lambda x, y, s: F.cross_entropy(logits_of(x, y, s), partner(x)), "each picture's caption"),
        (lambda x, y, s: F.cross_entropy(logits_of(x, y, s).T, partner(x)), "each caption's picture"),
        (lambda x, y, s: 2 * clip.contrastive_loss(x, y, s), "added"),
        (lambda x, y, s: log_softmax_loss(x, y, -s), "upside down"),
        (lambda x, y, s: log_softmax_loss(x, y, s.log()), "is a logarithm"),
        (lambda x, y, s: log_softmax_loss(x, y, 0 * s), "logit_scale is not used"),
        (lambda x, y, s: clip.contrastive_loss(x, y, s.detach()), "reaches logit_scale"),
        (lambda x, y, s: clip.contrastive_loss(x, y.detach(), s), "reaches text_features"),
        (lambda x, y, s: -(s.exp() * x @ y.T).log_softmax(1).diagonal().mean(), "caption"),
        (lambda x, y, s: both_ways(s.exp() * x @ y.T, partner(x)), "at 100 at most"),
        (lambda x, y, s: both_ways(logits_of(x, y, s).softmax(-1), partner(x)), "leave the softmax out"),
        (lambda x, y, s: len(x) * clip.contrastive_loss(x, y, s), "sums over the batch"),
        (lambda x, y, s: -clip.contrastive_loss(x, y, s), "sign"),
        (lambda x, y, s: both_ways(logits_of(x, x, s), partner(x)), "with themselves"),
        (lambda x, y, s: both_ways(logits_of(x, y, s), torch.arange(len(x))), "on a GPU"),
        (next_picture, "the right answers are on the diagonal"),
        (lambda x, y, s: loss_of_bare_shares(logits_of(x, y, s), 0.0), "overflows"),
        (lambda x, y, s: loss_of_bare_shares(logits_of(x, y, s) / 2, 0.0), "should be"),
        (lambda x, y, s: clip.contrastive_loss(x, y, s.clamp(min=1.0)), "should be"),
        (lambda x, y, s: clip.contrastive_loss(x, y, s).item(), "float"),
        (lambda x, y, s: both_ways(logits_of(x, y, s).detach(), partner(x)), "no gradient"),
        (lambda x, y, s: F.cross_entropy(logits_of(x, y, s), partner(x), reduction="none"), "shape"),
    ],
    "zero_shot": [
        (lambda x, y, scale=100.0: bare(scale * x @ y.T), "overflows"),
        (lambda x, y, scale=100.0: (min(scale, 100) * x @ y.T).softmax(-1), "a large scale"),
        (lambda x, y, scale=100.0: (scale * x @ y.T).softmax(0), "over the pictures"),
        (lambda x, y, scale=100.0: (x @ y.T / scale).softmax(-1), "divided"),
        (lambda x, y, scale=100.0: (x @ y.T).softmax(-1), "not used"),
        (lambda x, y, scale=100.0: scale * x @ y.T, "softmax over the captions is missing"),
        (lambda x, y, scale=100.0: x @ y.T, "softmax over the captions is missing"),
        (lambda x, y, scale=100.0: (scale * y @ x.T).softmax(-1), "shape"),
        (lambda x, y, scale=100.0: scale * (x @ y.T).softmax(-1), "after the softmax"),
        (lambda x, y, scale=100.0: (scale * x @ y.T).log_softmax(-1), "logarithms"),
        (lambda x, y, scale=100.0: (scale * x @ y.T).argmax(-1), "shape"),
        (lambda x, y, scale=100.0: F.one_hot((x @ y.T).argmax(-1), len(y)), "the decision"),
        (lambda x, y, scale=100.0: (math.exp(scale) * x @ y.T).softmax(-1), "not a logarithm"),
        (lambda x, y, scale=100.0: (scale * x @ y.T).sigmoid(), "add up to one"),
        (lambda x, y, scale=50.0: (scale * x @ y.T).softmax(-1), "without a scale"),
        (lambda x, y, scale=100.0: (x.mul_(scale) @ y.T).softmax(-1), "in place"),
    ],
}
