"""The package's shape: imports point one way, modules stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "course_utils"
MODULES = sorted(PACKAGE.rglob("*.py"))
LENGTH = 300
CHECKS_LENGTH = 400  # a module holds the checks of a whole notebook, one function each

# What each part may import from the rest of the course. lessons and checks sit on top.
MAY_IMPORT = {
    "data": set(),
    "models": {"files"},
    "diffusion": set(),
    "pictures": set(),
    "files": set(),
    "pipeline": {"models", "diffusion", "pictures"},
    "training": {"data", "models", "diffusion", "pipeline", "files"},
    "evaluation": {"data", "models", "diffusion", "pipeline", "training"},
    "interop": {"models", "diffusion", "pipeline", "training", "files"},
    "lessons": {"data", "models", "diffusion", "pipeline", "training", "evaluation", "interop"},
    "checks": {"data", "models", "diffusion", "pipeline", "training", "evaluation", "interop", "lessons"},
    "__main__": {"pipeline", "training", "lessons", "files"},
    "__init__": set(),
}

# Reading and writing weights (from_pretrained and the like): imported inside the method, when it is called.
INSIDE_FUNCTIONS = {"pipeline": {"training", "interop"}, "models": {"interop"}}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[tuple[str, int]]:
    """(part of the course, line) of each import, less those that INSIDE_FUNCTIONS lets through."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    late = INSIDE_FUNCTIONS.get(part_of(path), set())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) in inside:
            if (node.module or "").startswith("course_utils.") and node.module.split(".")[1] in late:
                continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} has a relative import; write it out"
            module = node.module or ""
            if module == "course_utils":
                found |= {(alias.name, node.lineno) for alias in node.names}
            elif module.startswith("course_utils."):
                found.add((module.split(".")[1], node.lineno))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("course_utils."):
                    found.add((alias.name.split(".")[1], node.lineno))
    return {(name, line) for name, line in found if name != "__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} is a new part of the course: say in this test what it may import"
    wrong = [
        f"line {line}: {name}" for name, line in imports_of(path) if name not in MAY_IMPORT[part] | {part}
    ]
    assert not wrong, f"course_utils/{path.relative_to(PACKAGE)} may not import: {', '.join(wrong)}"


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
