"""Drawings of notebook 04: a text cut into pieces, and the two towers that a picture and a text go through."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from course_utils.lessons.boxes import DIM, INK, LINE, LIT, Place, arrow, box
from course_utils.lessons.clip_plots import NONE, PICTURE, TEXT
from course_utils.lessons.plots import as_arrays, done
from course_utils.models.bpe import WORD_END
from course_utils.models.clip import CLIPConfig
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
        box(axis, "", (x + width / 2, 0.23 - line), (width, 0.46), color, "none")
        center = {"x": x + width / 2, "ha": "center", "va": "center"}
        axis.text(y=0.22 - line, s=label, fontsize=8.5, color=INK, family="monospace", **center)
        axis.text(y=-0.17 - line, s=str(number), fontsize=6.5, color=LINE, **center)
    axis.set_xlim(-0.5, _PER_LINE + 1)
    axis.set_ylim(-line - 0.32, 0.55)
    axis.axis("off")
    return done(figure)


def show_towers(picture: Tensor, pieces: Sequence[str], config: CLIPConfig) -> Figure:
    """CLIP's two towers: from a picture [3, H, W] and the pieces of its caption to two vectors and their cosine."""
    figure = plt.figure(figsize=(9.6, 3.85), layout="none")
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis("off")

    def part(x: float, y: float, width: float, text: str, color: str, fill: str = DIM) -> None:
        box(axis, text, (x + width / 2, y), (width, 1.7), fill, color, 1.3, rounding=0.15)

    def link(start: Place, end: Place, color: str) -> None:
        arrow(axis, start, end, color, mutation_scale=10, shrinkA=2, shrinkB=2)

    side = config.vision.image_size // config.vision.patch_size
    vision, text = config.vision, config.text
    for y, color, blocks, pooled, name in (
        (5.4, PICTURE, f"{vision.layers} blocks\nall see all", "class\ntoken", "u"),
        (1.9, TEXT, f"{text.layers} blocks\neach sees\nits left", "end\ntoken", "v"),
    ):
        part(7.0, y, 2.2, "+ positions", color)
        part(9.9, y, 2.4, blocks, color, LIT)
        part(13.0, y, 1.6, pooled, color)
        part(15.2, y, 1.5, f"linear,\nlength 1\n{name}", color)
        for x, to in ((6.4, 7.0), (9.2, 9.9), (12.3, 13.0), (14.6, 15.2)):
            link((x, y), (to, y), color)
        link((16.7, y), (17.4, 3.65 + (0.5 if y > 3.65 else -0.5)), color)
    axis.add_patch(plt.Circle((18.1, 3.65), 0.95, fc="white", ec=INK, lw=1.3))
    axis.text(18.1, 3.65, "u · v\ncosine", ha="center", va="center", fontsize=8.5, color=INK)

    whole = as_arrays(picture[None])[0]
    axis.imshow(whole, extent=(0.1, 2.3, 4.3, 6.5), interpolation="antialiased", zorder=2)
    link((2.4, 5.4), (3.4, 5.4), PICTURE)
    step, size = 2.8 / side, whole.shape[0] // side
    for row in range(side):
        for column in range(side):
            x, y = 3.5 + column * step, 6.8 - (row + 1) * step
            patch = whole[row * size : (row + 1) * size, column * size : (column + 1) * size]
            axis.imshow(patch, extent=(x, x + 0.8 * step, y, y + 0.8 * step), interpolation="nearest", zorder=2)
    axis.text(1.2, 4.15, "picture", ha="center", va="top", fontsize=8.5, color=PICTURE)
    axis.text(4.9, 3.85, f"{side * side} patches, a vector each", ha="center", va="top", fontsize=8.5, color=PICTURE)
    line, x = 0, 0.1
    for piece in pieces:
        width = 0.24 * len(piece) + 0.3
        if x + width > 6.4:
            line, x = line + 1, 0.1
        fc = NONE if piece in ("start", "end") else "white"
        axis.add_patch(Rectangle((x, 2.1 - 0.75 * line), width, 0.6, fc=fc, ec=TEXT, lw=0.8))
        axis.text(x + width / 2, 2.4 - 0.75 * line, piece, ha="center", va="center", fontsize=7.5, color=INK)
        x += width + 0.12
    axis.text(3.2, 0.0, "tokens, a vector each", ha="center", fontsize=8.5, color=TEXT)
    axis.text(11.85, 6.65, "picture tower", ha="center", fontsize=9.5, color=PICTURE)
    axis.text(11.85, 0.4, "text tower: this part goes into Stable Diffusion", ha="center", fontsize=9.5, color=TEXT)
    axis.set(xlim=(-0.05, 19.15), ylim=(-0.3, 7.4), aspect="equal")
    return done(figure)
