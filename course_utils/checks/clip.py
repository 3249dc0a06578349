"""Checks of notebook 04: merging pairs, attention, the causal mask, the contrastive loss, zero-shot classification."""

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
    gradients_of,
    name_it,
    one_number,
    random_tensor,
)
from course_utils.models import bpe, clip, clip_transformer, layers

PROMPT = ("<start>", "a", "dog", "on", "a", "red", "background", "<end>", "<end>", "<end>")
CHANGED = 5  # "red" becomes "blue"


_MERGES: tuple[tuple[tuple[str, ...], tuple[str, str], tuple[str, ...], str], ...] = (
    (("c", "a", "t</w>"), ("a", "t</w>"), ("c", "at</w>"), "the pair at the end of the word should be joined"),
    (("a", "b", "c"), ("a", "b"), ("ab", "c"), "what follows the last pair must stay: is the final symbol lost?"),
    (("a", "b", "a", "b"), ("a", "b"), ("ab", "ab"), "each occurrence of the pair is joined, not only the first"),
    (("b", "a"), ("a", "b"), ("b", "a"), "the order counts: b, a is not the pair a, b"),
    (("a", "c", "b"), ("a", "b"), ("a", "c", "b"), "only neighbours are joined; here c stands between a and b"),
    (
        ("a", "a", "a"), ("a", "a"), ("aa", "a"),
        "from left to right, and no symbol twice: after joining a pair, move on by two places",
    ),
    (("a", "a", "a", "a"), ("a", "a"), ("aa", "aa"), "after joining a pair, go on behind it: move on by two places"),
    (
        ("xa", "b", "a", "bx"), ("a", "b"), ("xa", "b", "a", "bx"),
        "symbols are compared whole: xa is not a, and bx is not b (is the word joined to one string on the way?)",
    ),
    (("ab", "c"), ("a", "b"), ("ab", "c"), "a symbol that happens to be spelt like the pair stays as it is"),
    (("a",), ("a", "b"), ("a",), "a word of one symbol has no pairs and comes back as it is"),
    ((), ("a", "b"), (), "no symbols in, no symbols out"),
    (
        ("a", "bc"), ("ab", "c"), ("a", "bc"),
        "both symbols must be those of the pair: a, bc is not ab, c, though both spell abc",
    ),
    (("ab", "c", "a", "bc"), ("a", "bc"), ("ab", "c", "abc"), "both symbols must be those of the pair, one by one"),
)  # fmt: skip


@check_for(bpe.merge_pair)
def merge_pair(candidate: Callable[..., Any]) -> None:
    """Cases that a person can do by hand."""
    for symbols, pair, right, message in _MERGES:
        got = candidate(symbols, pair)
        if not isinstance(got, tuple):
            kind = type(got).__name__
            raise Mistake(f"the result must be a tuple, which can be the key of a table of words; got {kind}")
        if got != right:
            raise Mistake(f"merge_pair({symbols}, {pair}) should be {right}, got {got}: {message}")
    given = ["a", "b", "a"]
    candidate(given, ("a", "b"))
    if given != ["a", "b", "a"]:
        raise Mistake("it changes the symbols it was given: build a new list and leave the old one alone")


@check_for(layers.attention_weights)
def attention_weights(candidate: Callable[..., Any]) -> None:
    """Oracle: PyTorch's own attention, which with the unit matrix as values returns the weights."""
    query, key = 2 * random_tensor(2, 3, 4, 7), 2 * random_tensor(2, 3, 5, 7)
    queries, keys = query.clone().requires_grad_(), key.clone().requires_grad_()
    got = candidate(queries, keys)
    expect_shape(got, (2, 3, 4, 5))
    expect_untouched("query, key", [query, key], [queries, keys])
    right = F.scaled_dot_product_attention(query, key, torch.eye(5).expand(2, 3, 5, 5))
    scores = query @ key.mT
    if not close(got.detach(), right):
        slips = {
            "the scores are not divided by √d": scores.softmax(-1),
            "the scores are divided by d; by its square root is asked for": (scores / 7).softmax(-1),
            "the scores are multiplied by √d; divide them": (scores * math.sqrt(7)).softmax(-1),
            "d is the length of a query (query.shape[-1]), not the number of keys": (scores / math.sqrt(5)).softmax(-1),
            "d is the length of a query (query.shape[-1]), not the number of queries": (scores / 2).softmax(-1),
            "the softmax runs over the queries; over the keys is asked for (dim=-1)": (scores / 7**0.5).softmax(-2),
            "the softmax runs over the batch; over the keys is asked for (dim=-1)": (scores / 7**0.5).softmax(0),
            "these are the scores; the softmax over the keys is missing": scores / math.sqrt(7),
            "the softmax comes before the division; divide the scores, then take the softmax":
                scores.softmax(-1) / math.sqrt(7),
        }  # fmt: skip
        raise name_it(got.detach(), slips, "the weights differ from softmax(q kᵀ / √d), the softmax over the keys")
    # Squared, because the rows of a softmax sum to one whatever goes in.
    gradients_of(got.square().sum(), {"query": queries, "key": keys})

    query = 2 * random_tensor(2, 3, 5, 7)
    rows = [[1, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 1, 0], [0, 1, 0, 0, 0]]
    mask, scores = torch.tensor(rows, dtype=torch.bool), query @ key.mT
    kept = mask.clone()
    got = candidate(query, key, mask)
    expect_shape(got, (2, 3, 5, 5), "with a mask the result")
    expect_untouched("mask", [kept], [mask])
    right = F.scaled_dot_product_attention(query, key, torch.eye(5).expand(2, 3, 5, 5), attn_mask=mask)
    if not close(got.detach(), right):
        scaled = scores / math.sqrt(7)
        slips = {
            "the mask is not used": scaled.softmax(-1),
            "the mask is transposed: its row i says where query i may look":
                scaled.masked_fill(~mask.T, -torch.inf).softmax(-1),
            "the mask is added to the scores, where True counts as 1; set the scores of False to -inf":
                (scaled + mask).softmax(-1),
            "the mask is upside down: True means that a query MAY look":
                scaled.masked_fill(mask, -torch.inf).softmax(-1),
            "hidden weights are set to zero after the softmax, so rows no longer sum to one; set the scores to "
            "-inf before it": scaled.softmax(-1) * mask,
            "hidden scores are set to 0, and exp(0) is 1; set them to -inf": scaled.masked_fill(~mask, 0).softmax(-1),
        }  # fmt: skip
        if not bool(got.isfinite().all()):
            raise Mistake("with a mask some weights are nan: use masked_fill(~mask, float('-inf')), not 0 · inf")
        raise name_it(got.detach(), slips, "with a mask the weights are wrong: hidden scores become -inf first")
    for q, k in ((query[0, 0], key[0, 0]), (query[0], key[0])):
        if not close(candidate(q, k).detach(), (q @ k.mT / math.sqrt(7)).softmax(-1)):
            raise Mistake(f"for a query of shape {list(q.shape)} the numbers are off: […, N, d] is meant")
    large = candidate(4 * query, 4 * key)  # exp of a score leaves float32 at 88, float64 at 709
    right = (16 / math.sqrt(7) * query @ key.mT).softmax(-1)
    if not bool(large.isfinite().all()) or not close(large.detach(), right):
        raise Mistake(
            "for large scores the weights are wrong or nan: exp(score) overflows. Take the largest score from all of "
            "them first, which changes no weight, or use softmax, which does that"
        )
    wide = candidate(query[0, 0].double(), key[0, 0].double())
    expect_shape(wide, (5, 5), "for a query and a key of shape [5, 7] the result")
    expect_dtype(wide, torch.float64, "query")


@check_for(clip_transformer.causal_mask)
def causal_mask(candidate: Callable[..., Any]) -> None:
    """Compared place by place with the sentence "token i may look at token j if j ≤ i"."""
    for length in (4, 1, 7, 80):
        got = candidate(length)
        expect_shape(got, (length, length))
        if got.dtype != torch.bool:
            raise Mistake(f"the mask must be bool, True where a token may look; got {got.dtype}")
        right = torch.tensor([[j <= i for j in range(length)] for i in range(length)])
        if not torch.equal(got.cpu(), right):
            slips = {
                "it is transposed: row i is the token that looks, and it sees the columns j ≤ i": right.T,
                "each token may look at itself too: the diagonal is True": right & ~torch.eye(length, dtype=torch.bool),
                "it is upside down: True where a token MAY look, which is at j ≤ i": ~right,
                "it hides the past: token i sees itself and what came before, j ≤ i": right.flip(0),
                "it lets each token look one token ahead: j ≤ i, not j ≤ i + 1": right | right.roll(1, 1).tril(1),
                "nothing is hidden: what comes later, j > i, must be False": torch.ones_like(right),
            }
            for message, wrong in slips.items():
                if torch.equal(got.cpu(), wrong):
                    raise Mistake(message)
            raise Mistake(f"row i should be True for the columns 0 … i and False after; for length {length} it is not")
    if candidate(3, torch.device("meta")).device.type != "meta":
        raise Mistake("the mask should lie on the device that is given: pass device=device on")


def _changed_tokens() -> list[int]:
    """Reference: what comes before the change cannot know of it; everything from there on can."""
    return list(range(CHANGED, len(PROMPT)))


_changed_tokens.__name__ = "changed_tokens"


@check_for(_changed_tokens)
def changed_tokens(candidate: Callable[..., Any]) -> None:
    """Oracle: a small text encoder with random weights reads both prompts."""
    answer = candidate()
    try:
        positions = {int(p) for p in answer}
    except TypeError:
        raise Mistake("return a list of positions, such as [0, 1]") from None
    if not positions <= set(range(len(PROMPT))):
        raise Mistake(f"positions run from 0 (the start token) to {len(PROMPT) - 1}, got {sorted(positions)}")
    config = clip.CLIPTextConfig(vocab_size=12, max_length=len(PROMPT), width=16, layers=2, heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = clip.TextEncoder(config)
    ids = torch.tensor([[0, 1, 2, 3, 1, 4, 5, 11, 11, 11]])
    other = ids.clone()
    other[0, CHANGED] = 6
    with torch.no_grad():
        moved = (encoder(ids) - encoder(other)).abs().amax(dim=-1)[0] > 1e-6
    right = {i for i, m in enumerate(moved.tolist()) if m}
    if early := sorted(positions - right):
        word = PROMPT[early[0]]
        raise Mistake(f"position {early[0]} ({word!r}) comes before the change, and the mask lets it see only the past")
    if missing := sorted(right - positions):
        word, where = PROMPT[missing[0]], missing[0]
        why = "it stands after the change and may look back at it"
        if where == CHANGED:
            why = "its own embedding is another one"
        elif where > PROMPT.index("<end>"):
            why = "padding tokens are read like any other, and may look back at the whole text"
        raise Mistake(f"position {where} ({word!r}) changes too: {why}")


def _perfect_loss(n: int, scale: float) -> float:
    """Reference: −ln of the softmax of one logit `scale` beside n − 1 zeros."""
    return math.log(1 + (n - 1) * math.exp(-scale))


_perfect_loss.__name__ = "perfect_loss"


@check_for(_perfect_loss)
def perfect_loss(candidate: Callable[..., Any]) -> None:
    """Oracle: cross entropy of the unit matrix times the scale."""
    for n, scale in [(8, 3.0), (2, 1.0), (64, 0.0), (64, 1.0), (128, 14.3)]:
        got = one_number(candidate(n, scale), f"perfect_loss({n}, {scale})")
        logits = scale * torch.eye(n, dtype=torch.float64)
        right = F.cross_entropy(logits, torch.arange(n)).item()
        if abs(got - right) <= 1e-4 * right + 5e-7:  # what float32 keeps of a number near 1
            continue
        for message, wrong in {
            "there are n − 1 wrong captions beside the right one, not n": math.log(1 + n * math.exp(-scale)),
            "the sign of the exponent: wrong captions weigh e^0, the right one e^scale": math.log(
                1 + (n - 1) * math.exp(min(scale, 50))
            ),
            "only one wrong caption is counted; there are n − 1": math.log(1 + math.exp(-scale)),
            "that is the probability of the right caption; the loss is minus its logarithm": math.exp(-right),
            "that is the logarithm of the probability; the loss is minus it": -right,
            "a softmax takes e to the score, and then the shares": -math.log(scale / (scale + n - 1)) if scale else 0.0,
            "that is ln n, what is lost when all scores are equal": math.log(n),
            "that is in bits; nats are asked for (the natural logarithm)": right / math.log(2),
            "the scale is e^0 for the wrong captions, not 0: they have weight 1 each": 0.0,
        }.items():
            if abs(got - wrong) <= 1e-6 * max(1.0, abs(wrong)):
                raise Mistake(f"perfect_loss({n}, {scale:g}) should be {right:.6g}, got {got:.6g}: {message}")
        raise Mistake(f"perfect_loss({n}, {scale:g}) should be {right:.6g}, got {got:.6g}: −ln(e^s / (e^s + …))")


def _twins_loss(copies: int) -> float:
    """Reference: nobody can tell the copies apart, so the right one gets a share of 1 / copies."""
    return math.log(copies)


_twins_loss.__name__ = "twins_loss"


@check_for(_twins_loss)
def twins_loss(candidate: Callable[..., Any]) -> None:
    """Oracle: the loss of a table of scores that is high within each group of copies."""
    for copies in (3, 2, 1, 8):
        group = torch.arange(24) // copies
        scores = 1e3 * (group[:, None] == group[None, :]).double()
        right = F.cross_entropy(scores, torch.arange(24)).item()
        got = one_number(candidate(copies), f"twins_loss({copies})")
        if abs(got - right) <= 1e-3 * max(right, 1e-3):
            continue
        for message, wrong in {
            "a faultless reader still has to guess among the copies": 0.0,
            "that is the probability of the right one; the loss is minus its logarithm": 1 / copies,
            "that is the logarithm of the probability; the loss is minus it": -right,
            "that is in bits; nats are asked for (the natural logarithm)": right / math.log(2),
            "the mean over rows and columns is asked for, not half of it": right / 2,
            "rows and columns are averaged, not added": 2 * right,
            "the right one is among the copies: there are `copies` of them, not one more": math.log(copies + 1),
        }.items():
            if abs(got - wrong) <= 1e-3 * max(abs(wrong), 1e-3):
                raise Mistake(f"twins_loss({copies}) should be {right:.4f}, got {got:.4f}: {message}")
        raise Mistake(f"twins_loss({copies}) should be {right:.4f}, got {got:.4f}: what share does the right one get?")


@check_for(clip.contrastive_loss)
def contrastive_loss(candidate: Callable[..., Any]) -> None:
    """Oracle: the sums written out with logsumexp, in float64."""
    b = 6
    images, texts = F.normalize(random_tensor(b, 5), dim=-1), F.normalize(random_tensor(b, 5), dim=-1)
    for scale in (math.log(1 / 0.07), 0.3, math.log(400.0)):
        x, y = images.clone().requires_grad_(), texts.clone().requires_grad_()
        s = torch.tensor(scale, requires_grad=True)
        got = candidate(x, y, s)
        if isinstance(got, float):
            raise Mistake("the loss must be a tensor that gradients pass through, not a float (is there an .item()?)")
        expect_shape(got, (), "the loss")
        expect_untouched("image_features, text_features", [images, texts], [x, y])
        factor = min(math.exp(scale), 100.0)
        logits = factor * images.double() @ texts.double().T
        diagonal = logits.diagonal()
        rows, columns = (logits.logsumexp(1) - diagonal).mean(), (logits.logsumexp(0) - diagonal).mean()
        right = (rows + columns) / 2
        if not close(got.detach().double(), right):
            raise name_it(
                got.detach().double(), _loss_slips(images.double(), texts.double(), scale, rows, columns),
                f"for {b} pairs it should be {right:.4f}, got {got.item():.4f}: the mean of two cross entropies, over "
                "the rows and over the columns of exp(logit_scale) · (pictures · captionsᵀ), the right answers on the "
                "diagonal",
            )  # fmt: skip
        if scale < math.log(100):
            gradients_of(got, {"image_features": x, "text_features": y, "logit_scale": s})
    logits = 100 * images.double() @ images.double().T  # 100 on the diagonal: more than float32 has an exp for
    right = (logits.logsumexp(1) - logits.diagonal()).mean()
    if not close(candidate(images, images, torch.tensor(math.log(100.0))).detach().double(), right):
        raise Mistake("where pairs score 100, exp(100) overflows: F.cross_entropy takes the largest away before exp")
    meta = [torch.zeros(shape, device="meta") for shape in [(b, 5), (b, 5), ()]]
    expect_device(candidate, *meta, remedy="torch.arange(B, device=image_features.device)")


def _loss_slips(images: Tensor, texts: Tensor, scale: float, rows: Tensor, columns: Tensor) -> dict[str, Tensor]:
    """What people write instead, and what it gives."""

    def loss(factor: float) -> Tensor:
        logits = factor * images @ texts.T
        return (2 * logits.diagonal() - logits.logsumexp(0) - logits.logsumexp(1)).mean() / -2

    partner = torch.arange(len(images))
    factor = min(math.exp(scale), 100.0)
    after = (factor * images @ texts.T).softmax(-1)
    upside_down = "the temperature is upside down: multiply by exp(logit_scale), do not divide"
    return {
        "only one direction: each picture's caption. The captions look for their pictures too (the columns)": rows,
        "only one direction: each caption's picture. The pictures look for their captions too (the rows)": columns,
        "the two directions are added; their mean is asked for": rows + columns,
        "the sign is wrong: cross entropy is minus the logarithm of a probability": -(rows + columns) / 2,
        "it sums over the batch where it should take the mean": (rows + columns) / 2 * len(images),
        "logit_scale is a logarithm: multiply by exp(logit_scale)": loss(scale),
        upside_down: loss(math.exp(-scale)),
        "logit_scale is not used": loss(1.0),
        "the factor must be held at 100 at most: exp(logit_scale).clamp(max=100)": loss(math.exp(scale)),
        "cross_entropy takes logits, not probabilities: leave the softmax out": (
            F.cross_entropy(after, partner) + F.cross_entropy((factor * texts @ images.T).softmax(-1), partner)
        )
        / 2,
        "cross_entropy takes logits, not probabilities; leave the softmax out": (
            F.cross_entropy(after, partner) + F.cross_entropy(after.T, partner)
        )
        / 2,
        "pictures are compared with themselves, not with captions": (
            F.cross_entropy(factor * images @ images.T, partner)
        ),
        "captions are compared with themselves, not with pictures": F.cross_entropy(factor * texts @ texts.T, partner),
        "the right answers are on the diagonal: row i has the number i, torch.arange(B)": (
            F.cross_entropy(factor * images @ texts.T, (partner + 1) % len(images))
            + F.cross_entropy(factor * texts @ images.T, (partner + 1) % len(images))
        )
        / 2,
    }


@check_for(clip.zero_shot)
def zero_shot(candidate: Callable[..., Any]) -> None:
    """Oracle: the softmax written out, picture by picture."""
    images, captions = F.normalize(random_tensor(4, 6), dim=-1), F.normalize(random_tensor(3, 6), dim=-1)
    before = [images.clone(), captions.clone()]
    for scale in (2.0, 100.0, torch.tensor(3.0)):
        got = candidate(images, captions, scale)
        expect_untouched("image_features, text_features", before, [images, captions])
        cosines, s = images @ captions.T, float(scale)
        expect_shape(got, (4, 3), "for 4 pictures and 3 captions the result")
        right = torch.stack([(s * row - (s * row).logsumexp(0)).exp() for row in cosines])
        if not close(got, right):
            slips = {
                "these are cosines; the softmax over the captions is missing": cosines,
                "these are logits; the softmax over the captions is missing": s * cosines,
                "the softmax runs over the pictures; over the captions is asked for (dim=-1)": (s * cosines).softmax(0),
                "the cosines are divided by scale; scale is 1 / temperature, multiply": (cosines / s).softmax(-1),
                "scale is not used: multiply the cosines by it before the softmax": cosines.softmax(-1),
                "scale comes after the softmax; multiply the cosines by it": s * cosines.softmax(-1),
                "each caption is judged by itself (a sigmoid); a softmax makes a row add up to one": torch.sigmoid(
                    s * cosines
                ),
                "scale is 1 / temperature itself, not a logarithm: no exp": (cosines * math.exp(s)).softmax(-1),
                "that is the decision; the probabilities are asked for": F.one_hot(cosines.argmax(-1), 3).float(),
                "these are logarithms of probabilities; softmax, not log_softmax": (s * cosines).log_softmax(-1),
            }
            raise name_it(got, slips, "the probabilities differ from softmax(scale · cosines) over the captions")
    images[0], images[1:] = captions[1], 0.02 * images[1:]
    sure = candidate(images, captions, 300.0)  # exp(300) is too much for float32, not for float64
    if not bool(sure.isfinite().all()) or not close(sure, (300 * images @ captions.T).softmax(-1)):
        raise Mistake(
            "for a large scale the probabilities are wrong or nan: exp(300) overflows. Take each row's largest number "
            "from it first, which changes no probability, or use softmax, which does that"
        )
    if not close(candidate(images[:1], captions[:1]), torch.ones(1, 1)):
        raise Mistake("with one picture and one caption the probability is 1, of shape [1, 1]")
    near = 0.05 * images  # not unit vectors, but cosines this small show which scale was taken
    if not close(candidate(near, captions), (100 * near @ captions.T).softmax(-1)):
        raise Mistake("without a scale it should take 100")
