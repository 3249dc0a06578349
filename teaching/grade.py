"""Grade what came back: `python teaching/grade.py FOLDER`, or `make grade SUBMISSIONS=FOLDER`.

    FOLDER/<student>/<notebook>.ipynb      what is read; or the zip that a learning platform gives
    grading/grades.csv                     a line for each student and notebook
    grading/exercises.csv                  a line for each exercise, with what its check said
    grading/points.csv, canvas.csv, …      a line for each student, a column for each notebook
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
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import release  # noqa: E402
import sync  # noqa: E402
from autograde import cells as facts  # noqa: E402
from autograde import gradebook, pool, repair, roster  # noqa: E402
from autograde.alike import alike  # noqa: E402
from autograde.collect import Submission, collect  # noqa: E402
from autograde.kernel import error  # noqa: E402
from autograde.results import late, put_aside, report, write_alike, write_results  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PICTURE = re.compile(r"!\[[^\]]*\]\(data:image/[^)]*\)")
Cell = dict[str, Any]
Notebook = dict[str, Any]


# --- running ------------------------------------------------------------------------------------------------


def job_for(one: Submission, released: Notebook, scratch: Path, options: Any) -> dict[str, Any]:
    """What the worker has to know."""
    pairs = repair.exercises(released)
    imports = [m for cell in released["cells"] if (m := facts.CHECKS.search(sync.source_of(cell)))]
    folder = scratch / one.slug / one.assignment
    folder.mkdir(parents=True)
    (folder / "notebook.json").write_text(json.dumps(one.notebook, ensure_ascii=False), encoding="utf-8")
    return {
        "notebook": str(folder / "notebook.json"),
        "scratch": str(folder / "work"),
        "course": str(ROOT),
        "checks": imports[0].group(1),
        "given": {cell["id"]: sync.source_of(cell) for cell in released["cells"] if not facts.grade_id(cell)},
        "tasks": {facts.grade_id(task): name for name, (task, _) in pairs.items()},
        "tests": {facts.grade_id(test): name for name, (_, test) in pairs.items()},
        "beside": {name: str(path) for name, path in one.beside.items()},
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


def execute(
    submissions: list[Submission], released: dict[str, Notebook], scratch: Path, options: Any
) -> Iterator[tuple[Submission, Notebook]]:
    """Run all that can be run, a few at a time; give each submission and its executed notebook as they are done."""
    handed_in = [one for one in submissions if one.path is not None]
    runnable, jobs = [], []
    for one in handed_in:
        try:
            if one.notebook is not None:
                jobs.append(job_for(one, released[one.assignment], scratch, options))
                runnable.append(one)
                continue
        except Exception as wrong:
            one.trouble = f"the grader stopped here, look at it yourself: {_last_line(wrong)}"
        yield one, not_run(released[one.assignment], one.trouble)
    for number, (answer, told) in pool.run_all(jobs, options.workers):
        one = runnable[number]
        one.trouble, one.seconds = answer, told.get("seconds", 0.0)
        stops = [note for note in told.get("notes", []) if note.startswith("not run to its end")]
        one.report.notes += [note for note in told.get("notes", []) if note not in stops]
        one.trouble = "; ".join([*filter(None, [answer]), *stops])
        print(f"  ran {one.student}, {one.assignment} ({one.seconds:.0f} s) {one.trouble}", flush=True)
        assert one.notebook is not None
        yield one, told.get("notebook") or not_run(one.notebook, one.trouble)


def score(
    one: Submission, notebook: Notebook, released: Notebook, course: Path, executed: Path, per_day: float = 0.0
) -> None:
    """nbgrader's part: points from the outputs, and feedback that begins with what each check said."""
    names = {facts.grade_id(c): facts.check_name(c) for c in notebook["cells"] if facts.grade_id(c)}
    for cell in notebook["cells"]:
        if facts.grade_id(cell) and facts.check_name(cell):
            errors = [o for o in cell["outputs"] if o["output_type"] == "error"]
            one.said[str(facts.check_name(cell))] = sentence(errors[-1], str(facts.check_name(cell))) if errors else ""
    first = {"cell_type": "markdown", "id": "remarks", "metadata": {}, "source": summary(one, released)}
    notebook = {**notebook, "cells": [first, *map(brief, notebook["cells"])]}
    name = f"{one.assignment}.ipynb"
    text = sync.dumps(notebook).encode("utf-8", "replace")
    for path in (executed / one.slug / name, course / "submitted" / one.slug / one.assignment / name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    if one.handed_in:  # nbgrader's own name and form for it
        (path.parent / "timestamp.txt").write_text(f"{one.handed_in.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S UTC}")
    gradebook.grade(course, one.slug, one.assignment, executed, per_day)
    marks = gradebook.points(course, one.slug, one.assignment)
    one.points = {str(names[mark]): value for mark, value in marks.items() if mark in names}
    if one.handed_in:
        one.days_late, one.penalty = gradebook.lateness(course, one.slug, one.assignment)


def sentence(error: dict[str, Any], exercise: str) -> str:
    """What a check said, without the class of the error that carried it."""
    said = str(error.get("evalue", "")).removeprefix(f"{exercise}: ")
    return said if error.get("ename") == "Mistake" else f"{error.get('ename')}: {said}"


def summary(one: Submission, released: Notebook) -> str:
    """The top of the feedback: each exercise and what its check said, then what was mended."""
    lines = ["**Your exercises**", ""]
    for name in repair.exercises(released):
        said = one.said.get(name, "not run").splitlines() or [""]
        lines.append(f"- `{name}`: {said[0] or 'correct'}")
    if remarks := [*one.report.mended, *one.report.lost, *filter(None, [one.trouble])]:
        lines += ["", "**Before grading**", "", *(f"- {remark}" for remark in remarks)]
    return "\n".join(lines)


def brief(cell: Cell) -> Cell:
    """The cell without what makes a page heavy: embedded pictures, and tracebacks longer than their last lines."""
    cell = {**cell, "source": PICTURE.sub("*(The picture is in your notebook.)*", sync.source_of(cell))}
    if cell["cell_type"] == "code":
        cell["outputs"] = [
            {**o, "traceback": o["traceback"][-1:]} if o.get("output_type") == "error" else o for o in cell["outputs"]
        ]
    return cell


def scored(
    one: Submission, notebook: Notebook, released: Notebook, course: Path, executed: Path, per_day: float = 0.0
) -> None:
    """Points and feedback for one submission; where that fails, it says so and stops nobody else's grading."""
    try:
        score(one, notebook, released, course, executed, per_day)
    except Exception as wrong:  # ours, nbgrader's, whatever it is
        one.trouble = f"not graded, look at it yourself: {_last_line(wrong)}"
        table = release.points_table({one.assignment: released})
        one.points = {name: (0.0, points) for _, name, points in table}
        return
    try:
        gradebook.feedback(course, one.slug, one.assignment)
    except Exception as wrong:
        one.report.notes.append(f"no feedback page: {_last_line(wrong)}")


def _last_line(wrong: Exception) -> str:
    said = (str(wrong).splitlines() or [""])[-1][:200]
    return said if isinstance(wrong, gradebook.GradingError) else f"{type(wrong).__name__}: {said}"


# --- all of it ------------------------------------------------------------------------------------------


def grade(folder: Path, out: Path, options: Any) -> list[Submission]:
    """Everything, from a folder of submissions to the results in `out`.

    Raises:
        release.ReleaseError, gradebook.GradingError: the course's own side is not in order.
        roster.RosterError: the roster or a due date is not.
    """
    if not (out / "source").is_dir():
        with tempfile.TemporaryDirectory(prefix="release-") as unused:
            release.release([], to=Path(unused), keep=out)
    paths = sorted((out / "source").glob("*/*.ipynb"))
    sources = {path.stem: sync.read_notebook(path) for path in paths}
    due = dict(options.due)
    if unknown := due.keys() - sources.keys():
        raise roster.RosterError(f"--due {', '.join(unknown)}: the notebooks are {', '.join(sources)}")
    people = roster.read(options.roster, sources) if options.roster else []
    released = gradebook.generate(sources, out)
    gradebook.set_due(out, {name: due.get(name) for name in sources})
    with tempfile.TemporaryDirectory(prefix="grading-", ignore_cleanup_errors=True) as scratch:
        submissions, strays = collect(folder, released, Path(scratch) / "unpacked", people)
        there = [one for one in submissions if one.path is not None]
        print(f"{len(there)} submissions of {len({one.student for one in submissions})} students", flush=True)
        if options.look:
            print(report(submissions, strays))
            return submissions
        if aside := put_aside(out):
            print(f"the results that were in {out} are now in {aside}")
        executed = out / "executed"
        shutil.rmtree(executed, ignore_errors=True)
        done = []
        for one, notebook in execute(submissions, released, Path(scratch), options):
            scored(one, notebook, released[one.assignment], out, executed, options.late_per_day)
            done.append(one)
            write_results([o for o in submissions if o in done], strays, out)  # should it be stopped, these are there
    write_results(submissions, strays, out)
    write_alike(alike(submissions, sources), out)
    return submissions


def due_date(text: str) -> tuple[str, datetime]:
    """NOTEBOOK=TIME of the command line."""
    name, _, when = text.partition("=")
    try:
        return name.strip(), roster.moment(when, day_ends=True)
    except roster.RosterError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Grade a folder of submissions: FOLDER/<student>/<notebook>.ipynb")
    parser.add_argument("folder", type=Path, help="or the zip that Moodle, Canvas or Gradescope gives")
    parser.add_argument("--out", type=Path, default=ROOT / "grading", help="default: grading/")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="submissions at a time")
    parser.add_argument("--cell-seconds", type=float, default=30, help="the most an exercise or a test may take")
    parser.add_argument(
        "--seconds", type=float, help="the most a submission may take; default: 300, whole notebooks 1800"
    )
    parser.add_argument("--gigabytes", type=float, default=4, help="the most memory a submission may take")
    parser.add_argument("--all-cells", action="store_true", help="run whole notebooks, trainings and plots as well")
    parser.add_argument("--roster", type=Path, help="the class: a CSV with the columns id, name, email")
    parser.add_argument(
        "--due", type=due_date, action="append", default=[], metavar="NOTEBOOK=TIME",
        help="by when: 02_forward_process=2026-12-08, or '…=2026-12-08 18:00'; later ones are named as late",
    )  # fmt: skip
    parser.add_argument(
        "--late-per-day", type=float, default=0, metavar="PER_CENT", help="taken off for each day begun; default: 0"
    )
    parser.add_argument("--look", action="store_true", help="only say what would be mended or is missing")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (1800 if options.all_cells else 300)
    if not options.folder.is_dir() and options.folder.suffix.lower() != ".zip" or not options.folder.exists():
        print(f"there is no folder {options.folder}; give one with a folder for each student in it", file=sys.stderr)
        return 1
    begun = time.monotonic()
    try:
        submissions = grade(options.folder, options.out.resolve(), options)
    except (release.ReleaseError, gradebook.GradingError, roster.RosterError) as error_:
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
        told = "; ".join([*([late(one)] if one.days_late else []), *one.report.lost, *filter(None, [one.trouble])])
        print(f"  {one.student:<24}{one.assignment:<22}{points:5g} of {most:<5g}{one.status:<15}{told[:90]}")
    missing = sum(one.path is None for one in submissions)
    if missing:
        print(f"  ({missing} not handed in: in report.txt, not in the tables)")
    print(
        f"\n{len(submissions) - missing} submissions in {time.monotonic() - begun:.0f} s; in {options.out}: "
        "grades.csv, exercises.csv, points.csv, canvas.csv, moodle.csv, alike.csv, report.txt, feedback/"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
