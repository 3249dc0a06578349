from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from course_utils.data.scenes import OBJECTS, Scene, object_box, parse_caption, prompt_for, random_scene
from course_utils.evaluation.nearest import (
    box_psnr,
    draw_scenes,
    floor_scenes,
    nearest_scenes,
    random_true_scenes,
    sharpness,
    true_scenes,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def asked() -> tuple[list[Scene], list[str]]:
    g = generator(1)
    scenes = [random_scene(g, "all") for _ in range(12)]
    return scenes, [prompt_for(s.object, s.color, s.size, s.place) for s in scenes]


def test_true_scenes_are_all_that_a_prompt_may_show():
    g = generator(2)
    some = [random_scene(g, "all") for _ in range(300)]
    for scene in some[:40]:
        assert scene in true_scenes(scene.object, scene.color)
        assert scene in true_scenes(scene.object, scene.color, scene.size, scene.place)
    assert len(true_scenes("dog", "red", "large", "middle")) == 2  # flipped or not
    assert len(true_scenes("dog", "red", "small", "top")) == 6
    everything = true_scenes("dog", "red")
    assert len(set(everything)) == len(everything) == 2 * (5 + 1 + 4 * 3)
    assert {(s.size, s.place) for s in everything} == {(s.size, s.place) for s in some}


def test_a_true_scene_is_its_own_nearest_one_even_blurred_and_noisy(asked):
    scenes, prompts = asked
    pictures = draw_scenes(scenes)
    worse = F.avg_pool2d(pictures, 3, stride=1, padding=1, count_include_pad=False)
    worse = worse + 0.1 * torch.randn(pictures.shape, generator=generator())
    for shown, whose in ((pictures, "own"), (pictures, "any"), (worse, "own")):
        for scene, near in zip(scenes, nearest_scenes(shown, prompts, whose), strict=True):
            assert replace(near, flip=scene.flip) == scene  # books and hearts are nearly their own mirror images
    found = nearest_scenes(worse, prompts, "any")  # a book blurred to gray is nearer to an elephant than to a book
    assert sum(near.object == scene.object for scene, near in zip(scenes, found, strict=True)) >= 11


def test_it_agrees_with_trying_every_scene(asked):
    _, prompts = asked
    pictures = torch.rand(len(prompts), 3, 64, 64, generator=generator(3)) * 2 - 1
    for picture, prompt, near in zip(pictures, prompts, nearest_scenes(pictures, prompts), strict=True):
        named = parse_caption(prompt)
        choices = true_scenes(named.pop("object"), **named)
        errors = (draw_scenes(choices) - picture).square().flatten(1).sum(dim=1)
        assert errors.min().item() == pytest.approx((draw_scenes([near]) - picture).square().sum().item(), rel=1e-4)


def test_prompts_that_leave_size_and_place_open_are_met_by_all_of_them(asked):
    scenes, _ = asked
    prompts = [prompt_for(s.object, s.color) for s in scenes]
    found = nearest_scenes(draw_scenes(scenes), prompts)
    assert [(s.size, s.place) for s in found] == [(s.size, s.place) for s in scenes]


def test_box_psnr_counts_the_object_only():
    scene = Scene("dog", "red", "small", "left")
    true = draw_scenes([scene])
    left, top, w, h = object_box(scene)
    outside, inside = true.clone(), true.clone()
    outside[..., :, left + w :] = 0
    box = inside[..., top : top + h, left : left + w]
    box += torch.where(box > 0, -0.2, 0.2)
    assert box_psnr(outside, [scene])[0] == float("inf")
    assert box_psnr(inside, [scene])[0].item() == pytest.approx(20.0, abs=1e-3)  # 0.1 of the range everywhere


def test_a_wrong_object_is_found_out(asked):
    scenes, prompts = asked
    others = floor_scenes(scenes)
    assert all(o.object != s.object and o.color == s.color for o, s in zip(others, scenes, strict=True))
    assert all((o.size, o.place) == (s.size, s.place) for o, s in zip(others, scenes, strict=True))
    wrong, right = sharpness(draw_scenes(others), prompts), sharpness(draw_scenes(scenes), prompts)
    assert right.right == 1 and wrong.right == 0 and wrong.psnr < 13


def test_sharpness_falls_with_blur(asked):
    _, prompts = asked
    pictures = draw_scenes(random_true_scenes(prompts, generator(4)))
    blurred = [F.avg_pool2d(pictures, k, stride=1, padding=k // 2, count_include_pad=False) for k in (3, 5, 9)]
    found = [sharpness(x, prompts) for x in blurred]
    assert found[0].psnr > found[1].psnr > found[2].psnr
    assert found[0].right > 0.9 and found[0].right >= found[2].right
    assert all(0 < f.psnr_error < 1.5 for f in found)


def test_bad_input_is_refused():
    picture = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match="2 prompts need as many pictures, got 1"):
        nearest_scenes(picture, ["a dog on a red background"] * 2)
    with pytest.raises(ValueError, match="must name an object and a colour"):
        nearest_scenes(picture, ["something red"])
    with pytest.raises(ValueError, match="whose must be one of"):
        nearest_scenes(picture, ["a dog on a red background"], "mine")
    with pytest.raises(ValueError, match=r"\[N, 3, H, H\], got \[3, 64, 64\]"):
        nearest_scenes(picture[0], ["a dog on a red background"])


def test_other_sizes_of_pictures():
    scene = Scene("cat", "blue", "large", "top")
    picture = draw_scenes([scene], 96)
    assert nearest_scenes(picture, ["a cat on a blue background"]) == [scene]
    assert len(OBJECTS) == 64
