"""Answers that are the same in more than one submission. To be looked at, never punished: short answers often agree."""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict

import sync

from autograde import cells as facts
from autograde.collect import Notebook, Submission

SHORTEST = 30  # nodes of a syntax tree: below it, as in `return alpha_bar / (1 - alpha_bar)`, all answers agree


def form(cell: dict) -> tuple[str, int] | None:
    """What the cell does, whatever its comments, layout, docstrings, annotations and own names; and how long it is."""
    tree = facts.parsed(cell)
    try:
        return _form(ast.parse(ast.unparse(tree))) if tree else None  # a copy: the parsed one is kept for others
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _form(tree: ast.Module) -> tuple[str, int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.arg):
            node.annotation = None
    own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    numbers: dict[str, str] = {}
    for node in ast.walk(tree):
        for place in ("id", "arg"):
            name = getattr(node, place, None)
            if name in own and not hasattr(builtins, name) and not isinstance(node, ast.keyword):
                setattr(node, place, numbers.setdefault(name, f"name{len(numbers)}"))
    return ast.dump(tree), sum(not isinstance(node, ast.expr_context) for node in ast.walk(tree))


def alike(submissions: list[Submission], sources: dict[str, Notebook]) -> list[list[str]]:
    """A line for each answer that several students gave: notebook, exercise, who, how alike, points.

    Left out: what was handed out, the course's own solution, and what is too short to tell.
    """
    groups: dict[tuple[str, str, str], list[tuple[Submission, str]]] = defaultdict(list)
    known = {
        (name, facts.exercise_name(cell), text[0])
        for name, book in sources.items()
        for cell in book["cells"]
        if facts.exercise_name(cell) and (text := form(cell))
    }
    for one in submissions:
        for cell in one.notebook["cells"] if one.notebook else []:
            name = facts.exercise_name(cell) if facts.grade_id(cell) else None
            found = form(cell) if name and "raise NotImplementedError" not in sync.source_of(cell) else None
            if name and found and found[1] >= SHORTEST and (one.assignment, name, found[0]) not in known:
                groups[one.assignment, name, found[0]].append((one, sync.source_of(cell).strip()))
    lines = []
    for (book, name, _), answers in sorted(groups.items()):
        students = sorted({one.student for one, _ in answers})
        if len(students) > 1:
            how = "to the letter" if len({text for _, text in answers}) == 1 else "but for names, comments and layout"
            points = sorted({f"{one.points.get(name, (0, 0))[0]:g}" for one, _ in answers})
            lines.append([book, name, "; ".join(students), how, " or ".join(points)])
    return lines
