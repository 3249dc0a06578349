"""Byte-pair encoding: words as bytes, and merging the pairs of symbols that occur together often.

Pure functions; `tokenizer.py` makes CLIP's tokenizer of them. A word is a tuple of symbols. It starts as
one symbol for each of its UTF-8 bytes, so that every text can be written down, and merges make longer
symbols of frequent neighbours. Sources: Sennrich et al. 2016 (arXiv 1508.07909), algorithm 1; Radford et
al. 2019 (GPT-2), section 2.2, for starting from bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

WORD_END = "</w>"  # closes a word's last symbol, so that the word "cat" and the "cat" of "catalogue" differ


def byte_symbols() -> dict[int, str]:
    """One visible character for each of the 256 bytes, in CLIP's order.

    Bytes that are printable in Latin-1 stand for themselves; the other 68 take the characters from U+0100
    on. So vocabulary files hold neither spaces nor control characters.
    """
    ranges = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = [byte for first, last in ranges for byte in range(ord(first), ord(last) + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTE_SYMBOLS = byte_symbols()
SYMBOL_BYTES = {symbol: byte for byte, symbol in BYTE_SYMBOLS.items()}


def word_symbols(word: str) -> tuple[str, ...]:
    """The symbols that merging starts from: "cat" -> ("c", "a", "t</w>"), "é" -> ("Ã", "©</w>") (two
    bytes)."""
    *first, last = (BYTE_SYMBOLS[byte] for byte in word.encode("utf-8"))
    return (*first, last + WORD_END)


def count_pairs(words: Mapping[tuple[str, ...], int]) -> Counter[tuple[str, str]]:
    """How often each pair of neighbours occurs, over a table of words (as symbols) and how often they were
    seen."""
    pairs: Counter[tuple[str, str]] = Counter()
    for symbols, count in words.items():
        for pair in zip(symbols, symbols[1:], strict=False):
            pairs[pair] += count
    return pairs


def merge_pair(symbols: Sequence[str], pair: tuple[str, str]) -> tuple[str, ...]:
    """Join each occurrence of a pair, from left to right.

    ("a", "b", "a", "b") and ("a", "b") -> ("ab", "ab");   ("a", "a", "a") and ("a", "a") -> ("aa", "a").
    """
    merged = []
    i = 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            merged.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return tuple(merged)


def learn_merges(words: Mapping[tuple[str, ...], int], num_merges: int) -> list[tuple[str, str]]:
    """Merge the most frequent pair, count again, and so on: the pairs in the order in which they were merged.

    Stops early when each word has become one symbol. Of equally frequent pairs the first in the alphabet is
    taken, so that the same words give the same merges. Source: Sennrich et al. 2016, algorithm 1.
    """
    words = dict(words)
    merges: list[tuple[str, str]] = []
    while len(merges) < num_merges:
        pairs = count_pairs(words)
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        words = {merge_pair(symbols, best): count for symbols, count in words.items()}
        merges.append(best)
    return merges


def bpe(word: str, ranks: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    """Split a word into pieces: of its neighbouring pairs merge the one learned first, until none is known.

    `ranks` maps each known pair to its place in the list of merges. Source: Sennrich et al. 2016, section
    3.2.
    """
    symbols = word_symbols(word)
    while True:
        known = [pair for pair in zip(symbols, symbols[1:], strict=False) if pair in ranks]
        if not known:
            return symbols
        symbols = merge_pair(symbols, min(known, key=ranks.__getitem__))


def check_vocabulary(vocabulary: Mapping[str, int], special: Sequence[str]) -> None:
    """ValueError unless all pieces but the special ones are byte symbols, and the ids are 0, 1, 2 … in some order."""
    for piece, i in vocabulary.items():
        if isinstance(i, bool) or not isinstance(i, int):
            raise ValueError(f"the id of {piece!r} must be a whole number, got {i!r:.40}")
        if piece not in special and not all(symbol in SYMBOL_BYTES for symbol in piece.removesuffix(WORD_END)):
            raise ValueError(f"the piece {piece!r:.40} has letters that stand for no byte")
    ids = set(vocabulary.values())
    if ids != set(range(len(vocabulary))):
        wrong = min(set(range(len(vocabulary))) - ids)
        raise ValueError(f"the ids of {len(vocabulary)} pieces must be 0 … {len(vocabulary) - 1}, but none has {wrong}")
