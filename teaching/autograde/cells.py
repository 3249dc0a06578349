"""What a notebook says without being run: which cells are exercises and checks, and which others these need."""

from __future__ import annotations

import ast
import re
import symtable
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import Any

import sync
from IPython.core.inputtransformer2 import TransformerManager

Cell = dict[str, Any]
CALL = re.compile(r"^(\w+) *= *check\.(\w+)\((\w+)\) *$", re.M)
# Magics that run what follows as it stands.
TIMED = re.compile(r"\A\s*%%(?:time|capture|prun)\b.*\n|^([ \t]*)%time[ \t]+(?=\S)", re.M)
# What binds names that only running shows.
UNREADABLE = {"get_ipython", "exec", "eval", "globals", "locals", "vars", "__import__"}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
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
    """The cell as plain Python: what %%time and its like run as it stands, other magics and shell lines as calls."""
    return TransformerManager().transform_cell(TIMED.sub(r"\1", sync.source_of(cell)))


def parsed(cell: Cell) -> ast.Module | None:
    """The cell's syntax tree; None where it is no Python."""
    return _parsed(sync.source_of(cell))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(python_of({"source": text}))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _running(tree: ast.Module) -> Iterator[ast.AST]:
    """All that is run when the cell is: inside loops and branches too, not inside functions."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, FUNCTIONS):
            pending += ast.iter_child_nodes(node)


def defines(cell: Cell, name: str) -> bool:
    """Whether the cell has `def name` or `name = lambda …`; by its text where it does not parse."""
    tree = parsed(cell)
    if tree is None:
        return re.search(rf"^def +{re.escape(name)}\b", sync.source_of(cell), re.M) is not None
    for node in _running(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return True
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda) and name in map(_root, node.targets):
            return True
    return False


def names(cell: Cell) -> tuple[set[str], set[str]]:
    """(global names that the cell uses, names that it binds or fills); both empty where it does not parse."""
    tree = parsed(cell)
    if tree is None:
        return set(), set()
    try:
        table = symtable.symtable(python_of(cell), "cell", "exec")
    except SyntaxError:  # such as `return` outside of a function
        return set(), set()
    uses: set[str] = set()
    binds: set[str] = set()
    pending = [table]
    while pending:
        scope = pending.pop()
        pending += scope.get_children()
        for symbol in scope.get_symbols():
            if symbol.is_referenced() and (scope is table or symbol.is_global()):
                uses.add(symbol.get_name())
            if symbol.is_declared_global() and symbol.is_assigned():
                binds.add(symbol.get_name())
    symbols = table.get_symbols()
    binds |= {s.get_name() for s in symbols if s.is_assigned() or s.is_imported() or s.is_namespace()}
    imported = {s.get_name() for s in symbols if s.is_imported()}
    return uses, binds | (_filled(tree) - imported)


def _root(node: ast.AST) -> str | None:
    """The name that `x`, `x[0]` and `x.y.z` begin with."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _filled(tree: ast.Module) -> set[str]:
    """Names whose object a running statement changes: `x[0] = 1`, `x.y = 1`, `x.append(1)`."""
    found: set[str | None] = set()
    for node in _running(tree):
        if isinstance(node, ast.Assign | ast.For):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {_root(t) for t in targets if isinstance(t, ast.Attribute | ast.Subscript)}
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            found.add(_root(node.target))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found.add(_root(node.value.func) if isinstance(node.value.func, ast.Attribute) else None)
    return {name for name in found if name}


def _touched(cell: Cell) -> set[str]:
    """Names in statements whose value nobody takes, as `fill(table)`: they are there for what they do to something."""
    tree = parsed(cell)
    statements = [node for node in _running(tree) if isinstance(node, ast.Expr)] if tree else []
    return {node.id for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Name)}


def _opaque(cell: Cell) -> bool:
    """Whether only running the cell shows what it binds: star imports, magics, exec, or no Python at all."""
    tree = parsed(cell)
    stars = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)] if tree else []
    return tree is None or any(a.name == "*" for node in stars for a in node.names) or bool(names(cell)[0] & UNREADABLE)


def needed(cells: list[Cell], graded: set[int], own: Collection[int] = ()) -> list[int]:
    """The cells to run, in order: the setup cell, those in `graded`, and all earlier ones that these rest on.

    A cell is taken if it binds a name that a later cell taken uses. Trainings and plots, on which no exercise rests,
    drop out; a learner's own helper functions stay, wherever they are. Of the learner's `own` cells, those are taken as
    well that nobody can see through, or that do something to such a name or with a function of such a cell.
    """
    facts = [names(cell) if cell["cell_type"] == "code" else (set(), set()) for cell in cells]
    modules = {name for cell in cells if cell["cell_type"] == "code" for name in _modules(cell)}
    mine = {i: _touched(cells[i]) - modules for i in own if cells[i]["cell_type"] == "code"}
    last = max(graded, default=-1)
    taken = {i for i in mine if i <= last and _opaque(cells[i])}
    while True:
        before, wanted = len(taken), set()
        helpers = {name for i in taken & mine.keys() for name in facts[i][1]}
        for index in reversed(range(len(cells))):
            uses, binds = facts[index]
            setup = cells[index]["cell_type"] == "code" and sync.source_of(cells[index]).startswith("# setup")
            fills = binds - modules if not _imports(cells[index]) else binds
            acts = index < last and bool(mine.get(index, set()) & (wanted | helpers))
            if index in graded or index in taken or setup or fills & wanted or acts:
                taken.add(index)
                wanted |= uses
        if len(taken) == before:
            return sorted(taken)


def _imports(cell: Cell) -> bool:
    return cell["cell_type"] == "code" and re.search(r"^(from|import) ", sync.source_of(cell), re.M) is not None


def _modules(cell: Cell) -> set[str]:
    """Names of modules imported whole: a method called on one, as torch.manual_seed, fills nothing."""
    tree = parsed(cell)
    imports = [node for node in tree.body if isinstance(node, ast.Import)] if tree else []
    return {alias.asname or alias.name.split(".")[0] for node in imports for alias in node.names}


def hands_over(cell: Cell, exercises: Collection[str], course: Collection[str]) -> list[str]:
    """Ways to a solution of these exercises in a cell that students are given; `course`: names imported from it."""
    tree, found = parsed(cell), []
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("course_utils"):
            found += [f"imports {a.name}" for a in node.names if a.name in exercises or a.name == "*"]
        elif isinstance(node, ast.Import):
            found += [f"imports {a.name} whole" for a in node.names if a.name.startswith("course_utils")]
        elif isinstance(node, ast.Attribute) and _root(node) in course and node.attr in exercises:
            found.append(f"uses {ast.unparse(node)}")
    return list(dict.fromkeys(found))


def from_course(cells: Iterable[Cell]) -> set[str]:
    """Names that these cells import from the course."""
    trees = [tree for cell in cells if cell["cell_type"] == "code" and (tree := parsed(cell))]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    inside = [node for node in imports if (node.module or "").startswith("course_utils")]
    return {alias.asname or alias.name for node in inside for alias in node.names}


def peculiar(cell: Cell, exercises: Collection[str]) -> list[str]:
    """What a person should look at: ways to the course's own solution, and hands on the checks."""
    tree, found = parsed(cell), []
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("course_utils"):
            found += [f"imports the course's own {a.name}" for a in node.names if a.name in exercises]
            found += ["imports the inside of the checks"] * ((node.module or "").startswith("course_utils.checks"))
        elif isinstance(node, ast.Import):
            found += [f"imports {a.name}" for a in node.names if a.name.startswith(("course_utils.checks", "inspect"))]
        elif isinstance(node, ast.Attribute):
            if node.attr in exercises and not isinstance(node.ctx, ast.Load):
                found.append(f"sets {_root(node)}.{node.attr}")
            elif node.attr in exercises and _root(node) != "check":
                found.append(f"uses {_root(node)}.{node.attr}")
            elif node.attr in ("getsource", "__code__", "__closure__", "_refusal"):
                found.append(f"uses {node.attr}")
        elif isinstance(node, ast.Constant) and node.value == "COURSE_GRADING":
            found.append("names COURSE_GRADING")
    if tree and "check" in names(cell)[1] and not CHECKS.search(sync.source_of(cell)):
        found.append("gives the name check to something else, or changes it")
    return list(dict.fromkeys(found))
