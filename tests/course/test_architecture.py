"""The package's shape: imports point one way, modules stay small."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "course_utils"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES}
LENGTH = 300
CHECKS_LENGTH = 400  # a module holds the checks of a whole notebook, one function each

# What each part may import from the rest of the course; the arrows of the map in CONTRIBUTING.md.
MAY_IMPORT = {
    "arguments": set(),
    "data": set(),
    "files": set(),
    "diffusion": set(),
    "pictures": set(),
    "models": {"files"},
    "profiles": {"models"},
    "weights": {"models", "diffusion", "files", "profiles"},
    "pipeline": {"models", "diffusion", "pictures", "weights"},
    "training": {"data", "models", "diffusion", "pipeline", "files", "profiles", "weights"},
    "evaluation": {"data", "models", "diffusion", "pipeline", "training"},
    "lessons": {"data", "models", "diffusion", "pipeline", "training", "evaluation", "profiles", "weights"},
    "checks": {"data", "models", "diffusion", "pipeline", "training", "evaluation", "lessons", "profiles", "weights"},
    "trial": {
        "data", "models", "diffusion", "pipeline", "pictures", "training", "evaluation", "files", "profiles", "weights",
    },
    "__main__": {"arguments", "files", "pipeline", "training", "lessons", "profiles", "trial", "weights"},
    "__init__": set(),
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, *, for_types_too: bool = True) -> set[tuple[str, int]]:
    """(module, line) of each import of the course, those inside functions, too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types and not for_types_too:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} has a relative import; write it out"
            module = node.module or ""
            below = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if name in NAMES else module for name in below]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {(name, node.lineno) for name in names if name.startswith("course_utils.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is a new part of the course: say in this test what it may import"
    wrong = [
        f"line {line}: {name}" for name, line in imports_of(path) if name.split(".")[1] not in MAY_IMPORT[part] | {part}
    ]
    assert not wrong, f"course_utils/{path.relative_to(PACKAGE)} may not import: {', '.join(wrong)}"


def test_no_module_imports_itself_in_the_end() -> None:
    needs = {name_of(path): {name for name, _ in imports_of(path, for_types_too=False)} for path in MODULES}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' ← '.join(error.args[1])}")


def test_the_map_is_drawn_as_it_is() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = text.partition("<!-- map -->")[2].partition("<!-- /map -->")[0].strip().split("\n")[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    drawn = {part.strip("`"): set(re.findall(r"`(\w+)`", below)) for part, _, below in cells}
    assert drawn == {part: below for part, below in MAY_IMPORT.items() if part != "__init__"}


def test_parts_import_downwards() -> None:
    TopologicalSorter(MAY_IMPORT).prepare()  # CycleError if what is allowed has a circle


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_is_short_and_explicit(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    most = CHECKS_LENGTH if path.parent.name == "checks" else LENGTH
    assert text.count("\n") <= most, f"{path.name} is longer than {most} lines: two concepts, two modules?"
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip(), f"{path.name} does not say what it is for"
    stars = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert not stars, f"{path.name} has a star import in line {stars}"


def test_weights_are_never_unpickled() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert name not in ("torch.load", "pickle.load", "pickle.loads"), f"{where} calls {name}"


def test_parts_are_packages() -> None:
    folders = [folder for folder in PACKAGE.iterdir() if folder.is_dir() and any(folder.glob("*.py"))]
    missing = [folder.name for folder in folders if not (folder / "__init__.py").is_file()]
    assert not missing, f"without __init__.py these would not be installed: {missing}"
