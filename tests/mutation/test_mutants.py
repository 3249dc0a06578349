"""Each check takes every right version, however written, and names the mistake of every wrong one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from course_utils.checks import forward
from tests.mutation.runner import EXERCISES, NOTEBOOKS, Row, refusal, table, try_all

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.mark.parametrize("name", EXERCISES)
def test_right_versions_pass_within_a_second(name: str) -> None:
    for i, right in enumerate(EXERCISES[name].RIGHT[name]):
        took = []
        for _ in range(2):  # other random numbers each time
            begun = time.process_time()
            assert refusal(name, right) is None, f"right version {i} of {name}"
            took.append(time.process_time() - begun)
        assert min(took) < 1  # the first call also warms up what it uses


WRONG = [
    pytest.param(name, wrong, words, id=f"{name}-{i}-{words}")
    for name, module in EXERCISES.items()
    for i, (wrong, words) in enumerate(module.WRONG[name])
]


@pytest.mark.parametrize(("name", "wrong", "words"), WRONG)
def test_wrong_versions_are_named(name: str, wrong: Callable, words: str) -> None:
    for _ in range(2):
        message = refusal(name, wrong)
        assert message is not None, "it was taken for right"
        assert words in message


@pytest.mark.parametrize("name", EXERCISES)
def test_an_unsolved_one_is_called_unsolved(name: str) -> None:
    def blank(*_: object, **__: object) -> None:
        raise NotImplementedError()

    message = refusal(name, blank)
    assert message is not None and "not solved yet" in message


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_exercise_is_on_trial(notebook: str) -> None:
    module, cells = NOTEBOOKS[notebook], json.loads((FOLDER / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    firsts = ["".join(cell["source"]).split("\n")[0] for cell in cells if cell["cell_type"] == "code"]
    shown = {first.split("·")[-1].strip() for first in firsts if first.startswith("# exercise:")}
    assert shown and shown <= set(module.RIGHT)
    assert set(module.RIGHT) == set(module.WRONG)
    for name in module.RIGHT:
        assert len(module.WRONG[name]) >= 5, f"{name}: five wrong versions or more"
        assert len(module.RIGHT[name]) >= 3, f"{name}: the course's version and two others"


def test_the_table_counts_what_happens() -> None:
    wrong = [
        (lambda a: (1 - a) / a, "on top"),
        (lambda a: (1 - a) / a, "other words"),
        (lambda a: a / (1 - a), "right"),
    ]
    trial = SimpleNamespace(RIGHT={"snr": [lambda a: a / (1 - a), lambda a: a]}, WRONG={"snr": wrong}, checks=forward)
    row = try_all("snr", trial)
    assert vars(row) | {"seconds": 0} == vars(Row("snr", mutants=3, caught=2, named=1, right=2, passed=1, seconds=0))
    lines = table([row, row]).splitlines()
    assert lines[-1].split()[:7] == ["all", "2", "6", "4", "2", "4", "2"]
