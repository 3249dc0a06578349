"""Everything that CI runs, stage by stage: `python tools/check.py`, or the names of the stages wanted."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300", "-p", "no:cacheprovider"]
STAGES: dict[str, list[list[str]]] = {
    "lint": [["ruff", "check", "course_utils", "teaching", "experiments", "tools", "tests", "notebooks"]],
    "types": [["mypy"]],
    "unit": [["pytest", "-q", "-n", "logical", "--dist", "loadfile", "-m", "not slow", "tests"]],
    "sync": [["tools/sync.py", "--check"]],
    "notebooks": [["pytest", "-q", *NBVAL, str(path)] for path in sorted((ROOT / "notebooks").glob("*.ipynb"))],
}


def run(command: list[str], *, together: bool) -> bool:
    """Whether the command succeeds; beside others it gets one thread, and prints what it has to say at its end."""
    with tempfile.TemporaryDirectory(prefix="course-") as scratch:  # from nothing: trained before has no part in it
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
        environment |= {"COURSE_PROFILE": "smoke", "COURSE_ARTIFACTS": scratch} if together else {}
        environment |= {"OMP_NUM_THREADS": "1"} if together or "-n" in command else {}
        full = [sys.executable, *([] if command[0].endswith(".py") else ["-m"]), *command]
        done = subprocess.run(full, cwd=ROOT, env=environment, capture_output=together, text=True)
    if together:
        print(done.stdout, done.stderr, sep="", end="", flush=True)
    return done.returncode == 0


def run_stage(name: str) -> bool:
    print(f"\n== {name}", flush=True)
    commands = STAGES[name]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the notebooks side by side, one a core
        return all(list(pool.map(partial(run, together=len(commands) > 1), commands)))


def main(arguments: Sequence[str] | None = None) -> int:
    wanted = list(sys.argv[1:] if arguments is None else arguments) or list(STAGES)
    unknown = [name for name in wanted if name not in STAGES]
    if unknown:
        print(f"there is no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
        return 2
    results: list[tuple[str, bool, float]] = []
    for name in wanted:
        begun = time.monotonic()
        good = run_stage(name)
        results.append((name, good, time.monotonic() - begun))
    print()
    for name, good, seconds in results:
        print(f"  {name:<12}{'passed' if good else 'FAILED':<10}{seconds:7.1f} s")
    print(f"  {'all':<22}{sum(seconds for _, _, seconds in results):7.1f} s")
    return 0 if all(good for _, good, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
