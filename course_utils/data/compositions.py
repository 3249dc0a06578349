"""Scenes of several objects: drawn from the same OpenMoji artwork as `scenes`, one of GenEval's six tasks each.

`compositions(n)` gives a `CaptionedImages` like any other picture set, and beside it what each picture shows, which
the scores are made from. What is never shown in training, by a fixed rule:

- a tenth of all pairs of two different objects, whatever the task;
- a tenth of the (object, number) cells with two, three or four of a kind;
- the (object, background) and (object, place) pairs of `vocabulary`: the first wherever the object stands, the second
  where it stands alone, since only there it has a place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from course_utils.data.batches import CaptionedImages
from course_utils.data.descriptions import RELATIONS, TASKS, Description, in_words
from course_utils.data.placing import (
    GAP,
    MAX_THINGS,
    Placed,
    distance,
    inside,
    place_counted,
    place_pair,
    place_scene,
    size_of,
    stands,
)
from course_utils.data.scenes import CANVAS, SPLITS, Scene, is_held_out, random_scene
from course_utils.data.sprites import sprite
from course_utils.data.vocabulary import COLORS, OBJECTS, is_held_out_color, value_index

_SAY_COLOR = 0.5  # of the scenes whose task does not settle it
_SETTLED = {"single": False, "colors": True}


@dataclass(frozen=True)
class Composition:
    """What a picture shows, and which of TASKS it was made for.

    things: one to four objects, apart from one another and whole.  relation: of the first to the second, in the task
    "position".  scene: the first grammar's scene that it is, in the tasks of one object, "single" and "colors".
    Raises ValueError for values that do not exist, or a picture that does not show what its task asks.
    """

    task: str
    color: str
    things: tuple[Placed, ...]
    relation: str | None = None
    scene: Scene | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; there are {', '.join(TASKS)}")
        value_index("color", self.color)
        for thing in self.things:
            value_index("object", thing.object)
            if not inside(thing):
                raise ValueError(f"{thing} does not lie within the picture of {CANVAS} pixels a side")
        crowded = [(a, b) for i, a in enumerate(self.things) for b in self.things[:i] if distance(a, b) < GAP - 1]
        if crowded:
            raise ValueError(f"two objects must stay {GAP - 1} pixels apart, these do not: {crowded[0]}")
        fault = self._fault()
        if fault:
            raise ValueError(f"a composition of the task {self.task!r} {fault}")

    def _fault(self) -> str | None:
        """What is wrong with the picture for its task, None if nothing is."""
        kinds, number = len({thing.object for thing in self.things}), len(self.things)
        if self.task in _SETTLED and (number != 1 or self.scene is None):
            return f"shows one object and has its scene, got {number} and {self.scene}"
        if self.task == "counting" and (kinds != 1 or number > MAX_THINGS):
            return f"shows 1 to {MAX_THINGS} objects of one kind, got {number} of {kinds} kinds"
        if self.task in ("two", "position", "binding") and not kinds == number == 2:
            return f"shows two different objects, got {number} of {kinds} kinds"
        if (self.relation is not None) != (self.task == "position"):
            return f"cannot have the relation {self.relation!r}; only the task 'position' has one"
        if self.relation and not stands(self.relation, *self.things):
            return f"must show its first object clearly {self.relation} the second, got {self.things}"
        if self.task == "binding" and {size_of(thing) for thing in self.things} != {"small", "large"}:
            return f"shows one small and one large object, got sides of {[t.pixels for t in self.things]}"
        return None

    @property
    def attributes(self) -> tuple[int, int, int, int]:
        """Indices of (object, color, size, place) for an object alone, the colour's and -1 for others."""
        return self.scene.attributes if self.scene else (-1, value_index("color", self.color), -1, -1)

    def description(self, say_color: bool | None = None) -> Description:
        """What its task says of it; with None the background is said only where the task is the colour."""
        color = self.color if (self.task == "colors" if say_color is None else say_color) else None
        objects = tuple(dict.fromkeys(thing.object for thing in self.things))
        if self.task == "counting":
            return Description(objects, color, count=len(self.things))
        if self.task == "binding":
            first, second = (size_of(thing) or "" for thing in self.things)
            return Description(objects, color, sizes=(first, second))
        return Description(objects, color, relation=self.relation)


# What is held out.


def is_held_out_pair(first: str, second: str) -> bool:
    """True if these two objects are never together in a training picture (205 of all 2,016 pairs)."""
    i, j = value_index("object", first), value_index("object", second)
    return i != j and (i + j) % 10 == 1


def is_held_out_count(object: str, count: int) -> bool:
    """True if this object never appears in this number in training (19 of the 192 cells with 2, 3 or 4 of a kind)."""
    return count > 1 and (value_index("object", object) + 3 * count) % 10 == 0


def is_held_out_composition(composition: Composition) -> bool:
    """True if a picture shows something that training never does."""
    names = [thing.object for thing in composition.things]
    return (
        is_held_out_pair(names[0], names[-1])
        or (composition.task == "counting" and is_held_out_count(names[0], len(names)))
        or any(is_held_out_color(name, composition.color) for name in names)
        or (composition.scene is not None and is_held_out(composition.scene))
    )


@cache
def _partners(name: str, split: str) -> tuple[str, ...]:
    """The objects that a split shows together with this one."""
    others = (other for other in OBJECTS if other != name)
    return tuple(o for o in others if split == "all" or is_held_out_pair(name, o) == (split == "held_out"))


@cache
def _cells(split: str) -> tuple[tuple[str, int], ...]:
    """The (object, count) cells that a split shows."""
    cells = ((name, count) for name in OBJECTS for count in range(1, MAX_THINGS + 1))
    return tuple(cell for cell in cells if split == "all" or is_held_out_count(*cell) == (split == "held_out"))


@cache
def _colors(names: tuple[str, ...], split: str) -> tuple[str, ...]:
    """Backgrounds for these objects. A held-out pair or number stands on a seen one: one new thing at a time."""
    return tuple(c for c in COLORS if split == "all" or not any(is_held_out_color(name, c) for name in names))


# Making one at random.


def random_composition(generator: torch.Generator, split: str = "train", task: str | None = None) -> Composition:
    """A composition at random, of any task or of the one given.

    "train" shows nothing held out; "held_out" shows a held-out pair, number or background (where the task is one
    object: a held-out background or place), and nothing else new; "all" takes what comes.
    Raises ValueError for another split or task.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if task is not None and task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    u = iter(torch.rand(24, generator=generator, device=generator.device).tolist())

    def within(low: float, high: float) -> float:
        return low + (high - low) * next(u)

    def pick(choices):
        return choices[int(next(u) * len(choices))]

    task = task or pick(TASKS)
    if task in _SETTLED:
        scene = random_scene(generator, split)
        while task == "colors" and split == "held_out" and not is_held_out_color(scene.object, scene.color):
            scene = random_scene(generator, split)
        return Composition(task, scene.color, (place_scene(scene),), scene=scene)
    if task == "counting":
        name, count = pick(_cells(split))
        color = pick(_colors((name,), split))
        return Composition(task, color, place_counted(name, count, within, pick))
    first = pick(OBJECTS)
    second = pick(_partners(first, split))
    color = pick(_colors((first, second), split))
    relation = pick(tuple(RELATIONS))
    things = place_pair(task, relation, (first, second), within, pick)
    return Composition(task, color, things, relation if task == "position" else None)


# Drawing and saying it.


def draw_composition(composition: Composition, size: int = CANVAS) -> np.ndarray:
    """Draw it: uint8 [size, size, 3]. `size` is the side of the picture in pixels, at least 8."""
    if size < 8:
        raise ValueError(f"a picture needs a side of at least 8 pixels, not {size}")
    unit = size / CANVAS
    picture = np.empty((size, size, 3), dtype=np.uint8)
    picture[:] = COLORS[composition.color]
    for thing in composition.things:
        ink, keep = sprite(thing.object, round(thing.pixels * unit))
        if thing.flip:
            ink, keep = ink[:, ::-1], keep[:, ::-1]
        h, w, _ = ink.shape
        left = min(max(int(thing.x * unit - w / 2 + 0.5), 0), size - w)
        top = min(max(int(thing.y * unit - h / 2 + 0.5), 0), size - h)
        under = picture[top : top + h, left : left + w]
        under[:] = ink + keep * under + 0.5  # + 0.5: uint8 cuts, this rounds
    return picture


def composition_caption(composition: Composition, generator: torch.Generator) -> str:
    """One of many ways to describe it: what its task is about always, the background in half of those left open."""
    u = torch.rand(4, generator=generator, device=generator.device).tolist()
    description = composition.description(_SETTLED.get(composition.task, u[0] < _SAY_COLOR))
    if len(description.objects) == 2 and u[1] < 0.5:
        description = description.swapped()
    return in_words(description, int(60 * u[2]), int(60 * u[3]))  # 60: a multiple of every number of paraphrases


def compositions(
    n: int, seed: int = 0, split: str = "train", mixture: Mapping[str, float] | None = None, size: int = CANVAS
) -> tuple[CaptionedImages, list[Composition]]:
    """n random compositions drawn now, and what they show. The same seed and split give the same ones, whatever n.

    mixture: the share of each task, in any unit, e.g. {"two": 2, "position": 1}; None: all six alike.
    Attributes hold the object, size and place of objects alone, and every background; -1 for the rest.
    Raises ValueError for n below 1, an unknown split, or a mixture with unknown tasks or nothing in it.
    """
    mixture = dict.fromkeys(TASKS, 1.0) if mixture is None else mixture
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    if not set(mixture) <= set(TASKS) or min(mixture.values(), default=-1) < 0 or not sum(mixture.values()) > 0:
        raise ValueError(f"mixture gives shares, 0 or more, to tasks among {', '.join(TASKS)}; got {dict(mixture)}")
    generator = torch.Generator().manual_seed(seed)
    tasks, edges = list(mixture), np.cumsum(list(mixture.values())) / sum(mixture.values())
    pictures, captions, made = np.empty((n, size, size, 3), dtype=np.uint8), [], []
    for i in range(n):
        task = tasks[int(np.searchsorted(edges, float(torch.rand((), generator=generator)), side="right"))]
        composition = random_composition(generator, split, task)
        pictures[i] = draw_composition(composition, size)
        captions.append(composition_caption(composition, generator))
        made.append(composition)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()  # [N, H, W, 3] -> [N, 3, H, W]
    return CaptionedImages(images, captions, torch.tensor([c.attributes for c in made])), made
