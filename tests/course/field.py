"""What students really hand in, and what an honest reader of the notebook would give for it. Add a line, add a case.

Each case begins with a small notebook, all of it solved: an import cell, and `forward_step`, `add_noise` and `snr`,
each with its check under it. What is done to that notebook is the case; `lost` names the exercises worth no points.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import classroom
import sync
from autograde import cells as facts

Notebook = dict[str, Any]
Change = Callable[[Notebook], Notebook]
EXERCISES = ("forward_step", "add_noise", "snr")
STUB = "    # YOUR CODE HERE\n    raise NotImplementedError()"
SNR = "# exercise: course_utils/diffusion/schedule.py · snr\ndef snr(alpha_bar):\n    return "
RIGHT = "alpha_bar / (1 - alpha_bar)"


@dataclass
class Case:
    """One submission. `said`: words that the report must hold; `beside`: files handed in with the notebook."""

    name: str
    change: Change
    lost: tuple[str, ...] = ()
    said: str = ""
    beside: dict[str, str] = field(default_factory=dict)


@dataclass
class Folder:
    """What lies in the folder that is graded: a name and what the file holds, "good" and "blank" being notebooks.

    Later files are newer. `counts`: the file that is graded as Ann's, None for none that can be read.
    """

    name: str
    files: dict[str, Any]
    counts: str | None
    said: str = ""
    student: str = "Ann"


def small(book: Notebook) -> Notebook:
    """The notebook cut down to its imports and three of its exercises."""
    keep = [
        cell
        for cell in book["cells"]
        if "as check" in sync.source_of(cell)
        or facts.grade_id(cell)
        and (facts.exercise_name(cell) or facts.check_name(cell)) in EXERCISES
    ]
    return {**book, "cells": copy.deepcopy(keep)}


def handed_out(book: Notebook) -> Notebook:
    """The student version, as nbgrader makes it."""
    book = copy.deepcopy(book)
    for cell in book["cells"]:
        before, found, rest = sync.source_of(cell).partition(f"    {sync.BEGIN}\n")
        if found and facts.grade_id(cell):
            cell["source"] = before + STUB + rest.partition(sync.END)[2]
    return book


def own(text: str, kind: str = "code") -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text}
    return cell | ({"outputs": [], "execution_count": None} if kind == "code" else {})


def place(book: Notebook, name: str, kind: Callable = facts.exercise_name) -> int:
    return book["cells"].index(classroom.cell_of(book, name, kind))


# --- changes --------------------------------------------------------------------------------------------------


def with_snr(text: str, *above: str, returns: bool = True) -> Change:
    """snr's answer, and cells of the student's own above it."""

    def change(book: Notebook) -> Notebook:
        at = place(book, "snr")
        book = classroom.with_text(book, "snr", SNR + text if returns else text)
        book["cells"][at:at] = [own(one) for one in above]
        return book

    return change


def under(*below: str, answer: str) -> Change:
    """Cells of the student's own between snr's answer and its check."""

    def change(book: Notebook) -> Notebook:
        book = classroom.with_text(book, "snr", SNR + answer)
        at = place(book, "snr") + 1
        book["cells"][at:at] = [own(one) for one in below]
        return book

    return change


def top(*cells: str, then: Change = lambda book: book) -> Change:
    """Cells of the student's own right below the imports."""

    def change(book: Notebook) -> Notebook:
        book = then(copy.deepcopy(book))
        book["cells"][1:1] = [own(one) for one in cells]
        return book

    return change


def merged(names: Iterable[str], into_own: bool = False, note: str = "") -> Change:
    """Several answers in one cell: the first one's, or the student's own; the other cells deleted, or with a note."""

    def change(book: Notebook) -> Notebook:
        book = copy.deepcopy(book)
        cells = [classroom.cell_of(book, name) for name in names]
        text = "\n\n".join(sync.source_of(cell) for cell in cells)
        home = own(text) if into_own else cells[0]
        if into_own:
            imports = next(i for i, cell in enumerate(book["cells"]) if "as check" in sync.source_of(cell))
            book["cells"].insert(imports + 1, home)
        home["source"] = text
        for cell in cells:
            if cell is not home and note:
                cell["source"] = note
            elif cell is not home:
                book["cells"].remove(cell)
        return book

    return change


def with_line_ends(ends: str, strip: bool = False) -> Change:
    def change(book: Notebook) -> Notebook:
        book = copy.deepcopy(book)
        for cell in book["cells"]:
            cell["source"] = sync.source_of(cell).replace("\n", ends)
            if strip:
                cell["metadata"] = {}
                cell.pop("id", None)
        return book

    return change


def unsolved(*names: str, then: Change = lambda book: book) -> Change:
    """These as they were handed out."""

    def change(book: Notebook) -> Notebook:
        book = copy.deepcopy(book)
        for name in names:
            cell = classroom.cell_of(book, name)
            head = sync.source_of(cell).split('"""')
            cell["source"] = '"""'.join(head[:2]) + '"""\n' + STUB
        return then(book)

    return change


def twice(name: str) -> Change:
    """The check's cell run once more, in a cell of the student's own."""

    def change(book: Notebook) -> Notebook:
        book = copy.deepcopy(book)
        at = place(book, name, facts.check_name)
        book["cells"].insert(at, copy.deepcopy(book["cells"][at]))
        return book

    return change


# --- the table ------------------------------------------------------------------------------------------------

HELPER = "def ratio(a):\n    return a / (1 - a)"
TABLE = "parts = {}"
BIG = "# see my big cell above"
GETSOURCE = """import inspect
import course_utils.diffusion.schedule as s
exec(inspect.getsource(s.snr))"""
WRAPPED = """from course_utils.diffusion import schedule as s
def snr(alpha_bar):
    return s.snr(alpha_bar)"""

CASES = [
    Case("all right", lambda book: book),
    # What an answer rests on.
    Case("a helper above", with_snr("ratio(alpha_bar)", HELPER)),
    Case("a helper between answer and check", under(HELPER, answer="ratio(alpha_bar)")),
    Case("a helper under %%time", with_snr("ratio(alpha_bar)", "%%time\n" + HELPER)),
    Case("a helper under %%capture", with_snr("ratio(alpha_bar)", "%%capture\n" + HELPER)),
    Case("the answer under %%time", with_snr("%%time\n" + SNR + "ratio(alpha_bar)", HELPER, returns=False)),
    Case("%time x = …", with_snr("alpha_bar / (one - alpha_bar)", "%time one = 1")),
    Case("from math import *", with_snr("alpha_bar / (cos(0) - alpha_bar)", "from math import *")),
    Case(
        "a table filled in a for",
        with_snr("parts[0](alpha_bar)", TABLE, "for i in (0, 1):\n    parts[i] = lambda a: a / (1 - a)"),
    ),
    Case(
        "an append under if", with_snr("alpha_bar / (ones[0] - alpha_bar)", "ones = []", "if True:\n    ones.append(1)")
    ),
    Case(
        "an append under with",
        with_snr("alpha_bar / (ones[0] - alpha_bar)", "ones = []", "with torch.no_grad():\n    ones.append(1)"),
    ),
    Case(
        "filled by one's own function",
        with_snr("alpha_bar / (parts[0] - alpha_bar)", TABLE, "def fill(d):\n    d[0] = 1", "fill(parts)"),
    ),
    Case(
        "filled by one's own function, its result kept",
        with_snr("alpha_bar / (parts[0] - alpha_bar)", TABLE, "def fill(d):\n    d[0] = 1", "done = fill(parts)"),
    ),
    Case(
        "filled by nn.init", with_snr("alpha_bar / (w - alpha_bar)", "w = torch.zeros(())", "nn.init.constant_(w, 1.0)")
    ),
    Case(
        "filled by setattr",
        with_snr("alpha_bar / (box.one - alpha_bar)", "class Box: pass\nbox = Box()", "setattr(box, 'one', 1)"),
    ),
    Case(
        "a name made by global",
        with_snr("alpha_bar / (one - alpha_bar)", "def prepare():\n    global one\n    one = 1", "prepare()"),
    ),
    Case("a name made by globals()", with_snr("alpha_bar / (one - alpha_bar)", "globals()['one'] = 1")),
    Case(
        "%%writefile and an import of it",
        with_snr("ratio(alpha_bar)", "%%writefile mine_w.py\n" + HELPER, "from mine_w import ratio"),
    ),
    Case(
        "the answer from a file of one's own",
        with_snr("from mine_f import snr", returns=False),
        beside={"mine_f.py": "def snr(a):\n    return a / (1 - a)"},
    ),
    Case(
        "a file beside the notebook",
        with_snr("ratio(alpha_bar)", "from mine_b import ratio"),
        said="mine_b.py",
        beside={"mine_b.py": HELPER},
    ),
    Case(
        "a decorator of one's own",
        with_snr(
            "@kept\ndef snr(alpha_bar):\n    return " + RIGHT,
            "def kept(f):\n    return lambda *a: f(*a)",
            returns=False,
        ),
    ),
    Case("a lambda", with_snr("snr = lambda alpha_bar: " + RIGHT, returns=False)),
    Case("a made function", with_snr("snr = make()", "def make():\n    return lambda a: a / (1 - a)", returns=False)),
    Case("the name check used for something else", top("check = 3")),
    Case(
        "own cells that fail, wait and shout", top("1 / 0", "def broken(", "!ls", "input()", "raise KeyboardInterrupt")
    ),
    # Two answers in one cell.
    Case("two answers merged", merged(["forward_step", "add_noise"]), said="were in one cell"),
    Case("three in a cell of one's own", merged(EXERCISES, into_own=True)),
    Case("three in a cell of one's own, notes in their places", merged(EXERCISES, into_own=True, note=BIG)),
    Case(
        "two merged, without tests",
        lambda book: classroom.without_tests(merged(["add_noise", "snr"])(book)),
        said="the test of snr was missing: put back",
    ),
    Case("two merged, without marks", lambda book: classroom.stripped(merged(["add_noise", "snr"])(book))),
    Case(
        "two merged, one wrong",
        lambda book: merged(["add_noise", "snr"])(classroom.with_body(book, "add_noise", "return x_0")),
        lost=("add_noise",),
    ),
    Case("the stub left below the answer", unsolved("snr", then=top(SNR + RIGHT)), said="snr is there 2 times"),
    # Editors.
    Case("CRLF", with_line_ends("\r\n")),
    Case("CR", with_line_ends("\r")),
    Case("CRLF, ids and metadata gone", with_line_ends("\r\n", strip=True)),
    # Not solved, whatever it looks like.
    Case("not solved", unsolved(*EXERCISES), lost=EXERCISES),
    Case("the check run twice on an unsolved one", unsolved("snr", then=twice("snr")), lost=("snr",)),
    Case("input() in an answer", with_snr("float(input())"), lost=("snr",)),
    Case(
        "one deleted",
        lambda book: {
            **book,
            "cells": [c for c in book["cells"] if "snr" not in (facts.exercise_name(c), facts.check_name(c))],
        },
        lost=("snr",),
        said="missing altogether",
    ),
    Case("wrong", with_snr("(1 - alpha_bar) / alpha_bar"), lost=("snr",)),
    # Hands on the checks.
    Case(
        "a class named check",
        unsolved(*EXERCISES, then=top("class check:\n    snr = add_noise = forward_step = staticmethod(lambda f: f)")),
        lost=EXERCISES,
        said="check",
    ),
    Case("a check replaced", unsolved("snr", then=top("check.snr = lambda f: f")), lost=("snr",), said="tampered with"),
    Case(
        "the checks' inside replaced",
        unsolved("snr", then=top("import course_utils.checks.base as b\nb._refusal = lambda *a: None")),
        lost=("snr",),
        said="uses _refusal",
    ),
    Case(
        "the checks' inside replaced by a wrong answer",
        with_snr(
            "import course_utils.checks.base as b\nb._refusal = lambda *a: None\nsnr = lambda a: a", returns=False
        ),
        lost=("snr",),
        said="base._refusal was replaced",
    ),
    Case(
        "the tolerance replaced",
        with_snr("(1 - alpha_bar) / alpha_bar", "torch.allclose = lambda *a, **k: True"),
        lost=("snr",),
        said="takes wrong answers",
    ),
    Case("the course's source run by exec", with_snr(GETSOURCE, returns=False), said="uses getsource"),
    Case("the course's own behind a wrapper", with_snr(WRAPPED, returns=False), said="uses s.snr"),
    Case(
        "the course's own imported",
        with_snr("from course_utils.diffusion.schedule import snr", returns=False),
        lost=("snr",),
        said="course's own snr",
    ),
]


BOOK = "02_forward_process"
GRADESCOPE = b"submission_7:\n  :submitters:\n  - :name: Ann\n    :sid: '4711'\n"
FOLDERS = [
    Folder("one notebook", {f"Ann/{BOOK}.ipynb": "good"}, f"{BOOK}.ipynb"),
    Folder(
        "renamed, with what a Mac adds",
        {"Ann/hw.ipynb": "good", f"Ann/__MACOSX/._{BOOK}.ipynb": b"\0\5\26\7"},
        "hw.ipynb",
    ),
    Folder(
        "what a Mac adds, beside it",
        {f"Ann/{BOOK}.ipynb": "good", f"Ann/._{BOOK}.ipynb": b"\0\5\26\7"},
        f"{BOOK}.ipynb",
    ),
    Folder(
        "an empty copy after the good one",
        {f"Ann/{BOOK}.ipynb": "good", f"Ann/{BOOK} (1).ipynb": b""},
        f"{BOOK}.ipynb",
        "does not",
    ),
    Folder(
        "handed in once more",
        {f"Ann/{BOOK}.ipynb": "blank", f"Ann/{BOOK} (1).ipynb": "good"},
        f"{BOOK} (1).ipynb",
        "handed in twice",
    ),
    Folder("a download that became .json", {f"Ann/{BOOK}.ipynb.json": "good"}, f"{BOOK}.ipynb.json", "handed in as"),
    Folder("a download that became .txt", {f"Ann/{BOOK}.txt": "good"}, f"{BOOK}.txt", "handed in as"),
    Folder("capitals", {f"Ann/{BOOK}.IPYNB": "good"}, f"{BOOK}.IPYNB"),
    Folder(
        "a zip in the folder",
        {"Ann/hw.zip": {f"week 2/{BOOK}.ipynb": "good", f"__MACOSX/._{BOOK}.ipynb": b"x"}},
        f"{BOOK}.ipynb",
    ),
    Folder(
        "a broken zip", {"Ann/hw.zip": b"PK", f"Ann/{BOOK}.ipynb": "good"}, f"{BOOK}.ipynb", "hw.zip cannot be unpacked"
    ),
    Folder(
        "an essay alone",
        {"Ann/answers.docx": b"PK", f"Bob/{BOOK}.ipynb": "good"},
        None,
        "answers.docx, which nobody reads",
    ),
    Folder(
        "a file that would hide a module",
        {f"Ann/{BOOK}.ipynb": "good", "Ann/random.py": b"1/0"},
        f"{BOOK}.ipynb",
        "random.py is read by nobody",
    ),
    Folder(
        "in no student's folder",
        {f"{BOOK}.ipynb": "good", f"Ann/{BOOK}.ipynb": "good"},
        f"{BOOK}.ipynb",
        "lies in no student's folder",
    ),
    Folder("Moodle", {f"Ann Lee_4711_assignsubmission_file/{BOOK}.ipynb": "good"}, f"{BOOK}.ipynb", student="Ann Lee"),
    Folder(
        "Canvas",
        {f"leeann_LATE_4711_99_{BOOK}-1.ipynb": "good"},
        f"leeann_LATE_4711_99_{BOOK}-1.ipynb",
        "handed in late",
        "leeann",
    ),
    Folder(
        "Gradescope",
        {
            "assignment_1_export/submission_metadata.yml": GRADESCOPE,
            f"assignment_1_export/submission_7/{BOOK}.ipynb": "good",
        },
        f"{BOOK}.ipynb",
    ),
]
