"""What was handed in: whose it is, which assignment it is, and in what state."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from autograde import layouts, repair, roster

Notebook = dict[str, Any]
RESERVED = {"course_utils", "checkpoints", "torch", "torchvision", "numpy", "IPython", "ipykernel", "matplotlib"}


@dataclass
class Submission:
    """One notebook of one student on its way through grading."""

    student: str
    slug: str  # the student's name as nbgrader takes it
    assignment: str
    path: Path | None = None
    notebook: Notebook | None = None
    report: repair.Report = field(default_factory=repair.Report)
    number: str = ""  # the platform's, if it gave one
    id: str = ""  # the roster's
    email: str = ""
    handed_in: datetime | None = None
    days_late: int = 0
    penalty: float = 0.0  # points taken off for that
    beside: dict[str, Path] = field(default_factory=dict)  # other files handed in with it, by their names
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
        earned = sum(p for p, _ in self.points.values())
        return earned - self.penalty, sum(most for _, most in self.points.values())


def collect(
    folder: Path, released: dict[str, Notebook], scratch: Path, people: Sequence[roster.Person] = ()
) -> tuple[list[Submission], list[str]]:
    """All submissions in a folder, read and mended, and a line for each file that belongs to nobody or nothing.

    Of several files for one assignment the newest that can be read counts. With a roster, `people`, the students go by
    the names there, and those without a folder are named, too.
    """
    students, strays = layouts.students_in(folder, scratch)
    if people:
        students = roster.enrolled(students, list(people), strays)
    slugs = slugs_of([student.name for student in students])
    found: dict[tuple[str, str], Submission] = {}
    for student in students:
        books = {path: name for path, name in student.files.items() if _may_be_notebook(path)}
        opened: list[Submission] = []
        for path in sorted(books, key=lambda path: (path.lstat().st_mtime, path.stem in released)):
            new = _open(_of(student, slugs[student.name], path), released)
            if new.assignment:
                new.handed_in = student.when.get(new.assignment) or _time_of(path)
                opened.append(new)
            else:
                why = new.trouble or "it holds none of the exercises"
                strays.append(f"{student.name}/{path.name} belongs to no assignment: {why}")
                del student.files[path]
        for new in sorted(opened, key=lambda one: one.notebook is not None):  # stable: the newest readable one is last
            before = found.get((student.name, new.assignment))
            if before is not None:
                assert before.path is not None and new.path is not None
                new.report.notes.append(f"handed in twice: {new.path.name} counts, {before.path.name} does not")
            if student.late:
                new.report.notes.append("handed in late")
            found[student.name, new.assignment] = new
        _give_what_lies_beside(student, [one for one in opened if one.notebook is not None], strays)
    wanted = [name for name in released if any(one.assignment == name for one in found.values())]
    for student in students:
        for name in wanted:
            empty = _of(student, slugs[student.name])
            empty.assignment, empty.trouble = name, "nothing was handed in"
            found.setdefault((student.name, name), empty)
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


def _of(student: layouts.Student, slug: str, path: Path | None = None) -> Submission:
    return Submission(student.name, slug, "", path, number=student.number, id=student.id, email=student.email)


def _time_of(path: Path) -> datetime:
    return datetime.fromtimestamp(path.lstat().st_mtime).astimezone()


def _may_be_notebook(path: Path) -> bool:
    """By its name, as people and programs write it; by its beginning where the name could be anything."""
    if re.search(r"\.ipynb\b", path.name, re.I):
        return True
    if path.suffix.lower() not in (".json", ".txt", "") or not path.is_file():
        return False
    with open(path, "rb") as file:
        return b'"cells"' in file.read(2_000_000)


def _give_what_lies_beside(student: layouts.Student, opened: list[Submission], strays: list[str]) -> None:
    """Files that a notebook may import or read; what would stand in the place of a module of Python's is left out."""
    used = {one.path for one in opened}
    rest = {path: name for path, name in student.files.items() if path not in used and not _may_be_notebook(path)}
    for path, name in list(rest.items()):
        first = name.split("/")[0].removesuffix(".py")
        if first in sys.stdlib_module_names or first in RESERVED or path.lstat().st_size > repair.LARGEST:
            rest.pop(path)
            strays.append(f"{student.name}/{name} is read by nobody: its name or size would be in the way")
    if rest and not opened:
        strays.append(f"{student.name}: no notebook, but {_listed(rest.values())}, which nobody reads")
    for one in opened:
        assert one.path is not None
        home = Path(student.files[one.path]).parent
        one.beside = {
            Path(name).relative_to(home).as_posix(): path
            for path, name in rest.items()
            if Path(name).is_relative_to(home) and path.is_file()
        }
        if one.beside:
            one.report.notes.append(f"handed in beside it, and there while it was graded: {_listed(one.beside)}")


def _listed(names: Iterable[str]) -> str:
    every = sorted(names)
    return ", ".join(every[:8]) + (f" and {len(every) - 8} more" if len(every) > 8 else "")


def _open(new: Submission, released: dict[str, Notebook]) -> Submission:
    """Read the file and find out which assignment it is: by its exercises, else by its name."""
    assert new.path is not None
    by_name = next((name for name in released if name in new.path.stem), "")
    try:
        new.notebook = repair.read(new.path)
        new.assignment = repair.which(new.notebook, released) or by_name
    except repair.Unreadable as why:
        new.trouble, new.assignment = str(why), by_name
        return new
    except Exception as error:  # of ours; it must not stop the others
        new.notebook, new.trouble, new.assignment = None, f"cannot be read ({type(error).__name__}: {error})", by_name
        return new
    if new.assignment and new.path.name != f"{new.assignment}.ipynb":
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
