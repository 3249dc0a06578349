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
    "object_box", "parse_caption", "prompt_for", "random_scene", "shifts", "value_index", "value_name",
]  # fmt: skip

SPLITS: tuple[str, ...] = ("train", "held_out", "all")
CANVAS = 64  # pixels: sides and places are counted on a canvas of this side, and scaled for others
CELL = 8  # pixels of a side that the VAE makes one latent of
_PIXELS = {"small": 30, "large": 46}  # longer side of an object
_PLACE_WEIGHTS = {"middle": 2, "left": 1, "right": 1, "top": 1, "bottom": 1}
_SAY_SIZE, _SAY_PLACE = 0.5, 0.6  # how often a caption names them


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    object, color, size, place: values out of ALL_OBJECTS, COLORS, SIZES, PLACES.  flip: mirrored left to right.
    dx, dy: the object's shift from its place, in pixels of a 64 x 64 canvas, to the right and down; `shifts` lists
    those that occur. Raises ValueError for values that do not exist, or a shift of more than CELL.
    """

    object: str
    color: str
    size: str = "large"
    place: str = "middle"
    flip: bool = False
    dx: int = 0
    dy: int = 0

    def __post_init__(self) -> None:
        for attribute in ATTRIBUTES:
            value_index(attribute, getattr(self, attribute))
        if max(abs(self.dx), abs(self.dy)) > CELL:
            raise ValueError(f"dx and dy lie between {-CELL} and {CELL}, not {self.dx} and {self.dy}")

    @property
    def pixels(self) -> int:
        """The object's longer side on a 64 x 64 canvas."""
        return _PIXELS[self.size]

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
    dx, dy = pick(shifts(size, place))
    return Scene(name, color, size, place, flip=pick((False, True)), dx=dx, dy=dy)


def shifts(size: str, place: str) -> list[tuple[int, int]]:
    """All (dx, dy) of scenes with this size and place: a small object at an edge may stand a cell further along it."""
    along = (-CELL, 0, CELL) if size == "small" and place != "middle" else (0,)
    return [(0, d) if place in ("left", "right") else (d, 0) for d in along]


def corner(scene: Scene, w: int, h: int, size: int = CANVAS) -> tuple[int, int]:
    """Left and top edge, in pixels, of a scene's object that is w wide and h high.

    At an edge it stands as many whole cells from the middle as leave a pixel free. So a VAE that makes one latent of
    each cell sees an object in the same way wherever it stands: its latents move, and do not change.
    """
    unit = size / CANVAS
    x, y = (size - w) / 2, (size - h) / 2
    if scene.place in ("left", "right"):
        x += _to_edge(x, unit) * (-1 if scene.place == "left" else 1)
    if scene.place in ("top", "bottom"):
        y += _to_edge(y, unit) * (-1 if scene.place == "top" else 1)
    left = min(max(int(x + scene.dx * unit + 0.5), 0), size - w)
    return left, min(max(int(y + scene.dy * unit + 0.5), 0), size - h)


def _to_edge(room: float, unit: float) -> float:
    """The way from the middle to an edge: the whole cells within the room before the object, less a pixel."""
    return CELL * unit * int(max(room - unit, 0) / (CELL * unit))


def _artwork(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The scene's object as (ink, keep), see `sprite`, flipped where the scene is."""
    ink, keep = sprite(scene.object, round(scene.pixels * size / CANVAS))
    return (ink[:, ::-1], keep[:, ::-1]) if scene.flip else (ink, keep)


def object_box(scene: Scene, size: int = CANVAS) -> tuple[int, int, int, int]:
    """(left, top, width, height) in pixels of the rectangle around a scene's object."""
    h, w, _ = _artwork(scene, size)[0].shape
    return *corner(scene, w, h, size), w, h


def draw(scene: Scene, size: int = CANVAS) -> np.ndarray:
    """Draw a scene: uint8 [size, size, 3]. `size` is the side of the picture in pixels, at least 8."""
    if size < 8:
        raise ValueError(f"a picture needs a side of at least 8 pixels, not {size}")
    ink, keep = _artwork(scene, size)
    left, top, w, h = object_box(scene, size)
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
