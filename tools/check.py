"""Everything that CI runs, stage by stage: `python tools/check.py`, or the names of the stages wanted."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300", "-p", "no:cacheprovider"]
STAGES: dict[str, list[list[str]]] = {
    "lint": [["ruff", "check", "course_utils", "tools", "tests", "notebooks"]],
    "types": [["mypy"]],
    "unit": [["pytest", "-q", "-m", "not slow", "tests"]],
    "sync": [["tools/sync.py", "--check"]],
    "notebooks": [["pytest", "-q", *NBVAL, "notebooks"]],
}


def run_stage(name: str) -> bool:
    print(f"\n== {name}", flush=True)
    good = True
    with tempfile.TemporaryDirectory(prefix="course-") as scratch:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
        if name == "notebooks":  # from nothing: what was trained before has no part in it
            environment |= {"COURSE_PROFILE": "smoke", "COURSE_ARTIFACTS": scratch}
        for command in STAGES[name]:
            script = command[0].endswith(".py")
            full = [sys.executable, *([] if script else ["-m"]), *command]
            good &= subprocess.run(full, cwd=ROOT, env=environment).returncode == 0
    return good


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
