"""What the tests of the checks share: grading mode, in which a check raises, and a candidate that it must refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(autouse=True)
def grading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_GRADING", "1")


def rejected(run_check: Callable, candidate: Callable, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        run_check(candidate)
