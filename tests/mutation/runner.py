"""Runs checks over right and wrong versions, and counts."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from unittest import mock

import torch

from tests.mutation import clip, forward, pipeline, reverse, unet, vae

NOTEBOOKS: dict[str, ModuleType] = {
    "01_vae": vae,
    "02_forward_process": forward,
    "03_reverse_elbo": reverse,
    "04_clip": clip,
    "05_unet_cfg": unet,
    "06_full_pipeline": pipeline,
}
EXERCISES = {name: module for module in NOTEBOOKS.values() for name in module.RIGHT}


torch.zeros(1, device="meta").exp()  # torch loads a thousand modules at its first sum on "meta": not a check's time


def refusal(name: str, candidate: Callable) -> str | None:
    """What the exercise's check says to this version when it grades, or None if it takes it."""
    check = getattr(EXERCISES[name].checks, name)
    if candidate is check.reference:  # which a check knows again; as a learner's own it is another function
        f = check.reference
        candidate = FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    with mock.patch.dict(os.environ, COURSE_GRADING="1"), contextlib.redirect_stdout(io.StringIO()):
        try:
            taken = check(candidate)
        except AssertionError as mistake:
            said = str(mistake).removeprefix(f"{name}: ")
            return said.split(" (in the line ")[0]  # that line stands here, beside the words that are looked for
    assert taken is candidate, f"the check of {name} took it but gave back another function"
    return None


@dataclass
class Row:
    """One exercise in the table; seconds are those of its slowest right version."""

    name: str
    mutants: int
    caught: int
    named: int
    right: int
    passed: int
    seconds: float


def try_all(name: str, module: ModuleType | None = None) -> Row:
    """Every version of one exercise, through its check."""
    module = module or EXERCISES[name]
    said = [(refusal(name, wrong), words) for wrong, words in module.WRONG[name]]
    passed, seconds = 0, 0.0
    for right in module.RIGHT[name]:
        begun = time.process_time()
        passed += refusal(name, right) is None
        seconds = max(seconds, time.process_time() - begun)
    return Row(
        name=name,
        mutants=len(said),
        caught=sum(message is not None for message, _ in said),
        named=sum(message is not None and words in message for message, words in said),
        right=len(module.RIGHT[name]),
        passed=passed,
        seconds=seconds,
    )


def table(rows: list[Row]) -> str:
    """One line an exercise, and the sums."""
    head = f"{'exercise':<24}{'wrong':>6}{'caught':>8}{'named':>7}{'right':>7}{'passed':>8}{'slowest, s':>12}"
    sums = [sum(getattr(row, field) for row in rows) for field in ("mutants", "caught", "named", "right", "passed")]
    total = Row(f"all {len(rows)}", *sums, max(row.seconds for row in rows))
    lines = [head, "-" * len(head)]
    for row in [*rows, total]:
        counts = f"{row.mutants:>6}{row.caught:>8}{row.named:>7}{row.right:>7}{row.passed:>8}"
        lines.append(f"{row.name:<24}{counts}{row.seconds:>12.3f}")
    return "\n".join(lines)
