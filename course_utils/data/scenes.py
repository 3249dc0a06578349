"""Scenes: one OpenMoji object on a coloured background, at some size and place, and captions for them.

Everything a reader needs of the picture set can be imported from here: the words (`vocabulary`), the grammar
(`captions`) and the drawing (`sprites`). The artwork is OpenMoji's, licensed CC BY-SA 4.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from course_utils.data.captions import (
    PLACE_PHRASES,
    SIZE_WORDS,
    TEMPLATES,
    fill_template,
    parse_caption,
    prompt_for,
)
from course_utils.data.sprites import sprite
from course_utils.data.vocabulary import (
    ALL_OBJECTS,
    ATTRIBUTES,
    COLORS,
    OBJECT_GROUPS,
    OBJECTS,
    PLACES,
    SIZES,
    VALUES,
    first_objects,
    held_out_pairs,
    is_held_out_color,
    is_held_out_place,
    value_index,
    value_name,
)

__all__ = [
    "ALL_OBJECTS", "ATTRIBUTES", "COLORS", "OBJECTS", "OBJECT_GROUPS", "PLACES", "SIZES", "SPLITS", "VALUES", "Scene",
    "caption", "draw", "first_objects", "held_out_pairs", "is_held_out", "is_held_out_color", "is_held_out_place",
    "parse_caption", "prompt_for", "random_scene", "value_index", "value_name",
]  # fmt: skip

SPLITS: tuple[str, ...] = ("train", "held_out", "all")
CANVAS = 64  # pixels, dx and dy of a scene are counted on a canvas of this side, and scaled for others
MARGIN = 2  # pixels left between an object and the edge it is placed at
_PIXELS = {"small": (22, 27), "large": (38, 44)}  # side of an object, both ends included
_PLACE_WEIGHTS = {"middle": 2, "left": 1, "right": 1, "top": 1, "bottom": 1}
_SAY_SIZE, _SAY_PLACE = 0.5, 0.6  # how often a caption names them


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    object, color, size, place: values out of ALL_OBJECTS, COLORS, SIZES, PLACES.  flip: mirrored left to right.
    pixels: longer side of the object on a 64 x 64 canvas; None takes the middle of what `size` allows.
    dx, dy: the object's shift from its place, in pixels of that canvas, to the right and down.
    Raises ValueError for values that do not exist, or a side that does not fit `size`.
    """

    object: str
    color: str
    size: str = "large"
    place: str = "middle"
    flip: bool = False
    pixels: int | None = None
    dx: int = 0
    dy: int = 0

    def __post_init__(self) -> None:
        for attribute in ATTRIBUTES:
            value_index(attribute, getattr(self, attribute))
        low, high = _PIXELS[self.size]
        if self.pixels is not None and not low <= self.pixels <= high:
            raise ValueError(f"a {self.size} object measures {low} to {high} pixels, not {self.pixels}")
        if max(abs(self.dx), abs(self.dy)) > MARGIN:
            raise ValueError(f"dx and dy lie between {-MARGIN} and {MARGIN}, not {self.dx} and {self.dy}")

    @property
    def attributes(self) -> tuple[int, int, int, int]:
        """Indices of (object, color, size, place) in their lists."""
        o, c, s, p = (value_index(attribute, getattr(self, attribute)) for attribute in ATTRIBUTES)
        return o, c, s, p


def is_held_out(scene: Scene) -> bool:
    """True if a scene shows a held-out (object, color) or (object, place) pair."""
    return is_held_out_color(scene.object, scene.color) or is_held_out_place(scene.object, scene.place)


@cache
def _choices(name: str, split: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Colors and places (as often as their weight) that a split draws from for one object."""
    train = split == "train"
    colors = tuple(c for c in COLORS if not (train and is_held_out_color(name, c)))
    places = tuple(
        p for p, weight in _PLACE_WEIGHTS.items() for _ in range(weight) if not (train and is_held_out_place(name, p))
    )
    return colors, places


@cache
def _held_out_list(objects: int) -> list[tuple[str, str | None, str | None]]:
    colors, places = held_out_pairs(objects)
    return [(name, color, None) for name, color in colors] + [(name, None, place) for name, place in places]


def random_scene(generator: torch.Generator, split: str = "train", objects: int = len(OBJECTS)) -> Scene:
    """A scene at random: "train" has no held-out pair, "held_out" at least one, "all" takes what comes.

    objects: how many there are to choose from, the first of ALL_OBJECTS; by default the course's 64.
    The middle is twice as common as each other place. Raises ValueError for another split or an impossible `objects`.
    """
    names = first_objects(objects)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    u = iter(torch.rand(8, generator=generator, device=generator.device).tolist())

    def pick(choices):
        return choices[int(next(u) * len(choices))]

    name, color, place = pick(_held_out_list(objects)) if split == "held_out" else (pick(names), None, None)
    colors, places = _choices(name, split)
    color, place = pick((color,) if color else colors), pick((place,) if place else places)
    size = pick(SIZES)
    low, high = _PIXELS[size]
    # A little less play towards and from an edge than along it, so that objects stay near it and whole.
    wide, narrow = range(-MARGIN, MARGIN + 1), range(1 - MARGIN, MARGIN)
    return Scene(
        name, color, size, place,
        flip=pick((False, True)),
        pixels=pick(range(low, high + 1)),
        dx=pick(narrow if place in ("left", "right") else wide),
        dy=pick(narrow if place in ("top", "bottom") else wide),
    )  # fmt: skip


def corner(scene: Scene, w: int, h: int, size: int = CANVAS) -> tuple[int, int]:
    """Left and top edge, in pixels, of a scene's object that is w wide and h high."""
    unit = size / CANVAS
    x, y = (size - w) / 2, (size - h) / 2
    if scene.place in ("left", "right"):
        x = MARGIN * unit if scene.place == "left" else size - w - MARGIN * unit
    if scene.place in ("top", "bottom"):
        y = MARGIN * unit if scene.place == "top" else size - h - MARGIN * unit
    left = min(max(int(x + scene.dx * unit + 0.5), 0), size - w)
    return left, min(max(int(y + scene.dy * unit + 0.5), 0), size - h)


def draw(scene: Scene, size: int = CANVAS) -> np.ndarray:
    """Draw a scene: uint8 [size, size, 3]. `size` is the side of the picture in pixels, at least 8."""
    if size < 8:
        raise ValueError(f"a picture needs a side of at least 8 pixels, not {size}")
    unit = size / CANVAS
    ink, keep = sprite(scene.object, round((scene.pixels or sum(_PIXELS[scene.size]) // 2) * unit))
    if scene.flip:
        ink, keep = ink[:, ::-1], keep[:, ::-1]
    h, w, _ = ink.shape
    left, top = corner(scene, w, h, size)
    picture = np.empty((size, size, 3), dtype=np.uint8)
    picture[:] = COLORS[scene.color]
    background = np.asarray(COLORS[scene.color], dtype=np.float32)
    picture[top : top + h, left : left + w] = ink + keep * background + 0.5  # + 0.5: uint8 cuts, this rounds
    return picture


def caption(scene: Scene, generator: torch.Generator) -> str:
    """One of many ways to describe a scene: always object and colour; size and place in about half of them."""
    u = torch.rand(5, generator=generator, device=generator.device).tolist()
    template = TEMPLATES[int(u[0] * len(TEMPLATES))]
    size_words, place_phrases = SIZE_WORDS[scene.size], PLACE_PHRASES[scene.place]
    size_word = size_words[int(u[2] * len(size_words))] if u[1] < _SAY_SIZE else None
    place_phrase = place_phrases[int(u[4] * len(place_phrases))] if u[3] < _SAY_PLACE else None
    return fill_template(template, scene.object, scene.color, size_word, place_phrase)
