"""Peak memory, each case in a process of its own: what one case held once cannot hide what another needs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from machine import peak_memory

from benchmarks.cases import PRECISIONS, sampler
from benchmarks.networks import NETWORKS, SIDES, trainer
from course_utils.data.batches import CaptionedImages
from course_utils.profiles import PROFILES, Profile

STEPS = 2  # the optimiser's state comes with the first, and the second runs beside it
DRAWING = "drawing"


def memory_cases(sections: Sequence[str] = (*NETWORKS, "sampling", "data")) -> list[str]:
    """The cases of these sections, as "unet theirs bf16"; of the data, the profile's pictures from a cold start."""
    found = [f"{key} {side} {p}" for key in NETWORKS if key in sections for p in PRECISIONS for side in SIDES]
    if "sampling" in sections:
        found += [f"sampling {side} {p}" for p in PRECISIONS for side in ("ours", "theirs")]
    return [*found, DRAWING] if "data" in sections else found


def hold(case: str, profile: Profile) -> dict[str, float]:
    """Run one case here. Bytes: `peak` of the whole process, `added` to what it had held before the first step."""
    if case == DRAWING:
        before, begun = peak_memory(), time.perf_counter()
        CaptionedImages.scenes(profile.scenes)
        return {"peak": peak_memory(), "added": peak_memory() - before, "seconds": time.perf_counter() - begun}
    key, side, precision = case.split()
    if key == "sampling":
        draw = sampler(side, precision, profile.sampling_steps)
        before = peak_memory()
        draw()
    else:
        run = trainer(NETWORKS[key](profile), side, precision)
        before = peak_memory()
        run(STEPS)
    return {"peak": peak_memory(), "added": peak_memory() - before}


def print_memory(case: str, profile: str) -> None:
    """What the process of one case does: its last line is JSON. ValueError for a case that does not exist."""
    if case not in memory_cases():
        raise ValueError(f"there is no memory case {case!r}; there are {', '.join(memory_cases())}")
    print(json.dumps(hold(case, PROFILES[profile])))


def memory_of(case: str, profile: str) -> dict[str, float]:
    """The same from a new process.

    Raises RuntimeError, with what the process said, if it fails.
    """
    script = Path(__file__).resolve().parent.parent / "bench.py"
    command = [sys.executable, str(script), "--profile", profile, "--memory-of", case]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the memory case {case!r} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
