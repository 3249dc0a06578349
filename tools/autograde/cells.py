"""What a notebook says without being run: which cells are exercises and checks, and which others these need."""

from __future__ import annotations

import ast
import re
import symtable
from typing import Any

import sync
from IPython.core.inputtransformer2 import TransformerManager

Cell = dict[str, Any]
CALL = re.compile(r"^(\w+) *= *check\.(\w+)\((\w+)\) *$", re.M)
CHECKS = re.compile(r"^from course_utils\.checks import (\w+) as check\b", re.M)


def exercise_name(cell: Cell) -> str | None:
    """The exercise that this cell solves, by its first line."""
    found = sync.HEADER.match(sync.source_of(cell).split("\n")[0]) if cell["cell_type"] == "code" else None
    return found.group(3) if found and found.group(1) == "exercise" else None


def check_name(cell: Cell) -> str | None:
    """The exercise that this cell tests, by its first line."""
    found = sync.CHECK.match(sync.source_of(cell).split("\n")[0]) if cell["cell_type"] == "code" else None
    return found.group(1) if found else None


def grade_id(cell: Cell) -> str | None:
    """nbgrader's name for the cell, None where it has none."""
    metadata = cell.get("metadata") or {}
    own = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    mark = own.get("grade_id") if isinstance(own, dict) else None
    return mark if isinstance(mark, str) else None


def python_of(cell: Cell) -> str:
    """The cell as plain Python: magics and shell lines turned into calls."""
    return TransformerManager().transform_cell(sync.source_of(cell))


def defines(cell: Cell, name: str) -> bool:
    """Whether the cell has `def name`; by its text where it does not parse."""
    try:
        tree = ast.parse(python_of(cell))
    except (SyntaxError, ValueError):
        return re.search(rf"^def +{re.escape(name)}\b", sync.source_of(cell), re.M) is not None
    return any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name == name for n in tree.body)


def names(cell: Cell) -> tuple[set[str], set[str]]:
    """(global names that the cell uses, names that it binds or fills); both empty where it does not parse."""
    try:
        text = python_of(cell)
        table, tree = symtable.symtable(text, "cell", "exec"), ast.parse(text)
    except (SyntaxError, ValueError):
        return set(), set()
    uses: set[str] = set()
    pending = [table]
    while pending:
        scope = pending.pop()
        pending += scope.get_children()
        for symbol in scope.get_symbols():
            if symbol.is_referenced() and (scope is table or symbol.is_global()):
                uses.add(symbol.get_name())
    symbols = table.get_symbols()
    binds = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported() or s.is_namespace()}
    imported = {s.get_name() for s in symbols if s.is_imported()}
    return uses, binds | (_filled(tree) - imported)


def _filled(tree: ast.Module) -> set[str]:
    """Names whose object a top-level statement changes: `x[0] = 1`, `x.y = 1`, `x.append(1)`."""
    found = set()
    for statement in tree.body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.Assign):
            targets = [t for t in statement.targets if isinstance(t, ast.Attribute | ast.Subscript)]
        elif isinstance(statement, ast.AugAssign | ast.AnnAssign):
            targets = [statement.target]
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            targets = [statement.value.func] if isinstance(statement.value.func, ast.Attribute) else []
        for target in targets:
            node: ast.AST = target
            while isinstance(node, ast.Attribute | ast.Subscript):
                node = node.value
            if isinstance(node, ast.Name):
                found.add(node.id)
    return found


def needed(cells: list[Cell], graded: set[int]) -> list[int]:
    """The cells to run, in order: the setup cell, those in `graded`, and all earlier ones that these rest on.

    A cell is taken if it binds a name that a later cell taken uses. Trainings and plots, on which no exercise rests,
    drop out; a learner's own helper functions stay, wherever they are.
    """
    facts = [names(cell) if cell["cell_type"] == "code" else (set(), set()) for cell in cells]
    modules = {name for cell in cells if cell["cell_type"] == "code" for name in _modules(cell)}
    taken: set[int] = set()
    wanted: set[str] = set()
    for index in reversed(range(len(cells))):
        uses, binds = facts[index]
        setup = cells[index]["cell_type"] == "code" and sync.source_of(cells[index]).startswith("# setup")
        own = binds - modules if not _imports(cells[index]) else binds
        if index in graded or setup or own & wanted:
            taken.add(index)
            wanted |= uses
    return sorted(taken)


def _imports(cell: Cell) -> bool:
    return cell["cell_type"] == "code" and re.search(r"^(from|import) ", sync.source_of(cell), re.M) is not None


def _modules(cell: Cell) -> set[str]:
    """Names of modules imported whole: a method called on one, as torch.manual_seed, fills nothing."""
    try:
        tree = ast.parse(python_of(cell))
    except (SyntaxError, ValueError):
        return set()
    imports = [node for node in tree.body if isinstance(node, ast.Import)]
    return {alias.asname or alias.name.split(".")[0] for node in imports for alias in node.names}
