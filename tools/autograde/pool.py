"""Run workers, a few at a time. Each is a process of its own, watched for memory, time and what it leaves running."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

WORKER = Path(__file__).with_name("worker.py")
SLACK = 90.0  # seconds over a submission's own limit, for the start of kernels
LOOK = 0.25


def run_all(jobs: Sequence[dict[str, Any]], workers: int, finished: Callable[[dict[str, Any], str], None]) -> list[str]:
    """Run the jobs; an answer is "" or why a worker did not come to its end. Calls `finished(job, answer)` for each."""

    def one(job: dict[str, Any]) -> str:
        answer = run_one(job)
        finished(job, answer)
        return answer

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        return list(pool.map(one, jobs))


def run_one(job: dict[str, Any]) -> str:
    """Start a worker on one job and watch it."""
    folder = Path(job["scratch"])
    folder.mkdir(parents=True, exist_ok=True)
    order = folder / "job.json"
    order.write_text(json.dumps(job), encoding="utf-8")
    with open(folder / "worker.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(WORKER), str(order)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        family: set[psutil.Process] = set()
        try:
            late = _watch(process, family, job["gigabytes"] * 2**30, time.monotonic() + job["seconds"] + SLACK)
        finally:
            end(family)
            process.kill()
            process.wait()
    if late:
        return f"stopped after {job['seconds'] + SLACK:.0f} seconds"
    if process.returncode != 0 or not Path(job["executed"]).is_file():
        said = (folder / "worker.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"the grader's own process stopped ({said[-1][:200] if said else f'exit {process.returncode}'})"
    return ""


def _watch(process: subprocess.Popen[bytes], family: set[psutil.Process], most: float, deadline: float) -> bool:
    """Wait for the worker; kill those of its children that take too much memory. True if time ran out."""
    root = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family |= set(root.children(recursive=True))
        except psutil.Error:
            pass
        for child in list(family):
            try:
                if child.memory_info().rss > most:
                    child.kill()  # the worker sees a dead kernel, starts another and goes on behind that cell
            except psutil.Error:
                family.discard(child)
        if time.monotonic() > deadline:
            return True
        time.sleep(LOOK)
    return False


def end(processes: set[psutil.Process]) -> None:
    """Kill what a submission left running. psutil knows a process again by its start time, so no other is hit."""
    for process in processes:
        try:
            if process.is_running():
                process.kill()
        except psutil.Error:
            pass
