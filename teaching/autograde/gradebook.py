"""The part that nbgrader does: strip notebooks, give points, keep the gradebook, write feedback.

No code of a submission runs here: what comes in has been executed already, each in a process of its own (worker.py).
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import sync
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.apps import NbGraderAPI
from nbgrader.plugins import LateSubmissionPlugin
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    LimitOutput,
    NbGraderPreprocessor,
    SaveAutoGrades,
)
from traitlets import Float
from traitlets.config import Config

Notebook = dict[str, Any]


class GradingError(Exception):
    """nbgrader could not do its part; the message holds what it said."""


class TakeExecuted(NbGraderPreprocessor):
    """In the place of nbgrader's Execute: takes the outputs of the copy that a worker has executed."""

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        about = resources["nbgrader"]
        path = Path(os.environ["COURSE_EXECUTED"]) / about["student"] / f"{about['assignment']}.ipynb"
        executed = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if len(executed) != len(nb.cells):
            raise RuntimeError(f"{path} has {len(executed)} cells, the submission {len(nb.cells)}")
        for cell, done in zip(nb.cells, executed, strict=True):
            if cell.cell_type == "code":
                cell.outputs = [nbformat.from_dict(output) for output in done["outputs"]]
        return nb, resources


class PerDay(LateSubmissionPlugin):
    """So many per cent of what was earned for each day begun after the due date."""

    per_cent = Float(0.0).tag(config=True)

    def late_submission_penalty(self, student_id: str, score: float, total_seconds_late: float) -> float:
        return min(score, score * self.per_cent / 100 * days(total_seconds_late))


def days(seconds: float) -> int:
    """Days begun."""
    return math.ceil(seconds / 86400)


def _api(course: Path, per_day: float = 0.0) -> NbGraderAPI:
    beside = str(Path(sys.executable).parent)  # nbgrader calls the program alembic, and finds it on the PATH alone
    if beside not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = beside + os.pathsep + os.environ["PATH"]
    config = Config()
    config.CourseDirectory.root = str(course)
    config.CourseDirectory.db_url = f"sqlite:///{course / 'gradebook.db'}"
    config.CourseDirectory.course_id = "course"
    config.Autograde.autograde_preprocessors = [
        TakeExecuted,
        LimitOutput,
        SaveAutoGrades,
        AssignLatePenalties,
        CheckCellMetadata,
    ]
    config.AssignLatePenalties.plugin_class = PerDay
    config.PerDay.per_cent = per_day
    config.NbGrader.logfile = ""
    return NbGraderAPI(config=config)


def _expect(answer: dict[str, Any], what: str) -> None:
    if not answer.get("success"):
        raise GradingError(f"nbgrader could not {what}:\n{answer.get('log') or answer.get('error')}")


def generate(sources: dict[str, Notebook], course: Path) -> dict[str, Notebook]:
    """The student versions of complete notebooks, by nbgrader's generate_assignment, in the course folder given."""
    released = {}
    for name, notebook in sources.items():
        path = course / "source" / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(sync.dumps(notebook), encoding="utf-8")
    api = _api(course)
    for name in sources:
        _expect(api.generate_assignment(name, force=True), f"make the student version of {name}")
        text = (course / "release" / name / f"{name}.ipynb").read_text(encoding="utf-8")
        released[name] = json.loads(text)
    return released


def set_due(course: Path, due: dict[str, datetime | None]) -> None:
    """Note in the gradebook by when each assignment is to be handed in; None: whenever."""
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "course") as book:
        for name, moment in due.items():
            book.update_or_create_assignment(name, duedate=moment)


def lateness(course: Path, student: str, name: str) -> tuple[int, float]:
    """(days late, points off for it) of a graded submission, as they stand in the gradebook."""
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "course") as book:
        submission = book.find_submission(name, student)
        return days(submission.total_seconds_late), float(submission.late_submission_penalty or 0)


def grade(course: Path, student: str, name: str, executed: Path, per_day: float = 0.0) -> None:
    """Give points to one submission (in `course`/submitted) from its executed copy."""
    api = _api(course, per_day)
    os.environ["COURSE_EXECUTED"] = str(executed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy about nbgrader's own habits
        _expect(api.autograde(name, student, force=True, create=True), f"grade {student}'s {name}")


def feedback(course: Path, student: str, name: str) -> None:
    """Write the student's page, feedback/<student>/<name>/<name>.html."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _expect(_api(course).generate_feedback(name, student, force=True), f"write feedback on {student}'s {name}")


def points(course: Path, student: str, name: str) -> dict[str, tuple[float, float]]:
    """(points, out of) by grade_id, as they stand in the gradebook."""
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "course") as book:
        try:
            submission = book.find_submission_notebook(name, name, student)
        except MissingEntry:
            raise GradingError(f"the gradebook has no {name} of {student}") from None
        return {grade.name: (float(grade.score or 0), float(grade.max_score)) for grade in submission.grades}
