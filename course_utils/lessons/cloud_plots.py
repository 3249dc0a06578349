"""Figures of notebook 01 about latents of two numbers: the clouds of a few pictures, and a walk over the plane."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Circle, Ellipse
from torch import Tensor

from course_utils.lessons.boxes import MARK
from course_utils.lessons.plots import as_arrays, done

CLOUD = "#2a6f97"


def draw_clouds(axis: Axes, pictures: Tensor, mean: Tensor, sigma: Tensor | None, reach: float) -> None:
    """Each picture at its point of the plane, in an ellipse of two σ; dashed, two σ of the prior.

    mean, sigma: [N, 2], sigma None where there are no clouds. reach: the plane is shown from -reach to reach.
    """
    axis.add_patch(Circle((0, 0), 2, fill=False, ls="--", color=MARK, lw=1.2))
    for i, (x, y) in enumerate(mean.tolist()):
        if sigma is not None:
            wide, high = (4 * sigma[i]).tolist()
            axis.add_patch(Ellipse((x, y), wide, high, fc=CLOUD, ec=CLOUD, alpha=0.25))
        axis.plot(x, y, "o", ms=3, color=CLOUD)
        thumb = OffsetImage(as_arrays(pictures[i : i + 1])[0], zoom=1.0, interpolation="nearest")
        axis.add_artist(AnnotationBbox(thumb, (x, y), xybox=(0, 13), boxcoords="offset points", frameon=False, pad=0))
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="first number", ylabel="second number")


def draw_walk(axis: Axes, decode: Callable[[Tensor], Tensor], reach: float, places: int = 13) -> None:
    """What a decoder draws at places × places points of the plane from -reach to reach; dashed, two σ of the prior."""
    ticks = torch.linspace(-reach, reach, places)
    x, y = torch.meshgrid(ticks, ticks.flip(0), indexing="xy")
    tiles = decode(torch.stack([x.flatten(), y.flatten()], dim=1)).clamp(-1, 1)  # [places², 3, h, w]
    h, w = tiles.shape[-2:]
    sheet = tiles.view(places, places, 3, h, w).permute(2, 0, 3, 1, 4).reshape(1, 3, places * h, places * w)
    half = reach * places / (places - 1)  # a tile's middle lies at its point
    axis.imshow(as_arrays(sheet)[0], extent=(-half, half, -half, half), interpolation="nearest")
    axis.add_patch(Circle((0, 0), 2, fill=False, ls="--", color="black", lw=1.8))
    axis.set(xlabel="first number", ylabel="second number")


def show_planes(
    pictures: Tensor,
    clouds: dict[str, tuple[Tensor, Tensor | None]],
    decoders: dict[str, Callable[[Tensor], Tensor]],
    walk: float = 3.0,
    title: str = "",
) -> Figure:
    """A column a model: its clouds in the plane over the walk across the middle of it."""
    figure, axes = plt.subplots(2, len(clouds), figsize=(4.2 * len(clouds), 8.2), squeeze=False)
    for (name, (mean, sigma)), above, below in zip(clouds.items(), axes[0], axes[1], strict=True):
        draw_clouds(above, pictures, mean, sigma, reach=max(3.2, 1.15 * mean.abs().max().item()))
        above.set_title(f"{name}: where the pictures lie", fontsize=10)
        draw_walk(below, decoders[name], walk)
        below.set_title(f"{name}: what is drawn from {-walk:g} to {walk:g}", fontsize=10)
    if title:
        figure.suptitle(title, fontsize=10)
    return done(figure)


def show_pooled(latents: Tensor, channels: int = 4) -> Figure:
    """Histograms of latents [N, C, h, w], a panel a channel, against the density of N(0, 1)."""
    figure, axes = plt.subplots(1, channels, figsize=(8.4, 2.2), sharey=True)
    z = torch.linspace(-4, 4, 200)
    for c, axis in enumerate(axes):
        axis.hist(
            latents[:, c].flatten().cpu().clamp(-4, 4), bins=60, range=(-4, 4), density=True, color=CLOUD, alpha=0.5
        )
        axis.plot(z, torch.exp(-0.5 * z**2) / (2 * torch.pi) ** 0.5, color=MARK, lw=1.5, label="N(0, 1)")
        axis.set_title(f"channel {c}", fontsize=9)
        axis.set_xlabel("latent number")
    axes[0].set_ylabel("density")
    axes[0].legend(fontsize=7)
    return done(figure)


def show_forces() -> Figure:
    """The divergence of N(μ, σ²) from N(0, 1), term by term: over μ, and over σ² with the two terms it is made of."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.8))
    mean, variance = torch.linspace(-3, 3, 200), torch.linspace(0.02, 4, 300)
    left.plot(mean, 0.5 * mean**2, color=CLOUD, lw=2)
    for side in (-1, 1):
        left.annotate("", (side * 1.2, 1.4), (side * 2.2, 3.1), arrowprops={"arrowstyle": "-|>", "color": "black"})
    left.text(0, 3.0, "the mean\nis pulled to 0", ha="center", fontsize=9)
    left.set(xlabel="mean μ (with σ² = 1)", ylabel="KL, in nats", title="½ μ²")
    right.plot(variance, 0.5 * variance, ls="--", color="#e09f3e", label="½ σ²: not too large")
    right.plot(variance, -0.5 * variance.log(), ls=":", lw=2, color=MARK, label="−½ ln σ²: not to 0")
    right.plot(variance, 0.5 * (variance - 1 - variance.log()), color=CLOUD, lw=2, label="both, less ½")
    right.plot(1, 0, "o", color="black", ms=4)
    right.axhline(0, color="black", lw=0.6)
    right.set(ylim=(-0.8, 3.6), xlabel="variance σ² (with μ = 0)", title="½ (σ² − 1 − ln σ²)")
    right.legend(fontsize=8, loc="upper right")
    return done(figure)
