"""A small grammar of captions: attributes to words, and words back to attributes."""

from __future__ import annotations

import re

from course_utils.data.vocabulary import ALL_OBJECTS, COLORS, PLACES, value_index

SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little"), "large": ("large", "big")}
# Followed by "of" before the background: "at the top of a red background".
PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "middle": ("in the middle", "in the center"),
    "left": ("on the left", "at the left"),
    "right": ("on the right", "at the right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
}
# {thing}: "a small dog". {on}: "on", or "at the top of". {where}: " at the top", or nothing.
TEMPLATES: tuple[str, ...] = (
    "{thing} {on} {a_color} background",
    "a picture of {thing} {on} {a_color} background",
    "there is {thing} {on} {a_color} background",
    "{color} background with {thing}{where}",
    "{a_color} background and {thing}{where}",
    "{thing}{where}, {color} background",
    "on {a_color} background, {thing}{where}",
    "{thing}{where}, and the background is {color}",
    "the background is {color}, with {thing}{where}",
)


def with_article(words: str) -> str:
    """ "dog" -> "a dog", "apple" -> "an apple" (all words of this grammar sound as they are spelt)."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def fill_template(
    template: str, object: str, color: str, size_word: str | None = None, place_phrase: str | None = None
) -> str:
    """One sentence of the grammar. `size_word` and `place_phrase` are the words to say, None for none."""
    return template.format(
        thing=with_article(f"{size_word} {object}" if size_word else object),
        color=color,
        a_color=with_article(color),
        on=f"{place_phrase} of" if place_phrase else "on",
        where=f" {place_phrase}" if place_phrase else "",
    )


def prompt_for(object: str, color: str, size: str | None = None, place: str | None = None) -> str:
    """The plain wording, e.g. "a small dog at the top of a red background"; None leaves an attribute unsaid.

    Raises ValueError for a value that scenes do not have.
    """
    for attribute, value in (("object", object), ("color", color), ("size", size), ("place", place)):
        if value is not None:
            value_index(attribute, value)
    return fill_template(TEMPLATES[0], object, color, size, PLACE_PHRASES[place][0] if place else None)


SIZE_OF_WORD = {word: size for size, words in SIZE_WORDS.items() for word in words}
_PLACE_OF_WORD = {place: place for place in PLACES} | {"center": "middle", "centre": "middle"}
COLOR_OF_WORD = {color: color for color in COLORS} | {"grey": "gray"}
_NAMES = {tuple(name.split()): name for name in ALL_OBJECTS}
_LONGEST_NAME = max(len(words) for words in _NAMES)  # in words


def _objects_in(words: list[str]) -> list[str]:
    """The objects that words name, from left to right; where several names fit, the longest ("teddy bear", no bear)."""
    found, i = [], 0
    while i < len(words):
        lengths = range(min(_LONGEST_NAME, len(words) - i), 0, -1)
        n = next((n for n in lengths if tuple(words[i : i + n]) in _NAMES), 0)
        if n:
            found.append(_NAMES[tuple(words[i : i + n])])
        i += max(n, 1)
    return found


def _the_one(found: list[str], what: str, text: str) -> str | None:
    if len(set(found)) > 1:
        raise ValueError(f"{text!r} names more than one {what}: {', '.join(dict.fromkeys(found))}")
    return found[0] if found else None


def parse_caption(text: str) -> dict[str, str]:
    """The attributes that a text names, e.g. {"object": "dog", "color": "red"}; unknown words are skipped.

    A colour next to the word "background" wins over others ("a red car on a blue background" is blue).
    Raises ValueError if the text names two different objects, colours, sizes or places.
    """
    words = re.findall(r"[a-z]+", text.lower())
    backgrounds = [
        COLOR_OF_WORD[word]
        for i, word in enumerate(words)
        if word in COLOR_OF_WORD
        and (words[i + 1 : i + 2] == ["background"] or words[max(0, i - 2) : i] == ["background", "is"])
    ]
    found = {
        "object": _objects_in(words),
        "color": backgrounds or [COLOR_OF_WORD[word] for word in words if word in COLOR_OF_WORD],
        "size": [SIZE_OF_WORD[word] for word in words if word in SIZE_OF_WORD],
        "place": [_PLACE_OF_WORD[word] for word in words if word in _PLACE_OF_WORD],
    }
    named = {attribute: _the_one(values, attribute, text) for attribute, values in found.items()}
    return {attribute: value for attribute, value in named.items() if value is not None}
