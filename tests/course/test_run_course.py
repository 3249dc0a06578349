"""tools/run_course.py: the notebooks in order, with a word on what happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
import run_course

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, name: str, *cells: str) -> Path:
    made = []
    for number, text in enumerate(cells, 1):
        new = nbformat.v4.new_markdown_cell if text.startswith("#") else nbformat.v4.new_code_cell
        made.append(new(text, id=f"c-{number}"))
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def start(tmp_path: Path, *arguments: Any, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "tools" / "run_course.py", *arguments],
        cwd=tmp_path,
        env={**os.environ, "COURSE_ARTIFACTS": str(tmp_path / "artifacts"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_runs_reports_and_keeps_the_notebook_as_it_was(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "01_a",
        "# A title",
        "import os, pathlib, json\n"
        "folder = pathlib.Path(os.environ['COURSE_ARTIFACTS'], os.environ['COURSE_PROFILE'])\n"
        "(folder / 'pictures').mkdir(parents=True)\n"
        "(folder / 'pictures' / 'row.png').touch()\n"
        "_ = (folder / 'vae.json').write_text(json.dumps({'name': 'vae', 'metrics': {'psnr_db': 24.5}}))",
        "import course_utils\nprint(pathlib.Path.cwd())",
    )
    before = path.read_bytes()
    process = start(tmp_path, path, "--profile", "smoke")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "01_a" in out and "done in" in out and "row.png" in out and "psnr db" in out and "24.5" in out
    assert path.read_bytes() == before
    executed = nbformat.read(tmp_path / "artifacts" / "smoke" / "notebooks" / "01_a.ipynb", as_version=4)
    assert [cell.get("execution_count") for cell in executed.cells] == [None, 1, 2]
    assert dict(executed.metadata.language_info) == {"name": "python"}


def test_an_error_names_notebook_cell_and_reason(tmp_path: Path) -> None:
    path = write(tmp_path, "01_a", "## Where it breaks", "print('before')", "x = 1\nx / 0")
    before = path.read_bytes()
    process = start(tmp_path, path, "--save", "--profile", "smoke")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "01_a.ipynb stopped at cell 3 (c-3, under “Where it breaks”)" in err
    assert "ZeroDivisionError: division by zero" in err and "Traceback" not in err
    assert path.read_bytes() == before, "a notebook that failed was saved over the old one"


def test_what_the_kernels_process_writes_is_shown_only_when_it_dies(tmp_path: Path) -> None:
    noisy = "import atexit, os\n_ = atexit.register(os.write, 2, b'Traceback, while it shuts down')"
    out, err = start(tmp_path, write(tmp_path, "01_a", noisy), "--profile", "smoke").communicate(timeout=120)
    assert "done in" in out and "Traceback" not in out + err
    dying = "import os\n_ = os.write(2, b'out of memory in line 7')\nos._exit(1)"
    process = start(tmp_path, write(tmp_path, "01_b", "## Where it dies", dying), "--profile", "smoke")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "01_b.ipynb stopped at cell 2 (c-2, under “Where it dies”)" in err
    assert "DeadKernelError: the kernel died" in err and "out of memory in line 7" in err and "Traceback" not in err


def test_a_kernel_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ipykernel_launcher.py").write_text("raise SystemExit('half an installation')")
    path = write(tmp_path, "01_a", "1")
    process = start(tmp_path, path, "--profile", "smoke", PYTHONPATH=str(tmp_path / "broken"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "01_a.ipynb stopped at its start" in err and "half an installation" in err and "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that reaches only one process")
def test_an_interrupt_reaches_the_cell_and_stops_cleanly(tmp_path: Path) -> None:
    cell = (
        "import pathlib, time\npathlib.Path('started').touch()\n"
        "try:\n    time.sleep(60)\nfinally:\n    pathlib.Path('saved').touch()"
    )
    process = start(tmp_path, write(tmp_path, "01_a", cell), "--profile", "smoke")
    for _ in range(600):
        if (tmp_path / "started").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "FROM=" in err and "Traceback" not in err
    assert (tmp_path / "saved").exists()


def test_unknown_names_are_said_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_course.main(["99_none"]) == 1
    assert "there is no notebook 99_none" in capsys.readouterr().err


def test_an_unknown_profile_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_course.main([str(write(tmp_path, "01_a", "1")), "--profile", "enormous"]) == 1
    assert "enormous" in capsys.readouterr().err


def stream(text: str, name: str = "stdout") -> Any:
    return nbformat.v4.new_output("stream", name=name, text=text)


def test_streams_merge_as_on_a_terminal_and_keep_their_place() -> None:
    picture = nbformat.v4.new_output("display_data", data={"text/plain": "picture"})
    merged = run_course.merge_streams(
        [
            stream("a\n"),
            stream("\r 1%"),
            stream("\r50%"),
            stream("\r99%\n"),
            picture,
            stream("b"),
            stream("!", "stderr"),
        ]
    )
    assert [output.get("text", "picture") for output in merged] == ["a\n99%\n", "picture", "b", "!"]


def test_tidy_takes_out_what_differs_between_machines() -> None:
    widget = {run_course.WIDGET_VIEW: {"model_id": "1"}, "text/plain": "interactive(children=())"}
    cell = nbformat.v4.new_code_cell(
        "1",
        outputs=[
            stream(f"saved {run_course.ROOT}/artifacts/x\n"),
            stream(f"{tempfile.gettempdir()}/ipykernel_12/345.py:3: UserWarning: hm\n", "stderr"),
            nbformat.v4.new_output("display_data", data=widget),
        ],
    )
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {"a": 1}})
    run_course.tidy(notebook)
    texts = json.dumps(notebook)
    assert (
        str(run_course.ROOT) not in texts
        and "ipykernel_" not in texts
        and run_course.WIDGET_VIEW not in texts
    )
    assert "widgets" not in notebook.metadata
    assert cell.outputs[0]["text"] == "saved artifacts/x\n"


def test_a_home_at_the_root_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_course.Path, "home", lambda: Path("/"))
    assert run_course._portable("1/2 at 3 steps/s") == "1/2 at 3 steps/s"
    monkeypatch.setattr(run_course.Path, "home", lambda: Path("/home/ada"))
    assert run_course._portable("in /home/ada/x") == "in ~/x"


def test_status_line_follows_a_progress_bar() -> None:
    status = run_course.StatusLine("01_vae")
    status.heard("epoch 1\n")
    status.heard("\r 10%|#   | loss 0.5")
    status.heard("\r 20%|##  | loss 0.4\x1b[A")
    status.heard("\n")
    assert status.output == "20%|##  | loss 0.4"
    assert "01_vae" in status.text()
