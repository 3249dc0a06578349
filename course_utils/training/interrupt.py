"""Ctrl-C, and the stop button of a notebook, held back until the step at hand is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held_interrupts() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether an interrupt has come. The second one is not held back.

    In the middle of a step a part of the weights has moved and another has not, and a state saved then would not go on
    as an uninterrupted run. Outside the main thread, where Python delivers no signals, nothing changes.
    """
    asked: list[bool] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return

    def hold(number: int, frame: object) -> None:
        if asked:
            before(number, frame)  # type: ignore[arg-type, operator]
        asked.append(True)

    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def without_traceback(error: KeyboardInterrupt, sentence: str) -> KeyboardInterrupt:
    """The interrupt, of which a notebook shows this one line: it was asked for, and where it struck helps nobody."""
    error._render_traceback_ = lambda: [f"KeyboardInterrupt: {sentence}"]  # type: ignore[attr-defined]  # IPython's hook
    return error
