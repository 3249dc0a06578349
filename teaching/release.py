"""Make the student version of the notebooks: `python teaching/release.py [01_vae …]`, or `make release`.

    release/<assignment>/<assignment>.ipynb     to hand out: no solutions, no hidden tests, no outputs
    grading/source/…                            the complete versions that they came from, which make grade needs

Each notebook is one assignment. nbgrader strips it; before that, the picture that a right solution leads to is put,
folded, under its check (under the last question on the way to it, so that it answers none), paragraphs that answer the
question above them are folded, too, and the badge that would open the solved notebook in Colab goes. After that, the
result is examined: no cell may show more than half of any exercise's solution, or import what is to be written.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import nbformat  # noqa: E402
import sync  # noqa: E402
from autograde import cells as facts  # noqa: E402
from autograde import gradebook  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = "<details><summary>What you should see further down, once this works</summary>"
COLAB = (
    "*To work in Colab: open [colab.research.google.com](https://colab.research.google.com), choose File → Upload "
    "notebook, and upload this file. To hand it in from there: File → Download → Download .ipynb.*"
)
STUB = "raise NotImplementedError"
ANSWER = "<details><summary>Once you have your own answer: what comes of it</summary>"
# Cells whose first paragraph answers the exercise above them, or the one that it leads to.
ANSWERS = {
    "01-079": "bears_noise",
    "02-053": "noisy_latent",
    "03-073": "five_steps",
    "04-068": "twins_loss",
    "05-052": "guidance_exponents",
    "06-024": "first_guess",
}
# Words in a cell that answer an exercise.
TELLING = {
    "05-046": (", w = 0 the unconditional one", ""),  # w_zero
    "06-004": (" dpmpp_2m_step,", ""),  # imported, while the first to use it comes after the exercise
}
# Cells that use the course's own version of what is to be written later, and the text above them says so.
LENT = {"01-114": {"reparameterise", "kl_to_standard_normal"}}

Cell = dict[str, Any]
Notebook = dict[str, Any]


class ReleaseError(Exception):
    """A notebook that cannot be handed out; the message says why."""


# --- before nbgrader ----------------------------------------------------------------------------------------


def is_prediction(cell: Cell) -> bool:
    """An exercise that takes no arguments: a question. A picture would answer it."""
    return re.search(r"^def \w+\(\)", sync.source_of(cell), re.M) is not None


def expected_picture(cells: list[Cell], check: int) -> str | None:
    """The first picture (base64 PNG) that is drawn with what the exercise above cell `check` defines, or None.

    Followed through names that a single cell binds: a function, a table, a model. Names used again and again (x, noise)
    would lead astray. Where that finds none, or the wrong one, tag the cell that draws it: `expected:<exercise>`.
    """
    name = facts.check_name(cells[check])
    assert name is not None
    if is_prediction(cells[check - 1]):
        return None
    for cell in cells:
        if f"expected:{name}" in cell["metadata"].get("tags", []):
            return _picture(cell)
    known = [facts.names(cell) if cell["cell_type"] == "code" else (set(), set()) for cell in cells]
    bound = [one for _, binds in known for one in binds]
    leads = {name}
    for cell, (uses, binds) in list(zip(cells, known, strict=True))[check + 1 :]:
        if not uses & leads or facts.exercise_name(cell) or facts.check_name(cell):
            continue
        if picture := _picture(cell):
            return picture
        leads |= {one for one in binds if bound.count(one) == 1}
    return None


def _picture(cell: Cell) -> str | None:
    drawn = [output["data"]["image/png"] for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    return "".join(drawn[0]).replace("\n", "") if drawn else None


def with_pictures(notebook: Notebook) -> Notebook:
    """A copy in which a folded Markdown cell with the expected picture follows each check that has one.

    Where questions stand between the check and the cell that draws the picture, it follows the check of the last one.
    """
    before: list[Cell] = notebook["cells"]
    questions = [i for i, cell in enumerate(before) if facts.check_name(cell) and is_prediction(before[i - 1])]
    below: dict[int, list[Cell]] = {}
    for index, cell in enumerate(before):
        picture = expected_picture(before, index) if facts.check_name(cell) else None
        if picture is None:
            continue
        drawn = next(i for i, one in enumerate(before) if _picture(one) == picture)
        place = max([index, *(i for i in questions if index < i < drawn)])
        of = "" if place == index else f" (of `{facts.check_name(cell)}`)"
        # A data URI, since Colab draws no attachments.
        text = f"{EXPECTED}{of}\n\n![the expected picture](data:image/png;base64,{picture})\n\n</details>"
        new = {"cell_type": "markdown", "id": f"{cell['id']}-expected", "metadata": {}, "source": text}
        below.setdefault(place, []).append(new)
    return {**notebook, "cells": [one for i, cell in enumerate(before) for one in (cell, *below.get(i, []))]}


def with_answers_folded(notebook: Notebook) -> Notebook:
    """A copy in which nothing that is read on the way answers a question before it was asked, or right below it."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        if cell.get("id") in ANSWERS:
            parts = sync.source_of(cell).split("\n\n")
            aside = re.compile(r"#.*|<!--[^>]*-->", re.S)  # headings and comments
            first = next(i for i, part in enumerate(parts) if not aside.fullmatch(part))
            band, _, text = parts[first].rpartition("-->\n")  # a comment that the course's own tests read
            if text.startswith("<details"):  # the notebook has it folded
                continue
            parts[first] = f"{band}{'-->' if band else ''}\n\n{ANSWER}\n\n{text}\n\n</details>".strip()
            cell["source"] = "\n\n".join(parts)
        if cell.get("id") in TELLING:
            cell["source"] = sync.source_of(cell).replace(*TELLING[cell["id"]])
    return notebook


def without_badge(notebook: Notebook) -> Notebook:
    """A copy whose first cell says how to get this file into Colab: the badge would open the solved notebook."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        lines = sync.source_of(cell).split("\n")
        if cell["cell_type"] == "markdown" and lines[0].strip() == sync.BADGE:
            rest = lines[2:] if len(lines) > 1 and lines[1].startswith("[![") else lines[1:]
            cell["source"] = "\n".join([*rest, "", COLAB])
    return notebook


def with_given(notebook: Notebook, drop: Sequence[str]) -> Notebook:
    """A copy in which the exercises in `drop` are given code: no markers, no points, their check still under them."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        name = facts.exercise_name(cell) or facts.check_name(cell)
        if name not in drop:
            continue
        cell["metadata"].pop("nbgrader", None)
        lines = sync.source_of(cell).split("\n")
        lines[0] = re.sub(r"^# exercise:", "# given:", lines[0])
        lines[0] = re.sub(r"^# check: *(\S+).*", r"# a look whether \1 is right", lines[0])
        cell["source"] = "\n".join(line for line in lines if line.strip() not in (sync.BEGIN, sync.END))
    return notebook


def prepare(notebook: Notebook, drop: Sequence[str] = ()) -> Notebook:
    """What nbgrader's generate_assignment is given."""
    return with_given(without_badge(with_answers_folded(with_pictures(notebook))), drop)


# --- after nbgrader -----------------------------------------------------------------------------------------


def solution_lines(cell: Cell) -> list[str]:
    """The lines between the solution markers that say something: no comments, no bare `return x` or brackets."""
    text = sync.source_of(cell)
    if sync.BEGIN not in text:
        return []
    body = text.split(sync.BEGIN, 1)[1].split(sync.END, 1)[0].split("\n")
    lines = [re.sub(r" +# .*", "", line).strip() for line in body]
    return [line for line in lines if len(line) > 18 and not re.fullmatch(r"#.*|return \w+|[\[\](){},]*", line)]


def examine(released: Notebook, source: Notebook, name: str, solutions: dict[str, list[str]]) -> list[str]:
    """What is wrong with a released notebook; `solutions` holds each exercise's lines, those of all notebooks."""
    wrong = []
    nbformat.validate(released)
    wanted = {facts.exercise_name(cell) for cell in released["cells"] if facts.grade_id(cell)} - {None}
    course = facts.from_course(released["cells"])
    for cell in released["cells"]:
        where, text = f"{name}, cell {cell.get('id')}", sync.source_of(cell)
        if cell.get("outputs") or cell.get("execution_count"):
            wrong.append(f"{where} still has outputs")
        if any(mark in text for mark in ("BEGIN SOLUTION", "BEGIN HIDDEN TESTS", "BEGIN MARK SCHEME")):
            wrong.append(f"{where} still has nbgrader's markers")
        if "/notebooks/" in text and "colab.research.google.com/github" in text:
            wrong.append(f"{where} links to the solved notebook in Colab")
        if cell["cell_type"] == "code":
            have = {re.sub(r" +# .*", "", line).strip() for line in text.split("\n")}
            given = [e for e, lines in solutions.items() if 2 * sum(line in have for line in lines) > len(lines)]
            wrong += [f"{where} shows more than half of the solution of {e}" for e in given]
            if not facts.grade_id(cell):
                ways = facts.hands_over(cell, wanted - LENT.get(cell["id"], set()), course)
                wrong += [f"{where} {way}: that hands over what students are to write" for way in ways]
        if facts.grade_id(cell) and facts.exercise_name(cell) and STUB not in text:
            wrong.append(f"{where} has no {STUB} where the solution was")
    if [_graded(cell) for cell in released["cells"]] != [_graded(cell) for cell in source["cells"]]:
        wrong.append(f"{name}: ids or points differ from the source")
    return wrong


def _graded(cell: Cell) -> tuple[Any, Any]:
    return facts.grade_id(cell), cell["metadata"].get("nbgrader", {}).get("points")


def shared_lines(notebooks: dict[str, Notebook]) -> dict[str, list[str]]:
    """Each exercise's solution lines, less those that other cells may hold since they give nothing away.

    Those are lines of two solutions or more, looks into the schedule's table, tests of the input and heads of blocks.
    """
    found = {
        str(facts.exercise_name(cell)): solution_lines(cell)
        for notebook in notebooks.values()
        for cell in notebook["cells"]
        if facts.exercise_name(cell)
    }
    every = [line for lines in found.values() for line in dict.fromkeys(lines)]
    trivial = re.compile(r"(\w+ = )?check_\w+\(.*\)|\w+ = schedule\.\w+\(.*\)|raise .*|(if|for|else|def).*:")
    return {
        name: [line for line in lines if every.count(line) == 1 and not trivial.fullmatch(line)]
        for name, lines in found.items()
    }


# --- all of it ----------------------------------------------------------------------------------------------


def read_all(names: Sequence[str], root: Path = ROOT) -> dict[str, Notebook]:
    """The committed notebooks of these names, or all six."""
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    have = {path.stem: path for path in paths}
    unknown = [name for name in names if name not in have]
    if unknown:
        raise ReleaseError(f"there is no notebook {', '.join(unknown)}; there are {', '.join(have)}")
    return {name: sync.read_notebook(have[name]) for name in (names or have)}


def release(
    names: Sequence[str], *, to: Path, keep: Path, drop: Sequence[str] = (), root: Path = ROOT
) -> dict[str, Notebook]:
    """Write the student versions to `to` and the complete ones to `keep`/source. Returns the student versions.

    Raises:
        ReleaseError: a notebook is not sound, or gives a solution away. Nothing is written then.
    """
    everything = read_all([], root)
    chosen = read_all(names, root)
    exercises = [facts.exercise_name(cell) for book in everything.values() for cell in book["cells"]]
    unknown = [name for name in drop if name not in exercises]
    if unknown:
        raise ReleaseError(f"no notebook has an exercise {', '.join(unknown)}")
    pairs = [pair for book in everything.values() for pair in sync.exercises_of(book) if pair[0] != sync.HERE]
    problems = [problem for name, book in chosen.items() for problem in sync.lint_notebook(book, name, pairs)]
    if problems:
        raise ReleaseError("\n".join(problems))
    solutions = {name: lines for name, lines in shared_lines(everything).items() if name not in drop}
    sources = {name: prepare(book, drop) for name, book in chosen.items()}
    with tempfile.TemporaryDirectory(prefix="release-") as scratch:
        released = gradebook.generate(sources, Path(scratch))
    problems = [p for name in released for p in examine(released[name], sources[name], name, solutions)]
    if problems:
        raise ReleaseError("\n".join(problems))
    for name in released:
        _write(to / name / f"{name}.ipynb", released[name])
        _write(keep / "source" / name / f"{name}.ipynb", sources[name])
    return released


def _write(path: Path, notebook: Notebook) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(sync.dumps(notebook), encoding="utf-8", newline="\n")


def points_table(notebooks: dict[str, Notebook]) -> list[tuple[str, str, float]]:
    """(notebook, exercise, points) of each exercise."""
    return [
        (name, str(facts.check_name(cell)), float(cell["metadata"]["nbgrader"]["points"]))
        for name, book in notebooks.items()
        for cell in book["cells"]
        if facts.check_name(cell) and facts.grade_id(cell)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the student versions of the notebooks.")
    parser.add_argument("notebooks", nargs="*", help="such as 02_forward_process; default: all")
    parser.add_argument("--to", type=Path, default=ROOT / "release", help="default: release/")
    parser.add_argument("--keep", type=Path, default=ROOT / "grading", help="default: grading/")
    parser.add_argument("--drop", default="", help="exercises to give solved, with commas: add_noise,jump")
    options = parser.parse_args(arguments)
    drop = [name.strip() for name in options.drop.split(",") if name.strip()]
    try:
        released = release(options.notebooks, to=options.to, keep=options.keep, drop=drop)
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    table = points_table(released)
    for name in released:
        points = [points for book, _, points in table if book == name]
        print(f"{options.to / name / name}.ipynb   {len(points)} exercises, {sum(points):g} points")
    print(f"{len(table)} exercises, {sum(points for _, _, points in table):g} points in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
