"""Before grading: find what nbgrader does not see in a submission, mend what is safe to mend, name the rest.

nbgrader goes by metadata. Where a student deletes a test cell, or an editor strips metadata, the points are lost
without a word. So each exercise is looked for here by its mark, by its first line and by its `def`, and each test is
put back under its exercise as it was handed out.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import sync

from autograde import cells as facts

Cell = dict[str, Any]
Notebook = dict[str, Any]
LARGEST = 60_000_000  # bytes


class Unreadable(Exception):
    """A file that is no notebook; the message says what it is."""


@dataclass
class Report:
    """What was found in one submission. `mended` costs nothing, `lost` costs points, `notes` are for the teacher."""

    mended: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# --- reading ------------------------------------------------------------------------------------------------


def read(path: Path) -> Notebook:
    """A submitted file as a notebook of format 4, with plain text sources and no outputs.

    Raises:
        Unreadable: it is not a notebook.
    """
    if not path.is_file():
        raise Unreadable("there is no such file")
    if path.stat().st_size > LARGEST:
        raise Unreadable(f"the file has {path.stat().st_size / 1e6:.0f} MB; hand it in without outputs")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}") from None
    if not content.strip():
        raise Unreadable("the file is empty")
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
        notebook = json.loads(writable(json.dumps(notebook, ensure_ascii=False)))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the file is no notebook: it is not JSON ({str(error)[:80]})") from None
    if isinstance(notebook, dict) and "worksheets" in notebook:
        try:
            notebook = nbformat.convert(nbformat.from_dict(notebook), 4)
        except Exception as error:  # whatever the file holds
            raise Unreadable(f"an old notebook (format 3) that cannot be read: {str(error)[:80]}") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise Unreadable("the file is JSON but no notebook: it has no cells")
    return {
        "cells": [cell for cell in map(_plain, notebook["cells"]) if cell is not None],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _plain(cell: Any) -> Cell | None:
    if not isinstance(cell, dict) or cell.get("cell_type") not in ("code", "markdown", "raw"):
        return None
    source = cell.get("source", "")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    source = str(source).replace("\r\n", "\n").replace("\r", "\n")
    metadata = cell.get("metadata") if isinstance(cell.get("metadata"), dict) else {}
    new: Cell = {"cell_type": cell["cell_type"], "metadata": dict(metadata), "source": source}
    new["id"] = str(cell.get("id") or metadata.get("id") or "")  # Colab keeps ids in the metadata
    if cell["cell_type"] == "code":
        new |= {"outputs": [], "execution_count": None}
    elif isinstance(cell.get("attachments"), dict):
        new["attachments"] = cell["attachments"]
    return new


def writable(text: str) -> str:
    """The text without the halves of characters that JSON can hold but no file."""
    return text.encode("utf-8", "replace").decode("utf-8")


def exercises(released: Notebook) -> dict[str, tuple[Cell, Cell]]:
    """name -> (exercise cell, test cell) of a student version, in order."""
    book = released["cells"]
    return {
        str(facts.check_name(cell)): (book[index - 1], cell)
        for index, cell in enumerate(book)
        if facts.check_name(cell) and facts.grade_id(cell)
    }


def which(notebook: Notebook, released: dict[str, Notebook]) -> str | None:
    """The assignment whose exercises this notebook holds; None if it holds none."""
    scores = {}
    for name, book in released.items():
        ours = {facts.grade_id(cell) for pair in exercises(book).values() for cell in pair}
        heads = {sync.source_of(task).split("\n")[0] for task, _ in exercises(book).values()}
        scores[name] = sum(
            facts.grade_id(cell) in ours or sync.source_of(cell).split("\n")[0] in heads for cell in notebook["cells"]
        )
    best = max(scores, key=lambda name: scores[name], default=None)
    return best if best is not None and scores[best] else None


# --- mending ------------------------------------------------------------------------------------------------


def repair(submitted: Notebook, released: Notebook) -> tuple[Notebook, Report]:
    """The submission with every exercise and test in place and marked as in the student version, and what was done."""
    report = Report()
    pairs = exercises(released)
    cells = copy.deepcopy(submitted["cells"])
    _restore_ids(cells, released, report)
    tests = _find_tests(cells, pairs, report)
    of_tests = {index for places in tests.values() for index in places}
    tasks = _find_tasks(cells, pairs, tests, report)
    _say_what_is_peculiar(cells, released, report)
    marks = {facts.grade_id(task): name for name, (task, _) in pairs.items()}
    stripped = [name for name, index in tasks.items() if facts.grade_id(cells[index]) not in marks]
    if stripped:
        report.mended.append(f"the marks of {', '.join(stripped)} were stripped: found by first line or def")
    ours = {facts.grade_id(cell) for pair in pairs.values() for cell in pair}
    for index, cell in enumerate(cells):
        mark = facts.grade_id(cell)
        cell["metadata"].pop("nbgrader", None)
        if mark is not None and mark not in ours:
            report.notes.append(f"cell {cell['id'] or index + 1} carries a mark that is not of this assignment")

    # A test stays where the student has it, so that helpers written above it are there.
    home: dict[int, list[str]] = {}  # cell -> the exercises solved in it
    due: dict[int, list[str]] = {}  # cell -> the exercises whose test follows it
    for name, index in tasks.items():
        home.setdefault(index, []).append(name)
        due.setdefault(max([index, *tests[name]]), []).append(name)
    stubs = {sync.source_of(task).rstrip() for task, _ in pairs.values()}
    mended: list[Cell] = []
    for index, cell in enumerate(cells):
        here = home.get(index, [])
        if here:
            if cell["cell_type"] != "code":
                report.mended.append(f"{here[0]} had been turned into {cell['cell_type']}: it is code again")
            if len(here) > 1:
                report.mended.append(f"{', '.join(here)} were in one cell: it is run before the test of each")
            mended.append(_solved(cell, pairs[here[0]][0]))
        elif index not in of_tests and cell["source"].rstrip() not in stubs:  # a stub left over would undo the solution
            mended.append(cell)
        for name in due.get(index, []):
            if home[tasks[name]][0] != name:
                mended.append(_solved(cells[tasks[name]], pairs[name][0]))
            mended.append(_fresh(pairs[name][1]))
    for name, (task, test) in pairs.items():
        if name not in tasks:
            report.lost.append(f"{name} is missing altogether: no points for it")
            gone = {**task, "source": f"# {name} was not handed in"}  # no stub: it would undo what cannot be seen
            _put_back(mended, released, [gone, test])
    _put_back_given(mended, released, report)
    _unique_ids(mended)
    return {**submitted, "cells": mended}, report


def _solved(cell: Cell, task: Cell) -> Cell:
    """A copy of a student's cell, marked as the solution of an exercise."""
    kept = {k: v for k, v in cell.items() if k != "attachments"}
    metadata = {**cell["metadata"], "nbgrader": copy.deepcopy(task["metadata"]["nbgrader"])}
    return kept | {"cell_type": "code", "outputs": [], "execution_count": None, "metadata": metadata}


def _say_what_is_peculiar(cells: list[Cell], released: Notebook, report: Report) -> None:
    """For a person to judge: it costs nothing."""
    given = {sync.source_of(cell).rstrip() for cell in released["cells"]}
    for index, cell in enumerate(cells):
        if cell["cell_type"] == "code" and cell["source"].rstrip() not in given:
            seen = facts.peculiar(cell, exercises(released))
            report.notes += [f"look at cell {index + 1}: it {what}" for what in seen]


def _fresh(cell: Cell) -> Cell:
    cell = copy.deepcopy(cell)
    return {**cell, "source": sync.source_of(cell), "outputs": [], "execution_count": None}


def _restore_ids(cells: list[Cell], released: Notebook, report: Report) -> None:
    """Cell ids as they were handed out, where an editor dropped or renewed them (Colab does)."""
    ours = {cell["id"] for cell in released["cells"]}
    by_grade = {facts.grade_id(cell): cell["id"] for cell in released["cells"] if facts.grade_id(cell)}
    by_text = {sync.source_of(cell).rstrip(): cell["id"] for cell in released["cells"]}
    if cells and not any(cell["id"] in ours for cell in cells):
        report.mended.append("no cell has its id any more (the notebook came back from Colab or another editor)")
    seen: set[str] = set()
    twice = []
    for cell in cells:
        if cell["id"] not in ours:
            cell["id"] = by_grade.get(facts.grade_id(cell)) or by_text.get(cell["source"].rstrip()) or cell["id"]
        if cell["id"] in seen and cell["id"]:
            twice.append(cell["id"])
            cell["id"] = ""
        seen.add(cell["id"])
    if twice:
        report.mended.append(f"several cells had the id {', '.join(sorted(set(twice)))}: the copies got new ones")


def _find_tests(cells: list[Cell], pairs: dict[str, tuple[Cell, Cell]], report: Report) -> dict[str, list[int]]:
    """The places of each exercise's test cells, which the student version's own will replace."""
    found: dict[str, list[int]] = {}
    for name, (_, test) in pairs.items():
        text = sync.source_of(test)
        calls = {line for line in text.split("\n") if not line.startswith("#")}
        found[name] = here = [
            index
            for index, cell in enumerate(cells)
            if facts.grade_id(cell) == facts.grade_id(test)
            or facts.check_name(cell) == name
            or calls == {line.strip() for line in cell["source"].split("\n") if line.strip() and line[0] != "#"}
        ]
        if not here:
            report.mended.append(f"the test of {name} was missing: put back")
        elif len(here) > 1:
            report.mended.append(f"the test of {name} was there {len(here)} times: one kept")
        if here and all(cells[index]["source"].rstrip() != text.rstrip() for index in here):
            report.mended.append(f"the test of {name} had been altered: put back as it was handed out")
    return found


def _find_tasks(
    cells: list[Cell], pairs: dict[str, tuple[Cell, Cell]], tests: dict[str, list[int]], report: Report
) -> dict[str, int]:
    """Where each exercise is solved: the last cell above its test that defines it, as in a run from top to bottom.

    A stub that was left as it is solves nothing. A cell of another exercise counts where no other one does: there, a
    `def` may be a copy that serves as a helper, or the student put two answers into one cell.
    """
    marks = {facts.grade_id(task): name for name, (task, _) in pairs.items()}
    taken = {index for places in tests.values() for index in places}
    free = [(index, cell) for index, cell in enumerate(cells) if index not in taken]
    found: dict[str, int] = {}
    for name, (task, _) in pairs.items():
        stub = sync.source_of(task).rstrip()
        marked = [i for i, c in free if marks.get(facts.grade_id(c)) == name or facts.exercise_name(c) == name]
        defining = [
            index
            for index, cell in free
            if cell["cell_type"] == "code" and facts.defines(cell, name) and cell["source"].rstrip() != stub
        ]
        above = [index for index in defining if not tests[name] or index < tests[name][-1]]
        others = [marks.get(facts.grade_id(cell)) or facts.exercise_name(cell) or name for cell in cells]
        own = [index for index in above if others[index] == name]
        chosen = (own or above or defining or marked or [None])[-1]
        if chosen is None:
            continue
        if len(set(marked) | set(defining)) > 1:
            report.notes.append(f"{name} is there {len(set(marked) | set(defining))} times: cell {chosen + 1} counts")
        found[name] = chosen
    return found


def _put_back(cells: list[Cell], released: Notebook, new: tuple[Cell, ...] | list[Cell]) -> None:
    """Insert cells of the student version behind the nearest cell that stood before them there."""
    order = [cell["id"] for cell in released["cells"]]
    before = set(order[: order.index(new[0]["id"])])
    places = [index for index, cell in enumerate(cells) if cell["id"] in before]
    at = max(places) + 1 if places else 0
    cells[at:at] = [_fresh(cell) for cell in new]


def _put_back_given(cells: list[Cell], released: Notebook, report: Report) -> None:
    """Imports and definitions that the exercises rest on, where they were deleted."""
    book = released["cells"]
    graded = {index for index, cell in enumerate(book) if facts.grade_id(cell)}
    have = {cell["id"] for cell in cells}
    for index in facts.needed(book, graded):
        if index not in graded and book[index]["id"] not in have:
            _put_back(cells, released, [book[index]])
            report.mended.append(f"the given cell {book[index]['id']} was missing: put back")


def _unique_ids(cells: list[Cell]) -> None:
    seen: set[str] = set()
    for index, cell in enumerate(cells):
        name = re.sub(r"[^a-zA-Z0-9_-]", "_", cell["id"])[:48] or f"own-{index + 1}"
        while name in seen:
            name += "-again"
        cell["id"] = name
        seen.add(name)
