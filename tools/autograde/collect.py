"""What was handed in: whose it is, which assignment it is, and in what state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autograde import repair

Notebook = dict[str, Any]


@dataclass
class Submission:
    """One notebook of one student on its way through grading."""

    student: str
    slug: str  # the student's name as nbgrader takes it
    assignment: str
    path: Path | None = None
    notebook: Notebook | None = None
    report: repair.Report = field(default_factory=repair.Report)
    trouble: str = ""  # why it was not run to its end
    seconds: float = 0.0
    points: dict[str, tuple[float, float]] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)  # exercise -> what its check said

    @property
    def status(self) -> str:
        if self.path is None:
            return "not handed in"
        if self.notebook is None:
            return "not readable"
        return "stopped" if self.trouble else "graded"

    @property
    def total(self) -> tuple[float, float]:
        return sum(p for p, _ in self.points.values()), sum(most for _, most in self.points.values())


def collect(folder: Path, released: dict[str, Notebook]) -> tuple[list[Submission], list[str]]:
    """All submissions in a folder, read and mended, and a line for each file that belongs to nobody or nothing."""
    found: dict[tuple[str, str], Submission] = {}
    strays = [f"{path.name} lies in no student's folder: not graded" for path in sorted(folder.glob("*.ipynb"))]
    students = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    slugs = slugs_of([path.name for path in students])
    for home in students:
        files = [path for path in home.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts]
        for path in sorted(files, key=lambda path: (path.stem in released, path.lstat().st_mtime)):
            new = _open(Submission(home.name, slugs[home.name], "", path), released)
            if not new.assignment:
                why = new.trouble or "it holds none of the exercises"
                strays.append(f"{home.name}/{path.name} belongs to no assignment: {why}")
                continue
            before = found.get((home.name, new.assignment))
            if before is not None and before.path is not None:
                new.report.notes.append(f"handed in twice: {path.name} counts, {before.path.name} does not")
            found[home.name, new.assignment] = new
    wanted = [name for name in released if any(one.assignment == name for one in found.values())]
    for home in students:
        for name in wanted:
            empty = Submission(home.name, slugs[home.name], name, trouble="nothing was handed in")
            found.setdefault((home.name, name), empty)
    for one in found.values():
        if one.notebook is not None:
            try:
                one.notebook, report = repair.repair(one.notebook, released[one.assignment])
            except Exception as error:  # a file made up to break this must not stop the others
                one.notebook, one.trouble = None, f"cannot be mended ({type(error).__name__}: {error})"
                continue
            report.notes += one.report.notes
            one.report = report
    return [found[key] for key in sorted(found)], strays


def _open(new: Submission, released: dict[str, Notebook]) -> Submission:
    """Read the file and find out which assignment it is: by its exercises, else by its name."""
    assert new.path is not None
    by_name = next((name for name in released if name in new.path.stem), "")
    try:
        new.notebook = repair.read(new.path)
    except repair.Unreadable as why:
        new.trouble, new.assignment = str(why), by_name
        return new
    new.assignment = repair.which(new.notebook, released) or by_name
    if new.assignment and new.path.stem != new.assignment:
        new.report.notes.append(f"handed in as {new.path.name}")
    return new


def slugs_of(names: Sequence[str]) -> dict[str, str]:
    """Each student's name in the letters that nbgrader allows, no two alike."""
    slugs: dict[str, str] = {}
    for name in names:
        slug = re.sub(r"[^a-zA-Z0-9_.-]", "_", name)
        while slug in slugs.values():
            slug += "_"
        slugs[name] = slug
    return slugs
