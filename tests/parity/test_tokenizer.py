"""Our tokenizer against transformers' CLIPTokenizer, which reads the folder that ours writes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.models.tokenizer import END, START, Tokenizer

transformers = pytest.importorskip("transformers")

TEXTS = [
    "a dog on a red background",
    "a small cat's house at the top of a blue background",
    "Ein großer Bär, naïve café, 42 dogs they're we'll I'd",
    "ΟΔΟΣ σίσυφος привет 日本語 한국어 🐕🚀",
] * 2
# Characters that Unicode has had for long: Python, regex and tokenizers bring tables of different versions.
LONG_KNOWN = st.characters(codec="utf-8").filter(
    lambda c: unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Co") and unicodedata.category(c) != "Cn"
)
TRICKY = st.sampled_from(
    ["'s", "'ll", "''re", "DOG", "dog", " ", "\t\n", "\u00a0", "\u0301", "İ", "Σ", "ß", "½", "Ⅷ", "²"]
)
CAPITALS = st.sampled_from(["<|ENDOFTEXT|>", "<|StartOfText|>", "<<|ENDOFTEXT|>", "<|endoftext", "|>", "<", ">'s"])
ODD = st.sampled_from([START, END, "🐕", "👩‍🚀", "\x1c", "\x85", "\u200b", "!</w>"])
PIECES = st.one_of(LONG_KNOWN, TRICKY, ODD, CAPITALS)


OURS = Path(__file__).resolve().parents[2] / "checkpoints" / "tokenizer"  # trained on the course's captions


@pytest.fixture(scope="module", params=["trained here", "checkpoints"])
def both(request, tmp_path_factory):
    folder = OURS
    if request.param == "trained here":
        folder = tmp_path_factory.mktemp("tokenizer")
        Tokenizer.train(TEXTS, 640, max_length=24).save(folder)
    return Tokenizer.load(folder), transformers.CLIPTokenizer.from_pretrained(folder)


def test_the_files_say_it_all(both):
    ours, theirs = both
    assert theirs.model_max_length == ours.max_length in (16, 24)
    assert theirs.get_vocab() == ours.vocabulary
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        ours.start_id,
        *[ours.end_id] * 2,
    )


def test_padded_and_cut_rows_agree(both):
    ours, theirs = both
    texts = ["", "a dog", "unseen words, becoming bytes", "a red dog " * 10]
    expected = theirs(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with pytest.warns(UserWarning, match="cut"):
        assert torch.equal(ours.encode(texts), expected)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=20).map("".join))
def test_any_text_agrees(both, text):
    ours, theirs = both
    expected = theirs(text).input_ids
    assert ours.encode(text, max_length=len(expected))[0].tolist() == expected
    assert ours.tokenize(text) == theirs.tokenize(text)


@pytest.mark.parametrize(
    "text",
    ["<|ENDOFTEXT|>", "5<|ENDOFTEXT|>'S", "<|StartOfText|><|ENDOFTEXT|>!", "<<|ENDOFTEXT|>x", "<|ENDOFTEXT|>\u0338"],
)
def test_special_tokens_in_capitals_are_words_as_there(both, text):
    ours, theirs = both
    assert ours.tokenize(text) == theirs.tokenize(text)


def test_decoding_agrees(both):
    ours, theirs = both
    for text in TEXTS:
        ids = ours.encode(text, max_length=100)[0]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
