"""Seconds, memory and waits of something that is done again and again on a device."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, Any]]:
    """A dict that holds "peak_mb" when the block is over: what lay on the GPU at most; None without one."""
    found: dict[str, Any] = {"peak_mb": None}
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        found["peak_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6)


def time_steps(step: Callable[[], object], device: torch.device, seconds: float, warm: int = 3) -> dict[str, Any]:
    """Milliseconds a step, over about so many seconds after some steps to warm up, and the peak of memory."""
    begun = time.perf_counter()
    with peak_memory(device) as memory:
        step()
        finish(device)
        first = time.perf_counter() - begun  # with a compiler that is where it works
        for _ in range(warm - 1):
            step()
        finish(device)
        begun, steps = time.perf_counter(), 0
        while steps == 0 or time.perf_counter() - begun < seconds:
            chunk = 1 if device.type == "cpu" else 5
            for _ in range(chunk):
                step()
            finish(device)
            steps += chunk
        each = (time.perf_counter() - begun) / steps
    return {"ms": round(1000 * each, 3), "steps": steps, "first_s": round(first, 2), **memory}


class Waits:
    """Counts how often Python waits for a CUDA GPU, from `start` to `stop`; `count` is None without one."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.count: int | None = None
        self.where: list[str] = []

    def start(self) -> None:
        if self.cuda:
            self.caught = warnings.catch_warnings(record=True)
            self.seen = self.caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> None:
        if self.cuda:
            torch.cuda.set_sync_debug_mode("default")
            found = [w for w in self.seen or [] if "synchronizing" in str(w.message)]
            self.caught.__exit__(None, None, None)
            self.count = len(found)
            self.where = sorted({f"{'/'.join(w.filename.split('/')[-2:])}:{w.lineno}" for w in found})
