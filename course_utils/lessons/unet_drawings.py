"""Drawings of notebook 05: the U-Net with skips, time and words; guidance as arrows; pixels × words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from course_utils.lessons.boxes import DIM, GRAY, INK, LINE, LIT, MARK, ORANGE, TEAL, Place, arrow, box
from course_utils.lessons.plots import Pictures, as_arrays, done, frame
from course_utils.models.unet import UNetConfig

LEFT, RIGHT, HIGH, WIDE = 0.0, 6.0, 0.62, 2.3


def draw_unet(config: UNetConfig, side: int = 8) -> Figure:
    """A U-Net for latents of this side, a box for each map: channels × height × width, skips, time and words."""
    down, up = _way_down(config, side), _way_up(config, side)
    rows = len(down)
    figure, axis = plt.subplots(figsize=(8.6, 0.72 * rows + 1.9))
    for i, (name, shape, timed, words) in enumerate(down):
        _map(axis, LEFT, -i, f"{name}\n{shape}", timed, words)
        if i:
            _line(axis, (LEFT, -i + 1 - HIGH / 2), (LEFT, -i + HIGH / 2))
    for i, (name, shape, timed, words, doubled) in enumerate(up):
        y = -(rows - 1 - i)
        _map(axis, RIGHT, y, f"{name}\n{shape}", timed, words)
        _, _, timed_left, words_left = down[-1 - i]
        start = LEFT + WIDE / 2 + 0.29 * timed_left + 0.27 * words_left
        _line(axis, (start, y), (RIGHT - WIDE / 2, y), TEAL, "--")
        axis.text(
            (LEFT + RIGHT) / 2 + 0.2, y + 0.06, f"skip, {down[-1 - i][1].split('×')[0]} channels", color=TEAL, **_SMALL
        )
        if i:
            _line(axis, (RIGHT, y - 1 + HIGH / 2), (RIGHT, y - HIGH / 2))
        if doubled:
            axis.text(RIGHT + 0.1, y - 0.5, "side doubled", ha="left", va="center", fontsize=7, color=INK)
    bottom = -rows - 0.15
    _map(axis, (LEFT + RIGHT) / 2, bottom, f"middle: block, words, block\n{down[-1][1]}", True, True, 2.6)
    _line(axis, (LEFT, -rows + 1 - HIGH / 2), ((LEFT + RIGHT) / 2 - 1.3, bottom))
    _line(axis, ((LEFT + RIGHT) / 2 + 1.3 + 0.56, bottom), (RIGHT, -rows + 1 - HIGH / 2))
    c = config.latent_channels
    axis.text(LEFT, 0.85, f"x$_t$, {c}×{side}×{side}", ha="center", fontsize=8.5, color=INK)
    axis.text(RIGHT, 0.85, f"norm, SiLU, conv_out: prediction, {c}×{side}×{side}", ha="center", fontsize=8.5, color=INK)
    _line(axis, (LEFT, 0.78), (LEFT, HIGH / 2))
    _line(axis, (RIGHT, HIGH / 2), (RIGHT, 0.78))
    axis.plot([], [], "o", ms=8, color=ORANGE, label="t: the time is added to every pixel")
    axis.plot([], [], "o", ms=8, color=MARK, label="w: pixels look at one another, then at the words")
    axis.plot([], [], color=TEAL, ls="--", label="skip: put aside, then joined channel by channel")
    axis.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3, frameon=False)
    axis.set(xlim=(-1.6, 8.0), ylim=(bottom - 0.6, 1.2))
    axis.axis("off")
    return done(figure)


_SMALL: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 7}


def _way_down(config: UNetConfig, side: int) -> list[tuple[str, str, bool, bool]]:
    """What is put aside, in order: (name, shape, whether t comes in, whether the words do)."""
    maps = [("conv_in", f"{config.channels[0]}×{side}×{side}", False, False)]
    for i, (width, attends) in enumerate(zip(config.channels, config.attention, strict=True)):
        maps += [("layer", f"{width}×{side}×{side}", True, attends)] * config.layers_per_block
        if i < len(config.channels) - 1:
            side //= 2
            maps.append(("side halved", f"{width}×{side}×{side}", False, False))
    return maps


def _way_up(config: UNetConfig, side: int) -> list[tuple[str, str, bool, bool, bool]]:
    """The layers of the way up, from the bottom; the last entry says whether the side was doubled before it."""
    layers = []
    for i in reversed(range(len(config.channels))):
        here = side >> i
        for j in range(config.layers_per_block + 1):
            first = j == 0 and i < len(config.channels) - 1
            layers.append(("layer", f"{config.channels[i]}×{here}×{here}", True, config.attention[i], first))
    return layers


def _map(axis: Axes, x: float, y: float, text: str, timed: bool, words: bool, width: float = WIDE) -> None:
    box(axis, text, (x, y), (width, HIGH), LIT if words else DIM, fontsize=7.5)
    for k, (on, letter, color) in enumerate(((timed, "t", ORANGE), (words, "w", MARK))):
        if on:
            place = (x + width / 2 + 0.16 + 0.27 * k, y)
            axis.plot(*place, "o", ms=10, color=color, zorder=3)
            axis.text(*place, letter, ha="center", va="center", fontsize=7, color="white", weight="bold", zorder=4)


def _line(axis: Axes, start: Place, end: Place, color: str = LINE, style: str = "-") -> None:
    arrow(axis, start, end, color, ls=style, mutation_scale=9, lw=1.1, zorder=1)


def show_guidance_arrows(
    clouds: dict[str, Tensor], x_t: Tensor, uncond: Tensor, cond: Tensor, scales: Sequence[float] = (1, 2, 3)
) -> Figure:
    """One noisy point [2] of the plane, the x_0 that is guessed without and with the condition, and guided guesses."""
    figure, axis = plt.subplots(figsize=(5.6, 4.4))
    for (name, points), color in zip(clouds.items(), ("#cfd6dc", "#9bd1d8"), strict=False):
        axis.scatter(*points.T.tolist(), s=4, color=color, label=name, rasterized=True)
    axis.plot(*x_t.tolist(), "D", ms=7, color=INK, label="x$_t$, scaled back by √ᾱ")
    furthest = uncond + max(scales) * (cond - uncond)
    for end, color in ((uncond, GRAY), (furthest, MARK)):
        start = x_t if end is uncond else uncond
        arrow(axis, start.tolist(), end.tolist(), color, mutation_scale=13, lw=1.6)
    axis.plot(*uncond.tolist(), "s", ms=8, color=GRAY, mec=INK, label="without the condition (w = 0)")
    for w in scales:
        place = uncond + w * (cond - uncond)
        color = TEAL if w == 1 else MARK
        axis.plot(*place.tolist(), "o", ms=8, color=color, mec=INK, label="with it (w = 1)" if w == 1 else None)
        axis.annotate(f"w = {w:g}", place.tolist(), (10, -4), textcoords="offset points", fontsize=8.5, color=INK)
    axis.set(xlabel="x₁", ylabel="x₂", aspect="equal", title="guesses of x₀: guidance goes on along the same line")
    axis.title.set_size(9.5)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=7, loc="upper left", framealpha=0.9)
    axis.grid(alpha=0.2)
    axis.spines[["top", "right"]].set_visible(False)
    return done(figure)


def show_attention(
    pictures: Pictures, maps: Sequence[Tensor], words: Sequence[Sequence[str]], title: str = ""
) -> Figure:
    """Attention weights as matrices, pixels × words: a row each pixel, a column each word, one scale for all.

    maps: for each picture [words, side, side], each word's map.
    """
    arrays, side = as_arrays(pictures), maps[0].shape[-1]
    figure = plt.figure(figsize=(8.8, 4.9))
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2.6))
    above, below = top.subplots(1, len(arrays)), bottom.subplots(1, len(arrays))
    largest = max(one.max().item() for one in maps)
    for axis, matrix, picture, heat, names in zip(above, below, arrays, maps, words, strict=True):
        axis.imshow(picture, interpolation="nearest")
        for k in range(1, side):
            at = k * picture.shape[0] / side - 0.5
            axis.axhline(at, color="white", lw=0.6, alpha=0.6)
            axis.axvline(at, color="white", lw=0.6, alpha=0.6)
        frame(axis)
        rows = heat.float().cpu().flatten(1).T  # [side · side, words]
        image = matrix.imshow(rows, aspect="auto", cmap="viridis", vmin=0, vmax=largest, interpolation="nearest")
        matrix.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7.5)
        matrix.set_yticks([side * k for k in range(side)], [f"row {k + 1}" for k in range(side)], fontsize=7)
        matrix.hlines([side * k - 0.5 for k in range(1, side)], -0.5, len(names) - 0.5, color="white", lw=0.7)
    below[0].set_ylabel(f"the {side}×{side} cells, row by row", fontsize=8)
    bar = bottom.colorbar(image, ax=list(below), shrink=0.9, aspect=25, label="share of a cell's attention")
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.label.set_size(8)
    if title:
        figure.suptitle(title, fontsize=10)
    return done(figure)
