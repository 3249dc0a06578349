"""What a trial has found so far, on disk as soon as it is found: a run that is killed leaves what it had."""

from __future__ import annotations

import json
import os
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from course_utils import __version__
from course_utils.files import read_json, replacing
from course_utils.training.loop import best_precision

Found = TypeVar("Found")


class Report:
    """Sections by name, in one JSON file. A section that is there already, without an error, is not made again."""

    def __init__(self, path: Path, say: Callable[[str], object] = print):
        self.path, self.say = path, say
        self.sections: dict[str, Any] = {}
        if path.exists():
            self.sections = read_json(path, "move it away, and the trial begins afresh")

    def write(self) -> None:
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.sections, indent=1, ensure_ascii=False), encoding="utf-8")

    def section(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What `make` finds, written at once; None if it fails: then the error is written in its place."""
        if "error" not in self.sections.get(name, {"error": ""}):
            self.say(f"{name}: there already")
            return self.sections[name]
        begun = time.perf_counter()
        try:
            found: dict[str, Any] | None = make()
            self.sections[name] = found
        except Exception as error:  # the next section may do better, and this one is to be read about
            found = None
            self.sections[name] = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        seconds = round(time.perf_counter() - begun, 1)
        self.sections[name]["section_seconds"] = seconds
        self.write()
        self.say(f"{name}: {seconds} s" + ("" if found is not None else f", {self.sections[name]['error']}"))
        return found


class Clock:
    """Counts down from a number of minutes."""

    def __init__(self, minutes: float):
        self.end = time.perf_counter() + 60 * minutes
        self.seconds = 60 * minutes

    def left(self) -> float:
        """Seconds, below 0 when the time is up."""
        return self.end - time.perf_counter()


def machine(device: torch.device) -> dict[str, Any]:
    """Card, memory, versions, and the precision that training takes."""
    facts: dict[str, Any] = {
        "device": device.type,
        "precision": best_precision(device.type),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {
            "course": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        },
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        facts["card"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count,
            "memory_mb": round(total / 1e6),
            "free_mb": round(free / 1e6),
        }
    return facts
