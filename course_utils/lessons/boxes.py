"""The colours of the course's figures, and the boxes and arrows that its drawings are made of."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

LIT, DIM, INK, LINE, MARK = "#ffd166", "#eef1f4", "#22303c", "#7b8a97", "#d1495b"
TEAL, ORANGE, GRAY = "#00798c", "#e08e0b", "#8d99a6"

Place = tuple[float, float]


def box(
    axis: Axes,
    text: str,
    middle: Place,
    size: Place,
    fill: str,
    edge: str = INK,
    width: float = 0.9,
    ink: str = INK,
    fontsize: float = 8,
    rounding: float = 0.1,
) -> None:
    """A box with round corners and a text in its middle; `size` is how wide and how high, in the axes' own units."""
    (x, y), (wide, high) = middle, size
    shape = f"round,pad=0,rounding_size={rounding}"
    corner = (x - wide / 2, y - high / 2)
    axis.add_patch(FancyBboxPatch(corner, wide, high, boxstyle=shape, fc=fill, ec=edge, lw=width))
    axis.text(x, y, text, ha="center", va="center", fontsize=fontsize, color=ink)


def arrow(axis: Axes, start: Place, end: Place, color: str = LINE, **style: Any) -> None:
    """An arrow that touches both ends; `style` is what FancyArrowPatch takes besides."""
    usual: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 11, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axis.add_patch(FancyArrowPatch(start, end, color=color, **usual | style))
