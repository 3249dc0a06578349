from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from course_utils.data.captions import PLACE_PHRASES, SIZE_WORDS, TEMPLATES, fill_template
from course_utils.data.scenes import (
    ATTRIBUTES,
    CANVAS,
    CELL,
    COLORS,
    OBJECT_GROUPS,
    OBJECTS,
    PLACES,
    SIZES,
    VALUES,
    Scene,
    caption,
    draw,
    held_out_pairs,
    is_held_out,
    is_held_out_color,
    is_held_out_place,
    object_box,
    parse_caption,
    prompt_for,
    random_scene,
    shifts,
)
from course_utils.data.sprites import sprite


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def object_mask(picture: np.ndarray, scene: Scene) -> np.ndarray:
    return (np.abs(picture.astype(int) - COLORS[scene.color]) > 40).any(axis=-1)


# Colours: differences as people see them, normal-sighted or not.

# sRGB (linear) -> what a person without one kind of cone sees: Machado, Oliveira and Fernandes 2009, severity 1.0.
VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def to_lab(rgb, vision) -> np.ndarray:
    c = np.asarray(rgb, dtype=float) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(vision) @ linear, 0, 1)
    t = TO_XYZ @ seen / TO_XYZ.sum(axis=1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(lab1, lab2) -> float:
    """Colour difference of Luo, Cui and Rigg 2001, in the steps of Sharma, Wu and Dalal 2005."""
    (l1, a1, b1), (l2, a2, b2) = lab1, lab2
    mean_c = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(mean_c**7 / (mean_c**7 + 25**7)))
    c1, c2 = np.hypot((1 + g) * a1, b1), np.hypot((1 + g) * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, (1 + g) * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    gap = ((h2 - h1 + 180) % 360 - 180) if c1 * c2 else 0.0
    dl, dc, dh = l2 - l1, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(gap / 2))
    hue = (h1 + gap / 2) % 360 if c1 * c2 else h1 + h2
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2

    def cos(degrees):
        return np.cos(np.radians(degrees))

    t = 1 - 0.17 * cos(hue - 30) + 0.24 * cos(2 * hue) + 0.32 * cos(3 * hue + 6) - 0.20 * cos(4 * hue - 63)
    sl = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    sc, sh = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    turn = -2 * np.sqrt(chroma**7 / (chroma**7 + 25**7))
    turn *= np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    return float(np.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dh / sh) ** 2 + turn * dc / sc * dh / sh))


def test_the_colour_difference_reproduces_published_values():
    # Pairs 1, 17 and 24 of the test data in Sharma, Wu and Dalal 2005.
    assert ciede2000((50, 2.6772, -79.7751), (50, 0, -82.7485)) == pytest.approx(2.0425, abs=1e-4)
    assert ciede2000((50, 2.5, 0), (73, 25, -18)) == pytest.approx(27.1492, abs=1e-4)
    assert ciede2000((50, 2.5, 0), (50, 3.2592, 0.3350)) == pytest.approx(1.0000, abs=1e-4)


@pytest.mark.parametrize("vision, apart", [("normal", 27), *((v, 15) for v in list(VISION)[1:])])
def test_backgrounds_stay_apart(vision, apart):
    labs = {name: to_lab(rgb, VISION[vision]) for name, rgb in COLORS.items()}
    differences = {(a, b): ciede2000(labs[a], labs[b]) for a, b in itertools.combinations(COLORS, 2)}
    assert min(differences.values()) > apart, min(differences, key=differences.get)


def test_no_background_hides_black_outlines():
    assert min(to_lab(rgb, VISION["normal"])[0] for rgb in COLORS.values()) > 38


# Vocabulary and held-out pairs.


def test_vocabulary():
    assert len(OBJECTS) == len(set(OBJECTS)) == 64 and len(COLORS) == 8
    assert tuple(itertools.chain(*OBJECT_GROUPS.values())) == OBJECTS and len(OBJECT_GROUPS) >= 5
    words = [*OBJECTS, *COLORS, *SIZES, *PLACES]
    assert len(words) == len(set(words)) and all(word.isalpha() and word.islower() for word in words)


def test_held_out_pairs_are_a_tenth_and_spread_out():
    colors, places = held_out_pairs()
    assert len(colors) == 51 and len(places) == 32
    for pairs, values in ((colors, COLORS), (places, PLACES)):
        assert max(Counter(name for name, _ in pairs).values()) == 1
        counts = Counter(value for _, value in pairs)
        assert set(counts) == set(values) and max(counts.values()) - min(counts.values()) <= 1
        for group in OBJECT_GROUPS.values():
            assert any(name in group for name, _ in pairs)
    assert all(is_held_out_color(*pair) for pair in colors) and all(is_held_out_place(*pair) for pair in places)


def test_splits():
    g = generator()
    train = [random_scene(g, "train") for _ in range(3000)]
    assert not any(is_held_out(scene) for scene in train)
    assert all(is_held_out(random_scene(g, "held_out")) for _ in range(500))
    share = np.mean([is_held_out(random_scene(g, "all")) for _ in range(2000)])
    assert 0.13 < share < 0.26
    seen = {a: Counter(getattr(scene, a) for scene in train) for a in ATTRIBUTES}
    for attribute, counts in seen.items():
        assert set(counts) == set(VALUES[attribute])
        assert min(counts.values()) > 0.4 * len(train) / len(counts)
    with pytest.raises(ValueError, match="unknown split 'test'"):
        random_scene(g, "test")


def test_scenes_are_reproducible():
    a, b = generator(3), generator(3)
    assert [random_scene(a) for _ in range(20)] == [random_scene(b) for _ in range(20)]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"object": "unicorn"}, "unknown object 'unicorn'"),
        ({"color": "mauve"}, "unknown color 'mauve'"),
        ({"size": "huge"}, "unknown size 'huge'; there are small, large"),
        ({"place": "corner"}, "unknown place 'corner'"),
        ({"dx": 9}, "not 9 and 0"),
    ],
)
def test_impossible_scenes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Scene(**{"object": "dog", "color": "red", **wrong})


def test_attributes_are_indices():
    o, c, s, p = Scene("cat", "blue", "small", "top").attributes
    assert (OBJECTS[o], tuple(COLORS)[c], SIZES[s], PLACES[p]) == ("cat", "blue", "small", "top")


# Drawing.


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_is_drawn_where_and_as_large_as_said(name):
    for size, place in itertools.product(SIZES, PLACES):
        scene = Scene(name, "blue" if name not in ("whale", "diamond") else "red", size, place)
        picture = draw(scene)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        mask = object_mask(picture, scene)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        assert scene.pixels - 3 <= side <= scene.pixels == {"small": 30, "large": 46}[size]
        left, top, w, h = object_box(scene)
        assert left <= columns[0] and columns[-1] < left + w and top <= rows[0] and rows[-1] < top + h
        margins = {"left": left, "right": 64 - left - w, "top": top, "bottom": 64 - top - h}
        off_x, off_y = left + w / 2 - 32, top + h / 2 - 32
        if place == "middle":
            assert max(abs(off_x), abs(off_y)) <= 0.5
        else:
            assert 1 <= margins[place] <= CELL and margins[place] == min(margins.values())
            off, along = (off_x, off_y) if place in ("left", "right") else (off_y, off_x)
            assert abs(off) >= CELL - 0.5 and abs(along) <= 0.5


@pytest.mark.parametrize("name", ("dog", "carrot", "key"))
def test_an_object_moves_by_whole_cells(name):
    """So the picture of one place, moved, is the picture of another: what the VAE sees of an object never changes."""
    for size in SIZES:
        middle = Scene(name, "blue", size)
        for place in PLACES[1:]:
            for dx, dy in shifts(size, place):
                scene = Scene(name, "blue", size, place, dx=dx, dy=dy)
                (x, y, *_), (x0, y0, *_) = object_box(scene), object_box(middle)
                assert (x - x0) % CELL == 0 and (y - y0) % CELL == 0 and (x, y) != (x0, y0)
                assert (np.roll(draw(middle), (y - y0, x - x0), axis=(0, 1)) == draw(scene)).all()
        scenes = [Scene(name, "blue", size, p, dx=dx, dy=dy) for p in PLACES for dx, dy in shifts(size, p)]
        assert len({object_box(scene) for scene in scenes}) == len(scenes)


@pytest.mark.parametrize("color", COLORS)
def test_every_object_shows_on_every_background(color):
    for name in OBJECTS:
        scene = Scene(name, color, "small")
        assert object_mask(draw(scene), scene).sum() >= 60, name


def test_objects_stay_inside_and_the_corners_show_the_background():
    g = generator(1)
    for _ in range(300):
        scene = random_scene(g, "all")
        picture = draw(scene)
        frame = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert (frame == COLORS[scene.color]).all()


def test_flip_mirrors():
    left = draw(Scene("horse", "green", "large", "left"))
    right = draw(Scene("horse", "green", "large", "right", flip=True))
    assert (left == right[:, ::-1]).all() and (left != draw(Scene("horse", "green", "large", "right"))).any()


def test_jitter_moves_the_object():
    still, moved = draw(Scene("star", "red")), draw(Scene("star", "red", dx=2, dy=-1))
    assert (np.roll(still, (-1, 2), axis=(0, 1)) == moved).all()


@pytest.mark.parametrize("size", [8, 32, 128])
def test_other_picture_sizes_show_the_same_scene(size):
    scene = Scene("apple", "white", "large", "top", dx=1)
    picture = draw(scene, size)
    assert picture.shape == (size, size, 3)
    if size > CANVAS:
        halved = picture.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - draw(scene)).mean() < 8
    with pytest.raises(ValueError, match="at least 8"):
        draw(scene, 4)


def test_objects_differ_from_one_another():
    pictures = torch.from_numpy(np.stack([draw(Scene(name, "white")) for name in OBJECTS])).flatten(1).float()
    distances = torch.cdist(pictures, pictures, p=1) / pictures.shape[1] + 255 * torch.eye(64)
    assert distances.min() > 9  # on average over all 64 x 64 pixels, of 255


def test_sprites_are_premultiplied_and_guarded():
    ink, keep = sprite("dog", 40)
    assert max(ink.shape) == 40 and keep.shape == (*ink.shape[:2], 1)
    assert ink.min() >= 0 and (ink <= 255 * (1 - keep) + 1e-3).all() and 0 <= keep.min() < keep.max() <= 1
    with pytest.raises(ValueError):
        ink[0, 0, 0] = 1
    with pytest.raises(ValueError, match="at least 1 pixel"):
        sprite("dog", 0)


# Captions.


def test_every_sentence_of_the_grammar_can_be_read_back():
    for i, (template, name, color) in enumerate(itertools.product(TEMPLATES, OBJECTS, COLORS)):
        # Each combination of words for size and place turns up with each template and colour.
        words = [(None, None), *((size, word) for size, ws in SIZE_WORDS.items() for word in ws)]
        phrases = [(None, None), *((place, phrase) for place, ps in PLACE_PHRASES.items() for phrase in ps)]
        size, word = words[i % len(words)]
        place, phrase = phrases[i // len(words) % len(phrases)]
        wanted = {"object": name, "color": color, "size": size, "place": place}
        text = fill_template(template, name, color, word, phrase)
        assert parse_caption(text) == {k: v for k, v in wanted.items() if v is not None}, text


def test_captions_say_what_is_there_and_vary():
    g = generator(5)
    said, middle, texts = Counter(), Counter(), set()
    for _ in range(3000):
        scene = random_scene(g)
        text = caption(scene, g)
        for attribute, value in parse_caption(text).items():
            assert getattr(scene, attribute) == value, text
            said[attribute] += 1
            middle[attribute] += scene.place == "middle"
        texts.add(caption(Scene("dog", "red", "small", "top"), g))
    assert said["object"] == said["color"] == 3000
    assert 0.45 < said["size"] / 3000 < 0.55 and 0.55 < said["place"] / 3000 < 0.65
    assert 0.55 < middle["place"] / middle["object"] < 0.65  # no place is said more seldom than the others
    assert len(TEMPLATES) >= 8 and len(texts) > 40


def test_articles_and_spacing():
    g = generator(6)
    for _ in range(500):
        text = caption(random_scene(g), g)
        assert text == " ".join(text.split()) and text == text.lower()
        words = text.replace(",", "").split()
        for article, word in itertools.pairwise(words):
            assert article not in ("a", "an") or (article == "an") == (word[0] in "aeiou"), text


def test_prompts():
    assert prompt_for("dog", "red") == "a dog on a red background"
    assert prompt_for("apple", "orange", "small") == "a small apple on an orange background"
    top = prompt_for("dog", "red", "small", "top")
    assert top == "a small dog at the top of a red background"
    assert prompt_for("cat", "blue", place="middle") == "a cat in the middle of a blue background"
    for combination in itertools.product(OBJECTS[:5], COLORS, (None, *SIZES), (None, *PLACES)):
        wanted = {k: v for k, v in zip(ATTRIBUTES, combination, strict=True) if v is not None}
        assert parse_caption(prompt_for(*combination)) == wanted
    with pytest.raises(ValueError, match="unknown color 'mauve'"):
        prompt_for("dog", "mauve")


def test_parsing_free_text():
    assert parse_caption("A RED car, on a blue background!") == {"object": "car", "color": "blue"}
    assert parse_caption("the background is green: little pig") == {
        "object": "pig",
        "color": "green",
        "size": "small",
    }
    assert parse_caption("grey background, a star in the centre")["color"] == "gray"
    assert parse_caption("something else") == {}
    with pytest.raises(ValueError, match="more than one object: dog, cat"):
        parse_caption("a dog and a cat on a red background")
