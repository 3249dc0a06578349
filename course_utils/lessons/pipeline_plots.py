"""Figures of notebook 06: the sampling loop as a drawing, solvers against each other, pictures against steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from course_utils.lessons.boxes import DIM, INK, LINE, LIT, MARK, arrow, box
from course_utils.lessons.plots import as_arrays, done, frame

NAMES = {"ddim": "DDIM", "dpmpp_2m": "DPM-Solver++ (2M)", "ddpm": "DDPM"}
COLORS = {"ddim": LINE, "dpmpp_2m": MARK}

# The loop: (text, x, y, width, lit), and arrows between the boxes.
_BOXES = {
    "noise": ("noise $x_T$", 0.0, 0.0, 1.05, False),
    "x": ("$x_t$", 1.65, 0.0, 0.85, True),
    "cond": ("U-Net,\nwith the sentence", 3.3, 0.45, 1.5, True),
    "uncond": ("U-Net,\nwithout", 3.3, -0.45, 1.5, True),
    "guided": ("guidance", 4.95, 0.0, 1.0, True),
    "guess": ("guesses\n$\\hat x_0$ and $\\hat\\varepsilon$", 6.35, 0.0, 1.1, True),
    "step": ("DDIM step\nto $t'$", 7.75, 0.0, 1.05, True),
    "decoder": ("decoder", 9.35, 0.0, 0.95, False),
    "picture": ("picture", 10.6, 0.0, 0.9, False),
}
_LINKS = [
    ("noise", "x"), ("x", "cond"), ("x", "uncond"), ("cond", "guided"), ("uncond", "guided"),
    ("guided", "guess"), ("guess", "step"), ("step", "decoder"), ("decoder", "picture"),
]  # fmt: skip


def loop_drawing() -> Figure:
    """The sampling loop: what is asked at each step (lit), the way back, and what comes before and after."""
    figure, axis = plt.subplots(figsize=(9.4, 2.3))
    for a, b in _LINKS:
        (_, xa, ya, wa, _), (_, xb, yb, wb, _) = _BOXES[a], _BOXES[b]
        arrow(axis, (xa + wa / 2, ya), (xb - wb / 2, yb))
    axis.plot([7.75, 7.75, 1.65], [-0.32, -1.05, -1.05], color=INK, lw=1.4)
    arrow(axis, (1.65, -1.05), (1.65, -0.32), INK, lw=1.4)
    back = "$x_{t'}$ is the next $x_t$, as long as there are times in the list"
    axis.text(4.7, -1.3, back, ha="center", fontsize=8, color=INK)
    axis.text(8.5, 0.48, "at $t' = -1$", ha="center", fontsize=8, color=INK)
    for text, x, y, width, lit in _BOXES.values():
        fill, edge, line = (LIT, INK, 1.4) if lit else (DIM, LINE, 0.8)
        box(axis, text, (x, y), (width, 0.64), fill, edge, line)
    axis.set(xlim=(-0.6, 11.15), ylim=(-1.5, 0.85))
    axis.axis("off")
    return done(figure)


def show_orders(
    errors: Mapping[str, Mapping[int, float]],
    away: Mapping[tuple[str, str], Sequence[float]],
    counts: Sequence[int],
    title: str,
) -> Figure:
    """Left: a sampler's error against its number of steps where the end is known, with lines of slope −1 and −2.
    Right: how far from the end of the curve it stops with a trained network, at `counts` steps.

    errors: sampler -> {steps: error}. away: (sampler, spacing of the times) -> distances, one a count.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 2.9))
    for order, (sampler, by_count) in enumerate(errors.items(), 1):
        few, *_, many = by_count
        left.plot(
            list(by_count), list(by_count.values()), marker="o", ms=4, color=COLORS[sampler], label=NAMES[sampler]
        )
        line = [1.6 * by_count[few], 1.6 * by_count[few] * (few / many) ** order]
        left.plot([few, many], line, ls=":" if order == 1 else "-.", lw=1, color="black", label=f"slope −{order}")
    left.set(xscale="log", yscale="log", xlabel="steps", ylabel="largest error", title="one Gaussian, its curve known")
    left.set_xticks(list(by_count), [str(count) for count in by_count])
    for (sampler, spacing), distances in away.items():
        style = {"marker": "o", "ls": "-"} if spacing == "even in t" else {"marker": "s", "ls": "--"}
        right.plot(counts, distances, ms=4, color=COLORS[sampler], label=f"{NAMES[sampler]}, {spacing}", **style)
    right.set(xscale="log", yscale="log", xlabel="steps", ylabel="distance to the end", title=title)
    right.set_xticks(counts, [str(count) for count in counts])
    for axis in (left, right):
        axis.minorticks_off()
        axis.legend(fontsize=6.5)
        axis.grid(alpha=0.25)
        axis.title.set_fontsize(9)
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    return done(figure)


def show_steps(
    curves: Mapping[str, Sequence[float]], strips: Mapping[str, Tensor], counts: Sequence[int], title: str
) -> Figure:
    """What the judge finds right (%) against the number of steps, and beside it one picture for each number.

    curves: sampler -> shares. strips: sampler -> pictures [len(counts), 3, H, W] in [-1, 1].
    """
    rows = [["plot", *[f"{sampler}{i}" for i in range(len(counts))]] for sampler in curves]
    ratios = [2.6, *[0.75] * len(counts)]
    figure, axes = plt.subplot_mosaic(rows, figsize=(9, 3.0), width_ratios=ratios)
    plot = axes["plot"]
    for (sampler, curve), style in zip(curves.items(), ("o-", "s--", "^:"), strict=False):
        plot.plot(counts, curve, style, ms=4, label=NAMES[sampler])
    plot.set(xscale="log", xlabel="steps", ylabel="object and colour right (%)", ylim=(-3, 103))
    plot.set_xticks(counts, [str(count) for count in counts])
    plot.minorticks_off()
    plot.legend(fontsize=7)
    plot.grid(alpha=0.25)
    for row, (sampler, strip) in enumerate(strips.items()):
        for i, picture in enumerate(as_arrays(strip)):
            axis = axes[f"{sampler}{i}"]
            axis.imshow(picture, interpolation="nearest")
            frame(axis)
            if row == 0:
                axis.set_title(f"{counts[i]} step" + "s" * (counts[i] > 1), fontsize=7)
        axes[f"{sampler}0"].set_ylabel(NAMES[sampler].replace(" (2M)", "").replace("-S", "-\nS"), fontsize=7)
    figure.suptitle(title, fontsize=9)
    return done(figure)


def show_settled(times: Sequence[int], shares: Mapping[str, Sequence[float]], title: str) -> Figure:
    """For each attribute, at which t the guess already shows what the finished picture shows (%)."""
    figure, axis = plt.subplots(figsize=(6.2, 2.7))
    for (name, values), style in zip(shares.items(), ("o-", "s--", "^:", "D-."), strict=False):
        axis.plot(times, values, style, ms=3, lw=1.2, label=name)
    axis.set(
        xlabel="t (drawing goes from left to right)", ylabel="already as in the end (%)", ylim=(0, 103), title=title
    )
    axis.title.set_fontsize(10)
    axis.invert_xaxis()
    axis.legend(fontsize=8)
    axis.grid(alpha=0.25)
    return done(figure)
