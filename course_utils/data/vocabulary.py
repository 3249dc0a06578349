"""What a scene can contain, and which combinations are kept out of all training."""

from __future__ import annotations

import json
from importlib.resources import files

# Each object's OpenMoji code point (the name of its SVG file), by group.
_CODES: dict[str, dict[str, str]] = {
    "animals": {
        "dog": "1F436", "cat": "1F431", "fox": "1F98A", "bear": "1F43B", "panda": "1F43C", "lion": "1F981",
        "cow": "1F42E", "pig": "1F437", "frog": "1F438", "horse": "1F434", "elephant": "1F418",
        "penguin": "1F427", "turtle": "1F422", "fish": "1F420", "octopus": "1F419", "crab": "1F980",
        "butterfly": "1F98B", "ladybug": "1F41E",
    },
    "food": {
        "apple": "1F34E", "pear": "1F350", "banana": "1F34C", "lemon": "1F34B", "watermelon": "1F349",
        "strawberry": "1F353", "pineapple": "1F34D", "carrot": "1F955", "burger": "1F354", "pizza": "1F355",
        "donut": "1F369", "cupcake": "1F9C1",
    },
    "vehicles": {
        "car": "1F697", "bus": "1F68D", "tractor": "1F69C", "parachute": "1FA82", "train": "1F682",
        "rocket": "1F680", "helicopter": "1F681", "airplane": "2708", "motorcycle": "1F3CD",
        "sailboat": "26F5",
    },
    "plants": {
        "tree": "1F333", "palm": "1F334", "cactus": "1F335", "rose": "1F339", "pumpkin": "1F383",
        "mushroom": "1F344", "clover": "1F340", "leaf": "1F341",
    },
    "things": {
        "umbrella": "2602", "diamond": "1F48E", "key": "1F511", "clock": "23F0", "camera": "1F4F7",
        "book": "1F4D6", "crown": "1F451", "bell": "1F514", "robot": "1F916", "ghost": "1F47B",
        "house": "1F3E0", "heart": "2764", "star": "2B50", "balloon": "1F388", "gift": "1F381",
        "snowman": "26C4",
    },
}  # fmt: skip

OBJECT_GROUPS: dict[str, tuple[str, ...]] = {group: tuple(codes) for group, codes in _CODES.items()}
OBJECTS: tuple[str, ...] = tuple(name for names in OBJECT_GROUPS.values() for name in names)

# Behind the course's 64 come 936 more, so that the same course can be run with a longer list: wherever a function takes
# `objects=n`, it means the first n of ALL_OBJECTS. An object's index is its place in this list and never changes. A row
# is [name, code point, group]; most names are OpenMoji's own annotations.
_MORE: list[list[str]] = json.loads(files("course_utils.data").joinpath("more_objects.json").read_text("utf-8"))
ALL_OBJECTS: tuple[str, ...] = OBJECTS + tuple(name for name, _, _ in _MORE)
CODE_POINTS: dict[str, str] = {name: code for codes in _CODES.values() for name, code in codes.items()}
CODE_POINTS |= {name: code for name, code, _ in _MORE}

# Backgrounds (red, green, blue in 0 ... 255). Found by a search: any two stay at least 15 CIEDE2000 units apart
# for normal eyes and in each kind of colour blindness, and none is so dark that it hides black outlines.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (192, 0, 30),
    "orange": (242, 112, 26),
    "yellow": (254, 216, 0),
    "green": (64, 198, 128),
    "blue": (50, 112, 240),
    "pink": (252, 144, 214),
    "white": (255, 255, 255),
    "gray": (116, 116, 116),
}
SIZES: tuple[str, ...] = ("small", "large")
PLACES: tuple[str, ...] = ("middle", "left", "right", "top", "bottom")

ATTRIBUTES: tuple[str, ...] = ("object", "color", "size", "place")
VALUES: dict[str, tuple[str, ...]] = {
    "object": OBJECTS,
    "color": tuple(COLORS),
    "size": SIZES,
    "place": PLACES,
}

_OBJECT_INDEX = {name: i for i, name in enumerate(ALL_OBJECTS)}


def first_objects(objects: int = len(OBJECTS)) -> tuple[str, ...]:
    """The first `objects` of ALL_OBJECTS: by default the course's 64. Raises ValueError for more than there are."""
    if not 1 <= objects <= len(ALL_OBJECTS):
        raise ValueError(f"objects must lie in 1 ... {len(ALL_OBJECTS)}, not {objects}")
    return ALL_OBJECTS[:objects]


def value_index(attribute: str, name: str) -> int:
    """Index of a value such as ("color", "red") in its list, of an object in ALL_OBJECTS.

    Raises ValueError that names the values there are.
    """
    if attribute not in VALUES:
        raise ValueError(f"unknown attribute {attribute!r}; there are {', '.join(ATTRIBUTES)}")
    if attribute == "object" and name in _OBJECT_INDEX:
        return _OBJECT_INDEX[name]
    if name not in VALUES[attribute]:
        more = f" and {len(_MORE)} more in ALL_OBJECTS" if attribute == "object" else ""
        raise ValueError(f"unknown {attribute} {name!r}; there are {', '.join(VALUES[attribute])}{more}")
    return VALUES[attribute].index(name)


def value_name(attribute: str, index: int) -> str:
    """The inverse of `value_index`: the value at an index of its list, of an object in ALL_OBJECTS.

    Raises ValueError for an index outside the list.
    """
    if attribute not in VALUES:
        raise ValueError(f"unknown attribute {attribute!r}; there are {', '.join(ATTRIBUTES)}")
    values = ALL_OBJECTS if attribute == "object" else VALUES[attribute]
    if not 0 <= index < len(values):
        raise ValueError(f"the index of {attribute} lies in 0 ... {len(values) - 1}, not {index}")
    return values[index]


def is_held_out_color(object: str, color: str) -> bool:
    """True if this object never appears on this background in training (51 of the 512 pairs of 64 objects)."""
    i, c = value_index("object", object), value_index("color", color)
    return i % 5 != 2 and c == 3 * i % len(COLORS)


def is_held_out_place(object: str, place: str) -> bool:
    """True if this object never appears at this place in training (32 of the 320 pairs of 64 objects)."""
    i, p = value_index("object", object), value_index("place", place)
    return i % 2 == 0 and p == (i // 2) % len(PLACES)


def held_out_pairs(objects: int = len(OBJECTS)) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """All held-out (object, color) pairs and all held-out (object, place) pairs of the first `objects` of ALL_OBJECTS.

    Whether a pair is held out does not depend on `objects`: a longer list only adds pairs behind a shorter one's.
    """
    names = first_objects(objects)
    colors = [(name, color) for name in names for color in COLORS if is_held_out_color(name, color)]
    places = [(name, place) for name in names for place in PLACES if is_held_out_place(name, place)]
    return colors, places
