"""How things are timed: in turns, so that a machine that slows down slows down every side alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Run = Callable[[int], float]  # do it n times, return the seconds that took
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def timed(action: Callable[[], object]) -> Run:
    """An action as something that can be repeated against the clock."""

    def run(repeats: int) -> float:
        begun = time.perf_counter()
        for _ in range(repeats):
            action()
        return time.perf_counter() - begun

    return run


def alternate(
    sides: Mapping[str, Run],
    rounds: int,
    seconds: float,
    tick: Callable[[str], object] = lambda name: None,
    least: int = 2,
) -> dict[str, list[float]]:
    """Every side's rate, in repeats a second, once a round: a, b, c, a, b, c, …

    Whatever else the machine does falls on neighbouring turns alike, so the ratio of two sides within a round can be
    trusted where the rates themselves cannot.

    Args:
        sides: what to time, by name. Each is warmed up first: once, and again to see how long it takes.
        rounds: how many turns each gets, 1 or more.
        seconds: how long a turn should take; one of a slow side takes `least` repeats, however long they are.
        tick: called with the side's name after each turn.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, got {rounds}")
    repeats = {}
    for name, run in sides.items():
        run(1)
        repeats[name] = max(least, round(least * seconds / run(least)))
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            rates[name].append(repeats[name] / run(repeats[name]))
            tick(name)
    return rates


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Round by round: above / below."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest of some rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def count_operations(run: Run) -> int:
    """Floating-point operations of the matrix products and convolutions in one repeat, forward and backward.

    A multiplication and an addition are two. Counted from the shapes that PyTorch's operators are called with, by
    its own FlopCounterMode; norms, activations and other element-wise work count nothing. Attention is counted as
    its two matrix products, so that a kernel that computes the weights a second time gains nothing by it.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(1)
    return counter.get_total_flops()


def matrix_product(size: int, precision: str) -> Callable[[], object]:
    """A product of two square matrices: 2 · size³ operations."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(DTYPES[precision])
    return lambda: a @ a


def best_product_size(precision: str, sizes: tuple[int, ...], seconds: float = 0.3) -> int:
    """The size of square matrix that this machine multiplies at the highest rate."""
    rates = {}
    for size in sizes:
        run = timed(matrix_product(size, precision))
        run(1)
        repeats = max(2, round(seconds / run(1) / 3))
        rates[size] = max(2 * size**3 * repeats / run(repeats) for _ in range(3))
    return max(rates, key=lambda size: rates[size])
