"""A class of made-up students: right, half right, blank, and each kind of broken submission that graders meet."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sync
from autograde import cells as facts

Notebook = dict[str, Any]

ENDLESS = "while True:\n    pass"
STUBBORN = "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass"
GREEDY = "return torch.ones(5 * 2**30)  # 20 GB"
LEAVES = "import sys\nsys.exit()"
DIES = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
QUITS = "exit()"
DELETES = """import pathlib, shutil
import course_utils
home = pathlib.Path.cwd().parent
for folder in (pathlib.Path(course_utils.__file__).parent, home / "checkpoints", pathlib.Path.cwd()):
    shutil.rmtree(folder)
raise FileNotFoundError("gone")"""


def solutions(source: Notebook) -> dict[str, str]:
    """Each exercise's cell, solved."""
    return {
        str(facts.exercise_name(cell)): sync.source_of(cell)
        for cell in source["cells"]
        if facts.exercise_name(cell) and facts.grade_id(cell)
    }


def solve(released: Notebook, source: Notebook, names: Iterable[str] | None = None) -> Notebook:
    """The student version with these exercises solved; all of them if None."""
    right = solutions(source)
    names = set(right if names is None else names)
    notebook = copy.deepcopy(released)
    for cell in notebook["cells"]:
        if facts.exercise_name(cell) in names and facts.grade_id(cell):
            text = right[str(facts.exercise_name(cell))]
            lines = [line for line in text.split("\n") if line.strip() not in (sync.BEGIN, sync.END)]
            cell["source"] = "\n".join(lines)
    return notebook


def cell_of(notebook: Notebook, name: str, kind: Callable = facts.exercise_name) -> dict[str, Any]:
    return next(cell for cell in notebook["cells"] if kind(cell) == name)


def with_body(notebook: Notebook, name: str, body: str) -> Notebook:
    """A copy in which the function `name` does `body` right after its docstring."""
    notebook = copy.deepcopy(notebook)
    cell = cell_of(notebook, name)
    head = re.match(r'(?s).*?""".*?"""\n', sync.source_of(cell))
    assert head is not None
    cell["source"] = head.group(0) + "\n".join("    " + line for line in body.split("\n"))
    return notebook


def with_text(notebook: Notebook, name: str, text: str) -> Notebook:
    """A copy in which the whole exercise cell is `text`."""
    notebook = copy.deepcopy(notebook)
    cell_of(notebook, name)["source"] = text
    return notebook


def without_tests(notebook: Notebook) -> Notebook:
    notebook = copy.deepcopy(notebook)
    notebook["cells"] = [cell for cell in notebook["cells"] if not facts.check_name(cell)]
    return notebook


def altered_test(notebook: Notebook, name: str) -> Notebook:
    """The test made to pass whatever it is given, and worth a hundred points."""
    notebook = copy.deepcopy(notebook)
    cell = cell_of(notebook, name, facts.check_name)
    cell["source"] = sync.source_of(cell).split("\n")[0] + "\nprint('correct')"
    cell["metadata"]["nbgrader"]["points"] = 100
    return notebook


def stripped(notebook: Notebook) -> Notebook:
    """As an editor leaves it that keeps no metadata."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        cell["metadata"] = {}
    return notebook


def doubled(notebook: Notebook, name: str) -> Notebook:
    """A first try, wrong, kept above the right one: a copied cell has the same ids and marks."""
    notebook = copy.deepcopy(notebook)
    place = next(i for i, cell in enumerate(notebook["cells"]) if facts.exercise_name(cell) == name)
    first = copy.deepcopy(notebook["cells"][place])
    first["source"] = f"# exercise: mine · {name}\ndef {name}(*all):\n    return None"
    notebook["cells"].insert(place, first)
    return notebook


def from_colab(notebook: Notebook) -> Notebook:
    """As Colab saves it: format 4.0, its own ids in the metadata, its own settings."""
    notebook = copy.deepcopy(notebook)
    for index, cell in enumerate(notebook["cells"]):
        del cell["id"]
        cell["metadata"] |= {"id": f"q8Xy{index:03d}", "colab": {"base_uri": "https://localhost:8080/"}}
        cell["source"] = [line + "\n" for line in sync.source_of(cell).split("\n")]
        cell["source"][-1] = cell["source"][-1].rstrip("\n")
    notebook["nbformat_minor"] = 0
    notebook["metadata"] = {"colab": {"provenance": []}, "kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return notebook


def borrowed(notebook: Notebook, name: str, module: str) -> Notebook:
    return with_text(notebook, name, f"# exercise: x · {name}\nfrom {module} import {name}")


def write(folder: Path, student: str, name: str, content: Notebook | bytes) -> None:
    path = folder / student / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def make_class(
    folder: Path, released: dict[str, Notebook], sources: dict[str, Notebook]
) -> dict[tuple[str, str], float]:
    """Twenty-two students' submissions of notebooks 02 and 03, and the points that each should get."""
    two, three = "02_forward_process", "03_reverse_elbo"
    points = {
        name: {
            str(facts.check_name(cell)): cell["metadata"]["nbgrader"]["points"]
            for cell in book["cells"]
            if facts.check_name(cell)
        }
        for name, book in released.items()
    }
    all2, all3 = sum(points[two].values()), sum(points[three].values())
    right2, right3 = solve(released[two], sources[two]), solve(released[three], sources[three])
    some2, some3 = ["forward_step", "jump", "snr"], ["posterior", "ddpm_step", "five_steps"]
    expected: dict[tuple[str, str], float] = {}

    def hand_in(student: str, content: Notebook | bytes, worth: float, book: str = two, file: str = "") -> None:
        write(folder, student, file or f"{book}.ipynb", content)
        expected[student, book] = worth

    def less(*names: str, of: str = two) -> float:
        return sum(points[of].values()) - sum(points[of][name] for name in names)

    hand_in("01 solved", right2, all2)
    hand_in("02 solved", right3, all3, three)
    hand_in("03 blank", released[two], 0)
    hand_in("04 blank", released[three], 0, three)
    hand_in("05 half", solve(released[two], sources[two], some2), sum(points[two][n] for n in some2))
    hand_in("06 half", solve(released[three], sources[three], some3), sum(points[three][n] for n in some3), three)
    hand_in("07 syntax error", with_body(right2, "add_noise", "return (x_0"), less("add_noise"))
    hand_in("08 endless loop", with_body(right2, "jump", ENDLESS), less("jump"))
    hand_in("09 endless loop", with_body(right3, "gaussian_kl", STUBBORN), less("gaussian_kl", of=three), three)
    hand_in("10 twenty GB", with_body(right2, "snr", GREEDY), less("snr"))
    hand_in("11 sys.exit", with_body(right3, "predict_x0", LEAVES), less("predict_x0", of=three), three)
    hand_in("12 exit", with_text(right2, "linear_betas", QUITS), less("linear_betas"))
    hand_in("13 killed", with_body(right3, "posterior", DIES), less("posterior", of=three), three)
    hand_in("14 deletes files", with_body(right2, "forward_step", DELETES), less("forward_step"))
    hand_in("15 no notebook", b"%PDF-1.4 not what you think", 0)
    hand_in("16 cut short", json.dumps(right3).encode()[:5000], 0, three)
    hand_in("17 tests deleted", without_tests(right2), all2)
    hand_in(
        "18 test altered",
        altered_test(with_body(right3, "ddim_step", "return x_t"), "ddim_step"),
        less("ddim_step", of=three),
        three,
    )
    hand_in("19 stripped", stripped(right2), all2)
    hand_in("20 doubled", doubled(right3, "denoising_loss"), all3, three)
    hand_in("21 Colab", from_colab(right2), all2, file=f"Copy of {two}.ipynb")
    hand_in("22 borrowed", borrowed(right2, "add_noise", "course_utils.diffusion.forward"), less("add_noise"))
    return expected
