from __future__ import annotations

from collections import Counter

import pytest
import torch

from course_utils.data.compositions import compositions, is_held_out_count, is_held_out_pair
from course_utils.data.descriptions import TASKS, Description, parse_description
from course_utils.data.vocabulary import is_held_out_color
from course_utils.evaluation.detector import Detection, Detector, DetectorConfig, Seen
from course_utils.evaluation.geneval import (
    STABLE_DIFFUSION_15,
    Cell,
    make_task_prompts,
    relations_between,
    score_real_pictures,
    score_table,
    scores_of,
    splits_of,
    verdict,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seen(*objects: tuple, color: str = "red") -> Seen:
    """seen(("dog", 16, 32), ...): objects with x, y, then maybe size and score."""
    return Seen([Detection(*o[:3], *(o[3:] or (24.0,)), *(() if len(o) > 4 else (0.9,))) for o in objects], color)


DOG, CAT = ("dog", 16, 32), ("cat", 48, 32)


@pytest.mark.parametrize(
    "text, picture, right, reason",
    [
        ("a dog", seen(DOG), True, ""),
        ("a dog", seen(DOG, CAT), True, ""),  # other things may be there, as in GenEval
        ("a dog", seen(CAT), False, "no dog"),
        ("a dog", seen(), False, "no dog"),
        ("a dog and a cat", seen(CAT, DOG), True, ""),
        ("a dog and a cat", seen(DOG), False, "no cat"),
        ("a dog and a cat", seen(("cow", 3, 3)), False, "no dog and no cat"),
        ("two dogs", seen(DOG, ("dog", 48, 48)), True, ""),
        ("two dogs", seen(DOG), False, "1 instead of 2"),
        ("two dogs", seen(DOG, ("dog", 48, 48), ("dog", 48, 10)), False, "3 instead of 2"),
        ("one dog", seen(DOG, CAT), True, ""),
        ("a dog on a red background", seen(DOG), True, ""),
        ("a dog on a blue background", seen(DOG), False, "on red"),
        ("a dog and a cat on a blue background", seen(DOG, CAT), True, ""),  # a colour beside another task
        ("a dog left of a cat", seen(DOG, CAT), True, ""),
        ("a cat right of a dog", seen(DOG, CAT), True, ""),
        ("a dog right of a cat", seen(DOG, CAT), False, "dog left of cat"),
        ("a dog above a cat", seen(DOG, CAT), False, "dog left of cat"),
        ("a dog above a cat", seen(("dog", 30, 10), ("cat", 34, 50)), True, ""),
        ("a dog below a cat", seen(("dog", 30, 10), ("cat", 34, 50)), False, "dog above cat"),
        ("a dog left of a cat", seen(("dog", 30, 30), ("cat", 32, 30)), False, "dog near cat"),
        ("a dog left of a cat", seen(DOG), False, "no cat"),
        ("a small dog and a large cat", seen(("dog", 16, 32, 19), ("cat", 48, 32, 35)), True, ""),
        (
            "a large dog and a small cat",
            seen(("dog", 16, 32, 19), ("cat", 48, 32, 35)),
            False,
            "small dog and large cat",
        ),
        ("a small dog and a large cat", seen(("dog", 16, 32, 19), ("cat", 48, 32, 20)), False, "small cat"),
    ],
)
def test_verdicts(text, picture, right, reason):
    assert verdict(text, picture) == verdict(parse_description(text), picture)
    assert (verdict(text, picture).right, verdict(text, picture).reason) == (right, reason)


def test_the_surest_of_a_kind_counts():
    two_dogs = seen(("dog", 56, 32, 24, 0.5), ("dog", 8, 32, 24, 0.9), ("cat", 32, 32, 24, 0.8))
    assert verdict("a dog left of a cat", two_dogs).right and not verdict("a dog right of a cat", two_dogs).right


def test_relations():
    def at(x: float, y: float, size: float = 20) -> Detection:
        return Detection("dog", x, y, size, 1.0)

    centre = at(32, 32)
    assert relations_between(at(10, 32), centre) == {"left of"}
    assert relations_between(at(32, 60), centre) == {"below"}
    assert relations_between(at(12, 12), centre) == {"left of", "above"}  # a diagonal is both, as in GenEval
    assert relations_between(centre, centre) == set() == relations_between(at(34, 32), centre)
    assert relations_between(at(22, 32, 60), centre) == set()  # what is large must be further away


def test_real_pictures_are_right_when_seen_as_they_are():
    for task in TASKS:
        for split in ("train", "held_out"):
            _, made = compositions(40, seed=3, split=split, mixture={task: 1})
            for c in made:
                perfect = Seen([Detection(t.object, t.x, t.y, float(t.pixels), 1.0) for t in c.things], c.color)
                assert verdict(c.description(), perfect).right, c


@pytest.mark.parametrize("task", TASKS)
def test_prompts(task):
    for split in splits_of(task):
        prompts = make_task_prompts(40, generator(1), task, split)
        assert prompts == make_task_prompts(40, generator(1), task, split) and len(prompts) == 40
        asked = [parse_description(text) for text in prompts]
        assert {d.task for d in asked} == {task}
        rule = {
            "single": lambda d: False,
            "counting": lambda d: is_held_out_count(d.objects[0], d.count),
            "colors": lambda d: is_held_out_color(d.objects[0], d.color),
        }.get(task, lambda d: is_held_out_pair(*d.objects))
        assert all(rule(d) == (split == "held_out") for d in asked)
        if task == "counting":
            assert {d.count for d in asked} == {2, 3, 4}
            assert max(Counter(prompts).values()) == (1 if split == "seen" else 3)  # 19 cells are held out
        else:
            assert len(set(prompts)) == 40


def test_prompts_refuse_what_there_is_not():
    with pytest.raises(ValueError, match="combines nothing"):
        make_task_prompts(3, generator(), "single", "held_out")
    with pytest.raises(ValueError, match="split must be one of"):
        make_task_prompts(3, generator(), "two", "train")
    with pytest.raises(ValueError, match="unknown task 'three'"):
        make_task_prompts(3, generator(), "three")
    with pytest.raises(ValueError, match="n must be 1 or more"):
        make_task_prompts(0, generator(), "two")


def test_scores_and_table():
    looks = {
        "single": [("a dog", seen(DOG)), ("a cat", seen(DOG))],
        "position": [("a dog left of a cat", seen(DOG, CAT))],
    }
    cells = []
    for task, pairs in looks.items():
        prompts, verdicts = [text for text, _ in pairs], [verdict(text, s) for text, s in pairs]
        cells.append(Cell(task, "seen", prompts, torch.zeros(len(pairs), 3, 64, 64, dtype=torch.uint8), verdicts))
    cells.append(Cell("two", "held_out", ["a dog and a cat"], cells[1].pictures, [verdict("a dog and a cat", seen())]))
    scores = scores_of(cells, "seen")
    assert scores == {"single": 0.5, "position": 1.0, "overall": 0.75}
    assert scores_of(cells, "held_out") == {"two": 0.0, "overall": 0.0}
    table = score_table({"seen": scores}, 100)
    lines = table.splitlines()
    assert lines[2].split("|")[1:4] == [" single object ", " 50 % ", " 97 % "]
    assert "| two objects | – | 38 % |" in lines and "standard error at most 5.0 points" in table
    published = [STABLE_DIFFUSION_15[task] for task in TASKS]
    assert sum(published) / 6 == pytest.approx(STABLE_DIFFUSION_15["overall"], abs=0.006)
    assert Description(("dog",)).task in STABLE_DIFFUSION_15


def test_an_untrained_judge_finds_next_to_nothing_in_real_pictures():
    torch.manual_seed(0)
    changed = []
    detector = Detector(DetectorConfig(channels=(16, 24, 32)))
    scores = score_real_pictures(detector, 6, 0, "held_out", lambda x: changed.append(len(x)) or x)
    assert set(scores) == {*TASKS, "overall"} and scores["overall"] < 0.2 and changed == [6] * 6
    with pytest.raises(ValueError, match="split must be one of"):
        score_real_pictures(detector, 6, 0, "train")
