"""What the sizes in a network's config can be: one that was read from a damaged file is refused, and not built."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

DEEPEST = 1000  # layers of a kind, one behind another
WIDEST = 2**20  # of anything else: channels, tokens, pixels
LEVELS = 16


def check_sizes(config: Any) -> None:
    """ValueError unless every size in a config is a whole number from 1 on, or a tuple of some, and none is absurd."""
    for name, value in asdict(config).items():
        sizes = [v for v in value if not isinstance(v, bool)] if isinstance(value, tuple) else [value]  # but flags
        most = DEEPEST if "layers" in name else WIDEST
        if any(isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= most for size in sizes):
            wanted = f"must be 1 or more, whole and at most {most:,}"
            raise ValueError(f"{type(config).__name__}.{name} {wanted}, got {value!r:.60}")


def as_levels(name: str, value: Any, kind: type = int) -> tuple[Any, ...]:
    """One entry a level, as a tuple. ValueError unless it is a tuple, or a list as JSON has it, of such entries."""
    if not isinstance(value, (tuple, list)) or not 1 <= len(value) <= LEVELS or any(type(v) is not kind for v in value):
        raise ValueError(f"{name} must have one entry a level, 1 … {LEVELS}, each {kind.__name__}, got {value!r:.60}")
    return tuple(value)
