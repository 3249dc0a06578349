"""Figures that more than one notebook draws: grids of pictures, latents, losses, the map of the system, tables.

Every function returns the matplotlib figure (or the object that Jupyter displays), so a cell that ends in one shows it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML, DisplayHandle, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image
from torch import Tensor, nn

from course_utils.data.batches import to_uint8
from course_utils.lessons.boxes import LINE, MARK
from course_utils.lessons.system_map import system_map as system_map
from course_utils.training.loop import History

Pictures: TypeAlias = Tensor | Sequence[Tensor] | Sequence[Image.Image]


def as_arrays(pictures: Pictures) -> list:
    """Pictures as numpy arrays [H, W, 3] uint8: from float [-1, 1] or uint8 tensors [B, 3, H, W], or PIL pictures."""
    if isinstance(pictures, Tensor) or all(isinstance(p, Tensor) for p in pictures):
        tensor = pictures if isinstance(pictures, Tensor) else torch.stack(list(pictures))
        tensor = tensor if tensor.dtype == torch.uint8 else to_uint8(tensor.detach().float())
        return list(tensor.permute(0, 2, 3, 1).cpu().numpy())
    return [np.asarray(picture) for picture in pictures]


def show_images(
    pictures: Pictures,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    title: str | None = None,
    size: float = 1.1,
    fontsize: float = 7,
) -> Figure:
    """A grid of pictures, row by row, with an optional line of text over each.

    Args:
        pictures: [B, 3, H, W] float in [-1, 1] or uint8, or PIL pictures.
        titles: one a picture; long ones are wrapped. columns: pictures a row. size: inches a picture.
        title: over all of them; wrapped too, taken as plain text, and without what the font cannot draw, such as emoji.
    """
    arrays = as_arrays(pictures)
    columns = max(1, min(columns, len(arrays)))
    rows = -(-len(arrays) // columns)
    wrapped = [_wrap(t, int(size * 15)) for t in titles] if titles else []
    lines = max((t.count("\n") + 1 for t in wrapped), default=0)
    headline = _wrap(_drawable(title or ""), int(columns * size * 11), break_long_words=True)
    height = rows * (size + 0.13 * lines) + (0.3 + 0.17 * headline.count("\n") if headline else 0)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, height), squeeze=False)
    for i, axis in enumerate(axes.flat):
        frame(axis, shown=i < len(arrays))
        if i < len(arrays):
            axis.imshow(arrays[i], interpolation="nearest")
            if wrapped:
                axis.set_title(wrapped[i], fontsize=fontsize, pad=2)
    if headline:
        figure.suptitle(headline, fontsize=10, parse_math=False)
    return done(figure)


def show_rows(
    rows: dict[str, Pictures],
    title: str | None = None,
    size: float = 0.95,
    titles: Sequence[str] | None = None,
    marked: Sequence[str] = (),
) -> Figure:
    """Rows of pictures under one another, each with its name at the left: originals over reconstructions, say.

    titles: one a column, over its first picture; long ones are wrapped. size: inches a picture. marked: names and
    titles in red.
    """
    arrays = {name: as_arrays(pictures) for name, pictures in rows.items()}
    columns = max(len(a) for a in arrays.values())
    wrapped = [_wrap(text, int(size * 13)) for text in titles or ()]
    lines = max((text.count("\n") + 1 for text in wrapped), default=0)
    label = max(len(line) for name in arrays for line in name.split("\n"))
    figsize = (columns * size + max(1, 0.065 * label), len(arrays) * size + 0.13 * lines + (0.3 if title else 0))
    figure, axes = plt.subplots(len(arrays), columns, figsize=figsize, squeeze=False)
    for line, (name, pictures) in zip(axes, arrays.items(), strict=True):
        for i, axis in enumerate(line):
            frame(axis, shown=i < len(pictures))
        color = MARK if name in marked else "black"
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, color=color)
        for axis, picture in zip(line, pictures, strict=False):
            axis.imshow(picture, interpolation="nearest")
    for axis, text, broken in zip(axes[0], titles or (), wrapped, strict=False):
        axis.set_title(broken, fontsize=8, color=MARK if text in marked else "black")
    if title:
        figure.suptitle(title, fontsize=10)
    return done(figure)


def show_pairs(
    above: Pictures, below: Pictures, titles: Sequence[str], columns: int = 16, size: float = 0.62
) -> Figure:
    """Pictures two by two, one over the other, with a line of text over each pair: drawn, say, and what was meant."""
    upper, lower = as_arrays(above), as_arrays(below)
    rows = -(-len(upper) // columns)
    figure = plt.figure(figsize=(columns * size, rows * (2 * size + 0.2)))
    blocks = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    for i, block in enumerate(blocks):
        axes = block.subplots(2, columns, gridspec_kw={"hspace": 0.03, "wspace": 0.03})
        for j in range(columns):
            k = i * columns + j
            for axis, pictures in zip(axes[:, j], (upper, lower), strict=True):
                frame(axis, shown=k < len(upper))
                if k < len(upper):
                    axis.imshow(pictures[k], interpolation="nearest")
            if k < len(upper):
                axes[0, j].set_title(titles[k], fontsize=6, pad=2)
    return done(figure)


def show_latents(pictures: Pictures | None, latents: Tensor, title: str | None = None, size: float = 1.0) -> Figure:
    """Each picture beside the channels of its latent [B, C, h, w], on one colour scale (blue below 0, red above)."""
    latents = latents.detach().float().cpu()
    first = 1 if pictures is not None else 0
    rows, columns = len(latents), latents.shape[1] + first
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size + 0.8, rows * size + 0.4), squeeze=False)
    limit = latents.abs().quantile(0.99).item()
    for i in range(rows):
        if pictures is not None:
            axes[i, 0].imshow(as_arrays(pictures)[i], interpolation="nearest")
        for c in range(latents.shape[1]):
            shown = axes[i, first + c].imshow(latents[i, c], cmap="RdBu_r", vmin=-limit, vmax=limit)
            if i == 0:
                axes[0, first + c].set_title(f"channel {c}", fontsize=8)
    for axis in axes.flat:
        frame(axis)
    figure.colorbar(shown, ax=axes, shrink=0.8, aspect=25).ax.tick_params(labelsize=7)
    if title:
        figure.suptitle(title, fontsize=10)
    return done(figure)


def plot_loss(history: History, title: str = "loss", window: int = 50, log: bool = False) -> Figure:
    """Each step's loss, faint, and its running mean, drawn over the middle of its window."""
    figure, axis = plt.subplots(figsize=(6, 2.4))
    smooth = history.smoothed(window)
    width = len(history.losses) - len(smooth) + 1
    middles = [i + (width - 1) / 2 for i in range(len(smooth))]
    axis.plot(history.losses, color=LINE, alpha=0.35, lw=0.7, label="each step")
    axis.plot(middles, smooth, color=MARK, lw=1.5, label=f"mean of {width} steps")
    axis.legend(fontsize=7)
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.set_title(title, fontsize=10)
    if log:
        axis.set_yscale("log")
    axis.grid(alpha=0.25)
    return done(figure)


def done(figure: Figure) -> Figure:
    """Close a figure for pyplot, so that a cell that returns it shows it once."""
    plt.close(figure)
    return figure


def live_preview(
    draw: Callable[[int, nn.Module, list[float]], Figure],
) -> Callable[[int, nn.Module, list[float]], None]:
    """A preview for `train` that redraws one figure in place: `train(..., preview=live_preview(draw))`.

    `draw(step, model, losses)` returns a figure; it is called with gradients off.
    """
    # The place for it is taken now, above the progress bar, which would otherwise be cut in two by the first figure.
    handle: DisplayHandle | None = display(HTML("<i>The first preview comes in a moment.</i>"), display_id=True)

    def preview(step: int, model: nn.Module, losses: list[float]) -> None:
        with torch.no_grad():
            figure = draw(step, model, losses)
        if handle is not None:  # None outside a notebook
            handle.update(figure)

    return preview


def table(rows: Sequence[Sequence[object]], header: Sequence[str], caption: str = "") -> HTML:
    """A small HTML table; numbers are set to the right."""

    def cell(value: object, tag: str) -> str:
        side = "right" if isinstance(value, int | float) else "left"
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
        return f'<{tag} style="text-align:{side};padding:2px 12px">{text}</{tag}>'

    head = "".join(cell(h, "th") for h in header)
    body = "".join("<tr>" + "".join(cell(v, "td") for v in row) + "</tr>" for row in rows)
    top = f"<caption>{caption}</caption>" if caption else ""
    return HTML(f"<table>{top}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def frame(axis: Axes, shown: bool = True) -> None:
    """A hairline around a picture, so that a white one ends somewhere; nothing where none is shown."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=shown, color="#c8ced4", linewidth=0.5)


def _drawable(text: str) -> str:
    """The text without the characters that the figures' font does not have."""
    font = get_font(findfont(FontProperties()))
    return "".join(c for c in text if c.isspace() or font.get_char_index(ord(c)))


def _wrap(text: str, width: int, break_long_words: bool = False) -> str:
    """Broken at spaces; line breaks and no-break spaces stay what they are."""
    fill = partial(textwrap.fill, width=width, break_long_words=break_long_words, break_on_hyphens=False)
    return "\n".join(map(fill, text.split("\n")))
