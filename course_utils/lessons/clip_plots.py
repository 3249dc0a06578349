"""Figures of notebook 04: a text in coloured pieces, the matrix of similarities, what was found for a caption."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from course_utils.lessons.plots import INK, LINE, MARK, Pictures, as_arrays, done
from course_utils.models.bpe import WORD_END
from course_utils.models.tokenizer import END, START, Tokenizer

_PALETTE = ("#ffd166", "#9fd8cb", "#f4a6a0", "#a9c7f0", "#d9c2f0", "#c8e0a0")
_PER_LINE = 92  # characters and gaps that fit into one line of pieces
_SHORT = {START: "start", END: "end"}


def show_pieces(tokenizer: Tokenizer, text: str, max_length: int | None = None) -> Figure:
    """A text as the pieces it falls into, one colour a word, each piece's id below it; start and end in grey.

    Args:
        max_length: pad to this length, as `encode` does; None shows one end token and no padding.
    """
    pieces = [START, *tokenizer.tokenize(text), END]
    pieces += [END] * ((max_length or 0) - len(pieces))
    x, line, word = 0.0, 0, 0
    boxes = []
    for piece in pieces:
        label = _SHORT.get(piece, piece.removesuffix(WORD_END))
        width = max(len(label), len(str(tokenizer.vocabulary[piece]))) * 1.15 + 1.4
        if x + width > _PER_LINE:
            x, line = 0.0, line + 1
        special = piece in _SHORT
        boxes.append((x, line, width, label, tokenizer.vocabulary[piece], None if special else word))
        ends = special or piece.endswith(WORD_END)
        x += width + (1.2 if ends else 0.15)
        word += ends
    figure, axis = plt.subplots(figsize=(8.6, 0.75 * (line + 1) + 0.1))
    for x, line, width, label, number, group in boxes:
        color = "#e3e6e9" if group is None else _PALETTE[group % len(_PALETTE)]
        shape = FancyBboxPatch((x, -line), width, 0.46, boxstyle="round,pad=0,rounding_size=0.1", fc=color, ec="none")
        axis.add_patch(shape)
        center = {"x": x + width / 2, "ha": "center", "va": "center"}
        axis.text(y=0.22 - line, s=label, fontsize=8.5, color=INK, family="monospace", **center)
        axis.text(y=-0.17 - line, s=str(number), fontsize=6.5, color=LINE, **center)
    axis.set_xlim(-0.5, _PER_LINE + 1)
    axis.set_ylim(-line - 0.32, 0.55)
    axis.axis("off")
    return done(figure)


def show_similarity(similarity: Tensor, pictures: Pictures, captions: Sequence[str], title: str = "") -> Figure:
    """The matrix of cosines [N pictures, N captions], small pictures beside its rows, captions numbered beside it.

    Bright on the diagonal only: each picture is close to its own caption and far from the others.
    """
    arrays, n = as_arrays(pictures), len(captions)
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.0), width_ratios=[1.05, 1])
    matrix, words = axes
    shown = matrix.imshow(similarity.detach().float().cpu(), vmin=-0.2, vmax=1, cmap="magma")
    matrix.set_xticks(range(n), [f"T{i + 1}" for i in range(n)], fontsize=6.5)
    matrix.set_yticks([])
    matrix.set_ylabel("pictures I1 … I" + str(n), fontsize=8, labelpad=22)
    matrix.set_xlabel("captions", fontsize=8)
    for i, array in enumerate(arrays):
        picture = matrix.inset_axes((-1.75, i - 0.47, 0.94, 0.94), transform=matrix.transData)
        picture.imshow(array, interpolation="bilinear")
        picture.axis("off")
    bar = figure.colorbar(shown, ax=matrix, shrink=0.75, aspect=22)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("cosine", fontsize=8)
    for i, caption in enumerate(captions):
        words.text(0, -i, f"T{i + 1}", fontsize=7, color=LINE, va="center")
        words.text(0.07, -i, caption, fontsize=7, color=INK, va="center")
    words.set_xlim(0, 1)
    words.set_ylim(-n + 0.5, 0.5)
    words.axis("off")
    if title:
        figure.suptitle(title, fontsize=10)
    return done(figure)


def show_found(
    found: dict[str, Pictures], fits: dict[str, Sequence[bool]] | None = None, title: str = "", size: float = 0.72
) -> Figure:
    """For each text the pictures found for it, best first; a frame says whether a picture fits (green) or not (red)."""
    rows = {text: as_arrays(pictures) for text, pictures in found.items()}
    columns = max(map(len, rows.values()))
    height = len(rows) * size + (0.3 if title else 0)
    figure, axes = plt.subplots(len(rows), columns, figsize=(columns * size + 3.0, height), squeeze=False)
    for line, (text, pictures) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
        for i, axis in enumerate(line):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(fits is not None and i < len(pictures))
            if i < len(pictures):
                axis.imshow(pictures[i], interpolation="nearest")
            if fits is not None and i < len(pictures):
                axis.spines[:].set(color="#2a9d5c" if fits[text][i] else MARK, linewidth=2)
    if title:
        figure.suptitle(title, fontsize=10)
    return done(figure)
