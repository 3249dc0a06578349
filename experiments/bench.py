"""How fast the course is on this machine, beside diffusers and transformers: one run, one table.

    python experiments/bench.py              about eight minutes on two cores
    python experiments/bench.py --quick      about a minute: fewer and shorter turns, no memory
    python experiments/bench.py --only unet  one section

The table goes to the terminal and to artifacts/bench/bench.md, every single round to bench.json beside it. How to read
it: docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched

import torch  # noqa: E402
from benchmarks import cases, memory, table  # noqa: E402
from machine import processor  # noqa: E402
from pages import fill  # noqa: E402
from tqdm import tqdm  # noqa: E402

from course_utils.profiles import PROFILES, Profile  # noqa: E402
from course_utils.weights.artifacts import artifacts_folder, write_card  # noqa: E402

SECTIONS = ("vae", "clip", "unet", "sampling", "data", "memory")


def load() -> float:
    """How many processes wanted to run over the last minute; ours are among them. −1 where nobody counts."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0


def measure(
    profile: Profile, effort: cases.Effort, sections: Sequence[str], keep: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Run the sections and return everything found; a progress bar on stderr counts the turns.

    `keep` is called with what there is so far after each section, so that a run that is stopped leaves its part.
    """
    begun, load_before = time.monotonic(), load()
    networks = [name for name in sections if name in cases.NETWORKS]
    wanted = memory.memory_cases(sections) if "memory" in sections else []
    turns = len(cases.PRECISIONS) * (4 * len(networks) + 2 * ("sampling" in sections)) + 4 * ("data" in sections)
    rows: list[table.Row] = []
    peaks: dict[str, dict[str, float]] = {}
    sizes: dict[str, int] = {}

    def found() -> dict[str, Any]:
        return {
            "machine": {
                "processor": processor(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "capability": torch.backends.cpu.get_cpu_capability(),
                "system": f"{platform.system()} {platform.machine()}",
            },
            "versions": {
                "python": platform.python_version(),
                **{n: version(n) for n in ("torch", "diffusers", "transformers")},
            },
            "how": {
                "profile": profile.name,
                "rounds": effort.rounds,
                "seconds": effort.seconds,
                "minutes": (time.monotonic() - begun) / 60,
                "load_before": load_before,
                "load_after": load(),
            },
            "rows": [row.summary(peaks) for row in [*cases.product_rows(rows, sizes), *rows]],
        }

    style = "{percentage:3.0f}%|{bar:24}| {elapsed} gone, {remaining} left · {desc}"
    with tqdm(total=effort.rounds * turns + 2 * len(wanted), bar_format=style, desc="warming up") as bar:

        def tick(name: str, amount: int = 1) -> None:
            bar.set_description_str(name, refresh=False)
            bar.update(amount)

        if networks:
            sizes = cases.product_sizes(effort)
        for name in networks:
            rows += cases.training_rows(name, profile, effort, sizes, tick)
            keep(found())
        if "sampling" in sections:
            rows += cases.sampling_rows(profile, effort, tick)
            keep(found())
        if "data" in sections:
            rows += cases.data_rows(profile, effort, tick)
            keep(found())
        for case in wanted:
            peaks[case] = memory.memory_of(case, profile.name)
            tick(f"memory, {case}", 2)
            if case == memory.DRAWING:
                rate = profile.scenes / peaks[case]["seconds"]
                what = f"data: {profile.scenes:,} scenes from a cold start (once)"
                rows.append(table.Row("cold start", what, "", "scenes/s", [rate], memory=(case, None)))
            keep(found())
    return found()


def write(results: dict[str, Any], folder: Path) -> str:
    """bench.md and bench.json; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table.markdown(results)
    (folder / "bench.md").write_text(text, encoding="utf-8")
    write_card(folder / "bench.json", results)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The course's speed and memory beside diffusers and transformers.")
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer and shorter turns, no memory")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections only; memory adds theirs")
    parser.add_argument("--profile", choices=tuple(PROFILES), default="cpu", help="whose sizes and batches (cpu)")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder for bench.md and bench.json (artifacts/bench)"
    )
    parser.add_argument("--docs", action="store_true", help="put the table into docs/performance.md as well")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.memory_of:
        memory.print_memory(given.memory_of, given.profile)
        return 0
    sections = given.only or [name for name in SECTIONS if not (given.quick and name == "memory")]
    if sections == ["memory"]:
        parser.error("memory is measured for other sections: name them too, as in --only unet memory")
    if "memory" in sections and sys.platform == "win32":
        print("Windows does not say how much memory a process has held; these columns stay empty")
        sections = [name for name in sections if name != "memory"]
    folder = given.output or artifacts_folder("bench")
    if "bf16" not in cases.PRECISIONS:
        print("this processor has no instructions for bfloat16; rows in bf16 are left out")
    try:
        results = measure(
            PROFILES[given.profile],
            cases.QUICK if given.quick else cases.FULL,
            sections,
            keep=lambda found: write(found, folder),
        )
    except KeyboardInterrupt:
        print(f"\nstopped; the sections that were done are in {folder}", file=sys.stderr)
        return 130
    text = write(results, folder)
    if given.docs:
        fill(ROOT / "docs" / "performance.md", "bench", text)
    print(text)
    print(f"written to {folder / 'bench.md'}, every round in bench.json beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
