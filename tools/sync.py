"""Fill the notebooks' code cells from the package, which is the one source of each piece of code.

    python tools/sync.py                  write what changed
    python tools/sync.py --check          change nothing; exit 1 and say what differs
    python tools/sync.py notebooks/01_vae.ipynb    only these

A cell is filled by what its first line says:

    # source: course_utils/models/vae.py · Encoder, Decoder      whole definitions, in order
    # exercise: course_utils/diffusion/forward.py · add_noise    a function, body between solution markers
    # exercise: this notebook · name                             written there; only metadata is filled in
    # check: add_noise · 2 points                                the test right under it; only metadata
    # setup                                                      tools/setup_cell.py
    <!-- badge -->                                              (Markdown) the next line is the Colab badge

Comment lines straight under an `# exercise:` line belong to the notebook and stay. Everything else in a
notebook is left as it is: other cells, ids, outputs, execution counts.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
HEADER = re.compile(r"^# (source|exercise): *(\S.*?) *· *(\S.*?) *$")
CHECK = re.compile(r"^# check: *(\S+) *· *(\d+(?:\.\d+)?) points?\b")
CELL_ID = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")
HERE = "this notebook"
BADGE = "<!-- badge -->"

Cell = dict[str, Any]
Notebook = dict[str, Any]


class SyncError(Exception):
    """A cell that cannot be filled in; the message says which one and what to change."""


# --- lifting definitions out of a module --------------------------------------------------------------------


@cache
def _parse(path: Path) -> tuple[list[str], ast.Module]:
    text = path.read_text(encoding="utf-8")
    return text.splitlines(), ast.parse(text)


def _read(root: Path, module: str) -> tuple[list[str], ast.Module]:
    path = root / module
    if not path.is_file():
        raise SyncError(f"there is no file {module}")
    return _parse(path)


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _find(root: Path, module: str, name: str) -> tuple[list[str], ast.stmt]:
    lines, tree = _read(root, module)
    body: list[ast.stmt] = tree.body
    node: ast.stmt | None = None
    for part in name.split("."):
        node = next((child for child in body if part in _names(child)), None)
        if node is None:
            have = ", ".join(n for child in body for n in _names(child))
            raise SyncError(f"{module} defines no {name}; it has {have or 'no definitions'}")
        body = getattr(node, "body", [])
    assert node is not None
    return lines, node


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def definition(root: Path, module: str, name: str) -> str:
    """Source text of one definition: the comment lines right above it, its decorators and all of its body."""
    lines, node = _find(root, module, name)
    start = _first_line(node)
    indent = " " * node.col_offset
    while start > 1 and lines[start - 2].startswith(indent + "# "):
        if lines[start - 2].startswith("# ---"):  # a line between sections
            break
        start -= 1
    return textwrap.dedent("\n".join(lines[start - 1 : node.end_lineno])).rstrip()


def exercise(root: Path, module: str, name: str) -> str:
    """Source text of one function with its body (all after the docstring) between solution markers."""
    lines, node = _find(root, module, name)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        raise SyncError(f"{name} in {module} is not a function, so it cannot be an exercise")
    if ast.get_docstring(node) is None or len(node.body) < 2:
        raise SyncError(
            f"{name} in {module} needs a docstring (what students are told) and a body (the solution)"
        )
    after_docstring = node.body[0].end_lineno or node.lineno
    head = lines[_first_line(node) - 1 : after_docstring]
    body = lines[after_docstring : node.end_lineno]
    while body and not body[0].strip():
        body = body[1:]
    indent = " " * node.body[0].col_offset
    return textwrap.dedent("\n".join([*head, indent + BEGIN, *body, indent + END])).rstrip()


# --- reading and writing notebooks --------------------------------------------------------------------------


def read_notebook(path: Path) -> Notebook:
    return json.loads(path.read_text(encoding="utf-8"))


def dumps(notebook: Notebook) -> str:
    """The bytes nbformat and JupyterLab write, so that a sync changes no line but those it means to."""
    text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False, separators=(",", ": "))
    return text + "\n"


def source_of(cell: Cell) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def _set_source(cell: Cell, text: str) -> None:
    if source_of(cell) != text:
        cell["source"] = text.splitlines(keepends=True)


def repository(root: Path = ROOT) -> str:
    """The course's address, kept in pyproject.toml and nowhere else."""
    settings = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository *= *"([^"]+)"', settings, re.M)
    if found is None:
        raise SyncError("pyproject.toml has no Repository under [project.urls]")
    return found.group(1)


def setup_cell(root: Path = ROOT) -> str:
    template = (root / "tools" / "setup_cell.py").read_text(encoding="utf-8").rstrip()
    return template.replace("{repository}", repository(root), 1)


def badge(root: Path, notebook_name: str) -> str:
    address = re.sub(r"^https://github\.com/", "", repository(root)).removesuffix(".git")
    target = f"https://colab.research.google.com/github/{address}/blob/main/notebooks/{notebook_name}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({target})"


def _grading(grade_id: str, *, solution: bool, points: float | None = None) -> dict[str, Any]:
    metadata = {
        "schema_version": 3,
        "grade_id": re.sub(r"[^a-zA-Z0-9_-]", "_", grade_id),
        "grade": not solution,
        "solution": solution,
        "locked": not solution,
        "task": False,
    }
    if points is not None:
        metadata["points"] = int(points) if points == int(points) else points
    return metadata


# --- one notebook -------------------------------------------------------------------------------------------


def _label(cell: Cell, index: int) -> str:
    return f"cell {cell.get('id', f'number {index + 1}')}"


def _fill(cell: Cell, root: Path, notebook_name: str) -> None:
    text = source_of(cell)
    first, *rest = text.split("\n")
    if cell["cell_type"] == "markdown":
        if first.strip() == BADGE:
            kept = rest[1:] if rest and rest[0].startswith("[![") else rest
            _set_source(cell, "\n".join([BADGE, badge(root, notebook_name), *kept]))
        return
    if cell["cell_type"] != "code":
        return
    if re.match(r"^# setup\b", first):
        _set_source(cell, setup_cell(root))
        cell.setdefault("metadata", {})["jupyter"] = {"source_hidden": True}
    elif check := CHECK.match(first):
        cell.setdefault("metadata", {})["nbgrader"] = _grading(
            f"{notebook_name}-check-{check.group(1)}", solution=False, points=float(check.group(2))
        )
    elif header := HEADER.match(first):
        kind, module, names = header.groups()
        if kind == "source":
            parts = [definition(root, module, name.strip()) for name in names.split(",")]
            _set_source(cell, first + "\n" + "\n\n\n".join(parts))
            return
        if module != HERE:
            kept = []
            for line in rest:
                if not line.startswith("#"):
                    break
                kept.append(line)
            _set_source(cell, "\n".join([first, *kept, exercise(root, module, names)]))
        cell.setdefault("metadata", {})["nbgrader"] = _grading(f"{notebook_name}-{names}", solution=True)
    elif re.match(r"^# (source|exercise|check)\b *:", first):
        raise SyncError(
            f"cannot read its first line: {first!r}. It should look like "
            "'# source: course_utils/models/vae.py · VAE', "
            "'# exercise: course_utils/diffusion/forward.py · add_noise' or '# check: add_noise · 2 points'"
        )


def sync_notebook(notebook: Notebook, notebook_name: str, root: Path = ROOT) -> list[str]:
    """Fill the cells in place. Returns the errors; a cell with an error is left as it was."""
    errors = []
    for index, cell in enumerate(notebook["cells"]):
        try:
            _fill(cell, root, notebook_name)
        except SyncError as error:
            errors.append(f"{notebook_name}, {_label(cell, index)}: {error}")
    return errors


def exercises_of(notebook: Notebook) -> list[tuple[str, str]]:
    """(module, name) of each exercise cell."""
    found = []
    for cell in notebook["cells"]:
        header = HEADER.match(source_of(cell).split("\n")[0]) if cell["cell_type"] == "code" else None
        if header and header.group(1) == "exercise":
            found.append((header.group(2), header.group(3)))
    return found


def lint_notebook(
    notebook: Notebook, notebook_name: str, all_exercises: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """What nbformat and nbgrader let pass: wrong ids, solution markers, check cells; leaked solutions."""
    errors: list[str] = []
    cells = notebook["cells"]
    seen_ids: set[str] = set()
    seen_grades: set[str] = set()
    solutions = {*all_exercises, *exercises_of(notebook)}
    for index, cell in enumerate(cells):
        text = source_of(cell)
        first = text.split("\n")[0]
        header = HEADER.match(first) if cell["cell_type"] == "code" else None
        check = CHECK.match(first) if cell["cell_type"] == "code" else None

        def wrong(message: str, where: str = _label(cell, index)) -> None:
            errors.append(f"{notebook_name}, {where}: {message}")

        cell_id = cell.get("id")
        if cell_id is None:
            wrong("has no id")
        elif not CELL_ID.match(cell_id):
            wrong("its id has letters that nbformat does not allow")
        elif cell_id in seen_ids:
            wrong("another cell has the same id")
        seen_ids.add(str(cell_id))

        grade_id = cell.get("metadata", {}).get("nbgrader", {}).get("grade_id")
        if grade_id is not None and grade_id in seen_grades:
            wrong(f"another cell has the grade_id {grade_id}")
        seen_grades.add(str(grade_id))

        if header and header.group(1) == "exercise":
            name = header.group(3)
            marks = [line.strip() for line in text.split("\n") if line.strip() in (BEGIN, END)]
            if marks != [BEGIN, END]:
                wrong(f"the exercise {name} needs one {BEGIN!r} and, after it, one {END!r}")
            if grade_id is None:
                wrong(f"the exercise {name} has no nbgrader metadata; run make sync")
            below = source_of(cells[index + 1]).split("\n")[0] if index + 1 < len(cells) else ""
            found = CHECK.match(below)
            if found is None or found.group(1) != name:
                wrong(f"the cell right under the exercise {name} should begin '# check: {name} · N points'")
        elif BEGIN in text or END in text:
            wrong(f"has solution markers but does not begin with '# exercise: …': {first!r}")
        elif check:
            above = HEADER.match(source_of(cells[index - 1]).split("\n")[0]) if index else None
            if above is None or above.group(1) != "exercise" or above.group(3) != check.group(1):
                wrong(f"the cell right above should be the exercise {check.group(1)}")
            if grade_id is None:
                wrong(f"the check of {check.group(1)} has no nbgrader metadata; run make sync")
        elif grade_id is not None:
            wrong("has nbgrader metadata but is neither an exercise nor a check; remove the metadata")

        if header and header.group(1) == "source":
            for name in (part.strip() for part in header.group(3).split(",")):
                for module, solved in solutions:
                    if module == header.group(2) and (name == solved or solved.startswith(name + ".")):
                        wrong(f"shows {name}, which gives away the exercise {solved}; import it instead")
    return errors


# --- command line -------------------------------------------------------------------------------------------


def _difference(old: Notebook, new: Notebook, name: str, length: int = 12) -> list[str]:
    found = []
    for index, (before, after) in enumerate(zip(old["cells"], new["cells"], strict=True)):
        if before == after:
            continue
        a, b = source_of(before).split("\n"), source_of(after).split("\n")
        diff = list(difflib.unified_diff(a, b, "notebook", "package", n=1, lineterm=""))
        if not diff:
            diff = ["nbgrader metadata differs"]
        more = [f"… {len(diff) - length} lines more"] if len(diff) > length else []
        body = textwrap.indent("\n".join([*diff[:length], *more]), "    ")
        found.append(f"{name}, {_label(before, index)} differs from the package:\n{body}")
    return found


def run(paths: Sequence[Path], *, check: bool = False, root: Path = ROOT) -> tuple[list[str], list[Path]]:
    """Sync the notebooks given. Returns (problems, notebooks that changed or, with check, would change)."""
    problems: list[str] = []
    changed: list[Path] = []
    every = {path.resolve() for path in [*paths, *(root / "notebooks").glob("*.ipynb")]}
    elsewhere = [pair for path in sorted(every) for pair in exercises_of(read_notebook(path))]
    solutions = [pair for pair in elsewhere if pair[0] != HERE]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        old, new = json.loads(text), json.loads(text)
        problems += sync_notebook(new, path.stem, root)
        if check:
            problems += _difference(old, new, path.stem)
        problems += lint_notebook(new, path.stem, solutions)
        if old != new:
            changed.append(path)
            if not check:
                path.write_text(dumps(new), encoding="utf-8", newline="\n")
    return problems, changed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fill the notebooks' code cells from the package.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all in notebooks/")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a cell differs")
    options = parser.parse_args(arguments)
    paths = options.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    if not paths:
        print(f"no notebooks in {ROOT / 'notebooks'}")
        return 1
    for path in paths:
        if not path.is_file():
            print(f"there is no notebook {path}")
            return 1
    problems, changed = run(paths, check=options.check)
    for problem in problems:
        print(problem)
    if problems:
        hint = " Run make sync to fill in what differs." if options.check and changed else ""
        print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}.{hint}")
        return 1
    what = "in step with the package" if options.check or not changed else f"filled in {len(changed)}"
    print(f"{len(paths)} notebook{'s' if len(paths) > 1 else ''}: {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
