"""The results as tables for a spreadsheet and for learning platforms, and as text."""

from __future__ import annotations

import csv
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from autograde.collect import Submission

TABLES = ("grades.csv", "exercises.csv", "points.csv", "canvas.csv", "moodle.csv", "alike.csv")


def put_aside(out: Path) -> Path | None:
    """Copy the results of an earlier grading to out/earlier/<time>, for the new ones are written over them."""
    there = [out / name for name in (*TABLES, "report.txt", "gradebook.db") if (out / name).is_file()]
    if not there:
        return None
    aside = out / "earlier" / time.strftime("%Y-%m-%d %H.%M.%S")
    while aside.exists():
        aside = aside.with_name(aside.name + "+")
    aside.mkdir(parents=True)
    for path in there:
        shutil.copy2(path, aside)
    return aside


def write_results(submissions: list[Submission], strays: list[str], out: Path) -> None:
    """All tables and report.txt. A notebook that was not handed in stands in the report alone."""
    there = [one for one in submissions if one.path is not None]
    rows = []
    for one in there:
        points, most = one.total
        lists = (one.report.mended, one.report.lost, [*one.report.notes, *filter(None, [one.trouble])])
        late = [str(one.days_late or ""), f"{one.penalty:.4g}" if one.penalty else ""]
        row = [one.student, one.assignment, f"{points:g}", f"{most:g}", *late, one.status, f"{one.seconds:.0f}"]
        rows.append(row + ["; ".join(lines) for lines in lists])
    head = ["student", "notebook", "points", "out of", "days late", "taken off", "status", "seconds"]
    head += ["mended", "lost", "notes"]
    _write(out / "grades.csv", head, rows)
    rows = [
        [one.student, one.assignment, name, f"{points:g}", f"{most:g}", one.said.get(name, "")]
        for one in there
        for name, (points, most) in one.points.items()
    ]
    _write(out / "exercises.csv", ["student", "notebook", "exercise", "points", "out of", "what the check said"], rows)
    _write_for_platforms(submissions, out)
    (out / "report.txt").write_text(report(submissions, strays), encoding="utf-8", errors="replace")


def _write_for_platforms(submissions: list[Submission], out: Path) -> None:
    """A line for each student, a column for each notebook: by name, and as Canvas and Moodle import it."""
    books = sorted({one.assignment for one in submissions})
    wide: dict[str, dict[str, Submission]] = {}
    for one in submissions:
        wide.setdefault(one.student, {})[one.assignment] = one
    plain, canvas, moodle = [], [], []
    for student, own in wide.items():
        marks = {b: f"{own[b].total[0]:g}" if b in own and own[b].path is not None else "" for b in books}
        number, id_, email = next((one.number, one.id, one.email) for one in own.values())
        total = sum(one.total[0] for one in own.values() if one.path is not None)
        plain.append([student, id_ or number, *marks.values(), f"{total:g}"])
        canvas.append([student, number, id_, email, "", *marks.values()])
        moodle.append([f"Participant {number}" if number else "", student, id_, email, *marks.values()])
    most = [next((f"{o.total[1]:g}" for o in submissions if o.assignment == b and o.points), "") for b in books]
    _write(out / "points.csv", ["student", "id", *books, "total"], plain)
    _write(
        out / "canvas.csv",
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *books],
        [["    Points Possible", "", "", "", "", *most], *canvas],
    )
    _write(out / "moodle.csv", ["Identifier", "Full name", "ID number", "Email address", *books], moodle)


def write_alike(lines: list[list[str]], out: Path) -> None:
    """alike.csv: for a person to look at."""
    _write(out / "alike.csv", ["notebook", "exercise", "students", "how alike", "points"], lines)


def report(submissions: list[Submission], strays: list[str]) -> str:
    """Everything that a person should read, a submission at a time."""
    lines = list(strays)
    present = {one.student for one in submissions if one.path is not None}
    if absent := sorted({one.student for one in submissions} - present):
        lines.append(f"handed in nothing at all: {', '.join(absent)}")
    for one in submissions:
        told = [
            *(f"    mended: {line}" for line in one.report.mended),
            *(f"    lost: {line}" for line in one.report.lost),
            *(f"    note: {line}" for line in one.report.notes),
            *([f"    stopped: {one.trouble}"] if one.trouble and one.path is not None else []),
        ]
        points, most = one.total
        worth = f"{points:g} of {most:g}, " if one.points else ""
        told += [f"    late: {late(one)}"] if one.days_late else []
        lines += [f"{one.student}, {one.assignment}: {worth}{one.status}", *told]
    return "\n".join(lines) + "\n"


def late(one: Submission) -> str:
    """How late it was and what that cost."""
    when = f"{one.handed_in:%Y-%m-%d %H:%M}" if one.handed_in else "?"
    cost = f", {one.penalty:.4g} points taken off" if one.penalty else ""
    return f"handed in {when}, {one.days_late} day{'s' * (one.days_late > 1)} late{cost}"


def _write(path: Path, head: list[str], rows: Iterable[list[str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="replace") as file:
        table = csv.writer(file)
        table.writerow(head)
        table.writerows([_cell(text) for text in row] for row in rows)


def _cell(text: str) -> str:
    """A spreadsheet runs what begins with one of these; a student's text is not to."""
    text = re.sub(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f]", "", text)[:2000]
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text
