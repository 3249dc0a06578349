"""The scripts of maintainers, instructors and researchers are plain files; the tests import them by name."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tools", "teaching", "experiments")]
