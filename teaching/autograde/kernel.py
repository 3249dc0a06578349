"""One Jupyter kernel that may hang, die or flood: run a cell, get its outputs and how it ended."""

from __future__ import annotations

import os
import queue
import time
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

MOST_OUTPUT = 200_000  # characters kept of one cell's outputs; a loop that prints would fill the disk
CUT = "… (more output, not kept)\n"
GRACE = 5.0  # seconds that an interrupted cell is given to stop
START = 120.0
FIELDS = {  # of each message that is an output, what a notebook keeps
    "stream": ("name", "text"),
    "error": ("ename", "evalue", "traceback"),
    "display_data": ("data", "metadata"),
    "execute_result": ("data", "metadata", "execution_count"),
}


class Kernel:
    """A Python kernel in `folder` with the environment given. `run` never raises on what a cell does."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.manager: KernelManager | None = None
        self.client: Any = None

    @property
    def alive(self) -> bool:
        return self.manager is not None and self.manager.is_alive()

    def start(self) -> None:
        """Start, or start afresh.

        Raises:
            RuntimeError: the kernel does not answer.
        """
        self.stop()
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(self.folder), env=self.environment, extra_arguments=["--log-level=50"])
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=START)

    def stop(self) -> None:
        if self.client is not None:
            self.client.stop_channels()
        if self.manager is not None and self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)
        self.manager = self.client = None

    def run(self, code: str, seconds: float) -> tuple[str, list[Any]]:
        """(how it ended, outputs): "ok", "error", "timeout" (interrupted and well) or "dead" (start it again)."""
        outputs: list[Any] = []
        message = self.client.execute(code, store_history=False, allow_stdin=False)
        ended = self._until_idle(message, seconds, outputs)
        if ended == "timeout":
            self.manager.interrupt_kernel()
            again = self._until_idle(message, GRACE, outputs)
            if again in ("timeout", "dead"):
                self.stop()
                ended = "dead"
            outputs = [o for o in outputs if o["output_type"] != "error"]
            outputs.append(error("Timeout", f"stopped after {seconds:.0f} seconds: is there an endless loop?"))
            return ended, outputs
        if ended == "dead":
            self.stop()
            outputs.append(error("DeadKernel", "the kernel died here: too much memory, os._exit, or it was killed"))
            return ended, outputs
        failed = any(output["output_type"] == "error" for output in outputs)
        return "error" if failed else "ok", outputs

    def _until_idle(self, message: str, seconds: float, outputs: list[Any]) -> str:
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            try:
                heard = self.client.get_iopub_msg(timeout=min(left, 0.5))
            except queue.Empty:
                if not self.alive:
                    return "dead"
                continue
            if heard["parent_header"].get("msg_id") != message:
                continue
            kind, content = heard["msg_type"], heard["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return "idle"
            if kind == "clear_output":
                outputs.clear()
            elif kind in FIELDS:
                _keep(outputs, {"output_type": kind} | {key: content[key] for key in FIELDS[kind]})


def _keep(outputs: list[Any], new: Any) -> None:
    last = outputs[-1] if outputs else None
    if new["output_type"] == "error":
        outputs.append(new)
    elif sum(len(str(output)) for output in outputs) + len(str(new)) > MOST_OUTPUT:
        if last is None or last.get("text") != CUT:
            outputs.append({"output_type": "stream", "name": "stdout", "text": CUT})
    elif new["output_type"] == "stream" and last is not None and last.get("name") == new["name"]:
        last["text"] += new["text"]
    else:
        outputs.append(new)


def error(name: str, value: str) -> Any:
    """An error output, which nbgrader counts as no points."""
    return {"output_type": "error", "ename": name, "evalue": value, "traceback": [f"{name}: {value}"]}


def environment_for(course: Path, scratch: Path) -> dict[str, str]:
    """What a submission's kernel sees: its own copy of the course, its own home and temporary folder, one thread."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COURSE_", "JUPYTER_", "IPYTHON"))}
    folders = {
        "HOME": "home",
        "USERPROFILE": "home",  # HOME on Windows
        "TMPDIR": "tmp",
        "MPLCONFIGDIR": "tmp",
        "COURSE_ARTIFACTS": "artifacts",
    }
    for folder in folders.values():
        (scratch / folder).mkdir(parents=True, exist_ok=True)
    return (
        environment
        | {name: str(scratch / folder) for name, folder in folders.items()}
        | {
            "PYTHONPATH": str(course),
            "COURSE_HOME": str(course),
            "COURSE_PROFILE": "smoke",
            "COURSE_DEVICE": "cpu",
            "COURSE_GRADING": "1",
            "JUPYTER_PREFER_ENV_PATH": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PIP_NO_INDEX": "1",  # what a submission installs would stay with the next one
            "PYTHONDONTWRITEBYTECODE": "1",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        }
    )
