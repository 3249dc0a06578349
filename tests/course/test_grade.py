"""Grading: what is mended before it, what a broken submission costs, and that it never costs anyone else."""

from __future__ import annotations

import copy
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import classroom
import field
import grade
import pytest
import release
import sync
from autograde import cells as facts
from autograde import collect, gradebook, pool, repair, results
from autograde.kernel import Kernel, environment_for

TWO, THREE = "02_forward_process", "03_reverse_elbo"
Notebook = dict[str, Any]
Books = tuple[dict[str, Notebook], dict[str, Notebook], Path]


@pytest.fixture(scope="session")
def books(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """(student versions, complete versions, folder with grading/source) of notebooks 02 and 03."""
    folder = tmp_path_factory.mktemp("course")
    released = release.release([TWO, THREE], to=folder / "release", keep=folder / "grading")
    sources = {path.stem: sync.read_notebook(path) for path in sorted((folder / "grading/source").glob("*/*.ipynb"))}
    return released, sources, folder / "grading"


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- cells ----------------------------------------------------------------------------------------------------


def code(text: str, **metadata: Any) -> dict[str, Any]:
    return {"cell_type": "code", "source": text, "metadata": metadata, "id": "x", "outputs": []}


def test_names_are_read_as_python_reads_them() -> None:
    uses, binds = facts.names(code("import math as m\ndef f(x: int, y=start):\n    z = x\n    return m.pi + scale * z"))
    assert {"m", "scale", "start"} <= uses and not {"x", "z"} & uses and binds == {"m", "f"}
    assert facts.names(code("table['a'] = 1\nlist.append(2)\nx.y.z = 3"))[1] == {"table", "list", "x"}
    assert facts.names(code("%matplotlib inline\n!ls\na = 1"))[1] == {"a"}
    assert facts.names(code("def broken(")) == (set(), set())


def test_only_what_the_exercises_rest_on_is_run() -> None:
    cells = [
        code("# setup"),
        code("import torch"),
        code("scale = 2"),
        code("torch.manual_seed(0)\nmodel = train(scale)"),
        code("memo = {}"),
        code("memo['a'] = scale"),
        code("def helper(x):\n    return memo['a'] * x"),
        code("plot(model)"),
        code("def answer(x):\n    return helper(torch.ones(x))"),
        code("answer = check.answer(answer)"),
    ]
    assert facts.needed(cells, {8, 9}) == [0, 1, 2, 4, 5, 6, 8, 9]


# --- mending --------------------------------------------------------------------------------------------------


def mended(submitted: Notebook, released: Notebook, folder: Path) -> tuple[Notebook, repair.Report]:
    classroom.write(folder, "s", "x.ipynb", submitted)
    notebook, report = repair.repair(repair.read(folder / "s" / "x.ipynb"), released)
    marks = [
        (facts.grade_id(cell), cell["metadata"]["nbgrader"]["solution"])
        for cell in notebook["cells"]
        if facts.grade_id(cell)
    ]
    wanted = [
        (facts.grade_id(cell), cell["metadata"]["nbgrader"]["solution"])
        for cell in released["cells"]
        if facts.grade_id(cell)
    ]
    assert sorted(marks) == sorted(wanted), "each exercise and each test once"
    tests = {facts.grade_id(test): sync.source_of(test) for _, test in repair.exercises(released).values()}
    for before, cell in zip(notebook["cells"], notebook["cells"][1:], strict=False):
        if facts.grade_id(cell) in tests:
            assert sync.source_of(cell) == tests[facts.grade_id(cell)]
            assert str(facts.grade_id(before)).replace("-", "-check-", 1) == facts.grade_id(cell)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids))
    return notebook, report


def test_a_sound_submission_is_left_as_it_is(books: Books, tmp_path: Path) -> None:
    right = classroom.solve(books[0][TWO], books[1][TWO])
    notebook, report = mended(right, books[0][TWO], tmp_path)
    assert report == repair.Report()
    assert [sync.source_of(c) for c in notebook["cells"]] == [sync.source_of(c) for c in right["cells"]]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (classroom.without_tests, "the test of jump was missing: put back"),
        (lambda book: classroom.altered_test(book, "jump"), "the test of jump had been altered"),
        (classroom.stripped, "the marks of forward_step, add_noise, jump"),
        (lambda book: classroom.doubled(book, "jump"), "several cells had the id"),
        (classroom.from_colab, "no cell has its id any more"),
        (lambda book: classroom.from_colab(classroom.stripped(book)), "no cell has its id any more"),
        (lambda book: {**book, "cells": book["cells"][3:]}, "the given cell 02-003 was missing: put back"),
    ],
)
def test_damage_is_mended_and_named(books: Books, tmp_path: Path, damage: Any, words: str) -> None:
    right = classroom.solve(books[0][TWO], books[1][TWO])
    notebook, report = mended(damage(right), books[0][TWO], tmp_path)
    assert any(words in line for line in report.mended), report
    assert not report.lost
    solved = classroom.cell_of(notebook, "jump", lambda c: "jump" if str(facts.grade_id(c)) == f"{TWO}-jump" else None)
    assert "keep.sqrt() * x_s" in sync.source_of(solved)


def test_copies_turned_cells_and_moved_solutions(books: Books, tmp_path: Path) -> None:
    right = classroom.solve(books[0][TWO], books[1][TWO])
    turned = copy.deepcopy(right)
    cell = classroom.cell_of(turned, "snr")
    cell["cell_type"] = "markdown"
    del cell["outputs"], cell["execution_count"]
    _, report = mended(turned, books[0][TWO], tmp_path / "a")
    assert any("snr had been turned into markdown" in line for line in report.mended)
    moved = copy.deepcopy(right)  # solved in a new cell, the given one left blank
    blank, place = classroom.cell_of(moved, "snr"), 0
    text, place = blank["source"], moved["cells"].index(blank)
    blank["source"] = "# nothing here"
    moved["cells"].insert(place + 1, {"cell_type": "code", "metadata": {}, "source": text, "outputs": [], "id": "new"})
    notebook, report = mended(moved, books[0][TWO], tmp_path / "b")
    chosen = next(c for c in notebook["cells"] if facts.grade_id(c) == f"{TWO}-snr")
    assert "alpha_bar / (1 - alpha_bar)" in sync.source_of(chosen) and "snr is there 2 times" in "".join(report.notes)


def test_a_missing_exercise_is_reported_and_put_back_blank(books: Books, tmp_path: Path) -> None:
    right = classroom.solve(books[0][TWO], books[1][TWO])
    right["cells"] = [c for c in right["cells"] if "snr" not in (facts.exercise_name(c), facts.check_name(c))]
    notebook, report = mended(right, books[0][TWO], tmp_path)
    assert report.lost == ["snr is missing altogether: no points for it"]
    order = [cell["id"] for cell in notebook["cells"]]
    assert order == [cell["id"] for cell in books[0][TWO]["cells"]], "back in its place"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"%PDF-1.4", "not JSON"),
        (b"\xff\xfe\x00bad", "not JSON"),
        (b'{"cells": 3}', "has no cells"),
        (b"[1, 2]", "has no cells"),
        (b'{"worksheets": 1}', "format 3"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_notebook_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.ipynb").write_bytes(content)
    with pytest.raises(repair.Unreadable, match=words):
        repair.read(tmp_path / "x.ipynb")


def test_odd_cells_are_read(tmp_path: Path) -> None:
    cells = [3, {"cell_type": "code"}, {"cell_type": "markdown", "source": ["a\n", 1, "b"], "metadata": None}, {}]
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8-sig")
    assert [cell["source"] for cell in repair.read(tmp_path / "x.ipynb")["cells"]] == ["", "a\nb"]


def test_odd_marks_and_half_characters_do_no_harm(books: Books, tmp_path: Path) -> None:
    right = classroom.solve(books[0][TWO], books[1][TWO])
    text = [index for index, cell in enumerate(right["cells"]) if cell["cell_type"] == "markdown"]
    for index, mark in enumerate(
        [{"grade_id": ["a"]}, {"grade_id": None}, [], "x", {"grade_id": f"{THREE}-posterior"}]
    ):
        own = {"cell_type": "code", "metadata": {"nbgrader": mark}, "source": "x = '\ud800'", "id": {"a": 1}}
        own["metadata"]["\ud800"] = ["\udfff"]
        right["cells"].insert(text[5 * index] + index, own)  # before a text, so never between a task and its test
    notebook, report = mended(right, books[0][TWO], tmp_path)
    json.dumps(notebook, ensure_ascii=False).encode()
    assert "carries a mark that is not of this assignment" in "".join(report.notes)


def test_collecting(books: Books, tmp_path: Path) -> None:
    released, sources, _ = books
    right = classroom.solve(released[TWO], sources[TWO])
    classroom.write(tmp_path, "Ann", f"Copy of {TWO} (1).ipynb", right)
    classroom.write(tmp_path, "Ann", f"old/{TWO}.ipynb", released[TWO])
    classroom.write(tmp_path, "Änn", "homework.ipynb", right)
    classroom.write(tmp_path, "Bob", "recipes.ipynb", {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    classroom.write(tmp_path, "Bob", f".ipynb_checkpoints/{TWO}.ipynb", right)
    (tmp_path / "lost.ipynb").write_text("{}")
    (tmp_path / "Bob" / "gone.ipynb").symlink_to(tmp_path / "nowhere.ipynb")
    found, strays = collect.collect(tmp_path, released, tmp_path / ".unpacked")
    by_name = {one.student: one for one in found}
    assert {one.assignment for one in found} == {TWO}
    assert by_name["Ann"].path == tmp_path / "Ann" / "old" / f"{TWO}.ipynb"
    assert "handed in twice" in "".join(by_name["Ann"].report.notes)
    assert by_name["Änn"].report.notes == ["handed in as homework.ipynb"] and by_name["Änn"].slug == "_nn"
    assert by_name["Bob"].status == "not handed in"
    assert (
        "lost.ipynb lies in no student's folder" in strays[0] and "recipes.ipynb belongs to no assignment" in strays[1]
    )
    assert "gone.ipynb belongs to no assignment: there is no such file" in strays[2]
    assert len(set(collect.slugs_of(["a b", "a_b", "a+b"]).values())) == 3


# --- kernels and workers ----------------------------------------------------------------------------------------


def test_a_kernel_that_loops_dies_or_floods(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, environment_for(tmp_path, tmp_path))
    kernel.start()
    try:
        ended, (output,) = kernel.run("print('a')\nprint('b')", 20)
        assert (ended, output["text"]) == ("ok", "a\nb\n")
        assert kernel.run("1 / 0", 20)[0] == "error"
        ended, outputs = kernel.run("while True: pass", 1)
        assert ended == "timeout" and "endless loop" in outputs[-1]["evalue"]
        assert kernel.run("x = 1", 20)[0] == "ok", "goes on in the same kernel"
        ended, outputs = kernel.run("for i in range(100_000): print('x' * 80)", 60)
        assert ended == "ok" and len(str(outputs)) < 300_000
        ended, outputs = kernel.run("import os\nos._exit(0)", 20)
        assert ended == "dead" and "the kernel died here" in outputs[-1]["evalue"] and not kernel.alive
        kernel.start()
        begun = time.monotonic()
        assert kernel.run(classroom.STUBBORN, 1)[0] == "dead" and time.monotonic() - begun < 20
    finally:
        kernel.stop()


def test_a_worker_that_fails_is_an_answer_not_an_error(tmp_path: Path) -> None:
    job = {"scratch": str(tmp_path / "w"), "seconds": 5, "gigabytes": 4}
    assert "the grader's own process stopped" in pool.run_one(job)[0]


def test_what_a_submission_leaves_running_is_ended() -> None:
    """A process that forked twice has left its family, but not its worker."""
    code = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from autograde import worker
worker.adopt()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
os.wait()
print(worker.reap(), worker.reap())
"""
    tools = str(Path(grade.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, tools], capture_output=True, text=True, timeout=120)
    first, second = done.stdout.split()
    assert int(first) >= 1 and second == "0", done.stderr


@pytest.mark.parametrize("broken", ["grade", "points", "feedback"])
def test_where_our_own_part_fails_the_others_are_graded(
    books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    released = books[0][TWO]
    for part, answer in (("grade", None), ("points", {}), ("feedback", None)):
        monkeypatch.setattr(gradebook, part, lambda *_, answer=answer: answer)

    def fails(*_: Any) -> None:
        raise KeyError("02_forward_process-snr")

    monkeypatch.setattr(gradebook, broken, fails)
    one = collect.Submission("Ann", "Ann", TWO, tmp_path / "x.ipynb", released)
    grade.scored(one, grade.not_run(released, "why"), released, tmp_path, tmp_path / "executed")
    if broken == "feedback":
        assert "no feedback page" in one.report.notes[0]
    else:
        assert one.status == "stopped" and "look at it yourself" in one.trouble and len(one.points) == 8


def test_results_are_put_aside_and_written_for_platforms(tmp_path: Path) -> None:
    assert results.put_aside(tmp_path) is None
    ann = collect.Submission("Ann", "Ann", TWO, tmp_path / "x", number="17", points={"snr": (1.0, 1.0)})
    none = collect.Submission("Ann", "Ann", THREE, number="17", trouble="nothing was handed in")
    eve = collect.Submission("=Eve", "_Eve", TWO, tmp_path / "y", points={"snr": (0.0, 1.0)}, said={"snr": "no"})
    results.write_results([ann, none, eve], ["a stray"], tmp_path)
    assert [row["notebook"] for row in read_csv(tmp_path / "grades.csv")] == [TWO, TWO]
    assert read_csv(tmp_path / "points.csv")[0] == {"student": "Ann", "id": "17", TWO: "1", THREE: "", "total": "1"}
    canvas = read_csv(tmp_path / "canvas.csv")
    assert canvas[0]["Student"].strip() == "Points Possible" and canvas[0][TWO] == "1"
    assert (canvas[1]["ID"], canvas[1][TWO]) == ("17", "1") and canvas[2]["Student"] == "'=Eve"
    assert read_csv(tmp_path / "moodle.csv")[0]["Identifier"] == "Participant 17"
    assert "a stray\n" in (tmp_path / "report.txt").read_text() and f"Ann, {THREE}: not handed in" in (
        tmp_path / "report.txt"
    ).read_text(encoding="utf-8")
    for _ in range(2):
        aside = results.put_aside(tmp_path)
        assert aside is not None and len(list(aside.iterdir())) == 6
    assert len(list((tmp_path / "earlier").iterdir())) == 2


# --- all of it, with nbgrader and real kernels ------------------------------------------------------------------


def run(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert grade.main([str(folder), "--out", str(out), "--workers", "2", *options]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_grading_notebooks_02_and_03(books: Books, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right, blank and unreadable ones, and one that does everything that kills graders, beside what it solved."""
    released, sources, out = books
    folder = tmp_path / "handed in"
    right2, right3 = (classroom.solve(released[name], sources[name]) for name in (TWO, THREE))
    evil = right2
    for name, body in {
        "forward_step": classroom.DELETES,
        "add_noise": "return (x_0",
        "jump": classroom.STUBBORN,
        "linear_betas": classroom.GREEDY,
        "cosine_betas": classroom.DIES,
    }.items():
        evil = classroom.with_body(evil, name, body)
    warns = "import warnings\nwarnings.warn('careful')\nreturn alpha_bar / (1 - alpha_bar)"
    evil = classroom.with_body(evil, "snr", warns)
    classroom.write(folder, "Eve", f"{TWO}.ipynb", evil)
    classroom.write(folder, "Ann Solved", f"Copy of {TWO}.ipynb", classroom.from_colab(right2))
    classroom.write(folder, "Ann Solved", f"{THREE}.ipynb", classroom.without_tests(right3))
    borrowed = classroom.borrowed(right3, "predict_x0", "course_utils.diffusion.reverse")
    borrowed = classroom.with_body(borrowed, "posterior", classroom.LEAVES)
    classroom.write(folder, "=Bob", f"{THREE}.ipynb", classroom.with_text(borrowed, "gaussian_kl", classroom.QUITS))
    classroom.write(folder, "=Bob", f"{TWO}.ipynb", released[TWO])
    classroom.write(folder, "Eve", f"{THREE}.ipynb", b"%PDF-1.4")
    together = field.merged(classroom.solutions(sources[TWO]), into_own=True)(right2)
    classroom.write(folder, "Cy", f"{TWO}.ipynb", field.with_line_ends("\r\n")(together))
    (folder / "Zoe").mkdir()
    run(folder, out, capsys, "--cell-seconds", "20")

    rows = {(row["student"], row["notebook"]): row for row in read_csv(out / "grades.csv")}
    got = {key: (float(row["points"]), row["status"]) for key, row in rows.items()}
    all2, all3 = (sum(p for book, _, p in release.points_table(released) if book == name) for name in (TWO, THREE))
    assert got == {
        ("Ann Solved", TWO): (all2, "graded"),
        ("Ann Solved", THREE): (all3, "graded"),
        ("Cy", TWO): (all2, "graded"),
        ("'=Bob", TWO): (0, "graded"),
        ("'=Bob", THREE): (all3 - 2 - 1 - 2, "graded"),  # posterior, gaussian_kl and predict_x0; the steps use them
        ("Eve", TWO): (1 + 1 + 1, "graded"),  # the two questions and snr, whose warning costs nothing
        ("Eve", THREE): (0, "not readable"),
    }
    said = {(r["student"], r["exercise"]): r["what the check said"] for r in read_csv(out / "exercises.csv")}
    assert "not solved yet" in said["'=Bob", "jump"]
    assert "is the course's own version" in said["'=Bob", "predict_x0"]
    assert "SystemExit" in said["'=Bob", "posterior"]
    assert said["Eve", "jump"].startswith("Timeout") and said["Eve", "cosine_betas"].startswith("DeadKernel")
    assert "allocate" in said["Eve", "linear_betas"] and said["Eve", "snr"] == ""
    report = (out / "report.txt").read_text(encoding="utf-8")
    assert "mended: the test of posterior was missing: put back" in report and "not JSON" in report
    assert f"Zoe, {TWO}: not handed in" in report
    pages = {path.parent.parent.name: path.read_text(encoding="utf-8") for path in out.glob(f"feedback/*/{TWO}/*.html")}
    assert set(pages) == {"Ann_Solved", "_Bob", "Cy", "Eve"} and "Your exercises" in pages["Ann_Solved"]


@pytest.mark.slow
def test_a_class_of_twenty_two(books: Books, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    released, sources, out = books
    expected = classroom.make_class(tmp_path / "class", released, sources)
    begun = time.monotonic()
    run(tmp_path / "class", out, capsys)
    with capsys.disabled():
        print(f"\n{len(expected)} submissions graded in {time.monotonic() - begun:.0f} s")
    rows = read_csv(out / "grades.csv")
    got = {(r["student"], r["notebook"]): float(r["points"]) for r in rows if r["status"] != "not handed in"}
    assert got == expected


@pytest.mark.slow
def test_every_notebook_solved_and_blank_with_real_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    released = release.release([], to=tmp_path / "release", keep=tmp_path / "grading")
    for path in sorted((tmp_path / "grading" / "source").glob("*/*.ipynb")):
        solved = classroom.solve(released[path.stem], sync.read_notebook(path))
        classroom.write(tmp_path / "class", "solved", path.name, solved)
        classroom.write(tmp_path / "class", "blank", path.name, released[path.stem])
    run(tmp_path / "class", tmp_path / "grading", capsys)
    rows = read_csv(tmp_path / "grading" / "grades.csv")
    assert len(rows) == 2 * len(released)
    assert all(float(r["points"]) == (float(r["out of"]) if r["student"] == "solved" else 0) for r in rows)


def test_looking_only(books: Books, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    released, _, out = books
    classroom.write(tmp_path / "in", "Ann", f"{TWO}.ipynb", classroom.stripped(released[TWO]))
    (out / "grades.csv").write_text("the results")
    assert "mended: the marks of forward_step" in run(tmp_path / "in", out, capsys, "--look")
    assert (out / "grades.csv").read_text() == "the results", "looking writes nothing"


def test_wrong_folders_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grade.main([str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err
