"""The committed notebooks: complete, in step with the package, and fit to be read and graded."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
import sync

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NAMES = ["01_vae", "02_forward_process", "03_reverse_elbo", "04_clip", "05_unet_cfg", "06_full_pipeline"]
LARGEST = 1_500_000  # bytes
HERE = [str(ROOT), str(Path.home()), tempfile.gettempdir() + os.sep, sys.prefix, "site-packages"]
MACHINE_PATHS = re.compile("|".join([*map(re.escape, HERE), "/home/", "/root/", "/Users/", "/content/"]))

every_notebook = pytest.mark.parametrize("name", NAMES)


def load(name: str) -> dict[str, Any]:
    path = FOLDER / f"{name}.ipynb"
    assert path.is_file(), f"notebooks/{name}.ipynb is missing"
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(name: str) -> list[dict[str, Any]]:
    return [cell for cell in load(name)["cells"] if cell["cell_type"] == "code"]


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else "".join(value)


def test_there_are_six_and_no_others() -> None:
    assert [path.stem for path in sorted(FOLDER.glob("*.ipynb"))] == NAMES


@every_notebook
def test_is_valid_small_and_written_as_nbformat_writes_it(name: str) -> None:
    notebook = load(name)
    path = FOLDER / f"{name}.ipynb"
    nbformat.validate(notebook)
    assert path.stat().st_size <= LARGEST, (
        f"{path.stat().st_size / 1e6:.2f} MB: use fewer or smaller pictures"
    )
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in notebook["metadata"], (
        "widget state is in it; save with tools/run_course.py --save"
    )


@every_notebook
def test_ids_exercises_and_checks_are_sound(name: str) -> None:
    shown = [pair for other in NAMES for pair in sync.exercises_of(load(other)) if pair[0] != sync.HERE]
    assert sync.lint_notebook(load(name), name, shown) == []


@every_notebook
def test_begins_with_badge_title_and_the_common_setup_cell(name: str) -> None:
    cells = load(name)["cells"]
    top = sync.source_of(cells[0]).split("\n")
    assert cells[0]["cell_type"] == "markdown" and top[0] == sync.BADGE
    titles = [line for cell in cells if cell["cell_type"] == "markdown" for line in headings(cell, 1)]
    assert len(titles) == 1 and titles[0] in top, f"one title, in the first cell, not {titles}"
    setups = [cell for cell in cells if sync.source_of(cell).startswith("# setup")]
    assert [sync.source_of(cell) for cell in setups] == [sync.setup_cell(ROOT)]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    assert first is setups[0], "the setup cell should be the first code cell"


def headings(cell: dict[str, Any], level: int) -> list[str]:
    outside_code = re.sub(r"```.*?```", "", sync.source_of(cell), flags=re.S)
    return re.findall(rf"^#{{{level}}} .+$", outside_code, re.M)


@every_notebook
def test_has_sections(name: str) -> None:
    sections = [
        line for cell in load(name)["cells"] if cell["cell_type"] == "markdown" for line in headings(cell, 2)
    ]
    assert len(sections) >= 5
    assert len(sections) == len(set(sections)), "two sections have the same heading"
    assert any("real Stable Diffusion" in line for line in sections), (
        "no section 'In the real Stable Diffusion'"
    )


@every_notebook
def test_was_executed_from_first_to_last_without_errors(name: str) -> None:
    counts = [cell["execution_count"] for cell in code_cells(name) if sync.source_of(cell).strip()]
    assert None not in counts, f"{counts.count(None)} cells were not executed; use tools/run_course.py --save"
    assert counts == sorted(counts)
    for cell in code_cells(name):
        for output in cell["outputs"]:
            assert output["output_type"] != "error", f"{cell['id']} ends in {output.get('ename')}"
            assert not (output["output_type"] == "stream" and "Traceback" in text_of(output["text"])), cell[
                "id"
            ]


@every_notebook
def test_has_outputs_to_compare_and_pictures(name: str) -> None:
    marked = [cell for cell in code_cells(name) if "NBVAL_CHECK_OUTPUT" in sync.source_of(cell)]
    assert len(marked) >= 3, f"only {len(marked)} cells carry NBVAL_CHECK_OUTPUT"
    assert all(cell["outputs"] for cell in marked), "a cell marked NBVAL_CHECK_OUTPUT prints nothing"
    pictures = [o for cell in code_cells(name) for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3


@every_notebook
def test_names_no_path_of_the_machine_it_ran_on(name: str) -> None:
    for cell in load(name)["cells"]:
        texts = [sync.source_of(cell)] if not sync.source_of(cell).startswith("# setup") else []
        for output in cell.get("outputs", []):
            texts.append(text_of(output.get("text", "")))
            data = output.get("data", {})
            texts += [text_of(value) for kind, value in data.items() if kind.startswith("text/")]
        for text in texts:
            found = MACHINE_PATHS.search(text)
            around = text[max(0, found.start() - 30) : found.end() + 30] if found else ""
            assert found is None, f"{cell['id']}: {around!r}"


def test_are_in_step_with_the_package() -> None:
    problems, changed = sync.run([FOLDER / f"{name}.ipynb" for name in NAMES], check=True, root=ROOT)
    assert not problems, "\n".join(problems)
    assert not changed
