"""What a measurement ran on, for the lines around a table."""

from __future__ import annotations

import platform
import sys
from pathlib import Path


def processor() -> str:
    """The processor's name, as well as the system knows it."""
    path = Path("/proc/cpuinfo")
    names = [line for line in path.read_text().splitlines() if "model name" in line] if path.exists() else []
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()


def peak_memory() -> int:
    """Bytes of memory that this process has held at most. ImportError on Windows, which does not say.

    Linux's ru_maxrss begins with the peak of the process that started this one, so there the kernel's own mark for
    this program is read instead.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
