"""Scores by task, as GenEval makes them: a detector looks at each picture, and rules say if it shows what was asked.

After Ghosh, Hajishirzi and Schmidt 2023, "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment"
(arXiv 2310.11513), section 3. As there, a picture may hold other things beside those asked for, a number must be met
exactly, and where several objects of a kind are found the surest one counts. Two rules differ, since our pictures do:
the colour is the background's, and the attribute that is bound to an object is its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from course_utils.data.compositions import compositions, random_composition
from course_utils.data.descriptions import TASKS, Description, in_words, parse_description
from course_utils.data.placing import PIXELS
from course_utils.evaluation.detector import Detection, Detector, Seen, detect

SPLITS = ("seen", "held_out")
TITLES = {
    "single": "single object",
    "two": "two objects",
    "counting": "counting",
    "colors": "colours",
    "position": "position",
    "binding": "attribute binding",
}
# The paper's main results. Another test: 80 kinds of everyday things in photographs, coloured things instead of
# backgrounds, another detector. It tells which tasks are hard for a large model, not which model is better.
STABLE_DIFFUSION_15 = {
    "single": 0.97, "two": 0.38, "counting": 0.35, "colors": 0.76, "position": 0.04, "binding": 0.06, "overall": 0.43,
}  # fmt: skip

NEAR = 0.1  # share of both sides by which an offset is shortened before a relation is read off it (GenEval's value)
SIZE_LIMIT = (PIXELS["small"][1] + PIXELS["large"][0]) / 2  # pixels: what measures less is small


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what was asked, and if not, why."""

    right: bool
    reason: str = ""


def relations_between(a: Detection, b: Detection) -> set[str]:
    """Where a stands, seen from b: one or two of the RELATIONS, or none if the centres are too near.

    The offset of the centres counts as far as it exceeds a tenth of both objects' sides, and an axis counts where
    that is more than half of the offset's length: GenEval's rule, with the longer side for both sides of a box.
    """
    length = math.hypot(a.x - b.x, a.y - b.y)
    if length == 0:
        return set()
    near = NEAR * (a.size + b.size)
    dx, dy = (math.copysign(max(abs(d) - near, 0), d) / length for d in (a.x - b.x, a.y - b.y))
    tests = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holds in tests.items() if holds}


def verdict(asked: Description | str, seen: Seen) -> Verdict:
    """Whether a picture in which this was seen shows what was asked: a description, or the text of one.

    single: the object is there.  two: both are.  counting: as many as said, exactly.  colors: the object is there, and
    the background is the one named.  position: both are there and stand as said.  binding: both are there, and each
    measures what is called small or large. A background named beside another task is not judged.
    """
    asked = parse_description(asked) if isinstance(asked, str) else asked
    found = {name: [d for d in seen.objects if d.object == name] for name in asked.objects}
    missing = [name for name, there in found.items() if not there]
    if missing:
        return Verdict(False, f"no {' and no '.join(missing)}")
    surest = [max(found[name], key=lambda d: d.score) for name in asked.objects]
    if asked.task == "counting":
        number = len(found[asked.objects[0]])
        return Verdict(number == asked.count, f"{number} instead of {asked.count}" if number != asked.count else "")
    if asked.task == "colors" and seen.color != asked.color:
        return Verdict(False, f"on {seen.color}")
    if asked.relation:
        relations = relations_between(*surest)
        if asked.relation not in relations:
            return Verdict(False, f"{asked.objects[0]} {' and '.join(sorted(relations)) or 'near'} {asked.objects[1]}")
    if asked.sizes:
        measured = ["small" if d.size < SIZE_LIMIT else "large" for d in surest]
        wrong = [f"{m} {d.object}" for m, d, size in zip(measured, surest, asked.sizes, strict=True) if m != size]
        return Verdict(not wrong, " and ".join(wrong))
    return Verdict(True)


def make_task_prompts(n: int, generator: torch.Generator, task: str, split: str = "seen") -> list[str]:
    """n plain prompts of a task, such as "three apples", whose combination training has "seen" or was "held_out".

    Held out is what the task combines: two objects, an object and a number, an object and a background. In counting
    the numbers are two, three and four, as in GenEval. Prompts differ as long as there are different ones.

    Raises:
        ValueError: n below 1, another task or split, or "held_out" of "single", which combines nothing.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    if split not in splits_of(task):
        raise ValueError("a single object combines nothing, so none is held out: every object is seen in training")
    prompts: list[str] = []
    round_before, misses = set[str](), 0
    while len(prompts) < n:
        asked = random_composition(generator, "train" if split == "seen" else "held_out", task).description()
        text = in_words(asked)
        if asked.count == 1:
            continue
        if text in round_before:
            misses += 1
            if misses == 300:  # all that there are have come: begin another round
                round_before.clear()
            continue
        misses = 0
        round_before.add(text)
        prompts.append(text)
    return prompts


def splits_of(task: str) -> tuple[str, ...]:
    """The halves of a task's score; a single object has only a seen one."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    return SPLITS[:1] if task == "single" else SPLITS


class Cell(NamedTuple):
    """One number of the table: a task and a half of it, with the pictures drawn for it and what the judge says."""

    task: str
    split: str
    prompts: list[str]
    pictures: Tensor  # uint8 [N, 3, H, W]
    verdicts: list[Verdict]


def scores_of(cells: Sequence[Cell], split: str) -> dict[str, float]:
    """The share of right pictures of each task, and their mean."""
    shares = {c.task: sum(v.right for v in c.verdicts) / len(c.verdicts) for c in cells if c.split == split}
    return shares | {"overall": sum(shares.values()) / len(shares)}


def score_table(scores: Mapping[str, Mapping[str, float]], pictures: int) -> str:
    """Markdown: a row a task, a column for each of `scores` ({"seen pairs": {"single": 0.9, ...}, ...}) and SD 1.5's.

    `pictures`: how many each number was counted over, which says how far it may be off.
    """
    columns = {**scores, "SD 1.5, its own test": STABLE_DIFFUSION_15}
    lines = [f"| task | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for task, title in (*TITLES.items(), ("overall", "mean of the tasks")):
        cells = [f"{100 * column[task]:.0f} %" if task in column else "–" for column in columns.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    error = 100 * (0.25 / pictures) ** 0.5
    note = (
        f"{pictures} pictures a number (standard error at most {error:.1f} points), none chosen. The last column is "
        "Stable Diffusion 1.5's row in GenEval (Ghosh, Hajishirzi and Schmidt 2023, main results), a different test: "
        "80 kinds of things in photographs, coloured things where ours have a coloured background, colours bound to "
        "things where ours have sizes. It shows which tasks are hard, not which model is better."
    )
    return "\n".join([*lines, "", note])


def score_real_pictures(
    detector: Detector,
    n: int,
    seed: int,
    split: str = "seen",
    change: Callable[[Tensor], Tensor] = lambda pictures: pictures,
) -> dict[str, float]:
    """What the judge says of n real pictures of each task, which are right by construction: 0 ... 1, with "overall".

    The most that a model can score; what is missing to 1 is the judge's own error. `change` is done to the pictures
    first: with a VAE's encoding and decoding, it is the most that a model with this VAE can score.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    shares = {}
    for task in TASKS:
        dataset, made = compositions(n, seed, "train" if split == "seen" else "held_out", {task: 1})
        seen = [s for part in torch.arange(n).split(64) for s in detect(detector, change(dataset.batch(part)[0]))]
        right = [verdict(c.description(), s).right for c, s in zip(made, seen, strict=True)]
        shares[task] = sum(right) / n
    return shares | {"overall": sum(shares.values()) / len(shares)}
