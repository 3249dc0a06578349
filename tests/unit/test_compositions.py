from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from course_utils.data.compositions import (
    Composition,
    composition_caption,
    compositions,
    draw_composition,
    is_held_out_composition,
    is_held_out_count,
    is_held_out_pair,
    random_composition,
)
from course_utils.data.descriptions import (
    COLOR_FRAMES,
    NUMBERS,
    PLAIN_FRAMES,
    PLURALS,
    RELATIONS,
    TASKS,
    Description,
    in_words,
    parse_description,
)
from course_utils.data.placing import GAP, PIXELS, Placed, distance, size_of
from course_utils.data.scenes import draw, is_held_out_color
from course_utils.data.vocabulary import ALL_OBJECTS, COLORS, OBJECTS
from course_utils.models.tokenizer import Tokenizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(task: str, n: int = 60, split: str = "train", seed: int = 0) -> list[Composition]:
    g = generator(seed)
    return [random_composition(g, split, task) for _ in range(n)]


# Words.


def test_plurals():
    wanted = {
        "apple": "apples", "butterfly": "butterflies", "cactus": "cacti", "fox": "foxes", "fish": "fish",
        "leaf": "leaves", "snowman": "snowmen", "key": "keys", "octopus": "octopuses", "bus": "buses",
    }  # fmt: skip
    assert {name: PLURALS[name] for name in wanted} == wanted
    assert set(PLURALS) == set(OBJECTS) and len(set(PLURALS.values())) == len(OBJECTS)
    assert not (set(PLURALS.values()) - {"fish"}) & set(OBJECTS)  # a plural is no other object's name


def test_plain_wordings():
    assert in_words(Description(("apple",))) == "an apple"
    assert in_words(Description(("dog",), "orange")) == "a dog on an orange background"
    assert in_words(Description(("dog", "umbrella"))) == "a dog and an umbrella"
    assert in_words(Description(("fox",), count=3)) == "three foxes"
    assert in_words(Description(("fox",), "red", count=1)) == "one fox on a red background"
    assert in_words(Description(("cat", "tree"), relation="left of")) == "a cat left of a tree"
    both = Description(("dog", "cat"), "red", sizes=("small", "large"))
    assert in_words(both) == "a small dog and a large cat on a red background"
    assert in_words(Description(("fox",), "red", count=2), frame=1) == "there are two foxes on a red background"


def every_description(names: tuple[str, str]):
    first, second = names
    for color in (None, *COLORS):
        yield Description((first,), color)
        yield from (Description((first,), color, count=n) for n in range(1, 5))
        yield Description((first, second), color)
        yield from (Description((first, second), color, relation=relation) for relation in RELATIONS)
        yield from (Description((first, second), color, sizes=s) for s in (("small", "large"), ("large", "small")))


@pytest.mark.parametrize("shift", [1, 7, 20])
def test_every_sentence_is_read_back(shift):
    frames = max(len(COLOR_FRAMES), len(PLAIN_FRAMES))
    for i, name in enumerate(OBJECTS):
        other = OBJECTS[(i + shift) % len(OBJECTS)]
        for k, description in enumerate(every_description((name, other))):
            text = in_words(description, frame=(i + k) % frames, word=(i + k) % 2)
            assert parse_description(text) == description, text


def test_tasks_and_swapping():
    tasks = {d.task for d in every_description(("dog", "cat"))}
    assert tasks == set(TASKS)
    d = Description(("cat", "tree"), "red", relation="above")
    assert d.swapped() == Description(("tree", "cat"), "red", relation="below")
    d = Description(("cat", "tree"), sizes=("small", "large"))
    assert d.swapped().sizes == ("large", "small") and d.swapped().swapped() == d
    assert all(RELATIONS[RELATIONS[relation]] == relation for relation in RELATIONS)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("A DOG, please!", Description(("dog",))),
        ("four cactuses", Description(("cactus",), count=4)),
        ("three fish", Description(("fish",), count=3)),
        ("a fish and a dog on a grey background", Description(("fish", "dog"), "gray")),
        ("the little pig to the right of the big bus", None),
        ("a big bus and a little pig", Description(("bus", "pig"), sizes=("large", "small"))),
    ],
)
def test_free_text(text, wanted):
    if wanted is None:
        with pytest.raises(ValueError, match="a relation or sizes, not both"):
            parse_description(text)
    else:
        assert parse_description(text) == wanted


@pytest.mark.parametrize(
    "text, message",
    [
        ("something red", "names 0 objects"),
        ("a dog, a cat and a cow", "names 3 objects"),
        ("a dog and a dog", "two different ones"),
        ("dogs", "does not say how many dogs"),
        ("two dogs and a cat", "one object is counted"),
        ("a dog left of and above a cat", "more than one relation: above, left of"),
        ("a dog on a red background, blue background", "more than one colour: blue, red"),
        ("a small dog and a cat", "gives a size to 1 of 2 objects"),
        ("a small dog and a small cat", "one small and one large"),
    ],
)
def test_bad_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_description(text)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"objects": ("unicorn",)}, "unknown object 'unicorn'"),
        ({"objects": (ALL_OBJECTS[len(OBJECTS)],)}, "this grammar has words for"),
        ({"objects": ()}, "one object, or two"),
        ({"color": "mauve"}, "unknown color 'mauve'"),
        ({"count": 5}, "from 1 to 4; got 5"),
        ({"relation": "near"}, "unknown relation 'near'; there are left of"),
        ({"relation": "above"}, "want two objects"),
    ],
)
def test_impossible_descriptions_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Description(**{"objects": ("dog",), **wrong})


# Held out.


def test_held_out_rules_are_a_tenth_and_spread_out():
    pairs = [pair for pair in itertools.combinations(OBJECTS, 2) if is_held_out_pair(*pair)]
    assert len(pairs) == 205 and all(is_held_out_pair(b, a) for a, b in pairs)
    often = Counter(name for pair in pairs for name in pair)
    assert set(often) == set(OBJECTS) and max(often.values()) - min(often.values()) <= 1
    cells = [(name, n) for name in OBJECTS for n in range(1, 5) if is_held_out_count(name, n)]
    assert len(cells) == 19 and Counter(n for _, n in cells).keys() == {2, 3, 4}
    assert max(Counter(name for name, _ in cells).values()) == 1


def test_training_never_shows_what_is_held_out():
    _, made = compositions(3000, seed=1)
    for c in made:
        names = [thing.object for thing in c.things]
        assert not any(is_held_out_pair(a, b) for a, b in itertools.combinations(names, 2))
        assert not (len(set(names)) == 1 and is_held_out_count(names[0], len(names)))
        assert not any(is_held_out_color(name, c.color) for name in names)
        assert not is_held_out_composition(c)
    assert {name for c in made for name in (thing.object for thing in c.things)} == set(OBJECTS)


@pytest.mark.parametrize("task", TASKS)
def test_held_out_pictures_show_one_new_thing(task):
    for c in some(task, split="held_out"):
        names = [thing.object for thing in c.things]
        assert is_held_out_composition(c)
        if task in ("two", "position", "binding"):
            assert is_held_out_pair(*names)
        if task == "counting":
            assert is_held_out_count(names[0], len(names))
        if task == "colors":
            assert is_held_out_color(names[0], c.color)
        if task not in ("single", "colors"):
            assert not any(is_held_out_color(name, c.color) for name in names)


def test_all_takes_what_comes():
    share = np.mean([is_held_out_composition(c) for task in ("two", "position") for c in some(task, 400, "all")])
    assert 0.15 < share < 0.4  # a tenth of the pairs, or one of two objects on a background held out for it


# Drawing.


@pytest.mark.parametrize("task", TASKS)
def test_pictures_show_what_they_say(task):
    for c in some(task, 40, seed=3):
        picture = draw_composition(c).astype(int)
        assert picture.shape == (64, 64, 3)
        drawn = (np.abs(picture - COLORS[c.color]) > 8).any(axis=-1)
        near = np.zeros((64, 64), dtype=bool)
        for thing in c.things:
            half = thing.pixels / 2 + 1
            box = np.s_[
                max(0, int(thing.y - half)) : int(thing.y + half) + 1,
                max(0, int(thing.x - half)) : int(thing.x + half) + 1,
            ]
            assert drawn[box].sum() > 0.15 * thing.pixels**1.5, (c, thing)
            near[box] = True
        assert not (drawn & ~near).any(), "something is drawn where no object stands"
        assert all(distance(a, b) >= GAP - 1 for a, b in itertools.combinations(c.things, 2))


def test_objects_do_not_touch():
    """With the background cut out, the objects of a picture fall apart into as many boxes as there are objects."""
    for c in [*some("counting", 60, seed=4), *some("two", 60, seed=4)]:
        for a, b in itertools.combinations(c.things, 2):
            across = abs(a.x - b.x) - (a.pixels + b.pixels) / 2, abs(a.y - b.y) - (a.pixels + b.pixels) / 2
            assert max(across) >= GAP - 1


def test_relations_and_sizes_are_unmistakable():
    for c in some("position", 200, seed=5):
        a, b = c.things
        dx, dy = b.x - a.x, b.y - a.y
        if c.relation in ("left of", "right of"):
            assert abs(dx) >= 22 and abs(dy) <= 6 and (dx > 0) == (c.relation == "left of")
        else:
            assert abs(dy) >= 22 and abs(dx) <= 6 and (dy > 0) == (c.relation == "above")
    for c in some("binding", 100, seed=6):
        small, large = sorted(c.things, key=lambda thing: thing.pixels)
        assert large.pixels >= 1.5 * small.pixels and (size_of(small), size_of(large)) == ("small", "large")
    counts = Counter(len(c.things) for c in some("counting", 400, seed=7))
    assert set(counts) == {1, 2, 3, 4} and min(counts.values()) > 60


@pytest.mark.parametrize("task", ["single", "colors"])
def test_one_object_is_drawn_as_in_the_first_grammar(task):
    for c in some(task, 30):
        assert np.array_equal(draw_composition(c), draw(c.scene)) and c.attributes == c.scene.attributes


def test_other_sizes():
    c = some("two", 1)[0]
    large, small = draw_composition(c, 128), draw_composition(c, 64)
    assert large.shape == (128, 128, 3)
    shrunk = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small).mean() < 6
    with pytest.raises(ValueError, match="at least 8 pixels"):
        draw_composition(c, 4)


DOG, CAT = Placed("dog", 16, 32, 24), Placed("cat", 46, 32, 24)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"task": "three"}, "unknown task 'three'; there are single, two"),
        ({"color": "mauve"}, "unknown color 'mauve'"),
        ({"things": (DOG,)}, "two different objects, got 1"),
        ({"things": (DOG, dataclasses.replace(DOG, x=46))}, "two different objects, got 2 of 1 kinds"),
        ({"things": (DOG, dataclasses.replace(CAT, x=36))}, "2 pixels apart"),
        ({"things": (DOG, dataclasses.replace(CAT, x=60))}, "does not lie within"),
        ({"things": (DOG, dataclasses.replace(CAT, object="unicorn"))}, "unknown object"),
        ({"relation": "left of"}, "only the task 'position' has one"),
        ({"task": "position"}, "only the task 'position' has one"),
        ({"task": "position", "relation": "right of"}, "clearly right of"),
        ({"task": "position", "relation": "left of", "things": (DOG, dataclasses.replace(CAT, y=45))}, "clearly left"),
        ({"task": "binding"}, "one small and one large"),
        ({"task": "counting"}, "of one kind, got 2 of 2 kinds"),
        ({"task": "single"}, "one object and has its scene"),
    ],
)
def test_impossible_compositions_are_refused(wrong, message):
    good = {"task": "two", "color": "red", "things": (DOG, CAT)}
    Composition(**good)
    with pytest.raises(ValueError, match=message):
        Composition(**{**good, **wrong})


# Captions.


@pytest.mark.parametrize("task", TASKS)
def test_captions_are_true(task):
    g = generator(2)
    texts = set()
    for c in some(task, 150):
        text = composition_caption(c, g)
        texts.add(text)
        said = parse_description(text)
        told = c.description(say_color=said.color is not None)
        assert said in (told, told.swapped() if len(told.objects) == 2 else told)
        assert said.task == ("colors" if task == "single" and said.color else task)
        assert said.color is None if task == "single" else said.color == c.color or task != "colors"
        assert parse_description(in_words(c.description())) == c.description()
        for article, word in itertools.pairwise(text.replace(",", "").split()):
            assert article not in ("a", "an") or (article == "an") == (word[0] in "aeiou"), text
    assert len(texts) > 60


def test_captions_fit_into_sixteen_tokens():
    dataset, _ = compositions(8000, seed=0)
    tokenizer = Tokenizer.train(dataset.captions, 1024, max_length=16)
    held_out, _ = compositions(1000, seed=1, split="held_out")
    words = {word for text in [*dataset.captions, *held_out.captions] for word in text.replace(",", "").split()}
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)  # each word of the grammar is one token
    longest = max(len(tokenizer.tokenize(text)) for text in {*dataset.captions, *held_out.captions})
    assert longest + 2 <= 16


# Picture sets.


def test_picture_sets():
    dataset, made = compositions(300, seed=4)
    again, made_again = compositions(100, seed=4)
    assert torch.equal(dataset.images[:100], again.images) and made[:100] == made_again
    assert dataset.captions[:100] == again.captions and len(made) == len(dataset) == 300
    assert set(Counter(c.task for c in made)) == set(TASKS)
    for c, row in zip(made, dataset.attributes.tolist(), strict=True):
        assert (min(row) >= 0) == (c.task in ("single", "colors")) and row[1] == list(COLORS).index(c.color)
    only, made = compositions(40, mixture={"two": 3, "counting": 1})
    assert Counter(c.task for c in made)["two"] > 20 and {c.task for c in made} == {"two", "counting"}
    assert only.images.shape == (40, 3, 64, 64) and len(NUMBERS) == 4 and PIXELS["small"][1] < PIXELS["large"][0]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n": 0}, "at least 1, not 0"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"mixture": {"three": 1}}, "shares, 0 or more, to tasks among single"),
        ({"mixture": {}}, "shares, 0 or more"),
        ({"mixture": {"two": 0}}, "shares, 0 or more"),
    ],
)
def test_bad_picture_sets_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        compositions(**{"n": 2, **wrong})
    with pytest.raises(ValueError, match="unknown task 'three'"):
        random_composition(generator(), task="three")
