"""The byte-pair tokenizer: its pure functions by hand, training, padding, cutting, files and errors."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.models.bpe import bpe, byte_symbols, count_pairs, learn_merges, merge_pair, word_symbols
from course_utils.models.tokenizer import END, START, Tokenizer, build_vocabulary, clean_text, split_words

TEXTS = ["a dog on a red background", "a cat on a blue background", "a small dog on a red background"] * 3
TOKENIZER = Tokenizer.train(TEXTS, 700, max_length=16)


def test_each_byte_has_its_own_visible_symbol():
    symbols = byte_symbols()
    assert sorted(symbols) == list(range(256))
    assert len(set(symbols.values())) == 256
    assert all(symbol.isprintable() and not symbol.isspace() for symbol in symbols.values())
    assert list(symbols)[:3] == [33, 34, 35]
    assert symbols[0] == "Ā" and symbols[32] == "Ġ"


def test_word_symbols_mark_the_end_and_spell_bytes():
    assert word_symbols("cat") == ("c", "a", "t</w>")
    assert word_symbols("a") == ("a</w>",)
    assert word_symbols("é") == ("Ã", "©</w>")


def test_count_pairs_weighs_words_and_counts_repeats():
    pairs = count_pairs({("a", "b", "a", "b</w>"): 3, ("a", "b"): 2, ("c</w>",): 9})
    assert pairs == {("a", "b"): 5, ("b", "a"): 3, ("a", "b</w>"): 3}


@pytest.mark.parametrize(
    ("symbols", "pair", "expected"),
    [
        (("a", "b", "a", "b"), ("a", "b"), ("ab", "ab")),
        (("a", "a", "a"), ("a", "a"), ("aa", "a")),
        (("x", "a", "b"), ("a", "b"), ("x", "ab")),
        (("a", "b"), ("b", "a"), ("a", "b")),
        (("a",), ("a", "a"), ("a",)),
        ((), ("a", "a"), ()),
    ],
)
def test_merge_pair(symbols, pair, expected):
    assert merge_pair(symbols, pair) == expected


@given(
    st.lists(st.sampled_from("abc"), max_size=12), st.tuples(st.sampled_from("abc"), st.sampled_from("abc"))
)
def test_merge_pair_keeps_the_letters_and_leaves_no_pair(symbols, pair):
    merged = merge_pair(symbols, pair)
    assert "".join(merged) == "".join(symbols)
    assert pair not in list(zip(merged, merged[1:], strict=False))


def test_learn_merges_takes_the_most_frequent_pair_and_breaks_ties_by_the_alphabet():
    assert learn_merges({("l", "o", "w</w>"): 5, ("l", "o", "t</w>"): 2}, 1) == [("l", "o")]
    words = {("c", "d"): 2, ("a", "b"): 2}
    assert learn_merges(words, 2) == [("a", "b"), ("c", "d")]
    assert learn_merges(dict(reversed(words.items())), 2) == [("a", "b"), ("c", "d")]
    assert learn_merges(words, 10) == [("a", "b"), ("c", "d")]  # nothing is left to merge


def test_bpe_merges_in_the_order_learned():
    ranks = {("b", "c</w>"): 0, ("a", "b"): 1}
    assert bpe("abc", ranks) == ("a", "bc</w>")
    assert bpe("abc", {("b", "c</w>"): 1, ("a", "b"): 0}) == ("ab", "c</w>")
    assert bpe("abc", {}) == ("a", "b", "c</w>")


def test_clean_text():
    assert clean_text("A\t RED\n\u3000Dog") == "a red dog"
    assert clean_text("cafe\u0301") == "café"
    assert clean_text("ΟΔΟΣ") == "οδοσ"  # no final sigma, as in CLIPTokenizer


def test_split_words():
    assert split_words("It's a  Dog!") == ["it", "'s", "a", "dog", "!"]
    assert split_words("42 dogs, 'r2d2'") == ["4", "2", "dogs", ",", "'", "r", "2", "d", "2", "'"]
    assert split_words(" \n ") == []


def test_vocabulary_has_clips_order():
    vocabulary = build_vocabulary([("a", "b"), ("ab", "c</w>")])
    pieces = list(vocabulary)
    assert list(vocabulary.values()) == list(range(len(pieces))) and len(pieces) == 516
    assert pieces[0] == "!" and pieces[256] == "!</w>"
    assert pieces[512:] == ["ab", "abc</w>", START, END]


def test_a_piece_that_two_merges_spell_gets_one_id():
    vocabulary = build_vocabulary([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")])
    assert len(vocabulary) == 514 + 3
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_seen_words_are_single_tokens_and_unseen_ones_fall_into_pieces():
    assert TOKENIZER.tokenize("a red dog") == ["a</w>", "red</w>", "dog</w>"]
    assert TOKENIZER.tokenize("zz") == ["z", "z</w>"]
    assert len(TOKENIZER.tokenize("日")) == 3
    assert TOKENIZER.tokenize("") == []
    assert "".join(TOKENIZER.tokenize("backgrounds")) == "backgrounds</w>"


def test_training_stops_when_all_words_are_tokens_and_respects_the_bound():
    assert len(TOKENIZER) < 700
    assert len(Tokenizer.train(TEXTS, 520)) == 520
    assert len(Tokenizer.train(TEXTS, 514)) == 514


def test_training_does_not_depend_on_the_order_of_the_texts():
    assert Tokenizer.train(reversed(TEXTS), 700).vocabulary == TOKENIZER.vocabulary


def test_encode_pads_with_the_end_token():
    ids = TOKENIZER.encode("a dog", max_length=6)
    assert ids.dtype == torch.int64 and ids.shape == (1, 6)
    a, dog = TOKENIZER.vocabulary["a</w>"], TOKENIZER.vocabulary["dog</w>"]
    assert ids.tolist() == [[len(TOKENIZER) - 2, a, dog] + [len(TOKENIZER) - 1] * 3]


def test_encode_of_several_texts_and_of_no_words():
    ids = TOKENIZER.encode(["a dog", ""])
    assert ids.shape == (2, 16)
    assert ids[1].tolist() == [TOKENIZER.start_id] + [TOKENIZER.end_id] * 15


def test_special_tokens_written_in_a_text_are_themselves():
    ids = TOKENIZER.encode(f"a{END}dog", max_length=6)[0].tolist()
    assert ids[1:4] == [TOKENIZER.vocabulary["a</w>"], TOKENIZER.end_id, TOKENIZER.vocabulary["dog</w>"]]


def test_too_long_a_text_is_cut_and_the_warning_names_the_words():
    with pytest.warns(UserWarning, match="cut: 'red background'") as record:
        ids = TOKENIZER.encode("a dog on a red background", max_length=6)
    assert ids.shape == (1, 6) and ids[0, -1] == TOKENIZER.end_id
    assert TOKENIZER.decode(ids[0]) == "a dog on a"
    assert record[0].filename == __file__


def test_the_warning_names_a_word_of_which_only_the_end_is_cut():
    with pytest.warns(UserWarning, match="cut: 'zebra'"):
        TOKENIZER.encode("a zebra", max_length=5)


def test_a_text_that_just_fits_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TOKENIZER.encode("a dog on a", max_length=6)


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=12))
def test_decode_gives_the_cleaned_words_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, max_length=80)[0]) == " ".join(split_words(text))


def test_save_and_load(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    assert loaded.vocabulary == TOKENIZER.vocabulary and loaded.merges == TOKENIZER.merges
    assert loaded.max_length == 16
    assert torch.equal(loaded.encode("a Zebra, naïve"), TOKENIZER.encode("a Zebra, naïve"))


def test_loading_without_a_config_or_without_a_limit_gives_clips_length(tmp_path):
    TOKENIZER.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"model_max_length": 10**30}))
    assert Tokenizer.load(tmp_path).max_length == 77
    config.unlink()
    assert Tokenizer.load(tmp_path).max_length == 77


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="vocab.json"):
        Tokenizer.load(tmp_path)
    TOKENIZER.save(tmp_path)
    vocabulary = dict(TOKENIZER.vocabulary)
    del vocabulary["dog</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match="dog</w>"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(ValueError, match="a b c"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", [None, 3, ["a", None], b"a", {"a"}])
def test_wrong_types_are_refused(text):
    with pytest.raises(TypeError, match="string"):
        TOKENIZER.encode(text)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TOKENIZER.encode([]), ValueError, "empty list"),
        (lambda: TOKENIZER.encode("\ud83d"), ValueError, "surrogate"),
        (lambda: TOKENIZER.encode("a", max_length=1), ValueError, "at least 2"),
        (lambda: TOKENIZER.encode("a", max_length=8.0), TypeError, "int"),
        (lambda: TOKENIZER.tokenize(["a"]), TypeError, "string"),
        (lambda: TOKENIZER.decode([99999]), ValueError, "99999"),
        (lambda: TOKENIZER.decode(TOKENIZER.encode("a")), ValueError, "one row"),
        (lambda: Tokenizer.train("a dog", 600), TypeError, "list"),
        (lambda: Tokenizer.train([1], 600), TypeError, "string"),
        (lambda: Tokenizer.train(["a"], 513), ValueError, "514"),
        (lambda: Tokenizer.train(["a"], 600.0), TypeError, "int"),
        (lambda: Tokenizer.train(["  "], 600), ValueError, "no words"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
