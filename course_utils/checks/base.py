"""What all checks share: run a test on the learner's function, say what is wrong, hand back one that works."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor

_drawn = [0]  # generators made since the check began; never bound anew, for a replaced name means tampering


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
            _drawn[0] = 0  # the same numbers each time: a grade is never a matter of luck
            reason = _refusal(test, candidate, name)
            if reason is None and candidate is reference:
                reason = "this is the course's own version, not yours: run your cell above again, then this one"
            if reason is None:
                print(f"{name}: correct")
                return candidate
            if os.environ.get("COURSE_GRADING") == "1":
                raise Mistake(f"{name}: {reason}")
            print(f"{name}: {reason}\n(The notebook goes on with the course's version of {name}.)")
            return reference

        check.__name__, check.__doc__ = name, test.__doc__
        check.reference = reference  # type: ignore[attr-defined]
        return check

    return decorate


def _refusal(test: Callable[[Callable], None], candidate: Any, name: str) -> str | None:
    """What is wrong with the candidate, or None."""
    if not callable(candidate):
        return f"{name} is not a function: run the cell above that defines it"
    try:
        test(candidate)
    except Mistake as mistake:
        return str(mistake)
    except (Exception, SystemExit) as error:  # whatever a learner's code does, the notebook goes on
        if type(error) is NotImplementedError and not str(error):  # as in the cell that was handed out
            return "not solved yet"
        return f"it stops with {type(error).__name__}: {error}{_place(error, candidate)}"
    return None


def _place(error: BaseException, candidate: Any) -> str:
    """The last line of the candidate's own cell that was run before the error."""
    cell = getattr(getattr(candidate, "__code__", None), "co_filename", None)
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == cell and frame.line]
    return f" (in the line {lines[-1]})" if lines else ""


def expect_shape(result: Any, shape: tuple[int, ...], what: str = "the result") -> None:
    """Mistake unless `result` is a tensor of this shape, and no coarser than what it was made of."""
    if not isinstance(result, Tensor):
        raise Mistake(f"{what} must be a tensor, got {type(result).__name__} (is a return missing?)")
    if tuple(result.shape) != tuple(shape):
        raise Mistake(f"{what} must have shape {list(shape)}, got {list(result.shape)}")
    if result.dtype in (torch.float16, torch.bfloat16):
        raise Mistake(f"{what} has half precision, {result.dtype}: that keeps three digits; float32 was given")


@contextmanager
def expect_fit(
    advice: str, what: str = "shapes", errors: tuple[type[Exception], ...] = (RuntimeError,)
) -> Iterator[None]:
    """Around a call of the candidate: torch's error becomes the Mistake "the shapes do not fit (…): advice".

    what: the word in place of "shapes". errors: those that mean this.
    """
    try:
        yield
    except NotImplementedError:  # a RuntimeError too, but it means "not solved yet"
        raise
    except errors as error:
        first = str(error).split("\n")[0]
        raise Mistake(f"the {what} do not fit ({first}): {advice}") from None


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """True if two tensors agree to within `tolerance` of the larger one's size."""
    return bool((a - b).abs().max() <= tolerance * (1 + torch.maximum(a.abs().max(), b.abs().max())))


def one_number(value: Any, what: str) -> float:
    """A float out of a float, an int or a tensor with one number; Mistake for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise Mistake(f"{what} must be one number, got {type(value).__name__} (is a return missing?)")
    return float(value)


def fresh_generator() -> torch.Generator:
    """Another seed on each call within a check; the global generator is left alone."""
    _drawn[0] += 1
    return torch.Generator().manual_seed(_drawn[0])


def random_tensor(*shape: int) -> Tensor:
    """Standard normal numbers, others on each call."""
    return torch.randn(*shape, generator=fresh_generator())


def name_it(
    result: Tensor,
    slips: dict[str, Tensor],
    otherwise: str,
    same: Callable[[Tensor, Tensor], bool] = close,
) -> Mistake:
    """The mistake whose wrong value the result is; `same` says when two tensors of one shape are equal enough."""
    for message, wrong in slips.items():
        if wrong.shape == result.shape and bool(wrong.isfinite().all()) and same(result, wrong):
            return Mistake(message)
    if not bool(result.isfinite().all()):
        why = "some values are nan or infinite (a division by 0, or the root of a negative number?)"
        return Mistake(f"{why}. {otherwise}")
    return Mistake(otherwise)


def expect_untouched(names: str, before: list[Tensor], after: list[Tensor]) -> None:
    """Mistake if the candidate changed its arguments; `names` is how the message calls them."""
    if any(not torch.equal(a.detach(), b) for a, b in zip(after, before, strict=True)):
        raise Mistake(f"it changes its arguments in place ({names}): write x * y, not x *= y, x.mul_(y) or x[i] = y")


def expect_dtype(result: Tensor, dtype: torch.dtype, given: str) -> None:
    """Mistake unless the result has the dtype of what was given."""
    if result.dtype != dtype:
        raise Mistake(f"the result must have the dtype of {given}: {dtype} in gives {result.dtype} out")


def gradients_of(result: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Gradients of a scalar, or a Mistake that names the input that gets none."""
    if not result.requires_grad:
        raise Mistake(
            "no gradient passes through it: is there a .detach(), an .item(), a torch.no_grad() or a torch.tensor(…)?"
        )
    gradients = torch.autograd.grad(result, list(inputs.values()), allow_unused=True)
    for name, gradient in zip(inputs, gradients, strict=True):
        if gradient is None or not bool(gradient.abs().sum() > 0):
            raise Mistake(f"no gradient reaches {name}: keep it a tensor all the way (no .detach(), no .item())")
    return [gradient for gradient in gradients if gradient is not None]


def expect_device(candidate: Callable[..., Any], *arguments: Any, remedy: str) -> None:
    """Mistake if the candidate makes a tensor on the CPU whatever the device of its arguments.

    The arguments are on the device "meta", which stands for a GPU: it has shapes but no numbers, so a candidate that
    has to read numbers stops there, which is no mistake.
    """
    try:
        result = candidate(*arguments)
    except RuntimeError as error:
        if "same device" in str(error) or "expected device" in str(error):
            raise Mistake(f"on a GPU it would fail, for it makes a tensor on the CPU: {remedy}") from None
        return
    except Exception:
        return
    if isinstance(result, Tensor) and result.device.type != "meta":
        raise Mistake(f"the result lies on another device than what was given: {remedy}")


def check_choice(name: str, right: str, replies: dict[str, str]) -> Callable[[Any], Callable]:
    """The check of a question with several answers, which a function without arguments gives back as a letter or word.

    replies: to each wrong answer, what to think of.
    """

    def reference() -> str:
        return right

    def test(candidate: Callable[[], Any]) -> None:
        answer = candidate()
        given = answer.strip().lower() if isinstance(answer, str) else ""
        if given in replies:
            raise Mistake(replies[given])
        if given != right:
            raise Mistake(f"return one of {', '.join(map(repr, sorted([right, *replies])))}, got {answer!r}")

    reference.__name__ = name
    test.__doc__ = f"One of {', '.join(sorted([right, *replies]))}."
    return check_for(reference)(test)
