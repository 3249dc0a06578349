"""The second grammar: what a text says of one or two objects, put into words and read back from them.

It divides difficulty as GenEval does (Ghosh, Hajishirzi and Schmidt 2023, arXiv 2310.11513, section 3): one object,
two objects, counting, colours, position, and attributes bound to objects. Where GenEval's colour is an object's, ours
is the background's, for the artwork has its own colours; and the attribute that is bound is a size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from course_utils.data.captions import COLOR_OF_WORD, SIZE_OF_WORD, SIZE_WORDS, with_article
from course_utils.data.vocabulary import OBJECTS, SIZES, value_index

TASKS: tuple[str, ...] = ("single", "two", "counting", "colors", "position", "binding")
RELATIONS: dict[str, str] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Each relation, and what it is called when seen from the other object."""
NUMBERS: tuple[str, ...] = ("one", "two", "three", "four")

_RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
# {things}: "two dogs", "a cat above a tree". {be}: "is" or "are". The first of each is the plain wording.
PLAIN_FRAMES: tuple[str, ...] = ("{things}", "a picture of {things}", "there {be} {things}")
COLOR_FRAMES: tuple[str, ...] = (
    "{things} on {a_color} background",
    "there {be} {things} on {a_color} background",
    "{color} background with {things}",
    "{a_color} background and {things}",
    "{things}, {color} background",
    "on {a_color} background, {things}",
)

_IRREGULAR = {"fish": "fish", "cactus": "cacti", "leaf": "leaves", "snowman": "snowmen"}


def _regular_plural(name: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", name):
        return name + "es"
    if re.search(r"[^aeiou]y$", name):
        return name[:-1] + "ies"
    return name + "s"


PLURALS: dict[str, str] = {name: _IRREGULAR.get(name, _regular_plural(name)) for name in OBJECTS}
"""Each object's plural: "apple" -> "apples", "butterfly" -> "butterflies", "cactus" -> "cacti"."""


@dataclass(frozen=True)
class Description:
    """What a text asks for, and nothing that it leaves open.

    objects: one or two different ones.  color: of the background.  count: 1 ... 4, all of the one object.
    relation: of the first object to the second, one of RELATIONS.  sizes: of the first and the second object.
    Raises ValueError for values that do not exist, or that do not go together.
    """

    objects: tuple[str, ...]
    color: str | None = None
    count: int | None = None
    relation: str | None = None
    sizes: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        for name in self.objects:
            if name not in PLURALS:
                raise ValueError(f"unknown object {name!r}; this grammar has words for {', '.join(OBJECTS)}")
        if self.color is not None:
            value_index("color", self.color)
        if len(self.objects) not in (1, 2) or len(set(self.objects)) != len(self.objects):
            raise ValueError(f"a description names one object, or two different ones, not {self.objects}")
        if self.count is not None and (len(self.objects) != 1 or not 1 <= self.count <= len(NUMBERS)):
            raise ValueError(f"one object is counted, from 1 to {len(NUMBERS)}; got {self.count} of {self.objects}")
        if self.relation is not None and self.relation not in RELATIONS:
            raise ValueError(f"unknown relation {self.relation!r}; there are {', '.join(RELATIONS)}")
        if self.sizes is not None and sorted(self.sizes) != sorted(SIZES):
            raise ValueError(f"sizes are given to two objects, one {' and one '.join(SIZES)}; got {self.sizes}")
        if len(self.objects) == 1 and (self.relation or self.sizes):
            raise ValueError(f"a relation, or sizes to tell apart, want two objects; got {self.objects}")
        if self.relation and self.sizes:
            raise ValueError("a description has a relation or sizes, not both: each is a task of its own")

    @property
    def task(self) -> str:
        """Which of TASKS it is."""
        if len(self.objects) == 2:
            return "position" if self.relation else "binding" if self.sizes else "two"
        return "counting" if self.count else "colors" if self.color else "single"

    def swapped(self) -> Description:
        """The same said from the other object: "a cat left of a tree" -> "a tree right of a cat"."""
        return Description(
            self.objects[::-1],
            self.color,
            self.count,
            RELATIONS[self.relation] if self.relation else None,
            (self.sizes[1], self.sizes[0]) if self.sizes else None,
        )


def in_words(description: Description, frame: int = 0, word: int = 0) -> str:
    """One sentence that says it; `frame` and `word` choose among the paraphrases, counted round, and 0, 0 is plain.

    "a small dog and a large cat on a red background" for ("dog", "cat"), sizes small and large, color red.
    """
    d = description
    names = list(d.objects)
    if d.sizes:
        names = [f"{_among(SIZE_WORDS[size], word)} {name}" for size, name in zip(d.sizes, names, strict=True)]
    if d.count:
        things = f"{NUMBERS[d.count - 1]} {names[0] if d.count == 1 else PLURALS[names[0]]}"
    else:
        between = f" {_among(_RELATION_WORDS[d.relation], word)} " if d.relation else " and "
        things = between.join(with_article(name) for name in names)
    sentence = _among(COLOR_FRAMES if d.color else PLAIN_FRAMES, frame)
    be = "are" if d.count and d.count > 1 else "is"
    return sentence.format(things=things, be=be, color=d.color, a_color=with_article(d.color) if d.color else "")


def _among(choices: tuple[str, ...], number: int) -> str:
    return choices[number % len(choices)]


_OBJECT_OF_WORD = (
    {name: name for name in OBJECTS}
    | {_regular_plural(name): name for name in OBJECTS}  # "cactuses" is understood too
    | {plural: name for name, plural in PLURALS.items()}
)
_RELATION_OF_WORD = {"left": "left of", "right": "right of"} | {
    word: relation for relation, words in _RELATION_WORDS.items() for word in words
}


def parse_description(text: str) -> Description:
    """What a sentence of this grammar asks for; words that it does not know are skipped.

    A number or a size belongs to the object right behind it, a relation to the two objects around it.
    Raises ValueError for a text that names no object, too many, several without their number, or what does not go
    together (see `Description`).
    """
    words = re.findall(r"[a-z]+", text.lower())
    at = [i for i, word in enumerate(words) if word in _OBJECT_OF_WORD]
    if len(at) not in (1, 2):
        raise ValueError(f"{text!r} names {len(at)} objects, one or two are wanted, such as 'a dog and a cat'")
    objects = tuple(_OBJECT_OF_WORD[words[i]] for i in at)
    before = [words[i - 1] if i else "" for i in at]
    counts = [NUMBERS.index(word) + 1 for word in before if word in NUMBERS]
    for i, word in zip(at, before, strict=True):
        if words[i] not in OBJECTS and word not in NUMBERS:
            raise ValueError(f"{text!r} does not say how many {words[i]}; write {', '.join(NUMBERS[1:])} before it")
    sizes = tuple(SIZE_OF_WORD[word] for word in before if word in SIZE_OF_WORD)
    if sizes and len(sizes) != 2:
        raise ValueError(f"{text!r} gives a size to {len(sizes)} of {len(at)} objects; it wants two objects, two sizes")
    found = [_RELATION_OF_WORD[word] for word in words[at[0] : at[-1]] if word in _RELATION_OF_WORD]
    colors = {COLOR_OF_WORD[word] for word in words if word in COLOR_OF_WORD}
    for what, several in (("relation", set(found)), ("colour", colors)):
        if len(several) > 1:
            raise ValueError(f"{text!r} names more than one {what}: {', '.join(sorted(several))}")
    return Description(
        objects,
        color=colors.pop() if colors else None,
        count=counts[0] if counts else None,
        relation=found[0] if found else None,
        sizes=(sizes[0], sizes[1]) if sizes else None,
    )
