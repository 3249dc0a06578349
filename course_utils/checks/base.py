"""What all checks share: run a test on the learner's function, say what is wrong, hand back one that works."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Mistake(AssertionError):
    """Raised by a check with the likely mistake in plain words."""


def check_for(reference: Callable) -> Callable[[Callable[[Callable], None]], Callable[[Any], Callable]]:
    """Make a check out of a test that raises `Mistake` or returns: `@check_for(add_noise) def add_noise(candidate): …`.

    The check returns the candidate where the test passes. Where it does not, it says why and returns the course's own
    version, so that one unsolved exercise never stops a notebook; with COURSE_GRADING=1 it raises instead.
    """

    def decorate(test: Callable[[Callable], None]) -> Callable[[Any], Callable]:
        name = reference.__name__

        def check(candidate: Any) -> Callable:
            try:
                if not callable(candidate):
                    raise Mistake(f"{name} is not a function: run the cell above that defines it")
                test(candidate)
            except NotImplementedError:
                return _fall_back(name, "not solved yet", reference)
            except Mistake as mistake:
                return _fall_back(name, str(mistake), reference)
            except Exception as error:  # whatever a learner's code does, the notebook goes on
                return _fall_back(name, f"it stops with {type(error).__name__}: {error}", reference)
            print(f"{name}: correct")
            return candidate

        check.__name__, check.__doc__ = name, test.__doc__
        return check

    return decorate


def _fall_back(name: str, reason: str, reference: Callable) -> Callable:
    if os.environ.get("COURSE_GRADING") == "1":
        raise Mistake(f"{name}: {reason}")
    print(f"{name}: {reason}\n(The notebook goes on with the course's version of {name}.)")
    return reference


def expect_shape(result: Any, shape: tuple[int, ...], what: str = "the result") -> None:
    """Mistake unless `result` is a tensor of this shape."""
    if not isinstance(result, Tensor):
        raise Mistake(f"{what} must be a tensor, got {type(result).__name__} (is a return missing?)")
    if tuple(result.shape) != tuple(shape):
        raise Mistake(f"{what} must have shape {list(shape)}, got {list(result.shape)}")


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """True if two tensors agree to within `tolerance` of the larger one's size."""
    return bool((a - b).abs().max() <= tolerance * (1 + torch.maximum(a.abs().max(), b.abs().max())))


def one_number(value: Any, what: str) -> float:
    """A float out of a float, an int or a tensor with one number; Mistake for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Mistake(f"{what} must be one number, got {type(value).__name__} (is a return missing?)")
    return float(value)


def random_tensor(*shape: int) -> Tensor:
    """Fresh numbers on each call, drawn without touching the global generator."""
    generator = torch.Generator()
    generator.seed()
    return torch.randn(*shape, generator=generator)


def name_it(result: Tensor, slips: dict[str, Tensor], otherwise: str) -> Mistake:
    """The mistake whose wrong value the result is."""
    for message, wrong in slips.items():
        if wrong.shape == result.shape and bool(wrong.isfinite().all()) and close(result, wrong):
            return Mistake(message)
    return Mistake(otherwise)


def expect_untouched(names: str, before: list[Tensor], after: list[Tensor]) -> None:
    """Mistake if the candidate changed its arguments; `names` is how the message calls them."""
    if any(not torch.equal(a.detach(), b) for a, b in zip(after, before, strict=True)):
        raise Mistake(f"it changes its arguments in place ({names}): write x * y, not x *= y or x.mul_(y)")
