"""Figures of notebook 05: waves of time, which timesteps are drawn, guidance on known densities, where words look."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from course_utils.lessons.boxes import GRAY, MARK, ORANGE, TEAL
from course_utils.lessons.plots import Pictures, as_arrays, done, frame


def show_waves(embedding: Tensor, shown: Sequence[int] = (4, 10, 16, 22)) -> Figure:
    """Timestep embeddings [T, dim] as a picture, a few of their cosines as curves, and the dot products e(t) · e(s)."""
    embedding = embedding.cpu()
    T, dim = embedding.shape
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 2.9), width_ratios=(1.1, 1.2, 1.2))
    image = left.imshow(embedding.T.numpy(), aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    left.set(xlabel="timestep t", ylabel="number in the embedding", title="the embedding, a column each t")
    figure.colorbar(image, ax=left, shrink=0.9).ax.tick_params(labelsize=7)
    colors = plt.get_cmap("viridis")(torch.linspace(0.05, 0.85, len(shown)).numpy())
    for offset, (i, color) in enumerate(zip(shown, colors, strict=True)):
        middle.plot(embedding[:, i] - 2.4 * offset, color=color, lw=1)
    middle.set_yticks([-2.4 * k for k in range(len(shown))], [f"cos {i}" for i in shown])
    middle.set(xlabel="timestep t", title="four of the waves")
    for t, color in ((T // 5, TEAL), (T // 2, ORANGE), (4 * T // 5, MARK)):
        right.plot(embedding @ embedding[t], color=color, lw=1.2, label=f"t = {t}")
    right.axhline(dim / 2, color=GRAY, lw=0.8, ls=":")
    right.set(xlabel="timestep s", ylabel="e(t) · e(s)", title="how alike two timesteps are")
    right.set_ylim(top=0.68 * dim)
    right.legend(fontsize=6.5, ncols=3, loc="upper center", columnspacing=0.8, handlelength=1.2)
    return _small(figure, left, middle, right)


def show_timesteps(drawn: Tensor, shown: Sequence[int], noisy: Pictures) -> Figure:
    """A histogram of timesteps 0 … 999, int64 [n], over it a picture at each timestep of `shown`; dashed: all alike."""
    figure, axis = plt.subplots(figsize=(6.2, 3.3))
    axis.hist(drawn.tolist(), bins=50, range=(0, 1000), density=True, color="#9bd1d8", label="logit-normal")
    axis.axhline(1 / 1000, color=MARK, lw=1.2, ls="--", label="all alike")
    for t, picture in zip(shown, as_arrays(noisy), strict=True):
        inset = axis.inset_axes((t / 1000 - 0.075, 1.12, 0.15, 0.36))
        inset.imshow(picture, interpolation="nearest")
        inset.set_title(f"t = {t}", fontsize=7, pad=2)
        frame(inset)
        axis.plot((t, t), (0, 1.1), color=GRAY, lw=0.6, ls=":", clip_on=False, transform=axis.get_xaxis_transform())
    axis.set(xlabel="timestep t", ylabel="how often it is drawn", xlim=(0, 1000), yticks=[])
    axis.legend(fontsize=8, loc="upper left")
    return _small(figure, axis)


def show_guided_densities(
    samples: dict[float, Tensor], grid: Tensor, conditional: Tensor, tilted: dict[float, Tensor]
) -> Figure:
    """A histogram of guided samples for each w, over p(x | c) and p(x | c) p(c | x)^(w−1), both on `grid`."""
    figure, axes = plt.subplots(1, len(samples), figsize=(9, 2.5), sharey=True, squeeze=False)
    for axis, (w, x) in zip(axes[0], samples.items(), strict=True):
        axis.hist(
            x.flatten().tolist(),
            bins=60,
            range=(grid[0].item(), grid[-1].item()),
            density=True,
            color="#ffdf9e",
            label="guided samples",
        )
        axis.plot(grid, conditional, color=TEAL, lw=1.4, label="p(x | c)")
        axis.plot(grid, tilted[w], color=MARK, lw=1.4, ls="--", label="p(x | c) p(c | x)$^{w-1}$")
        axis.set(title=f"w = {w:g}", xlabel="x")
    axes[0, 0].set_ylabel("density")
    axes[0, 0].legend(fontsize=6.5, loc="upper left")
    return _small(figure, *axes[0])


def show_guided_points(samples: dict[float, Tensor], wanted: Tensor, other: Tensor, limit: float = 4.5) -> Figure:
    """Guided samples [n, 2] for each w, over draws of the wanted class and of everything else."""
    figure, axes = plt.subplots(1, len(samples), figsize=(9, 2.55), sharex=True, sharey=True, squeeze=False)
    for axis, (w, x) in zip(axes[0], samples.items(), strict=True):
        axis.scatter(*other.T.tolist(), s=2, color="#cfd6dc", label="other classes", rasterized=True)
        axis.scatter(*wanted.T.tolist(), s=2, color="#9bd1d8", label="the class asked for", rasterized=True)
        axis.scatter(*x.T.tolist(), s=3, color=MARK, alpha=0.5, lw=0, label="guided samples", rasterized=True)
        axis.set(title=f"w = {w:g}", xlabel="x₁", xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes[0, 0].set_ylabel("x₂")
    axes[0, 0].legend(fontsize=6, loc="lower left", markerscale=3, framealpha=0.85)
    return _small(figure, *axes[0])


def show_accuracy(scales: Sequence[float], curves: dict[str, Sequence[float]], pictures: int) -> Figure:
    """Prompt accuracy against guidance, a curve each with the spread that this many pictures leave open (± 1 s.e.)."""
    figure, axis = plt.subplots(figsize=(6.2, 2.9))
    for (name, values), color in zip(curves.items(), (TEAL, MARK, ORANGE, GRAY), strict=False):
        p = torch.tensor(values)
        error = (p * (1 - p) / pictures).sqrt()
        style = {"marker": "o", "ms": 4, "lw": 1.4, "capsize": 2, "color": color}
        axis.errorbar(scales, 100 * p, yerr=100 * error, label=name, **style)
    axis.set_xticks(scales, [f"{w:g}" for w in scales])
    axis.set(xlabel="guidance scale w", ylabel="object and colour both right, %", ylim=(-4, 104))
    axis.legend(fontsize=8, loc="lower right")
    return _small(figure, axis)


def show_word_maps(
    pictures: Pictures, maps: Sequence[Tensor], words: Sequence[Sequence[str]], size: float = 1.05
) -> Figure:
    """Where each word is looked at from: a picture, then for each of its words a heat map over it.

    Args:
        maps: for each picture [words, side, side]; a map's red runs from none at 0 to full at its own largest
            value, which is written under it.
    """
    arrays = as_arrays(pictures)
    columns = 1 + max(len(w) for w in words)
    figsize = (columns * size, len(arrays) * (size + 0.2))
    figure, axes = plt.subplots(len(arrays), columns, figsize=figsize, squeeze=False)
    for line, picture, heat, names in zip(axes, arrays, maps, words, strict=True):
        line[0].imshow(picture)
        for axis, one, name in zip(line[1:], heat.float().cpu(), names, strict=False):
            largest = one.max().item()
            smooth = F.interpolate(one[None, None], size=picture.shape[:2], mode="bicubic")[0, 0]
            axis.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
            strength = (0.9 * smooth / largest).clamp(0, 0.9).numpy()
            axis.imshow(torch.ones_like(smooth).numpy(), cmap=ListedColormap([MARK]), alpha=strength)
            axis.set_title(name, fontsize=8.5)
            axis.set_xlabel(f"up to {largest:.2f}", fontsize=6.5)
    for axis in axes.flat:
        frame(axis, shown=bool(axis.images))
    return done(figure)


def _small(figure: Figure, *axes: plt.Axes) -> Figure:
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.xaxis.label.set_size(8)
        axis.yaxis.label.set_size(8)
        axis.title.set_size(9)
        if not axis.images:
            axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    return done(figure)
