"""tools/sync.py: notebooks' code cells are filled from the package, and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
import sync

MODULE = '''"""A module."""

from __future__ import annotations

import functools

# How many.
COUNT: int = 3
TABLE = {
    "a": 1,  # one
}


# --- functions ---
# Comments right above belong to it.
@functools.cache
def double(x: int) -> int:
    """Twice x."""
    return 2 * x


def add_noise(x: int, noise: int) -> int:
    """x and noise together.

    Two paragraphs.
    """

    # the square root comes first
    total = x + noise

    return total


def bare(x):
    return x


class Net:
    """A net."""

    size = 3

    def forward(self, x):
        """One step."""
        return x
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "course_utils").mkdir()
    (tmp_path / "course_utils" / "m.py").write_text(MODULE)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "setup_cell.py").write_text('# setup: a test\nREPOSITORY = "{repository}"\n')
    (tmp_path / "pyproject.toml").write_text(
        '[project.urls]\nRepository = "https://github.com/some/course"\n'
    )
    return tmp_path


def code(source: str, cell_id: str, **more: Any) -> dict[str, Any]:
    cell = {"cell_type": "code", "id": cell_id, "metadata": {}, "outputs": [], "execution_count": None}
    return {**cell, "source": source.splitlines(keepends=True), **more}


def markdown(source: str, cell_id: str) -> dict[str, Any]:
    return {
        "cell_type": "markdown",
        "id": cell_id,
        "metadata": {},
        "source": source.splitlines(keepends=True),
    }


def notebook(*cells: dict[str, Any]) -> dict[str, Any]:
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


EXERCISE = "# exercise: course_utils/m.py · add_noise"
CHECK = "# check: add_noise · 2 points\nassert add_noise(1, 2) == 3"


def filled(root: Path, *cells: dict[str, Any]) -> tuple[list[str], list[str]]:
    book = notebook(*cells)
    errors = sync.sync_notebook(book, "02_x", root)
    return [sync.source_of(cell) for cell in book["cells"]], errors


def test_source_cell_carries_definitions_in_the_order_named(root: Path) -> None:
    header = "# source: course_utils/m.py · Net.forward, TABLE, double, COUNT"
    (text,), errors = filled(root, code(header + "\nold = 1", "a"))
    assert not errors
    assert text == (
        header
        + '\ndef forward(self, x):\n    """One step."""\n    return x'
        + '\n\n\nTABLE = {\n    "a": 1,  # one\n}'
        + "\n\n\n# Comments right above belong to it.\n@functools.cache\ndef double(x: int) -> int:\n"
        + '    """Twice x."""\n    return 2 * x'
        + "\n\n\n# How many.\nCOUNT: int = 3"
    )


def test_exercise_cell_keeps_its_comments_and_gets_markers_and_metadata(root: Path) -> None:
    book = notebook(code(EXERCISE + "\n# Difficulty: 1 of 3\nold", "a"), code(CHECK, "b"))
    assert sync.sync_notebook(book, "02_x", root) == []
    exercise, check = book["cells"]
    assert sync.source_of(exercise) == EXERCISE + (
        "\n# Difficulty: 1 of 3\n"
        "def add_noise(x: int, noise: int) -> int:\n"
        '    """x and noise together.\n\n    Two paragraphs.\n    """\n'
        "    ### BEGIN SOLUTION\n"
        "    # the square root comes first\n    total = x + noise\n\n    return total\n"
        "    ### END SOLUTION"
    )
    assert exercise["metadata"]["nbgrader"] == {
        "schema_version": 3,
        "grade_id": "02_x-add_noise",
        "grade": False,
        "solution": True,
        "locked": False,
        "task": False,
    }
    assert check["metadata"]["nbgrader"]["grade_id"] == "02_x-check-add_noise"
    assert check["metadata"]["nbgrader"]["points"] == 2
    assert check["metadata"]["nbgrader"]["grade"] and check["metadata"]["nbgrader"]["locked"]
    assert sync.source_of(check) == CHECK
    assert sync.lint_notebook(book, "02_x") == []
    namespace: dict[str, Any] = {}
    exec(sync.source_of(exercise), namespace)
    assert namespace["add_noise"](1, 2) == 3


def test_nbgrader_accepts_and_strips_what_sync_writes(root: Path) -> None:
    from nbgrader.preprocessors import ClearSolutions

    book = notebook(code(EXERCISE, "a"), code(CHECK, "b"))
    sync.sync_notebook(book, "02_x", root)
    node = nbformat.reads(sync.dumps(book), as_version=4)
    stripped, _ = ClearSolutions().preprocess(node, {})
    assert "x + noise" not in stripped.cells[0].source and "YOUR CODE HERE" in stripped.cells[0].source
    assert '"""x and noise together.' in stripped.cells[0].source


def test_setup_and_badge_hold_the_repository_address(root: Path) -> None:
    (top, setup), errors = filled(
        root, markdown("<!-- badge -->\n[![old](x)](y)\n# Title", "a"), code("# setup", "b")
    )
    assert not errors
    assert top.startswith("<!-- badge -->\n[![Open in Colab](") and top.endswith(")\n# Title")
    assert "/github/some/course/blob/main/notebooks/02_x.ipynb" in top
    assert setup == '# setup: a test\nREPOSITORY = "https://github.com/some/course"'


def test_ids_outputs_and_other_cells_stay(root: Path) -> None:
    path = root / "notebooks" / "02_x.ipynb"
    output = {"name": "stdout", "output_type": "stream", "text": ["é\n"]}
    plain = code("x = 1  # mine", "plain-1", outputs=[output], execution_count=7)
    source = code("# source: course_utils/m.py · COUNT", "s-1", outputs=[output], execution_count=8)
    path.write_text(sync.dumps(notebook(plain, source)), encoding="utf-8")
    problems, changed = sync.run([path], root=root)
    assert not problems and changed == [path]
    after = json.loads(path.read_text(encoding="utf-8"))
    assert after["cells"][0] == plain
    assert {**after["cells"][1], "source": None} == {**source, "source": None}
    nbformat.validate(nbformat.read(path, as_version=4))
    first = path.read_bytes()
    assert first.endswith(b"}\n") and "é".encode() in first
    assert sync.run([path], root=root) == ([], []) and path.read_bytes() == first
    nbformat.write(nbformat.read(path, as_version=4), path)
    assert path.read_bytes() == first, "nbformat writes other bytes than sync"


def test_check_names_notebook_cell_and_difference_and_writes_nothing(root: Path) -> None:
    path = root / "notebooks" / "02_x.ipynb"
    path.write_text(sync.dumps(notebook(code("# source: course_utils/m.py · COUNT\nCOUNT = 4", "s-1"))))
    before = path.read_bytes()
    (problem,), changed = sync.run([path], check=True, root=root)
    assert "02_x, cell s-1" in problem and "-COUNT = 4" in problem and "+COUNT: int = 3" in problem
    assert changed == [path] and path.read_bytes() == before


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("# source: course_utils/m.py · Nothing", "defines no Nothing; it has COUNT, TABLE"),
        ("# source: course_utils/none.py · Net", "there is no file course_utils/none.py"),
        ("# source: course_utils/m.py Net", "cannot read its first line"),
        ("# check: add_noise, 2 points", "cannot read its first line"),
        ("# exercise: course_utils/m.py · Net", "is not a function"),
        ("# exercise: course_utils/m.py · bare", "needs a docstring"),
    ],
)
def test_a_cell_that_cannot_be_filled_is_named_and_left(root: Path, first: str, message: str) -> None:
    (text,), (error,) = filled(root, code(first + "\nkept", "c-1"))
    assert "02_x, cell c-1" in error and message in error
    assert text == first + "\nkept"


def lint(root: Path, *cells: dict[str, Any], others: Any = ()) -> str:
    book = notebook(*cells)
    sync.sync_notebook(book, "02_x", root)
    return "\n".join(sync.lint_notebook(book, "02_x", others))


def test_lint_finds_the_silent_traps(root: Path) -> None:
    own = "# exercise: this notebook · guess\nguess = None"
    assert "has no id" in lint(root, {**code("1", ""), "id": None})
    assert "nbformat does not allow" in lint(root, code("1", "ä b"))
    assert "same id" in lint(root, code("1", "a"), code("2", "a"))
    assert "needs one '### BEGIN SOLUTION'" in lint(
        root, code(own, "a"), code("# check: guess · 1 point", "b")
    )
    assert "right under the exercise add_noise" in lint(root, code(EXERCISE, "a"), code("1", "b"))
    assert "right under the exercise add_noise" in lint(
        root, code(EXERCISE, "a"), code("1", "b"), code(CHECK, "c")
    )
    assert "right above should be the exercise add_noise" in lint(root, code("1", "a"), code(CHECK, "b"))
    assert "does not begin with '# exercise" in lint(
        root, code("x = 1\n### BEGIN SOLUTION\n### END SOLUTION", "a")
    )
    assert "neither an exercise nor a check" in lint(
        root, code("1", "a", metadata={"nbgrader": {"grade_id": "z"}})
    )
    twice = [code(EXERCISE, "a"), code(CHECK, "b"), code(EXERCISE, "c"), code(CHECK, "d")]
    assert "another cell has the grade_id" in lint(root, *twice)


def test_lint_finds_solutions_given_away(root: Path) -> None:
    shown = code("# source: course_utils/m.py · COUNT, add_noise", "s")
    assert "gives away the exercise add_noise" in lint(root, code(EXERCISE, "a"), code(CHECK, "b"), shown)
    assert "gives away the exercise add_noise" in lint(
        root, shown, others=[("course_utils/m.py", "add_noise")]
    )
    whole = code("# source: course_utils/m.py · Net", "s")
    assert "gives away" in lint(root, whole, others=[("course_utils/m.py", "Net.forward")])
    assert lint(root, whole, others=[("course_utils/other.py", "Net")]) == ""


def test_an_exercise_in_one_notebook_may_not_be_shown_in_another(root: Path) -> None:
    one, two = root / "notebooks" / "01_a.ipynb", root / "notebooks" / "02_b.ipynb"
    one.write_text(sync.dumps(notebook(code("# source: course_utils/m.py · add_noise", "s"))))
    two.write_text(sync.dumps(notebook(code(EXERCISE, "a"), code(CHECK, "b"))))
    problems, _ = sync.run([one], root=root)
    assert len(problems) == 1 and "01_a, cell s: shows add_noise" in problems[0]


def test_an_exercise_written_in_the_notebook_keeps_its_text(root: Path) -> None:
    own = "# exercise: this notebook · guess\n### BEGIN SOLUTION\nguess = 3\n### END SOLUTION"
    book = notebook(code(own, "a"), code("# check: guess · 0.5 points\nassert guess == 3", "b"))
    assert sync.sync_notebook(book, "02_x", root) == [] and sync.lint_notebook(book, "02_x") == []
    assert sync.source_of(book["cells"][0]) == own
    assert book["cells"][1]["metadata"]["nbgrader"]["points"] == 0.5


def test_command_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sync, "ROOT", root)
    assert sync.main([str(root / "none.ipynb")]) == 1
    assert "there is no notebook" in capsys.readouterr().out
    assert sync.main([]) == 1
    assert "no notebooks in" in capsys.readouterr().out
