"""The tables in field.py, case by case: points as an honest reader would give them, and the right file graded."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import classroom
import field
import grade
import pytest
import release
from autograde import cells as facts
from autograde import layouts
from autograde import worker as grading_worker
from autograde.collect import Submission, collect
from autograde.kernel import error
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from nbformat.v4 import new_output
from nbgrader.utils import determine_grade
from traitlets.config import Config

TWO = "02_forward_process"
Notebook = dict[str, Any]


@pytest.fixture(scope="module")
def books() -> tuple[Notebook, Notebook]:
    """(student version, solved version) of the small notebook."""
    source = release.read_all([TWO])[TWO]
    released = field.handed_out(source)
    return field.small(released), field.small(classroom.solve(released, source))


class Shell:
    """In the place of a kernel: IPython in this process, which is fast and knows magics."""

    alive = True

    def __init__(self, *unused: Any) -> None: ...

    def start(self) -> None:
        self.shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))

    def stop(self) -> None:
        for name in [name for name in sys.modules if name.startswith("mine_")]:
            del sys.modules[name]

    def run(self, code: str, seconds: float) -> tuple[str, list[Any]]:
        with capture_output() as caught:
            result = self.shell.run_cell(code, store_history=False)
        outputs = [new_output("stream", name="stdout", text=caught.stdout)] if caught.stdout else []
        wrong = result.error_before_exec or result.error_in_exec
        return ("error", [*outputs, error(type(wrong).__name__, str(wrong))]) if wrong else ("ok", outputs)


@pytest.fixture
def graded(books: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function: case, whole notebook or not -> (points of each exercise, everything that the report says)."""
    released, solved = books
    monkeypatch.setattr(grading_worker, "Kernel", Shell)
    monkeypatch.setattr(grading_worker, "NO_EXIT", "")
    monkeypatch.setattr(grading_worker.Run, "lay_out", grading_worker.Run.lay_beside)
    import torch  # not needed, and slow, for the tests of folders

    monkeypatch.setattr(torch, "allclose", torch.allclose)  # put back, whatever a case does to it
    monkeypatch.setenv("COURSE_GRADING", "1")
    monkeypatch.setenv("COURSE_PROFILE", "smoke")

    def points(case: field.Case, all_cells: bool) -> tuple[dict[str, float], str]:
        folder = tmp_path / str(all_cells)
        classroom.write(folder / "in", "Ann", f"{TWO}.ipynb", case.change(solved))
        for name, text in case.beside.items():
            (folder / "in" / "Ann" / name).write_text(text, encoding="utf-8")
        (one,), strays = collect(folder / "in", {TWO: released}, folder / "unpacked")
        assert isinstance(one, Submission) and strays == []
        options = type("Options", (), {"all_cells": all_cells, "cell_seconds": 60, "seconds": 600, "gigabytes": 4})
        job = grade.job_for(one, released, folder / "work", options)
        run = grading_worker.Run(job)
        run.folder.mkdir(parents=True)
        monkeypatch.chdir(run.folder)
        monkeypatch.syspath_prepend(str(run.folder))
        run.grade()
        tests = [cell for cell in run.cells if facts.grade_id(cell) and facts.check_name(cell)]
        got = {str(facts.check_name(c)): float(determine_grade(release.nbformat.from_dict(c))[0] or 0) for c in tests}
        return got, "\n".join([*one.report.mended, *one.report.lost, *one.report.notes, *run.notes])

    return points


@pytest.mark.parametrize("all_cells", [False, True], ids=["needed cells", "all cells"])
@pytest.mark.parametrize("case", field.CASES, ids=lambda case: case.name)
def test_points_as_an_honest_reader_gives_them(case: field.Case, all_cells: bool, books: Any, graded: Any) -> None:
    got, said = graded(case, all_cells)
    worth = {name: points for _, name, points in release.points_table({TWO: books[0]})}
    assert got == {name: 0.0 if name in case.lost else points for name, points in worth.items()}, said
    assert case.said in said
    if not case.lost and not case.said:
        assert "altered" not in said and "missing" not in said and "tampered" not in said or "check used" in case.name


def lay(folder: Path, files: dict[str, Any], notebooks: dict[str, bytes]) -> None:
    for age, (name, content) in enumerate(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            with zipfile.ZipFile(path, "w") as packed:
                for inside, text in content.items():
                    packed.writestr(inside, notebooks.get(text, text))
        else:
            path.write_bytes(notebooks.get(content, content))
        os.utime(path, (1e9 + age, 1e9 + age))


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("case", field.FOLDERS, ids=lambda case: case.name)
def test_the_right_file_is_graded_and_the_others_are_named(
    case: field.Folder, packed: bool, books: Any, tmp_path: Path
) -> None:
    released, solved = books
    notebooks = {"good": json.dumps(solved).encode(), "blank": json.dumps(released).encode()}
    lay(tmp_path / "in", case.files, notebooks)
    folder = tmp_path / "in"
    if packed:
        folder = tmp_path / "all.zip"
        with zipfile.ZipFile(folder, "w") as archive:
            for age, path in enumerate(tmp_path / "in" / name for name in case.files):
                entry = zipfile.ZipInfo(path.relative_to(tmp_path / "in").as_posix(), (2026, 1, 1, 0, 0, 2 * age))
                archive.writestr(entry, path.read_bytes())
    found, strays = collect(folder, {TWO: released}, tmp_path / "unpacked")
    own = {one.student: one for one in found}
    one = own[case.student]
    if case.counts is None:
        assert one.notebook is None
    else:
        assert one.notebook is not None and one.path is not None and one.path.name == case.counts
        assert "alpha_bar / (1 - alpha_bar)" in json.dumps(one.notebook)
    assert case.said in "\n".join([*strays, *one.report.notes])
    assert one.number in ("", "4711") and (one.number or "Ann" in case.student)


def test_a_zip_of_a_folder_with_the_students_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        packed.writestr("handed in/Ann/x.ipynb", "{}")
        packed.writestr("handed in/Bob/x.ipynb", "{}")
        packed.writestr("__MACOSX/handed in/._x", "")
    students, strays = layouts.students_in(tmp_path / "all.zip", tmp_path / "unpacked")
    assert [student.name for student in students] == ["Ann", "Bob"] and strays == []
    (tmp_path / "no.zip").write_bytes(b"no zip")
    students, strays = layouts.students_in(tmp_path / "no.zip", tmp_path / "none")
    assert students == [] and "no.zip cannot be unpacked" in strays[0]
