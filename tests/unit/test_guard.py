"""While a notebook is graded, the checks are the course's own: what was done to them is undone, and said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from course_utils.checks import base, forward, guard
from tests.mutation.runner import EXERCISES


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COURSE_GRADING", "1")
    guard.keep("forward")
    yield
    guard.restore("forward", {})


@pytest.mark.parametrize("name", EXERCISES)
def test_every_check_refuses_the_course_s_own_with_other_results(name: str) -> None:
    module = EXERCISES[name].checks.__name__.rpartition(".")[2]
    guard.keep(module)
    assert not guard.takes_anything(module, name)


def test_what_is_done_to_the_checks_is_undone_and_said() -> None:
    space: dict[str, Any] = {"check": forward}
    with pytest.raises(base.Mistake):
        forward.snr(lambda a: a)
    assert guard.restore("forward", space) == [], "using a check is no tampering"
    real = forward.snr
    forward.snr = lambda candidate: candidate  # type: ignore[assignment]
    base._refusal = lambda *_: None  # type: ignore[assignment]
    space["check"] = object()
    said = guard.restore("forward", space)
    assert set(said) == {
        "forward.snr was replaced",
        "base._refusal was replaced",
        "the name check held something else",
    }
    assert forward.snr is real and space["check"] is forward and guard.restore("forward", space) == []


def test_a_rewritten_function_is_put_back() -> None:
    base._refusal.__code__ = (lambda test, candidate, name: None).__code__
    assert guard.restore("forward", {}) == ["base._refusal was rewritten"]
    assert not guard.takes_anything("forward", "snr")


def test_a_check_that_takes_anything_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_agree", lambda *_, **__: True)
    assert guard.takes_anything("forward", "snr")
