"""The longer list of objects: the course's 64 stay as they are, and 936 more can be drawn, said and read back."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from importlib.resources import files

import numpy as np
import pytest
import torch

from course_utils.data.batches import CaptionedImages
from course_utils.data.captions import PLACE_PHRASES, SIZE_WORDS, TEMPLATES, fill_template, with_article
from course_utils.data.scenes import (
    ALL_OBJECTS,
    ATTRIBUTES,
    COLORS,
    OBJECTS,
    PLACES,
    VALUES,
    Scene,
    caption,
    draw,
    first_objects,
    held_out_pairs,
    is_held_out,
    is_held_out_color,
    is_held_out_place,
    parse_caption,
    prompt_for,
    random_scene,
    value_index,
    value_name,
)
from course_utils.data.sprites import _artwork_folder, sprite
from course_utils.data.vocabulary import CODE_POINTS
from course_utils.models.tokenizer import Tokenizer

MORE = json.loads(files("course_utils.data").joinpath("more_objects.json").read_text("utf-8"))
NEW = ALL_OBJECTS[len(OBJECTS) :]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The course's 64.


@pytest.mark.parametrize(
    "split, expected",
    [
        ("train", "7170cbc6d848c3535b2b5d233fd481cff835c74e26e3583a849ec5022f8b7102"),
        ("held_out", "d665615b7188dd48f11b786e0d2bc2638d86a168e2c82d22000b7c036cbf3323"),
        ("all", "cbcba930730d8af2bdbbaebf3489a69da416205182688acb27ef59dc9d714066"),
    ],
)
def test_scenes_of_the_course_are_those_that_its_weights_have_learned(split, expected):
    scenes = CaptionedImages.scenes(200, seed=5, split=split)
    digest = hashlib.sha256(scenes.images.numpy().tobytes())
    digest.update("\n".join(scenes.captions).encode())
    digest.update(scenes.attributes.numpy().tobytes())
    assert digest.hexdigest() == expected


def test_the_course_has_64_objects_and_they_come_first():
    assert VALUES["object"] == OBJECTS == ALL_OBJECTS[:64] == first_objects()
    assert [value_index("object", name) for name in ALL_OBJECTS] == list(range(1000))
    with pytest.raises(ValueError, match=r"unknown object 'gryphon'; there are dog, .* and 936 more in ALL_OBJECTS"):
        value_index("object", "gryphon")


# The table.


def test_the_table_has_1000_different_objects_with_artwork():
    assert len(MORE) == 936 and len(set(ALL_OBJECTS)) == len(CODE_POINTS) == len(set(CODE_POINTS.values())) == 1000
    there = {path.stem for path in _artwork_folder().glob("*.svg")}
    assert set(CODE_POINTS.values()) <= there
    assert all(re.fullmatch(r"[a-z]{2,}( [a-z]{2,})?", name) for name in NEW)
    assert {group for _, _, group in MORE[:136]} == {
        "animals", "food", "plants", "things", "vehicles", "buildings", "clothing", "sports", "music", "tools",
        "weather",
    }  # fmt: skip
    assert all(group in ("faces", "people", "body", "signs") for _, _, group in MORE[-150:])


def test_names_say_nothing_that_the_grammar_says_otherwise():
    taken = set("grey centre black brown purple of the a an and with is there background picture".split())
    taken |= set("one two three four five six seven eight nine ten above below under over beside next on in at".split())
    taken |= {w for ws in SIZE_WORDS.values() for w in ws} | set(COLORS) | set(PLACES) | {"center"}
    taken |= {w for phrases in PLACE_PHRASES.values() for phrase in phrases for w in phrase.split()}
    wrong = [name for name in ALL_OBJECTS if set(name.split()) & taken]
    assert not wrong
    plurals = {f"{name}{ending}" for name in OBJECTS for ending in ("s", "es")}
    assert not plurals & set(ALL_OBJECTS)
    # "an unicorn" would be wrong: names whose article does not follow the first letter are not in the list.
    odd = re.compile(r"(u(ni|s|ku|r[ei]|ti)|eu|ew|one|hour|hon(est|our)|heir|x )")
    assert not [name for name in ALL_OBJECTS if odd.match(name)]
    assert with_article("umbrella") == "an umbrella"


@pytest.mark.parametrize("size", ["small", "large"])
def test_every_object_is_drawn_and_shows_on_every_background(size):
    for name in NEW:
        ink, keep = sprite(name, 24 if size == "small" else 41)
        assert max(keep.shape[:2]) == (24 if size == "small" else 41)
        for color in COLORS.values():
            drawn = np.abs(ink + keep * np.float32(color) - np.float32(color)) > 40
            assert drawn.any(axis=-1).sum() >= 60, (name, color)


def test_no_two_objects_look_alike():
    """Laid over one another, two differ by 0.2 or more of the mean of what sets each off from the background."""
    side, pictures = 40, []
    for name in ALL_OBJECTS:
        ink, keep = sprite(name, side)
        (h, w, _), canvas = ink.shape, np.zeros((side, side, 4), dtype=np.float32)
        top, left = (side - h) // 2, (side - w) // 2
        canvas[..., 3] = 1
        canvas[top : top + h, left : left + w] = np.concatenate([ink, keep], axis=2)
        pictures.append(canvas)
    drawn = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # [1000, 4, side, side]
    drawn = torch.nn.functional.avg_pool2d(drawn, 2)
    for color in ("white", "red"):
        background = torch.tensor(COLORS[color], dtype=torch.float32)[None, :, None, None]
        ink = drawn[:, :3] + (drawn[:, 3:] - 1) * background  # what is added to the background
        strength = ink.abs().flatten(1).mean(dim=1)
        for other in (ink, ink.flip(3)):
            apart = torch.cdist(ink.flatten(1), other.flatten(1), p=1) / ink[0].numel()
            apart = apart / (0.5 * (strength[:, None] + strength[None])) + torch.eye(1000)
            first, second = divmod(int(apart.argmin()), 1000)
            assert apart.min() > 0.2, (color, ALL_OBJECTS[first], ALL_OBJECTS[second])


# Indices, pairs, scenes.


def test_values_have_an_index_and_back():
    for attribute, values in {**VALUES, "object": ALL_OBJECTS}.items():
        assert [value_name(attribute, value_index(attribute, v)) for v in values] == list(values)
    for attribute, index, message in (
        ("object", 1000, "0 ... 999, not 1000"),
        ("color", -1, "0 ... 7, not -1"),
        ("age", 0, "unknown attribute 'age'"),
    ):
        with pytest.raises(ValueError, match=message):
            value_name(attribute, index)


@pytest.mark.parametrize("objects", [64, 200, 1000])
def test_a_tenth_is_held_out_of_a_list_of_any_length(objects):
    colors, places = held_out_pairs(objects)
    assert 0.095 < len(colors) / (8 * objects) < 0.105 and 0.095 < len(places) / (5 * objects) < 0.105
    shorter = held_out_pairs()
    assert (colors[:51], places[:32]) == shorter
    assert all(is_held_out_color(*pair) for pair in colors) and all(is_held_out_place(*pair) for pair in places)
    g = generator(objects)
    train = [random_scene(g, "train", objects) for _ in range(4 * objects)]
    assert not any(is_held_out(scene) for scene in train)
    assert all(is_held_out(random_scene(g, "held_out", objects)) for _ in range(300))
    names = {scene.object for scene in train}
    assert names <= set(first_objects(objects)) and len(names) > 0.95 * objects


@pytest.mark.parametrize("objects", [0, 1001, -3])
def test_a_list_has_1_to_1000_objects(objects):
    for ask in (first_objects, held_out_pairs, lambda n: random_scene(generator(), objects=n)):
        with pytest.raises(ValueError, match=f"objects must lie in 1 ... 1000, not {objects}"):
            ask(objects)


def test_scenes_of_many_objects_keep_the_interface():
    scenes = CaptionedImages.scenes(120, seed=2, objects=1000)
    assert scenes.images.shape == (120, 3, 64, 64) and scenes.attributes[:, 0].max() > 500
    for text, (o, c, _, _) in zip(scenes.captions, scenes.attributes.tolist(), strict=True):
        found = parse_caption(text)
        assert (found["object"], found["color"]) == (ALL_OBJECTS[o], tuple(COLORS)[c]), text
    again = CaptionedImages.scenes(30, seed=2, objects=1000)
    assert torch.equal(again.images, scenes.images[:30])


@pytest.mark.parametrize("size", [96, 128])
def test_larger_pictures_show_the_same_scenes(size):
    for seed in range(40):
        scene = random_scene(generator(seed), "all", objects=1000)
        small, large = draw(scene), draw(scene, size)
        assert large.shape == (size, size, 3)
        boxes = []
        for picture in (small, large):
            mask = (np.abs(picture.astype(int) - COLORS[scene.color]) > 40).any(axis=-1)
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            edges = np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1])
            boxes.append(edges * 64 / len(picture))
        assert np.abs(boxes[0] - boxes[1]).max() < 2.5, scene


# Captions.


def test_every_name_can_be_said_and_read_back():
    for i, name in enumerate(ALL_OBJECTS):
        color = tuple(COLORS)[i % 8]
        wanted = {"object": name, "color": color, "size": ("small", "large")[i % 2], "place": PLACES[i % 5]}
        assert parse_caption(prompt_for(**wanted)) == wanted
        for template, phrase in itertools.product(TEMPLATES, (None, "at the top")):
            found = parse_caption(fill_template(template, name, color, None, phrase))
            assert (found["object"], found["color"]) == (name, color), name


def test_the_longest_name_wins():
    inside = [(a, b) for a, b in itertools.permutations(ALL_OBJECTS, 2) if " " in b and a in b.split()]
    assert len(inside) > 50  # such as "bear" in "teddy bear"
    for short, long in inside:
        assert parse_caption(f"a picture of a {long}, red background")["object"] == long != short
    with pytest.raises(ValueError, match="more than one object: teddy bear, bear"):
        parse_caption("a teddy bear and a bear")


@pytest.mark.parametrize("objects, vocab_size", [(64, 1024), (200, 2048), (1000, 4096)])
def test_captions_fit_into_16_tokens_and_each_word_is_one(objects, vocab_size):
    g = generator(objects)
    captions = [caption(random_scene(g, objects=objects), g) for _ in range(16 * objects)]
    tokenizer = Tokenizer.train(captions, vocab_size, max_length=16)
    longest = [
        fill_template(template, name, "orange", "little", phrase)
        for template in TEMPLATES
        for name in first_objects(objects)
        for phrase in ("in the center", "at the bottom")
    ]
    assert max(len(tokenizer.tokenize(text)) + 2 for text in {*captions, *longest}) <= 16
    words = {word for name in first_objects(objects) for word in name.split()}
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)


def test_attributes_of_a_scene_count_in_the_longer_list():
    scene = Scene("teddy bear", "red")
    assert scene.attributes[0] == ALL_OBJECTS.index("teddy bear") >= 64
    assert dict(zip(ATTRIBUTES, scene.attributes, strict=True))["color"] == 0
