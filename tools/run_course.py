"""Run the course's notebooks in order, with their progress on the terminal.

    python tools/run_course.py                       all six, in the profile that suits this machine
    python tools/run_course.py 01_vae --profile smoke
    python tools/run_course.py --save                keep the outputs in notebooks/, for committing them

Without --save the executed copies go to artifacts/<profile>/notebooks/ and notebooks/ stays as it is.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
os.environ.setdefault(
    "JUPYTER_PREFER_ENV_PATH", "1"
)  # this environment's kernel, not one from the home folder


class CourseError(Exception):
    """The run cannot go on; the message is what the reader sees."""


# --- the terminal -------------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


class StatusLine:
    """One live line: notebook, cell, heading, time, and the last line that the running cell printed.

    On a terminal it rewrites itself twice a second; into a file or a CI log it prints a line a minute.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.cell, self.total = 0, 0
        self.heading, self.output = "", ""
        self.begun = time.monotonic()
        self.live = sys.stdout.isatty()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> StatusLine:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self.live:
            print("\r\x1b[K", end="", flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def text(self) -> str:
        parts = [
            f"{self.name}  {self.cell:2d}/{self.total}  {clock(self.seconds)}",
            self.heading,
            self.output,
        ]
        return "  ·  ".join(part for part in parts if part)

    def heard(self, text: str) -> None:
        """Keep the last line a cell printed; a progress bar rewrites its line after a carriage return."""
        lines = [line.strip() for line in re.split(r"[\r\n]", ESCAPES.sub("", text))]
        if any(lines):
            self.output = [line for line in lines if line][-1]

    def _tick(self) -> None:
        width = shutil.get_terminal_size((100, 24)).columns - 1
        while not self._stop.wait(0.5 if self.live else 60):
            if self.live:
                print("\r\x1b[K" + self.text()[:width], end="", flush=True)
            else:
                print("  … " + self.text(), flush=True)


# --- one notebook -------------------------------------------------------------------------------------------


def merge_streams(outputs: list[Any]) -> list[Any]:
    """Join what was printed in one go, as a terminal shows it: a carriage return starts the line again."""
    merged: list[Any] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if output["output_type"] == "stream" and last is not None and last.get("name") == output["name"]:
            last["text"] += output["text"]
        else:
            merged.append(output)
    for output in merged:
        if output["output_type"] == "stream":
            output["text"] = re.sub(r"[^\n]*\r(?=[^\r\n])", "", output["text"]).replace("\r", "")
    return [output for output in merged if output["output_type"] != "stream" or output["text"].strip("\n ")]


def _portable(text: str) -> str:
    text = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "<cell>", text)
    text, home = text.replace(str(ROOT) + os.sep, "").replace(str(ROOT), "."), str(Path.home())
    return text if home == os.sep else text.replace(home, "~")  # in some containers the root is everybody's home


def tidy(notebook: Any) -> None:
    """Keep what a reader sees and drop what differs between machines: paths, timings, widget states."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = merge_streams(cell.outputs)
        for output in cell.outputs:
            if "text" in output:
                output["text"] = _portable(output["text"])
            data = output.get("data", {})
            if WIDGET_VIEW in data:  # its state would be large, and differ with each run
                del data[WIDGET_VIEW]
                data["text/plain"] = "(a widget: run this cell to use it)"
            if "image/png" in data:
                data["image/png"] = lighter(data["image/png"])
            for kind, value in data.items():
                if isinstance(value, str) and kind.startswith("text/"):
                    data[kind] = _portable(value)


def lighter(png: str) -> str:
    """A large picture (base64) with a palette of 256 colours instead of 16 million: a third of the size. Small ones
    are left as they are, and so are those in which somebody would see it."""
    if len(png) < 40_000:
        return png
    from PIL import Image, ImageChops

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    found = [png]
    for method in (Image.Quantize.MEDIANCUT, Image.Quantize.FASTOCTREE):  # the second keeps rare colours better
        few = picture.quantize(256, method, dither=Image.Dither.NONE)
        errors = ImageChops.difference(picture, few.convert("RGB")).convert("L").histogram()
        if sum(errors[32:]) <= 0.001 * picture.width * picture.height:
            packed = io.BytesIO()
            few.save(packed, "PNG", optimize=True)
            found.append(base64.b64encode(packed.getvalue()).decode())
    return min(found, key=len)


def _error_text(cell_number: int, heading: str, cell: Any, name: str, value: str) -> str:
    where = f"cell {cell_number} ({cell.get('id', 'no id')}" + (f", under “{heading}”)" if heading else ")")
    first = next((line for line in cell.source.split("\n") if line.strip()), "")
    return f"{where}\n    {first}\n  stopped with {name}: {ESCAPES.sub('', value).strip()[:2000]}"


@contextmanager
def _interruptible(client: Any) -> Iterator[threading.Event]:
    """The first Ctrl-C interrupts the running cell, which can save its training; a second stops at once."""
    pressed = threading.Event()

    def on_interrupt(number: int, frame: Any) -> None:
        process = getattr(getattr(client.km, "provisioner", None), "process", None)
        if pressed.is_set() or process is None or os.name == "nt":
            raise KeyboardInterrupt
        pressed.set()
        os.kill(process.pid, signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def run_notebook(path: Path, status: StatusLine, save_to: Path, stopped: Path) -> None:
    """Execute one notebook. The executed copy goes to `save_to`, or to `stopped` where it fails."""
    import nbclient
    import nbformat
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    class Client(nbclient.NotebookClient):
        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            if msg["msg_type"] == "stream":
                status.heard(msg["content"]["text"])
            return super().process_message(msg, cell, cell_index)

    notebook = nbformat.read(path, as_version=4)
    client = Client(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--log-level=40"],  # errors only
        resources={"metadata": {"path": str(path.parent)}},
    )
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    status.total = len(notebook.cells)
    number = 0
    finished = False
    # What the kernel's process writes, unlike its cells: mere noise while it shuts down, but the cause if it dies.
    last_words = tempfile.TemporaryFile()
    try:
        with _interruptible(client) as interrupted, client.setup_kernel(env=_environment(), stderr=last_words):
            for index, cell in enumerate(notebook.cells):
                number, status.cell, status.output = index + 1, index + 1, ""
                if cell.cell_type == "markdown":
                    headings = re.findall(r"^#{1,4} +(.+?) *$", cell.source, re.M)
                    status.heading = headings[0] if headings else status.heading
                client.execute_cell(cell, index, execution_count=client.code_cells_executed + 1)
                if interrupted.is_set():  # a training loop may catch the interrupt itself
                    raise KeyboardInterrupt
        finished = True
    except CellExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        raise CourseError(_error_text(number, status.heading, cell, error.ename, error.evalue)) from None
    except RuntimeError as error:  # DeadKernelError is one; where a kernel does not start, nbclient raises a plain one
        if number and not isinstance(error, DeadKernelError):
            raise
        last_words.seek(0)
        said = last_words.read().decode(errors="replace").strip()[-2000:]
        said = f"; its last words:\n{said}" if said else ""
        if not number:
            raise CourseError(f"its start: {error}{said}") from None
        why = f"the kernel died, most likely for lack of memory; close other programs and run again{said}"
        raise CourseError(_error_text(number, status.heading, cell, "DeadKernelError", why)) from None
    finally:
        last_words.close()
        tidy(notebook)
        if number:
            _write(notebook, save_to if finished else stopped)


def _environment() -> dict[str, str]:
    """The kernel's environment: it finds the course even where it is not installed."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def _write(notebook: Any, path: Path) -> None:
    import nbformat

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")
    partial.replace(path)


# --- the report ---------------------------------------------------------------------------------------------


def _flat(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key} ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = value
    return flat


def report(folder: Path, times: dict[str, float], since: float) -> None:
    print()
    for name, seconds in times.items():
        print(f"  {name:<22}{clock(seconds):>8}")
    if len(times) > 1:
        print(f"  {'all':<22}{clock(sum(times.values())):>8}")
    scores = []
    for card in sorted(folder.glob("*.json")):
        try:
            content = json.loads(card.read_text(encoding="utf-8"))
            metrics = _flat(content.get("metrics", {}))
        except (ValueError, AttributeError):
            continue
        label = content.get("name") or card.stem
        for key, value in metrics.items():
            scores.append(f"  {label:<14}{key.replace('_', ' '):<38}{value:>10.4g}")
    if scores:
        print("\nScores", *scores, sep="\n")
    pictures = sorted(folder.glob("pictures/*.png"))
    new = [picture for picture in pictures if picture.stat().st_mtime >= since]
    if new:
        print("\nPictures drawn", *(f"  {_relative(picture)}" for picture in new), sep="\n")


def keep_times(path: Path, times: dict[str, float]) -> None:
    """Each notebook's last wall time in seconds, those of earlier calls included."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted((known | times).items())), indent=2) + "\n", encoding="utf-8")


def _relative(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# --- command line -------------------------------------------------------------------------------------------


def find_notebooks(names: Sequence[str]) -> list[Path]:
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not names:
        if not every:
            raise CourseError(f"there are no notebooks in {NOTEBOOKS}")
        return every
    found = []
    for name in names:
        stem = Path(name).stem if name.endswith(".ipynb") else name
        matches = [path for path in every if path.stem == stem or path.stem.split("_")[0] == stem.zfill(2)]
        if Path(name).suffix == ".ipynb" and Path(name).is_file():
            matches = [Path(name).resolve()]
        if not matches:
            have = ", ".join(path.stem for path in every) or "none"
            raise CourseError(f"there is no notebook {name}; there are {have}")
        found += matches
    return found


def choose_profile(given: str | None) -> tuple[str, Path]:
    """The profile's name and the folder for what it makes."""
    sys.path.insert(0, str(ROOT))
    from course_utils.profiles import get_profile
    from course_utils.weights.artifacts import artifacts_folder

    try:
        name = get_profile(given).name
    except ValueError as error:
        raise CourseError(str(error)) from None
    return name, artifacts_folder(name)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the course's notebooks in order.")
    parser.add_argument("notebooks", nargs="*", help="such as 01_vae or 1; default: all")
    parser.add_argument("--profile", help="smoke, cpu, long or gpu; default: what suits the machine")
    parser.add_argument("--first", help="begin with this notebook; the earlier ones keep what they trained")
    parser.add_argument("--save", action="store_true", help="keep the outputs in notebooks/")
    options = parser.parse_args(arguments)
    times: dict[str, float] = {}
    since = time.time()
    path = Path("01")
    try:
        paths = find_notebooks(options.notebooks)
        if options.first:
            first = find_notebooks([options.first])[0]
            paths = [path for path in paths if path.name >= first.name]
        profile, folder = choose_profile(options.profile)
        os.environ["COURSE_PROFILE"] = profile
        print(f"{len(paths)} notebook{'s' if len(paths) > 1 else ''}, profile {profile}", flush=True)
        for path in paths:
            copy = folder / "notebooks" / path.name
            save_to = path if options.save else copy
            with StatusLine(path.stem) as status:
                try:
                    run_notebook(path, status, save_to, copy)
                except CourseError as error:
                    told = f"{path.name} stopped at {error}\n  The notebook up to there: {_relative(copy)}"
                    raise CourseError(told) from None
            times[path.stem] = status.seconds
            keep_times(folder / "times.json", times)
            print(f"{path.stem:<22} done in {clock(status.seconds):>6}   {_relative(save_to)}", flush=True)
    except CourseError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\nStopped in {path.stem}. `make course FROM={path.stem[:2]} "
            f"PROFILE={os.environ.get('COURSE_PROFILE', 'cpu')}` goes on with it, and its training where it stopped.",
            file=sys.stderr,
        )
        return 130
    report(folder, times, since)
    return 0


if __name__ == "__main__":
    sys.exit(main())
