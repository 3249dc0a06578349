"""Run workers, a few at a time. Each is a process of its own, watched for memory, time and what it leaves running."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import psutil

WORKER = Path(__file__).with_name("worker.py")
SLACK = 90.0  # seconds over a submission's own limit, for the start of kernels
LOOK = 0.25


Answer = tuple[str, dict[str, Any]]  # why the worker did not come to its end, or ""; what it found


def run_all(jobs: Sequence[dict[str, Any]], workers: int) -> Iterator[tuple[int, Answer]]:
    """Run the jobs; give (number of the job, answer) as they come to their end."""
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        begun = {pool.submit(run_one, job): number for number, job in enumerate(jobs)}
        for done in as_completed(begun):
            try:
                yield begun[done], done.result()
            except Exception as error:  # of ours; it is this submission's trouble alone
                yield begun[done], (f"the grader stopped here ({type(error).__name__}: {error})", {})


def run_one(job: dict[str, Any]) -> Answer:
    """Start a worker on one job and watch it."""
    folder = Path(job["scratch"])
    folder.mkdir(parents=True, exist_ok=True)
    order = folder / "job.json"
    order.write_text(json.dumps(job), encoding="utf-8")
    with open(folder / "worker.log", "w", encoding="utf-8") as log, tempfile.TemporaryFile() as answer:
        process = subprocess.Popen(
            [sys.executable, str(WORKER), str(order)], stdout=answer, stderr=log, stdin=subprocess.DEVNULL
        )
        family: set[psutil.Process] = set()
        try:
            late = _watch(process, family, job["gigabytes"] * 2**30, time.monotonic() + job["seconds"] + SLACK)
        finally:
            end(family)
            process.kill()
            process.wait()
        answer.seek(0)
        content = answer.read()
    if late:
        return f"stopped after {job['seconds'] + SLACK:.0f} seconds", {}
    try:
        if process.returncode == 0:
            return "", json.loads(content)
    except ValueError:
        pass
    said = (folder / "worker.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"the grader's own process stopped ({said[-1][:200] if said else f'exit {process.returncode}'})", {}


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
