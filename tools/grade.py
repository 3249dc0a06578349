"""Grade what came back: `python tools/grade.py FOLDER`, or `make grade SUBMISSIONS=FOLDER`.

    FOLDER/<student>/<notebook>.ipynb      what is read
    grading/grades.csv                     a line for each student and notebook
    grading/exercises.csv                  a line for each exercise, with what its check said
    grading/report.txt                     what was mended, what is missing, what stopped
    grading/feedback/<student>/…html       for the students
    grading/gradebook.db, autograded/ …    nbgrader's own files, should you want to go on with it by hand

Each submission runs in a process of its own with limits on time and memory, on its own copy of the course, in the
`smoke` profile, and only the cells that its exercises need. That keeps accidents apart. It is no wall against malice:
the code runs as you. For people you do not know, run this in a container without network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import release  # noqa: E402
import sync  # noqa: E402
from autograde import cells as facts  # noqa: E402
from autograde import gradebook, pool, repair  # noqa: E402
from autograde.collect import Submission, collect  # noqa: E402
from autograde.kernel import error  # noqa: E402
from autograde.results import write_results  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
Notebook = dict[str, Any]


# --- running ------------------------------------------------------------------------------------------------


def job_for(one: Submission, released: Notebook, scratch: Path, executed: Path, options: Any) -> dict[str, Any]:
    """What the worker has to know."""
    pairs = repair.exercises(released)
    imports = [m for cell in released["cells"] if (m := facts.CHECKS.search(sync.source_of(cell)))]
    folder = scratch / one.slug / one.assignment
    folder.mkdir(parents=True)
    (folder / "notebook.json").write_text(json.dumps(one.notebook, ensure_ascii=False), encoding="utf-8")
    return {
        "notebook": str(folder / "notebook.json"),
        "executed": str(executed / one.slug / f"{one.assignment}.ipynb"),
        "result": str(folder / "result.json"),
        "scratch": str(folder / "work"),
        "course": str(ROOT),
        "checks": imports[0].group(1),
        "given": {cell["id"]: sync.source_of(cell) for cell in released["cells"] if not facts.grade_id(cell)},
        "tasks": {facts.grade_id(task): name for name, (task, _) in pairs.items()},
        "tests": {facts.grade_id(test): name for name, (_, test) in pairs.items()},
        "all_cells": options.all_cells,
        "cell_seconds": options.cell_seconds,
        "seconds": options.seconds,
        "gigabytes": options.gigabytes,
    }


def not_run(notebook: Notebook, why: str) -> Notebook:
    """The notebook with each test failed: nbgrader gives full points to a test without outputs."""
    cells = [dict(cell) for cell in notebook["cells"]]
    for cell in cells:
        if facts.grade_id(cell) and facts.check_name(cell):
            cell["outputs"] = [error("NotRun", why)]
    return {**notebook, "cells": cells}


def execute(submissions: list[Submission], released: dict[str, Notebook], executed: Path, options: Any) -> None:
    """Run all that can be run, a few at a time, and leave an executed copy of every submission."""
    with tempfile.TemporaryDirectory(prefix="grading-") as scratch:
        runnable = [one for one in submissions if one.notebook is not None]
        handed_in = [one for one in submissions if one.path is not None]
        for one in handed_in:
            (executed / one.slug).mkdir(parents=True, exist_ok=True)
        jobs = [job_for(one, released[one.assignment], Path(scratch), executed, options) for one in runnable]
        owner = {job["result"]: one for job, one in zip(jobs, runnable, strict=True)}

        def finished(job: dict[str, Any], answer: str) -> None:
            one, result = owner[job["result"]], Path(job["result"])
            one.trouble = answer
            if not answer and result.is_file():
                told = json.loads(result.read_text(encoding="utf-8"))
                one.seconds = told["seconds"]
                one.trouble = "; ".join(note for note in told["notes"] if note.startswith("not run to its end"))
                one.report.notes += [note for note in told["notes"] if not note.startswith("not run to its end")]
            print(f"  ran {one.student}, {one.assignment} ({one.seconds:.0f} s) {one.trouble}", flush=True)

        pool.run_all(jobs, options.workers, finished)
    for one in handed_in:
        path = executed / one.slug / f"{one.assignment}.ipynb"
        if one.notebook is None or not path.is_file():
            blank = not_run(one.notebook or released[one.assignment], one.trouble)
            path.write_text(json.dumps(blank, ensure_ascii=False), encoding="utf-8")


def score(one: Submission, course: Path, executed: Path) -> None:
    """nbgrader's part: points from the outputs, and feedback."""
    path = executed / one.slug / f"{one.assignment}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    if remarks := [*one.report.mended, *one.report.lost, *filter(None, [one.trouble])]:
        text = "**Before grading**\n\n" + "\n".join(f"- {remark}" for remark in remarks)
        notebook["cells"].insert(0, {"cell_type": "markdown", "id": "remarks", "metadata": {}, "source": text})
        path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")
    submitted = course / "submitted" / one.slug / one.assignment / path.name
    submitted.parent.mkdir(parents=True, exist_ok=True)
    submitted.write_bytes(sync.dumps(notebook).encode("utf-8", "replace"))
    gradebook.grade(course, one.slug, one.assignment, executed)
    names = {facts.grade_id(c): facts.check_name(c) for c in notebook["cells"] if facts.grade_id(c)}
    marks = gradebook.points(course, one.slug, one.assignment)
    one.points = {str(names[mark]): value for mark, value in marks.items()}
    for cell in notebook["cells"]:
        if facts.grade_id(cell) and facts.check_name(cell):
            errors = [o for o in cell["outputs"] if o["output_type"] == "error"]
            one.said[str(facts.check_name(cell))] = f"{errors[-1]['ename']}: {errors[-1]['evalue']}" if errors else ""


def scored(one: Submission, course: Path, executed: Path) -> bool:
    """Points and feedback for one submission; False where nbgrader cannot, which stops nobody else's grading."""
    try:
        score(one, course, executed)
    except gradebook.GradingError as error_:
        one.trouble = f"not graded, look at it yourself: {str(error_).splitlines()[-1][:200]}"
        return False
    try:
        gradebook.feedback(course, one.slug, one.assignment)
    except gradebook.GradingError as error_:
        one.report.notes.append(f"no feedback page: {str(error_).splitlines()[-1][:200]}")
    return True


# --- all of it ------------------------------------------------------------------------------------------


def grade(folder: Path, out: Path, options: Any) -> list[Submission]:
    """Everything, from a folder of submissions to the results in `out`.

    Raises:
        release.ReleaseError, gradebook.GradingError: the course's own side is not in order.
    """
    if not (out / "source").is_dir():
        with tempfile.TemporaryDirectory(prefix="release-") as unused:
            release.release([], to=Path(unused), keep=out)
    paths = sorted((out / "source").glob("*/*.ipynb"))
    released = gradebook.generate({path.stem: sync.read_notebook(path) for path in paths}, out)
    submissions, strays = collect(folder, released)
    there = [one for one in submissions if one.path is not None]
    print(f"{len(there)} submissions of {len({one.student for one in submissions})} students", flush=True)
    if options.look:
        write_results(submissions, strays, out)
        print((out / "report.txt").read_text(encoding="utf-8"))
        return submissions
    executed = out / "executed"
    shutil.rmtree(executed, ignore_errors=True)
    execute(submissions, released, executed, options)
    for one in submissions:
        if one.path is None or not scored(one, out, executed):
            table = release.points_table({one.assignment: released[one.assignment]})
            one.points = {name: (0.0, points) for _, name, points in table}
    write_results(submissions, strays, out)
    return submissions


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Grade a folder of submissions: FOLDER/<student>/<notebook>.ipynb")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "grading", help="default: grading/")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="submissions at a time")
    parser.add_argument("--cell-seconds", type=float, default=30, help="the most an exercise or a test may take")
    parser.add_argument(
        "--seconds", type=float, help="the most a submission may take; default: 300, whole notebooks 1800"
    )
    parser.add_argument("--gigabytes", type=float, default=4, help="the most memory a submission may take")
    parser.add_argument("--all-cells", action="store_true", help="run whole notebooks, trainings and plots as well")
    parser.add_argument("--look", action="store_true", help="only say what would be mended or is missing")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (1800 if options.all_cells else 300)
    if not options.folder.is_dir():
        print(f"there is no folder {options.folder}; give one with a folder for each student in it", file=sys.stderr)
        return 1
    begun = time.monotonic()
    try:
        submissions = grade(options.folder, options.out.resolve(), options)
    except (release.ReleaseError, gradebook.GradingError) as error_:
        print(error_, file=sys.stderr)
        return 1
    if not submissions:
        print(f"{options.folder} holds no submissions: put <student>/<notebook>.ipynb there", file=sys.stderr)
        return 1
    if options.look:
        return 0
    print()
    for one in submissions:
        if one.path is None:
            continue
        points, most = one.total
        told = "; ".join([*one.report.lost, *filter(None, [one.trouble])])
        print(f"  {one.student:<24}{one.assignment:<22}{points:5g} of {most:<5g}{one.status:<15}{told[:90]}")
    missing = sum(one.path is None for one in submissions)
    if missing:
        print(f"  ({missing} not handed in, 0 points in the table)")
    print(
        f"\n{len(submissions) - missing} submissions in {time.monotonic() - begun:.0f} s; in {options.out}: "
        "grades.csv, exercises.csv, report.txt, feedback/"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
