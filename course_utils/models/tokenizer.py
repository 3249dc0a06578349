"""CLIP's tokenizer: text to token ids and back, by byte-pair encoding (Radford et al. 2021, section 2.4).

A text is cleaned and put in lower case, split into words, and each word into the pieces that `bpe.py` finds.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any

import regex
import torch
from torch import Tensor

from course_utils.files import read_json, replacing
from course_utils.models.bpe import (
    BYTE_SYMBOLS,
    SYMBOL_BYTES,
    WORD_END,
    bpe,
    check_vocabulary,
    learn_merges,
    word_symbols,
)

START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL_TOKENS = regex.compile(r"(<\|startoftext\|>|<\|endoftext\|>)")
WHITE_SPACE = regex.compile(r"\p{White_Space}+")
# A word is the tail of an English contraction, a run of letters, one digit, or a run of other signs.
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^ \p{L}\p{N}]+")
# Signs that follow a special token in capitals, which is none, do not join its last ones: so in CLIPTokenizer.
CAPITALS = regex.compile(rf"{SPECIAL_TOKENS.pattern}|{WORDS.pattern}")
FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")
REMEDY = f"restore {', '.join(FILES)}"


def clean_text(text: str) -> str:
    """Compose accents (Unicode NFC), make each run of white space one space, and put all in lower case."""
    text = WHITE_SPACE.sub(" ", unicodedata.normalize("NFC", text))
    # Character by character, as CLIPTokenizer does; str.lower() looks at where in its word a sigma stands.
    return "".join(character.lower() for character in text)


def split_words(text: str) -> list[str]:
    """The words of a text, cleaned: "It's a  Dog!" -> ["it", "'s", "a", "dog", "!"]."""
    words = [match[0] for match in CAPITALS.finditer(clean_text(text))]
    return [part for word in words for part in (WORDS.findall(word) if word in (START, END) else [word])]


def build_vocabulary(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Piece -> id in CLIP's order: 256 bytes, 256 bytes that end a word, the merges, the two special
    tokens."""
    symbols = list(BYTE_SYMBOLS.values())
    pieces = [*symbols, *(symbol + WORD_END for symbol in symbols), *(a + b for a, b in merges), START, END]
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}  # two merges can spell the same piece


def check_text(text: str) -> str:
    """The text itself; TypeError if it is not a string, ValueError if half a surrogate pair is in it."""
    if not isinstance(text, str):
        raise TypeError(f"a text must be a string, got {type(text).__name__}: {text!r:.60}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"a text must be valid Unicode, but this one has a lone surrogate: {text!r:.60}")
    return text


def as_prompts(prompt: str | Sequence[str]) -> list[str]:
    """Prompts as a list; TypeError if one is no text, ValueError if there is none."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(p, str) for p in prompts):
        raise TypeError(f"a prompt is a string or a list of strings, got {prompt!r:.80}")
    if not prompts:
        raise ValueError('there is no prompt in the list; for a picture of anything give the empty prompt, ""')
    return list(prompts)


def check_int(name: str, value: int, least: int, why: str) -> int:
    """The value itself; TypeError if it is not an int, ValueError if it is below `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least} ({why}), got {value}")
    return value


def stored_length(config: Mapping[str, Any]) -> int:
    """The max_length that a tokenizer_config.json asks for; CLIP's 77 if it sets none, or no limit."""
    length = check_int("model_max_length", config.get("model_max_length", 77), 2, "the start and the end token")
    return length if length <= 1_000_000 else 77  # transformers writes 10**30 for "no limit"


class Tokenizer:
    """Text to token ids and back. Make one with `Tokenizer.train` or `Tokenizer.load`.

    Args:
        merges: pairs of pieces, in the order in which they were learned.
        vocabulary: piece -> id; by default `build_vocabulary(merges)`.
        max_length: the length to which `encode` pads and cuts; 77 in CLIP.

    `start_id` and `end_id` are the ids of the special tokens; `len(tokenizer)` is the text encoder's
    `vocab_size`.
    """

    def __init__(
        self,
        merges: Iterable[tuple[str, str]],
        vocabulary: Mapping[str, int] | None = None,
        max_length: int = 77,
    ):
        self.merges = [(first, second) for first, second in merges]
        expected = build_vocabulary(self.merges)
        self.vocabulary = dict(expected if vocabulary is None else vocabulary)
        missing = [piece for piece in expected if piece not in self.vocabulary]
        if missing:
            raise ValueError(f"the vocabulary lacks {len(missing)} of the pieces, first {missing[0]!r}")
        check_vocabulary(self.vocabulary, special=(START, END))
        self.max_length = check_int("max_length", max_length, 2, "the start and the end token")
        self.start_id, self.end_id = self.vocabulary[START], self.vocabulary[END]
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._piece_of_id = {i: piece for piece, i in self.vocabulary.items()}
        self._pieces_of_word: dict[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def sha256(self) -> str:
        """The checksum, 64 hexadecimal digits, of all that `encode` depends on."""
        facts = [self.merges, sorted(self.vocabulary.items()), self.max_length]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, max_length: int = 77) -> Tokenizer:
        """Learn the merges from texts.

        `vocab_size` is an upper bound: learning stops when each word of the texts is one token. Raises
        TypeError for texts that are not strings, ValueError if they hold no words or `vocab_size` is below
        514 (2 · 256 bytes and 2 special tokens).
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, got one string; put it in a list")
        smallest = len(build_vocabulary([]))
        check_int("vocab_size", vocab_size, smallest, "2 x 256 bytes and 2 special tokens")
        counts: Counter[str] = Counter()
        for text, repeats in Counter(check_text(text) for text in texts).items():
            for word in split_words(SPECIAL_TOKENS.sub(" ", text)):
                counts[word] += repeats
        if not counts:
            raise ValueError("the texts hold no words to learn from")
        words = {word_symbols(word): count for word, count in counts.items()}
        return cls(learn_merges(words, vocab_size - smallest), max_length=max_length)

    def _word_pieces(self, text: str) -> list[tuple[str, ...]]:
        """Each word as its pieces; a special token that is written out in the text counts as a word."""
        words: list[tuple[str, ...]] = []
        for part in SPECIAL_TOKENS.split(text):
            if part in (START, END):
                words.append((part,))
                continue
            for word in split_words(part):
                if word not in self._pieces_of_word:
                    self._pieces_of_word[word] = bpe(word, self._ranks)
                words.append(self._pieces_of_word[word])
        return words

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text; one that ends its word ends in </w>: "a doghouse" -> ["a</w>", "dog",
        "house</w>"].

        A word that was never seen in training comes out as several pieces, at worst one for each byte.
        """
        return [piece for word in self._word_pieces(check_text(text)) for piece in word]

    def encode(self, text: str | Sequence[str], max_length: int | None = None) -> Tensor:
        """Token ids of one text or of several, ready for the text encoder.

        Args:
            text: a string, or a list of them. The empty string is allowed: it is the "no prompt" of guidance.
            max_length: L, the length of a row; by default the tokenizer's own.

        Returns:
            int64 [B, L]: the start token, the text, then end tokens up to L (Stable Diffusion 1 pads with
            them too). A text that is too long is cut, with a warning that names the words that were lost.
        """
        if max_length is None:
            max_length = self.max_length
        check_int("max_length", max_length, 2, "the start and the end token")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)):
            raise TypeError(f"text must be a string or a list of strings, got {type(text).__name__}")
        if not texts:
            raise ValueError("text is an empty list; give one string at least (it may be empty)")
        rows = []
        for one in texts:
            rows.append(self._encode_row(check_text(one), max_length))
        return torch.tensor(rows)  # [B, L]

    def _encode_row(self, text: str, max_length: int) -> list[int]:
        words = self._word_pieces(text)
        ids = [self.vocabulary[piece] for word in words for piece in word]
        room = max_length - 2
        if len(ids) > room:
            ends = accumulate(len(word) for word in words)
            lost = [self._spell(word) for word, end in zip(words, ends, strict=True) if end > room]
            message = f"the text has {len(ids)} tokens and {room} fit in a length of {max_length}"
            warnings.warn(f"{message}; cut: {''.join(lost).rstrip()!r}", stacklevel=3)
        ids = [self.start_id, *ids[:room]]
        return ids + [self.end_id] * (max_length - len(ids))

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of one row of ids [L]: lower case, words parted by single spaces, no special tokens.

        Raises ValueError for several rows at once and for an id that is not in the vocabulary.
        """
        if isinstance(ids, Tensor):
            if ids.dim() != 1 or ids.is_floating_point():
                raise ValueError(f"ids must be one row of integers [L], got {list(ids.shape)} {ids.dtype}")
            ids = ids.tolist()
        unknown = [i for i in ids if i not in self._piece_of_id]
        if unknown:
            raise ValueError(f"id {unknown[0]!r} is not one of the vocabulary's {len(self)}")
        pieces = [self._piece_of_id[i] for i in ids if i not in (self.start_id, self.end_id)]
        return self._spell(pieces).removesuffix(" ")

    def _spell(self, pieces: Iterable[str]) -> str:
        """Bytes to text, with a space after each word."""
        spelled = bytearray()
        for piece in pieces:
            if piece in (START, END):
                spelled += piece.encode("utf-8")
                continue
            spelled += bytes(SYMBOL_BYTES[symbol] for symbol in piece.removesuffix(WORD_END))
            if piece.endswith(WORD_END):
                spelled += b" "
        return spelled.decode("utf-8", errors="replace")  # a cut can go through a character of several bytes

    def save(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json, as transformers' CLIPTokenizer reads them.

        None takes its place before all are written, so that a full disk leaves the old ones.
        """
        folder = Path(folder)
        names = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.max_length, **names}
        merges = [f"{first} {second}" for first, second in self.merges]
        files = {
            "vocab.json": json.dumps(self.vocabulary, ensure_ascii=False, indent=0),
            "merges.txt": "\n".join(["#version: 0.2", *merges]),
            "tokenizer_config.json": json.dumps(config, indent=2),
        }
        with ExitStack() as stack:
            for name, content in files.items():
                # As bytes, so that line ends are the same on all systems.
                stack.enter_context(replacing(folder / name)).write_bytes(f"{content}\n".encode())

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read what `save` wrote, or the tokenizer folder of a Stable Diffusion 1 checkpoint.

        Raises FileNotFoundError naming the missing file, ValueError if one is damaged or they do not fit together.
        """
        folder = Path(folder)
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}, which a tokenizer is read from")
        try:
            lines = (folder / "merges.txt").read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{folder.name}/merges.txt is not UTF-8 ({error.reason}): {REMEDY}") from None
        merges = []
        for line in lines:
            if not line or line.startswith("#version"):
                continue
            first, _, second = line.partition(" ")
            if not first or not second or " " in second:
                raise ValueError(f"{folder.name}/merges.txt: a merge is two pieces and a space, got {line!r}: {REMEDY}")
            merges.append((first, second))
        vocabulary = read_json(folder / "vocab.json", REMEDY, f"{folder.name}/vocab.json")
        config_file = folder / "tokenizer_config.json"
        config = read_json(config_file, REMEDY, f"{folder.name}/{config_file.name}") if config_file.is_file() else {}
        try:
            return cls(merges, vocabulary, stored_length(config))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the tokenizer in {folder} is damaged, {error}: {REMEDY}") from None
