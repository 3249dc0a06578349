"""Scores: the prompts, the batches, and that a perfect painter scores what real pictures do."""

from __future__ import annotations

import pytest
import torch

from course_utils.data.batches import CaptionedImages, to_float
from course_utils.data.scenes import ALL_OBJECTS, ATTRIBUTES, Scene, draw, held_out_pairs, is_held_out, parse_caption
from course_utils.evaluation import scores
from course_utils.evaluation.judge import Judge
from course_utils.evaluation.metrics import wanted_attributes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Oracle(Judge):
    """Reads the attributes off the first pixels of a picture, where `painter` has written them."""

    def predict(self, x, batch_size=256):
        return (x[:, 0, 0, :4] * 128).round().long()


def painter(prompts, generator):
    """Writes down what each prompt names, and -1 for what it does not."""
    pictures = torch.zeros(len(prompts), 3, 64, 64)
    pictures[:, 0, 0, :4] = wanted_attributes([parse_caption(p) for p in prompts]).float()
    return pictures / 128


class WideOracle(Judge):
    """As Oracle, for indices up to 999: in units of 1/1000."""

    def predict(self, x, batch_size=256):
        return (x[:, 0, 0, :4] * 1000).round().long()


def wide_painter(prompts, generator):
    return painter(prompts, generator) * 128 / 1000


def test_prompts_name_what_they_should_and_keep_to_their_split():
    colors, _ = held_out_pairs()
    for split in scores.SPLITS:
        prompts = scores.make_prompts(60, generator(), split)
        named = [parse_caption(p) for p in prompts]
        assert all(set(n) == {"object", "color"} for n in named)
        assert all(((n["object"], n["color"]) in colors) == (split == "held_out") for n in named)
    assert len(set(scores.make_prompts(51, generator(), "held_out"))) == 51  # each pair once before any comes twice
    for split in scores.SPLITS:
        named = [parse_caption(p) for p in scores.make_prompts(40, generator(), split, ATTRIBUTES)]
        assert all(is_held_out(Scene(**n)) == (split == "held_out") for n in named)


@pytest.mark.parametrize("objects", [200, 1000])
def test_prompts_about_more_objects(objects):
    held_out = set(held_out_pairs(objects)[0])
    for split in scores.SPLITS:
        prompts = scores.make_prompts(300, generator(), split, objects=objects)
        pairs = [tuple(parse_caption(p).values()) for p in prompts]
        assert len(set(pairs)) == min(300, len(held_out) if split == "held_out" else 300)
        assert all((pair in held_out) == (split == "held_out") for pair in pairs)
        known = ALL_OBJECTS[:objects]
        assert {name for name, _ in pairs} <= set(known) and any(name in known[64:] for name, _ in pairs)
        named = [parse_caption(p) for p in scores.make_prompts(60, generator(), split, ATTRIBUTES, objects)]
        assert all(is_held_out(Scene(**n)) == (split == "held_out") for n in named)
        assert any(n["object"] in known[64:] for n in named)
    prompts = scores.make_prompts(20, generator(), "held_out", objects=objects)
    assert scores.score_prompts(wide_painter, WideOracle(), prompts, generator())["object_and_color"] == 1
    with pytest.raises(ValueError, match="objects must lie in"):
        scores.make_prompts(3, generator(), objects=1001)


def test_prompts_of_scenes():
    rows = torch.tensor([Scene("dog", "red", "small", "top").attributes])
    assert scores.prompts_of(rows) == ["a small dog at the top of a red background"]
    assert scores.prompts_of(rows, ("object", "color")) == ["a dog on a red background"]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="split must be one of .*'train'"):
        scores.make_prompts(3, generator(), "train")
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        scores.make_prompts(0, generator())
    with pytest.raises(ValueError, match="object and color"):
        scores.make_prompts(3, generator(), named=("object", "size"))
    with pytest.raises(ValueError, match="no prompts"):
        scores.draw_for_prompts(painter, [], generator())
    with pytest.raises(ValueError, match="1 pictures for 3 prompts"):
        scores.draw_for_prompts(lambda prompts, g: torch.zeros(1, 3, 8, 8), ["a", "b", "c"], generator())


def test_pictures_come_in_batches_and_in_order():
    sizes = []

    def draws(prompts, generator):
        sizes.append(len(prompts))
        return torch.tensor([float(p) for p in prompts]).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8) * 3

    pictures = scores.draw_for_prompts(draws, [str(i / 10) for i in range(5)], generator(), batch_size=2)
    assert sizes == [2, 2, 1]
    assert pictures[:, 0, 0, 0].tolist() == pytest.approx([0, 0.3, 0.6, 0.9, 1.0])  # cut to [-1, 1]


def test_a_perfect_painter_scores_one_and_a_liar_does_not():
    prompts = scores.make_prompts(30, generator(), "held_out", ATTRIBUTES)
    right = scores.score_prompts(painter, Oracle(), prompts, generator())
    assert all(value == 1 for value in right.values())

    def wrong_color(prompts, generator):
        pictures = painter(prompts, generator)
        pictures[:, 0, 0, 1] += 1 / 128
        return pictures

    wrong = scores.score_prompts(wrong_color, Oracle(), prompts, generator())
    assert (wrong["object"], wrong["color"], wrong["object_and_color"], wrong["all_named"]) == (1, 0, 0, 0)


def test_real_pictures_are_as_near_as_the_floor_and_noise_is_not():
    torch.manual_seed(0)
    judge = Judge().eval()
    real, other = (to_float(CaptionedImages.scenes(256, seed=s).images) for s in (1, 2))
    distance, floor = scores.frechet_and_floor(judge, other, real, other)
    assert distance == pytest.approx(floor)
    noise = torch.rand(256, 3, 64, 64, generator=generator()) * 2 - 1
    assert scores.frechet_and_floor(judge, noise, real, other)[0] > 1.5 * floor
    with pytest.raises(ValueError, match="same size, got 255, 256 and 256"):
        scores.frechet_and_floor(judge, noise[1:], real, other)


def test_an_untrained_judge_scores_real_scenes_without_complaint():
    scene = Scene("dog", "red")
    picture = to_float(torch.from_numpy(draw(scene)).permute(2, 0, 1))[None]
    result = scores.score_pictures(Judge().eval(), picture, ["a dog on a red background"])
    assert set(result) == {*ATTRIBUTES, "object_and_color", "all_named"}
