"""Figures of notebook 04: attention weights, the space that pictures and captions share, and the matrix of both.

Pictures are blue discs and captions vermilion diamonds wherever the two meet: shape says what colour says.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from course_utils.lessons.boxes import INK, LINE
from course_utils.lessons.plots import Pictures, as_arrays, done, frame

PICTURE, TEXT, NONE = "#0072b2", "#d55e00", "#e3e6e9"  # blue and vermilion of Okabe and Ito, and grey for "nothing"
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a7500")
_HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]


class Frame(NamedTuple):
    """One moment of a contrastive training: the features of some pairs, unit vectors [N, E], and the loss there."""

    step: int
    pictures: Tensor
    texts: Tensor
    loss: float

    @property
    def cosines(self) -> Tensor:
        """[N pictures, N texts]."""
        return (self.pictures @ self.texts.T).detach().float().cpu()


def _matrix(axis: Axes, values: Tensor, low: float):
    """Values from `low` to 1 as colours, a light blue frame around each cell of the diagonal."""
    shown = axis.imshow(values, vmin=low, vmax=1, cmap="magma")
    width = 1.5 if len(values) <= 8 else 0.7
    for i in range(len(values)):
        axis.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, ec="#56b4e9", lw=width))
    return shown


def show_toy(film: Sequence[Frame], factor: float) -> Figure:
    """Pairs of points on a circle at some moments of their training; below, what each picture answers: the softmax of
    its cosines with all captions, times `factor`.
    """
    figure, axes = plt.subplots(
        2, len(film), figsize=(2.2 * len(film), 4.9), height_ratios=[1.15, 1], layout="constrained", squeeze=False
    )
    for (circle, matrix), moment in zip(axes.T, film, strict=True):
        circle.add_patch(plt.Circle((0, 0), 1, fill=False, ec="#c8ced4", lw=0.8))
        for i, (u, v) in enumerate(zip(moment.pictures.tolist(), moment.texts.tolist(), strict=True)):
            circle.plot(*zip(u, v, strict=True), color=LINE, lw=0.8, zorder=1)
            center = {"ha": "center", "va": "center", "fontsize": 8, "path_effects": _HALO}
            circle.text(1.22 * u[0], 1.22 * u[1], str(i + 1), color=PICTURE, **center)
            circle.text(0.78 * v[0], 0.78 * v[1], str(i + 1), color=TEXT, **center)
        circle.plot(*moment.pictures.T, "o", color=PICTURE, ms=8, label="picture")
        circle.plot(*moment.texts.T, "D", color=TEXT, ms=4.5, label="caption")
        circle.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal")
        circle.axis("off")
        circle.set_title(f"step {moment.step}, loss {moment.loss:.2f}", fontsize=9)
        shown = _matrix(matrix, (factor * moment.cosines).softmax(dim=1), 0)
        numbers = range(len(moment.texts))
        matrix.set_xticks(numbers, [i + 1 for i in numbers], fontsize=7, color=TEXT)
        matrix.set_yticks(numbers, [i + 1 for i in numbers], fontsize=7, color=PICTURE)
        matrix.set_xlabel("caption", fontsize=8, color=TEXT)
    axes[1, 0].set_ylabel("picture", fontsize=8, color=PICTURE)
    axes[0, 0].legend(
        fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, 0.03), ncols=2, frameon=False, handletextpad=0.1
    )
    bar = figure.colorbar(shown, ax=axes[1], aspect=14, pad=0.01, shrink=0.8)
    bar.set_label("probability", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return done(figure)


def show_weights(weights: Mapping[str, Tensor], tokens: Sequence[str]) -> Figure:
    """Attention weights [L, L] side by side, each number in its cell; a cell of weight exactly 0 is left grey."""
    figure, axes = plt.subplots(1, len(weights), figsize=(4.5 * len(weights), 4.1), sharey=True, layout="constrained")
    for axis, (name, matrix) in zip(axes, weights.items(), strict=True):
        shown = axis.imshow(matrix.where(matrix > 0, torch.nan), vmin=0, vmax=1, cmap="viridis")
        axis.set_facecolor(NONE)
        for i, row in enumerate(matrix.tolist()):
            for j, weight in enumerate(row):
                color = LINE if weight == 0 else "white" if weight < 0.6 else INK
                number = f"{weight:.2f}" if weight else "0"
                axis.text(j, i, number, ha="center", va="center", fontsize=7.5, color=color)
        axis.set_xticks(range(len(tokens)), tokens, rotation=45, ha="right", fontsize=8)
        axis.set_yticks(range(len(tokens)), tokens, fontsize=8)
        axis.set_title(name, fontsize=9.5)
        axis.set_xlabel("… looks at this one", fontsize=8)
    axes[0].set_ylabel("this token …", fontsize=8)
    figure.colorbar(shown, ax=axes, aspect=24, pad=0.01).set_label("weight", fontsize=8)
    return done(figure)


def show_similarity(similarity: Tensor, pictures: Pictures, captions: Sequence[str], title: str = "") -> Figure:
    """The matrix of cosines [N pictures, N captions]: a row's picture at its left, the caption of that picture at its
    right. Columns are captions, by number; framed are the pairs that belong together.
    """
    n = len(captions)
    figure = plt.figure(figsize=(9.2, 5.6), layout="none")
    matrix = figure.add_axes((0.07, 0.08, 0.52, 0.84))
    shown = _matrix(matrix, similarity.detach().float().cpu(), -0.2)
    matrix.set_xticks(range(n), [f"T{i + 1}" for i in range(n)], fontsize=7, color=TEXT)
    matrix.set_yticks([])
    matrix.set_xlabel("caption", fontsize=8.5, color=TEXT)
    for i, (array, caption) in enumerate(zip(as_arrays(pictures), captions, strict=True)):
        picture = matrix.inset_axes((-1.58, i - 0.48, 0.96, 0.96), transform=matrix.transData)
        picture.imshow(array, interpolation="antialiased")
        frame(picture)
        matrix.text(n - 0.2, i, f"T{i + 1}", fontsize=7.5, color=TEXT, va="center")
        matrix.text(n + 0.8, i, caption, fontsize=7.5, color=INK, va="center")
    matrix.text(-1.75, n / 2 - 0.5, "picture", rotation=90, ha="right", va="center", fontsize=8.5, color=PICTURE)
    bar = figure.colorbar(shown, cax=figure.add_axes((0.72, 0.05, 0.24, 0.018)), orientation="horizontal")
    bar.ax.tick_params(labelsize=7)
    figure.text(0.71, 0.059, "cosine", fontsize=8, ha="right", va="center")
    if title:
        figure.suptitle(title, fontsize=10, y=0.98)
    return done(figure)


def show_filmstrip(film: Sequence[Frame], frames: int = 6) -> Figure:
    """The matrix of cosines at moments of a training, the early ones more often, for that is when most happens."""
    last = len(film) - 1
    picked = sorted({0} | {round(last ** (i / (frames - 2))) for i in range(frames - 1)}) if last > 0 else [0]
    figsize = (1.6 * len(picked) + 0.6, 2.2)
    figure, axes = plt.subplots(1, len(picked), figsize=figsize, layout="constrained", squeeze=False)
    for axis, moment in zip(axes[0], (film[i] for i in picked), strict=True):
        shown = _matrix(axis, moment.cosines, -0.2)
        axis.set(xticks=[], yticks=[])
        when = f"step {moment.step:,}\nloss {moment.loss:.2f}" if moment.step else "before\ntraining"
        axis.set_title(when, fontsize=8.5)
        axis.set_xlabel("captions", fontsize=8, color=TEXT)
    axes[0, 0].set_ylabel("pictures", fontsize=8, color=PICTURE)
    bar = figure.colorbar(shown, ax=axes, aspect=14, pad=0.01)
    bar.set_label("cosine", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return done(figure)


def show_space(
    panels: Mapping[str, tuple[Tensor, Tensor, Sequence[str]]], palette: Mapping[str, tuple[float, ...]] | None = None
) -> Figure:
    """Features seen along the two directions in which the means of their groups differ most, a panel for each name.

    Args:
        panels: features of pictures [N, E], of their captions [N, E], and the group that each pair belongs to.
        palette: red, green and blue of each group in 0 … 1; a group that it lacks gets one of eight colours.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(4.7 * len(panels), 4.3), layout="constrained", squeeze=False)
    for axis, (title, (pictures, texts, groups)) in zip(axes[0], panels.items(), strict=True):
        both = torch.cat([pictures, texts]).float()
        both = both - both.mean(dim=0)
        names = sorted(set(groups))
        means = torch.stack([both[[g == name for g in (*groups, *groups)]].mean(dim=0) for name in names])
        _, _, directions = torch.linalg.svd(means - means.mean(dim=0), full_matrices=False)
        flat = both @ directions[:2].T
        share = flat.square().sum(dim=0) / both.square().sum()
        for i, name in enumerate(names):
            color = (palette or {}).get(name) or _SERIES[i % len(_SERIES)]
            mine = torch.tensor([g == name for g in groups])
            seen, said = flat[: len(pictures)][mine], flat[len(pictures) :][mine]
            axis.plot(*seen.T, "o", ms=6.5, color=color, mec="white", mew=0.5)
            axis.plot(*said.T, "D", ms=4.5, color=color, mec=INK, mew=0.9)
            x, y = torch.cat([seen, said]).mean(dim=0).tolist()
            axis.text(x, y, name, ha="center", va="center", fontsize=9, color=INK, path_effects=_HALO, zorder=5)
        axis.set_facecolor("#dfe5ea")  # so that white points show
        axis.plot([], [], "o", ms=6.5, color=LINE, mec="white", mew=0.5, label="picture")
        axis.plot([], [], "D", ms=4.5, color=LINE, mec=INK, mew=0.9, label="caption")
        axis.legend(fontsize=7.5, loc="best")
        axis.set_title(title, fontsize=9.5)
        axis.set_xlabel(f"direction 1, {share[0]:.0%} of the spread", fontsize=8)
        axis.set_ylabel(f"direction 2, {share[1]:.0%}", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_aspect("equal", adjustable="datalim")
        axis.grid(alpha=0.2)
    return done(figure)


def show_found(
    found: dict[str, Pictures], fits: dict[str, Sequence[bool]] | None = None, title: str = "", size: float = 0.86
) -> Figure:
    """For each text the pictures found for it, best first; each is framed and marked: ✓ fits the text, ✗ does not."""
    rows = {text: as_arrays(pictures) for text, pictures in found.items()}
    columns = max(map(len, rows.values()))
    height = len(rows) * (size + 0.08) + (0.3 if title else 0)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(columns * size + 2.4, height), squeeze=False, layout="constrained"
    )
    for line, (text, pictures) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(textwrap.fill(text, 20), rotation=0, ha="right", va="center", fontsize=9)
        for i, axis in enumerate(line):
            frame(axis, shown=i < len(pictures))
            if i < len(pictures):
                axis.imshow(pictures[i], interpolation="antialiased")
            if fits is not None and i < len(pictures):
                color, mark = (PICTURE, "✓") if fits[text][i] else (TEXT, "✗")
                axis.spines[:].set(color=color, linewidth=2.5)
                around = {"boxstyle": "square,pad=0.15", "fc": color, "ec": "none"}
                corner = {"transform": axis.transAxes, "ha": "right", "va": "top"}
                axis.text(0.97, 0.95, mark, color="white", fontsize=7.5, bbox=around, **corner)
    if title:
        figure.suptitle(title, fontsize=10)
    return done(figure)


def show_close_calls(
    pictures: Pictures,
    captions: Sequence[str],
    rivals: Pictures,
    rival_captions: Sequence[str],
    margins: Sequence[float],
) -> Figure:
    """Above, pictures with their captions; below, the strongest wrong caption and the picture it was written for.

    margins: cosine of the own caption minus that of the rival; below zero the rival wins.
    """
    figsize = (1.55 * len(captions) + 0.9, 4.9)
    figure, axes = plt.subplots(2, len(captions), figsize=figsize, squeeze=False, layout="constrained")
    for line, shown, said in ((axes[0], pictures, captions), (axes[1], rivals, rival_captions)):
        for axis, array, text in zip(line, as_arrays(shown), said, strict=True):
            frame(axis)
            axis.imshow(array, interpolation="nearest")
            lines = textwrap.wrap(text, 20)
            axis.set_xlabel("\n".join([*lines, *[""] * (4 - len(lines))]), fontsize=8)
    for axis, margin in zip(axes[0], margins, strict=True):
        text = f"{margin:+.2f} {'mistaken' if margin < 0 else 'right'}".replace("-", "−")
        axis.set_title(text, fontsize=9, color=TEXT if margin < 0 else INK)
    axes[0, 0].set_ylabel("picture and\nits caption", fontsize=9, color=INK)
    axes[1, 0].set_ylabel("the rival caption\nand its picture", fontsize=9, color=INK)
    return done(figure)
