"""The results as tables for a spreadsheet and as text."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from autograde.collect import Submission


def write_results(submissions: list[Submission], strays: list[str], out: Path) -> None:
    """grades.csv, exercises.csv and report.txt."""
    with open(out / "grades.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["student", "notebook", "points", "out of", "status", "seconds", "mended", "lost", "notes"])
        for one in submissions:
            points, most = one.total
            lists = (one.report.mended, one.report.lost, [*one.report.notes, *filter(None, [one.trouble])])
            row = [_cell(one.student), one.assignment, f"{points:g}", f"{most:g}", one.status, f"{one.seconds:.0f}"]
            table.writerow(row + [_cell("; ".join(lines)) for lines in lists])
    with open(out / "exercises.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["student", "notebook", "exercise", "points", "out of", "what the check said"])
        for one in submissions:
            for name, (points, most) in one.points.items():
                row = [_cell(one.student), one.assignment, name, f"{points:g}", f"{most:g}"]
                table.writerow([*row, _cell(one.said.get(name, ""))])
    lines = list(strays)
    for one in submissions:
        told = [
            *(f"    mended: {line}" for line in one.report.mended),
            *(f"    lost: {line}" for line in one.report.lost),
            *(f"    note: {line}" for line in one.report.notes),
            *([f"    stopped: {one.trouble}"] if one.trouble else []),
        ]
        points, most = one.total
        lines += [f"{one.student}, {one.assignment}: {points:g} of {most:g}, {one.status}", *told]
    (out / "report.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(text: str) -> str:
    """A spreadsheet runs what begins with one of these; a student's text is not to."""
    text = re.sub(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f]", "", text)[:2000]
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text
