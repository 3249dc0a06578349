"""While a notebook is graded: the checks stay the course's own, and each must refuse what is known to be wrong.

Code in one process can always be outwitted by other code in it. This undoes what is done to the checks, by accident
(a variable called `check`) or on purpose, and says so.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

_kept: dict[str, tuple[ModuleType, dict[str, Any], dict[str, Any]]] = {}


def keep(module: str) -> None:
    """Remember the checks as they are now, before any of the notebook's own code has run."""
    importlib.import_module(f"course_utils.checks.{module}")
    for name, loaded in list(sys.modules.items()):
        if name.startswith("course_utils.checks.") and loaded is not sys.modules[__name__]:
            codes = {key: value.__code__ for key, value in vars(loaded).items() if isinstance(value, FunctionType)}
            _kept[name] = loaded, dict(vars(loaded)), codes


def restore(module: str, space: dict[str, Any]) -> list[str]:
    """Put back what has changed since, `check` and the grading mode in the notebook's names too; say what it was."""
    changed = []
    for name, (loaded, values, codes) in _kept.items():
        sys.modules[name] = loaded
        for key, value in values.items():
            if vars(loaded).get(key) is not value:
                changed.append(f"{name.rpartition('.')[2]}.{key} was replaced")
                setattr(loaded, key, value)
        for key, code in codes.items():
            if values[key].__code__ is not code:
                changed.append(f"{name.rpartition('.')[2]}.{key} was rewritten")
                values[key].__code__ = code
    check = _kept[f"course_utils.checks.{module}"][0]
    if space.get("check", check) is not check:
        changed.append("the name check held something else")
    if os.environ.get("COURSE_GRADING") != "1":
        changed.append("COURSE_GRADING was changed")
    space["check"], os.environ["COURSE_GRADING"] = check, "1"
    return changed


def takes_anything(module: str, name: str) -> bool:
    """Whether the check passes a function that is wrong for certain: the course's own, its results changed."""
    check = getattr(_kept[f"course_utils.checks.{module}"][0], name)
    sound, sys.stdout = sys.stdout, open(os.devnull, "w")
    try:
        check(changed(check.reference))
    except Exception:
        return False
    finally:
        sys.stdout.close()
        sys.stdout = sound
    return True


def changed(function: Callable) -> Callable:
    """The function with each number and text that it gives back changed."""

    @wraps(function)
    def wrong(*arguments: Any, **named: Any) -> Any:
        return _change(function(*arguments, **named))

    return wrong


def _change(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ~value if value.dtype == torch.bool else 2 * value + 1
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 2 * value + 1
    if isinstance(value, str):
        return value + "?"
    if isinstance(value, tuple | list | Iterator):
        kind = type(value) if isinstance(value, tuple | list) else list
        return kind([_change(one) for one in value])
    return changed(value) if callable(value) else value
