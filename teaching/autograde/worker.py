"""Run one submission, cell by cell, in this process and one kernel: `python worker.py JOB.json`.

Started by teaching/grade.py for each notebook handed in. Answers with a JSON: the executed notebook, what happened.
Points are not given here: nbgrader gives them, later, from the outputs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil

TEACHING = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TEACHING), str(TEACHING.parent / "tools")]

from sync import source_of  # noqa: E402

from autograde import cells as facts  # noqa: E402
from autograde.kernel import Kernel, environment_for, error  # noqa: E402

RESTARTS = 30
PATIENCE = 4.0  # times the limit of an exercise or a test, for cells that import much
GUARD = "__import__('course_utils.checks.guard', fromlist=['guard'])"
NO_EXIT = """
def _stop():
    raise SystemExit
get_ipython().ask_exit = _stop  # exit() and quit() would stop the kernel some time later, under an innocent cell
"""


class Run:
    """A notebook being run. `done` is what a fresh kernel must run to be where the last one was."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.notebook = json.loads(Path(job["notebook"]).read_text(encoding="utf-8"))
        self.cells: list[dict[str, Any]] = self.notebook["cells"]
        self.given: dict[str, str] = job["given"]  # cell id -> the text that the course gave out
        self.module: str = job["checks"]
        self.deadline = time.monotonic() + job["seconds"]
        self.done: list[str] = []
        self.solutions: dict[str, str] = {}  # the exercise cells that ran
        self.passed: set[str] = set()
        self.unsolved: set[str] = set()  # as they were handed out
        self.notes: list[str] = []
        self.restarts = 0
        scratch = Path(job["scratch"])
        self.course, self.folder = scratch / "course", scratch / "course" / "notebooks"
        self.scratch = scratch
        self.kernel = Kernel(self.folder, environment_for(self.course, self.scratch))

    def lay_out(self) -> None:
        """A fresh copy of the course: what a submission deletes or overwrites is its own."""
        shutil.rmtree(self.course, ignore_errors=True)
        self.folder.mkdir(parents=True)
        home = Path(self.job["course"])
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(home / "course_utils", self.course / "course_utils", ignore=ignored)
        if (home / "checkpoints").is_dir():
            shutil.copytree(home / "checkpoints", self.course / "checkpoints")
        self.lay_beside()

    def lay_beside(self) -> None:
        """What was handed in with the notebook, where it looks for it."""
        for name, path in self.job["beside"].items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self.folder / name)

    def start(self) -> None:
        self.kernel.stop()
        self.lay_out()
        self.kernel.start()
        self.kernel.run(NO_EXIT, self.job["cell_seconds"])
        self.kernel.run(f"{GUARD}.keep({self.module!r})", PATIENCE * self.job["cell_seconds"])

    def again(self) -> None:
        """After a kernel died: a new one, brought to where the last one was."""
        self.restarts += 1
        if self.restarts > RESTARTS:
            raise RuntimeError(f"the kernel died {self.restarts} times")
        self.start()
        for code in list(self.done):
            if self._run(code, PATIENCE)[0] == "dead":
                self.done.remove(code)
                self.again()
                return

    def _run(self, code: str, patience: float = 1.0) -> tuple[str, list[Any]]:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(
                f"the {self.job['seconds']:.0f} seconds for one submission were used up before this cell"
            )
        if not self.kernel.alive:
            self.again()
        return self.kernel.run(code, min(left, patience * self.job["cell_seconds"]))

    def quietly(self, code: str) -> list[Any]:
        """Run a line of the grader's own; it leaves nothing in the notebook."""
        ended, outputs = self._run(code)
        if ended == "dead":
            self.again()
        return outputs

    def plain(self, cell: dict[str, Any]) -> None:
        """A cell that carries no points. Where the learner's version of a given cell fails, the course's own is run."""
        text = source_of(cell)
        ended, cell["outputs"] = self._run(text, PATIENCE)
        if ended == "ok":
            self.done.append(text)
            return
        if ended == "dead":
            self.again()
        given = self.given.get(str(cell.get("id")))
        if given is not None and given != text:
            self.notes.append(f"cell {cell['id']} fails as it was handed in; the course's own text took its place")
            if self._run(given, PATIENCE)[0] != "dead":
                self.done.append(given)
        elif ended != "error":
            self.notes.append(f"cell {cell.get('id')}: {_said(cell['outputs'])}")

    def exercise(self, cell: dict[str, Any], name: str) -> None:
        text = source_of(cell)
        others = list(self.solutions) if text in self.solutions.values() else []
        if others:  # a cell with several answers: those that were tested already stay as the tests left them
            self.quietly(f"_as_tested = {{n: globals()[n] for n in {others} if n in globals()}}")
        ended, cell["outputs"] = self._run(text)
        if ended == "dead":
            self.again()
        elif ended == "ok":
            self.done.append(text)
            self.solutions[name] = text
        if others:
            self.quietly("globals().update(globals().pop('_as_tested', {}))")

    def check(self, cell: dict[str, Any], name: str) -> None:
        """Run the test; where it fails, put the course's version in the place of the learner's, as in the notebook."""
        changed = self._says(f"{GUARD}.restore({self.module!r}, globals())")
        if changed not in ("", "[]"):
            how = "tampered with" if "replaced" in changed or "rewritten" in changed else "put back"
            self.notes.append(f"before the test of {name} the checks were {how}: {changed[1:-1]}")
        text = source_of(cell)
        ended, outputs = self._run(text)
        if ended == "dead":
            self.again()
        elif ended == "ok" and self._borrowed(name):
            ended = "error"
            outputs.append(error("NotYourOwn", f"{name} is the course's own version, imported, not written"))
        elif ended == "ok" and self._says(f"{GUARD}.takes_anything({self.module!r}, {name!r})") == "True":
            ended = "error"
            outputs.append(error("Tampered", f"the checks were tampered with: that of {name} takes wrong answers, too"))
            self.notes.append(f"the checks were tampered with: that of {name} takes wrong answers, too")
        # nbgrader takes any line on stderr for a failure: a warning would cost the points
        cell["outputs"] = [{**o, "name": "stdout"} if o.get("name") == "stderr" else o for o in outputs]
        if ended == "ok":
            self.passed.add(name)
        else:
            if outputs and "not solved yet" in outputs[-1].get("evalue", ""):
                self.unsolved.add(name)
            fallback = f"from course_utils.checks import {self.module} as _given; {name} = _given.{name}(None)"
            self.quietly(_without_grading(fallback))
            self.done.append(_without_grading(fallback))

    def _says(self, expression: str) -> str:
        """What an expression of the grader's own comes to, in the submission's kernel."""
        outputs = self.quietly(f"__import__('builtins').print({expression})")
        return "".join(output.get("text", "") for output in outputs).strip()

    def _borrowed(self, name: str) -> bool:
        return self._says(f"str(getattr({name}, '__module__', '')).startswith('course_utils')") == "True"

    def grade(self) -> None:
        """Run the cells that the exercises need; then, for those tried in vain, once more with all the student's own.

        What an answer rests on is read off the source, which cannot always tell. A test counts if it passes once.
        """
        marks = {i: str(facts.grade_id(cell)) for i, cell in enumerate(self.cells) if facts.grade_id(cell)}
        tests = {i: self.job["tests"][mark] for i, mark in marks.items() if mark in self.job["tests"]}
        tasks = {i: self.job["tasks"][mark] for i, mark in marks.items() if mark in self.job["tasks"]}
        code = {i for i, cell in enumerate(self.cells) if cell["cell_type"] == "code"}
        own = {i for i in code - marks.keys() if source_of(self.cells[i]).rstrip() != self._text_given(i).rstrip()}
        lean = facts.needed(self.cells, {*tests, *tasks}, own)
        chosen = sorted(code) if self.job["all_cells"] else lean
        self.walk(chosen, tests, tasks)
        more = sorted({*lean, *own})
        if set(tests.values()) - self.passed - self.unsolved and more != chosen:
            again = Run({**self.job, "seconds": self.deadline - time.monotonic()})
            again.walk(more, tests, tasks)
            for index, name in tests.items():
                if name in again.passed - self.passed:
                    self.cells[index]["outputs"] = again.cells[index]["outputs"]
                    self.notes.append(f"{name} is right once all of the student's own cells are run")
            self.passed |= again.passed
            self.notes += [note for note in again.notes if note not in self.notes and "tampered" in note]

    def _text_given(self, index: int) -> str:
        return self.given.get(str(self.cells[index].get("id")), "")

    def walk(self, chosen: list[int], tests: dict[int, str], tasks: dict[int, str]) -> None:
        """Run these cells in their order."""
        for index in tests:
            self.cells[index]["outputs"] = [error("NotRun", "this cell was not reached")]
        try:
            self.start()
            for index in chosen:
                cell = self.cells[index]
                if index in tests:
                    cell["outputs"] = []
                    self.check(cell, tests[index])
                elif index in tasks:
                    self.exercise(cell, tasks[index])
                else:
                    self.plain(cell)
        except (TimeoutError, RuntimeError) as stop:
            self.notes.append(f"not run to its end: {stop}")
            for later in tests:
                if not self.cells[later]["outputs"] or self.cells[later]["outputs"][0].get("ename") == "NotRun":
                    self.cells[later]["outputs"] = [error("NotRun", str(stop))]
        finally:
            self.kernel.stop()


def _without_grading(code: str) -> str:
    """A check hands out the course's version only outside grading."""
    return f"import os; os.environ['COURSE_GRADING'] = '0'; {code}; os.environ['COURSE_GRADING'] = '1'"


def _said(outputs: list[Any]) -> str:
    errors = [output for output in outputs if output["output_type"] == "error"]
    return f"{errors[-1]['ename']}: {errors[-1]['evalue']}" if errors else "stopped"


def limit(gigabytes: float) -> None:
    """Hold this process and its kernel to so much memory each (Linux; elsewhere the watch in pool.py does it)."""
    try:
        import resource
    except ImportError:  # Windows
        return
    most = int(gigabytes * 2**30)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def adopt() -> None:
    """Make this process the parent of what its children leave behind (Linux), so that none of it gets away."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def reap() -> int:
    """End all that a submission left running; how many there were."""
    found: set[psutil.Process] = set()
    for _ in range(20):
        left = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        if not left:
            break
        found |= set(left)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    return len(found)


def main() -> int:
    """The result goes to standard output, a file without a name: the submission cannot write there."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = os.dup(1)  # not inherited, unlike 1 itself
    os.dup2(2, 1)
    limit(job["gigabytes"])
    adopt()
    begun = time.monotonic()
    submission = Run(job)
    submission.grade()
    if strays := reap():
        submission.notes.append(f"it left {strays} process{'es' * (strays > 1)} running: ended")
    result = {
        "notebook": submission.notebook,
        "seconds": time.monotonic() - begun,
        "notes": submission.notes,
        "restarts": submission.restarts,
    }
    with os.fdopen(answer, "wb") as file:  # an output may hold half a character
        file.write(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
