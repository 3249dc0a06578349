"""A progress bar on stdout: one line in a notebook and in a terminal, loss and time left included."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

WAIT = 5  # steps to time before the time left is told
STYLE = "{desc}: {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} steps · {elapsed} gone{left}{postfix}"


class Bar:
    """Wraps tqdm with the running mean of the loss, which is what a person wants to watch."""

    def __init__(self, bar: tqdm):
        self.bar, self.steps = bar, 0

    def step(self, losses: list[float]) -> None:
        recent = losses[-50:]
        if recent:  # none has been read yet in the first steps on a GPU
            self.bar.set_postfix_str(f"loss {sum(recent) / len(recent):.4f}", refresh=False)
        self.steps += 1
        if self.steps == 1:  # it takes several times as long as the others, and is left out of the rate
            self.bar.n += 1
            self.bar.refresh()
            self.bar.last_print_n, self.bar.last_print_t = self.bar.n, time.time()
            return
        if self.steps == 1 + WAIT:
            self.bar.bar_format = STYLE.replace("{left}", ", {remaining} left")
        self.bar.update(1)

    def say(self, text: str) -> None:
        self.bar.write(text, file=sys.stdout)

    def note(self, text: str) -> None:
        self.bar.close()
        print(text)


@contextmanager
def progress_bar(name: str, start: int, steps: int) -> Iterator[Bar]:
    """A bar from `start` to `steps` that redraws twice a second at most, and tells the time left once it knows."""
    style = STYLE.replace("{left}", "")
    with tqdm(total=steps, initial=start, desc=name, file=sys.stdout, mininterval=0.5, bar_format=style) as bar:
        yield Bar(bar)
