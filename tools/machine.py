"""What a measurement ran on, for the lines around a table."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, as well as the system knows it."""
    path = Path("/proc/cpuinfo")
    names = [line for line in path.read_text().splitlines() if "model name" in line] if path.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()
