"""Where the objects of a composition stand, and how large they are: geometry on a canvas of 64 × 64 pixels.

Objects are laid out so that a person sees at once what is meant: they never touch, an object left of another is level
with it, and a large one has at least one and a half times the side of a small one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from course_utils.data.descriptions import NUMBERS
from course_utils.data.scenes import CANVAS, Scene, corner
from course_utils.data.sprites import sprite

MAX_THINGS = len(NUMBERS)
EDGE = 1  # pixels kept free at the picture's border
GAP = 3  # pixels at least between the squares around two objects, so that they never touch
# Longer side of an object among several, and where sizes are told apart; both ends included. Smaller ones cover so few
# latents (8 × 8 pixels each) that the course's VAE no longer draws them so that a person would know them.
PIXELS = {"several": (22, 27), "small": (20, 22), "large": (33, 36)}
_PLAY = 3  # pixels by which two objects side by side may lie higher or lower than the line they are on


@dataclass(frozen=True)
class Placed:
    """An object in a picture: its centre (x to the right, y down) and its longer side `pixels`, on a 64 × 64 canvas."""

    object: str
    x: float
    y: float
    pixels: int
    flip: bool = False


def size_of(thing: Placed) -> str | None:
    """ "small" or "large" as sizes are bound to objects, None for a side between the two."""
    for size in ("small", "large"):
        low, high = PIXELS[size]
        if low <= thing.pixels <= high:
            return size
    return None


def inside(thing: Placed) -> bool:
    """Whether all of an object is in the picture."""
    if thing.pixels < 1:
        return False
    h, w, _ = sprite(thing.object, thing.pixels)[0].shape
    return w / 2 - 0.5 <= thing.x <= CANVAS - w / 2 + 0.5 and h / 2 - 0.5 <= thing.y <= CANVAS - h / 2 + 0.5


def distance(a: Placed, b: Placed) -> float:
    """Pixels between the squares around two objects, along the axis where there are more; below 0 they overlap."""
    return max(abs(a.x - b.x), abs(a.y - b.y)) - (a.pixels + b.pixels) / 2


def stands(relation: str, a: Placed, b: Placed) -> bool:
    """Whether a stands in a relation to b so that nobody could read another: apart along its axis, level across."""
    dx, dy = b.x - a.x, b.y - a.y
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    along = along if relation in ("left of", "above") else -along
    return along >= (a.pixels + b.pixels) / 2 + GAP - 1 and abs(across) <= 2 * _PLAY


def place_scene(scene: Scene) -> Placed:
    """The object of a scene of the first grammar, where `scenes.draw` puts it."""
    h, w, _ = sprite(scene.object, scene.pixels)[0].shape
    left, top = corner(scene, w, h)
    return Placed(scene.object, left + w / 2, top + h / 2, scene.pixels, scene.flip)


def place_counted(name: str, count: int, within: Callable, pick: Callable) -> tuple[Placed, ...]:
    """Up to four of a kind, each somewhere in a quarter of the picture of its own."""
    quarters = [(0, 0), (1, 0), (0, 1), (1, 1)]
    things = []
    for _ in range(count):
        column, row = quarters.pop(int(within(0, len(quarters))))
        pixels = pick(range(PIXELS["several"][0], PIXELS["several"][1] + 1))
        play = (CANVAS / 2 - pixels - GAP) / 2
        x, y = (CANVAS / 4 * (1 + 2 * i) + within(-play, play) for i in (column, row))
        things.append(Placed(name, round(x), round(y), pixels, pick((False, True))))
    return tuple(things)


def place_pair(
    task: str, relation: str, names: tuple[str, str], within: Callable, pick: Callable
) -> tuple[Placed, Placed]:
    """Two objects side by side or one over the other: on one line for "position", at any heights for the others."""
    kinds = pick((("small", "large"), ("large", "small"))) if task == "binding" else ("several", "several")
    sides = [pick(range(PIXELS[kind][0], PIXELS[kind][1] + 1)) for kind in kinds]
    slack = CANVAS - 2 * EDGE - GAP - sum(sides)
    before = within(0, slack)
    between = within(0, slack - before)
    near = EDGE + before  # where the object begins that lies further left, or further up
    far = near + sides[0 if relation in ("left of", "above") else 1] + GAP + between
    starts = (near, far) if relation in ("left of", "above") else (far, near)
    along = [start + side / 2 for start, side in zip(starts, sides, strict=True)]
    if task == "position":
        line = within(EDGE + max(sides) / 2 + _PLAY, CANVAS - EDGE - max(sides) / 2 - _PLAY)
        across = [line + within(-_PLAY, _PLAY) for _ in sides]
    else:
        across = [within(EDGE + side / 2, CANVAS - EDGE - side / 2) for side in sides]
    sideways = relation in ("left of", "right of")
    first, second = (
        Placed(name, *((round(a), round(c)) if sideways else (round(c), round(a))), side, pick((False, True)))
        for name, a, c, side in zip(names, along, across, sides, strict=True)
    )
    return first, second
