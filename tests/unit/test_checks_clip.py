"""The checks of notebook 04: the course's versions pass, other right ones too, and likely mistakes are named."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from course_utils.checks import clip as check
from course_utils.checks.base import Mistake
from course_utils.models import bpe, clip, clip_transformer, layers


@pytest.fixture(autouse=True)
def grading(monkeypatch):
    monkeypatch.setenv("COURSE_GRADING", "1")


def merge_recursively(symbols, pair):
    symbols = tuple(symbols)
    if len(symbols) < 2:
        return symbols
    if symbols[:2] == pair:
        return (symbols[0] + symbols[1], *merge_recursively(symbols[2:], pair))
    return (symbols[0], *merge_recursively(symbols[1:], pair))


def einsum_weights(query, key, mask=None):
    scores = torch.einsum("...id,...jd->...ij", query, key) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = torch.where(mask, scores, -torch.inf)
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def compared_indices(length, device=None):
    i = torch.arange(length, device=device)
    return i[:, None] >= i


def log_softmax_loss(x, y, s):
    logits = s.clamp(max=math.log(100)).exp() * (x @ y.mT)
    both = logits.log_softmax(0).diagonal() + logits.log_softmax(1).diagonal()
    return -both.mean() / 2


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("merge_pair", bpe.merge_pair),
        ("merge_pair", merge_recursively),
        ("attention_weights", layers.attention_weights),
        ("attention_weights", einsum_weights),
        ("causal_mask", clip_transformer.causal_mask),
        ("causal_mask", compared_indices),
        ("changed_tokens", lambda: [5, 6, 7, 8, 9]),
        ("changed_tokens", lambda: range(5, 10)),
        ("perfect_loss", lambda n, scale: math.log(1 + (n - 1) * math.exp(-scale))),
        ("perfect_loss", lambda n, scale: -torch.tensor([scale] + [0.0] * (n - 1)).double().log_softmax(0)[0]),
        ("contrastive_loss", clip.contrastive_loss),
        ("contrastive_loss", log_softmax_loss),
        ("zero_shot", clip.zero_shot),
        ("zero_shot", lambda x, y, scale=100.0: torch.einsum("be,ke->bk", scale * x, y).softmax(1)),
    ],
)
def test_right_versions_pass(name, right, capsys):
    assert getattr(check, name)(right) is right
    assert capsys.readouterr().out == f"{name}: correct\n"


def overlapping(symbols, pair):
    merged = [a + b if (a, b) == pair else a for a, b in zip(symbols, symbols[1:], strict=False)]
    return tuple(merged)


def by_string(symbols, pair):
    return tuple(" ".join(symbols).replace(" ".join(pair), "".join(pair)).split())


def logits_of(x, y, s):
    return s.exp().clamp(max=100) * x @ y.T


def partner(x):
    return torch.arange(len(x))


def softmax_of(change):
    def weights(query, key, mask=None):
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        return change(scores, mask)

    return weights


def scaled_by(power):
    return lambda q, k, mask=None: layers.attention_weights(q * q.shape[-1] ** power, k, mask)


def upside_down(scores, mask):
    return (scores if mask is None else scores.masked_fill(mask, -torch.inf)).softmax(-1)


WRONG = [
    ("merge_pair", overlapping, "should be"),
    ("merge_pair", by_string, "compared whole"),
    ("merge_pair", lambda symbols, pair: list(bpe.merge_pair(symbols, pair)), "tuple"),
    ("attention_weights", scaled_by(0.5), "not divided"),
    ("attention_weights", scaled_by(-0.5), "by d"),
    ("attention_weights", softmax_of(lambda s, mask: s.softmax(-2)), "over the queries"),
    ("attention_weights", softmax_of(lambda s, mask: s.softmax(-1)), "mask is not used"),
    ("attention_weights", softmax_of(upside_down), "MAY"),
    ("attention_weights", softmax_of(lambda s, m: s.softmax(-1) * (1 if m is None else m)), "after the softmax"),
    ("attention_weights", lambda q, k, mask=None: layers.attention_weights(q, k.detach(), mask), "reaches key"),
    ("causal_mask", lambda n, device=None: compared_indices(n, device).T, "transposed"),
    ("causal_mask", lambda n, device=None: torch.ones(n, n, dtype=torch.bool).tril(-1), "diagonal"),
    ("causal_mask", lambda n, device=None: ~compared_indices(n, device), "upside down"),
    ("causal_mask", lambda n, device=None: torch.ones(n, n).tril(), "bool"),
    ("causal_mask", lambda n, device=None: compared_indices(n), "device"),
    ("changed_tokens", lambda: [5], "may look back"),
    ("changed_tokens", lambda: range(10), "before the change"),
    ("changed_tokens", lambda: [5, 6, 7], "padding"),
    ("changed_tokens", lambda: [6, 7, 8, 9], "own embedding"),
    ("perfect_loss", lambda n, scale: math.log(1 + n * math.exp(-scale)), "n − 1"),
    ("perfect_loss", lambda n, scale: math.log(1 + (n - 1) * math.exp(scale)), "sign of the exponent"),
    ("perfect_loss", lambda n, scale: math.exp(scale) / (math.exp(scale) + n - 1), "probability"),
    ("contrastive_loss", lambda x, y, s: F.cross_entropy(logits_of(x, y, s), partner(x)), "each picture's caption"),
    ("contrastive_loss", lambda x, y, s: F.cross_entropy(logits_of(x, y, s).T, partner(x)), "each caption's picture"),
    ("contrastive_loss", lambda x, y, s: 2 * clip.contrastive_loss(x, y, s), "added"),
    ("contrastive_loss", lambda x, y, s: log_softmax_loss(x, y, -s), "upside down"),
    ("contrastive_loss", lambda x, y, s: log_softmax_loss(x, y, s.log()), "is a logarithm"),
    ("contrastive_loss", lambda x, y, s: clip.contrastive_loss(x, y, s.detach()), "reaches logit_scale"),
    ("contrastive_loss", lambda x, y, s: -(s.exp() * x @ y.T).log_softmax(1).diagonal().mean(), "caption"),
    ("contrastive_loss", lambda x, y, s: clip.contrastive_loss(x, y, s).item(), "float"),
    ("zero_shot", lambda x, y, scale=100.0: (scale * x @ y.T).softmax(0), "over the pictures"),
    ("zero_shot", lambda x, y, scale=100.0: (x @ y.T / scale).softmax(-1), "divided"),
    ("zero_shot", lambda x, y, scale=100.0: (x @ y.T).softmax(-1), "not used"),
    ("zero_shot", lambda x, y, scale=100.0: (scale * x @ y.T), "softmax over the captions is missing"),
    ("zero_shot", lambda x, y, scale=100.0: (scale * y @ x.T).softmax(-1), "shape"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG, ids=[f"{n}-{m}" for n, _, m in WRONG])
def test_likely_mistakes_are_named(name, wrong, message):
    with pytest.raises(Mistake, match=message):
        getattr(check, name)(wrong)
