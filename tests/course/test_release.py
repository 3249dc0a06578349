"""The student versions: nothing given away, everything still there, and each exercise worth its points."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import classroom
import grade
import nbformat
import pytest
import release
import run_course
import sync
import torch
from autograde import cells as facts
from autograde import gradebook, repair
from autograde import worker as grading_worker
from autograde.collect import Submission
from autograde.kernel import error
from nbgrader.utils import determine_grade

from course_utils.profiles import PROFILES

ROOT = Path(__file__).resolve().parents[2]
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
Notebook = dict[str, Any]


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Notebook], dict[str, Notebook]]:
    """(student versions, complete versions) of all six, as make release writes them."""
    folder = tmp_path_factory.mktemp("release")
    released = release.release([], to=folder / "release", keep=folder / "grading")
    on_disk = {path.stem: sync.read_notebook(path) for path in sorted((folder / "release").glob("*/*.ipynb"))}
    assert on_disk == released
    sources = {path.stem: sync.read_notebook(path) for path in sorted((folder / "grading/source").glob("*/*.ipynb"))}
    return released, sources


def test_all_six_are_released_with_their_ids_and_points(everything: Any) -> None:
    released, sources = everything
    assert list(released) == list(sources) == NAMES
    for name in NAMES:
        committed = sync.read_notebook(ROOT / "notebooks" / f"{name}.ipynb")
        marks = [facts.grade_id(cell) for cell in committed["cells"] if facts.grade_id(cell)]
        assert [facts.grade_id(cell) for cell in released[name]["cells"] if facts.grade_id(cell)] == marks
        assert len(marks) == len(set(marks)) >= 8, "four exercises or more, each with its check"
    table = release.points_table(released)
    assert len(table) >= 30 and all(points > 0 for _, _, points in table)
    assert len({name for _, name, _ in table}) == len(table), "two exercises have the same name"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_given_away(everything: Any, name: str) -> None:
    book = everything[0][name]
    nbformat.validate(book)
    for cell in book["cells"]:
        text = sync.source_of(cell)
        assert "SOLUTION" not in text and "HIDDEN TESTS" not in text
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert not re.search(r"colab\.research\.google\.com/github", text), "opens the solved notebook"
        if facts.exercise_name(cell):
            assert text.rstrip().endswith("raise NotImplementedError()") and "YOUR CODE HERE" in text


@pytest.mark.parametrize("name", NAMES)
def test_every_test_has_the_form_that_grading_relies_on(everything: Any, name: str) -> None:
    """`name = check.name(name)`: where it fails, grading puts check's own version in the name's place."""
    released, _ = everything
    code = [cell for cell in released[name]["cells"] if cell["cell_type"] == "code"]
    assert any(facts.CHECKS.search(sync.source_of(cell)) for cell in code), "imports its checks as `check`"
    for exercise, (task, test) in repair.exercises(released[name]).items():
        assert facts.CALL.findall(sync.source_of(test)) == [(exercise,) * 3]
        assert facts.defines(task, exercise)


def test_pictures_are_shown_but_not_where_they_would_answer(everything: Any) -> None:
    released, _ = everything
    for name, book in released.items():
        folded = [i for i, cell in enumerate(book["cells"]) if release.EXPECTED in sync.source_of(cell)]
        assert folded, f"{name} shows no expected picture"
        for index in folded:
            above = next(c for c in reversed(book["cells"][:index]) if release.EXPECTED not in sync.source_of(c))
            assert facts.check_name(above)
            assert "](data:image/png;base64,iVBOR" in sync.source_of(book["cells"][index])
    questions = [
        c for book in released.values() for c in book["cells"] if facts.exercise_name(c) and release.is_prediction(c)
    ]
    assert len(questions) >= 5


def test_what_answers_a_question_is_folded(everything: Any) -> None:
    """The paragraph below it, and pictures that an earlier exercise leads to but a question stands before."""
    released, _ = everything
    cells = {cell["id"]: cell for book in released.values() for cell in book["cells"]}
    names = {facts.exercise_name(cell) for cell in cells.values()}
    for where, question in release.ANSWERS.items():
        first = next(p for p in sync.source_of(cells[where]).split("\n\n") if not p.startswith(("#", "<!--")))
        assert question in names and first.startswith("<details>"), where
    committed = {cell["id"]: cell for book in release.read_all([]).values() for cell in book["cells"]}
    for where, (told, _) in release.TELLING.items():
        assert told in sync.source_of(committed[where]) and told not in sync.source_of(cells[where]), where
    order = [cell["id"] for cell in released["02_forward_process"]["cells"]]
    assert order.index("02-028-expected") > order.index("02-031"), "its figure answers half_noise"


def cell(text: str, picture: str = "", **metadata: Any) -> dict[str, Any]:
    outputs = [{"output_type": "display_data", "data": {"image/png": picture}}] if picture else []
    return {"cell_type": "code", "source": text, "metadata": metadata, "outputs": outputs, "id": text[-9:]}


def test_a_picture_answers_no_question_on_the_way() -> None:
    cells = [
        cell("# exercise: this notebook · f\ndef f(x):\n    return x"),
        cell("# check: f · 1 point\nf = check.f(f)"),
        cell("# exercise: this notebook · q\ndef q():\n    return 1"),
        cell("# check: q · 1 point\nq = check.q(q)"),
        cell("draw(f)", "drawn with f"),
    ]
    made = release.with_pictures({"cells": cells})["cells"]
    assert [release.EXPECTED in sync.source_of(c) for c in made] == [False, False, False, False, True, False]


def test_a_tag_says_which_picture_is_expected() -> None:
    cells = [
        cell("# exercise: this notebook · f\ndef f(x):\n    return x"),
        cell("# check: f · 1 point\nf = check.f(f)"),
        cell("draw(noise)", "nothing of f"),
        cell("g = [f]\nnoise = 1"),
        cell("noise = 2"),
        cell("draw(g)", "drawn with f"),
        cell("draw(1)", "chosen"),
    ]
    assert release.expected_picture(cells, 1) == "drawn with f"
    cells[-1]["metadata"]["tags"] = ["expected:f"]
    assert release.expected_picture(cells, 1) == "chosen"


def test_a_cell_that_shows_a_solution_stops_the_release(everything: Any) -> None:
    released, sources = everything
    name = "02_forward_process"
    solutions = release.shared_lines({name: sync.read_notebook(ROOT / "notebooks" / f"{name}.ipynb")})
    assert release.examine(released[name], sources[name], name, solutions) == []
    leak = dict(released[name], cells=[dict(cell) for cell in released[name]["cells"]])
    plain = next(cell for cell in leak["cells"] if cell["cell_type"] == "code" and not facts.grade_id(cell))
    plain["source"] = "def my_snr(alpha_bar):\n    return alpha_bar / (1 - alpha_bar)  # as before"
    (problem,) = release.examine(leak, sources[name], name, solutions)
    assert "shows more than half of the solution of snr" in problem
    plain["source"], plain["outputs"] = "1", [nbformat.v4.new_output("stream", text="1")]
    assert "still has outputs" in "".join(release.examine(leak, sources[name], name, solutions))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("from course_utils.diffusion.schedule import snr", "imports snr"),
        ("if True:\n    from course_utils.diffusion.schedule import snr as ratio", "imports snr"),
        ("from course_utils.diffusion.schedule import *", r"imports \*"),
        ("import course_utils.diffusion.schedule", "imports course_utils.diffusion.schedule whole"),
        ("from course_utils.diffusion import schedule as s\ns.snr(1)", "uses s.snr"),
        ("right = check.snr.reference", "uses check.snr"),
    ],
)
def test_a_cell_that_hands_over_a_solution_stops_the_release(everything: Any, text: str, words: str) -> None:
    released, sources = everything
    name = "02_forward_process"
    leak = {**released[name], "cells": [dict(cell) for cell in released[name]["cells"]]}
    plain = next(c for c in reversed(leak["cells"]) if c["cell_type"] == "code" and not facts.grade_id(c))
    plain["source"] = text
    (problem,) = release.examine(leak, sources[name], name, {})
    assert re.search(f"cell {plain['id']} {words}: that hands over", problem)
    plain["source"] = (
        text.replace("snr", "snr_of").replace("*", "NoiseSchedule").replace("import course_utils.", "import x.")
    )
    assert release.examine(leak, sources[name], name, {}) == []


def test_what_is_lent_is_lent_before_it_is_to_be_written(everything: Any) -> None:
    for where, lent in release.LENT.items():
        (book,) = [book for book in everything[0].values() if any(cell["id"] == where for cell in book["cells"])]
        place = next(i for i, cell in enumerate(book["cells"]) if cell["id"] == where)
        course = facts.from_course(book["cells"])
        assert len(facts.hands_over(book["cells"][place], lent, course)) == len(lent), "each is used there"
        assert lent <= {facts.exercise_name(cell) for cell in book["cells"][place:]}


def test_dropped_exercises_are_given_and_carry_no_points(tmp_path: Path) -> None:
    name = "02_forward_process"
    released = release.release([name], to=tmp_path / "r", keep=tmp_path / "g", drop=["jump", "snr"])
    assert {exercise for _, exercise, _ in release.points_table(released)}.isdisjoint({"jump", "snr"})
    given = next(c for c in released[name]["cells"] if "def jump(" in sync.source_of(c))
    assert "keep.sqrt() * x_s" in sync.source_of(given) and facts.grade_id(given) is None
    with pytest.raises(release.ReleaseError, match="no exercise|has an exercise nothing"):
        release.release([name], to=tmp_path / "r", keep=tmp_path / "g", drop=["nothing"])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.main(["07_none", "--to", str(tmp_path), "--keep", str(tmp_path)]) == 1
    assert "there is no notebook 07_none; there are 01_vae" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_guide_has_a_line_for_each_exercise_with_its_points(everything: Any) -> None:
    guide = (ROOT / "docs" / "instructors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d\d) `(\w+)` \| [●○]{3} \d+ · ([\d.]+) \|", guide, re.M)
    table = [(book[:2], name, f"{points:g}") for book, name, points in release.points_table(everything[0])]
    assert rows == table, "docs/instructors.md, section 'What people get wrong'"
    total = sum(float(points) for *_, points in table)
    assert f"{len(table)} exercises, {total:g} points" in guide


def test_the_guide_has_the_minutes_of_the_profiles() -> None:
    guide = (ROOT / "docs" / "instructors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d\d) · [^|]+\|[^|]+\|[^|]+\| (\d+) / (\d+) min \|", guide, re.M)
    cpu, gpu = (PROFILES[name].minutes for name in ("cpu", "gpu"))
    assert rows == [(book, f"{cpu[book]:g}", f"{gpu[book]:g}") for book in cpu]


# --- each exercise is worth its points, no more and no less ---------------------------------------------------


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors: more threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class InProcess:
    """In the place of a kernel: runs cells here, which is fast. tests/course/test_grade.py has the real one."""

    alive = True

    def __init__(self, *unused: Any) -> None:
        self.space: dict[str, Any] = {"__name__": "__main__"}

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def run(self, code: str, seconds: float) -> tuple[str, list[Any]]:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "cell", "exec"), self.space)
        except Exception as wrong:
            return "error", [error(type(wrong).__name__, str(wrong))]
        text = printed.getvalue()
        return "ok", [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []


def points_of(
    notebook: Notebook, released: Notebook, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, float]:
    """The points nbgrader gives each exercise after the worker has run the notebook in this process."""
    monkeypatch.setattr(grading_worker, "Kernel", InProcess)
    monkeypatch.setattr(grading_worker, "NO_EXIT", "")
    monkeypatch.setattr(grading_worker.Run, "lay_out", lambda self: None)
    monkeypatch.setenv("COURSE_GRADING", "1")
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    options = type("Options", (), {"all_cells": False, "cell_seconds": 60, "seconds": 600, "gigabytes": 4})
    one = Submission("s", "s", "book", notebook=notebook)
    submission = grading_worker.Run(grade.job_for(one, released, folder, options))
    submission.grade()
    assert submission.notes == []
    cells = [nbformat.from_dict(cell) for cell in submission.cells]
    tests = [(cell, facts.check_name(cell)) for cell in cells if facts.grade_id(cell) and facts.check_name(cell)]
    return {str(name): float(determine_grade(cell)[0] or 0) for cell, name in tests}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NAMES)
def test_all_solved_none_solved_and_each_solved_alone(
    everything: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, sources = everything[0][name], everything[1][name]
    worth = {exercise: points for book, exercise, points in release.points_table(everything[0]) if book == name}
    got = points_of(classroom.solve(released, sources), released, tmp_path / "all", monkeypatch)
    assert got == worth
    got = points_of(released, released, tmp_path / "none", monkeypatch)
    assert got == dict.fromkeys(worth, 0.0)
    for one in worth:
        got = points_of(classroom.solve(released, sources, [one]), released, tmp_path / one, monkeypatch)
        assert got == {exercise: worth[one] if exercise == one else 0.0 for exercise in worth}


def test_nbgrader_finds_what_it_needs_beside_the_python_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It calls `alembic` by its bare name; make's Python is not on the PATH."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    source = {"02_forward_process": sync.read_notebook(ROOT / "notebooks" / "02_forward_process.ipynb")}
    assert list(gradebook.generate(source, tmp_path)) == ["02_forward_process"]
    assert json.loads((tmp_path / "release/02_forward_process/02_forward_process.ipynb").read_text())["cells"]


@pytest.mark.parametrize(
    "name", [n if n[:2] in ("02", "03") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_an_unsolved_notebook_runs_to_its_end(
    everything: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a student has it: every exercise blank, in another folder than the course's, all cells, no grading."""
    path = tmp_path / "release" / name / f"{name}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(sync.dumps(everything[0][name]), encoding="utf-8")
    environment = {"COURSE_PROFILE": "smoke", "COURSE_ARTIFACTS": str(tmp_path / "artifacts"), "OMP_NUM_THREADS": "1"}
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    run_course.run_notebook(path, run_course.StatusLine(name), tmp_path / "done.ipynb", tmp_path / "stopped.ipynb")
    printed = (tmp_path / "done.ipynb").read_text(encoding="utf-8")
    exercises = repair.exercises(everything[0][name])
    assert printed.count("not solved yet") == printed.count("The notebook goes on with") == len(exercises)
