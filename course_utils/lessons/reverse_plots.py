"""Figures of notebook 03: points flowing back from noise, learned beside exact, and samples against steps."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from course_utils.diffusion.forward import add_noise
from course_utils.diffusion.reverse import Denoiser, predict_x0
from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.lessons.plots import done

TEAL, RED, INK, GRAY = "#00798c", "#d1495b", "#22303c", "#8d99a6"


def plane(axis: Axes, limit: float, title: str = "") -> None:
    """A square piece of the plane without ticks."""
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
    axis.set_aspect("equal")
    axis.set_title(title, fontsize=8, pad=3)


def backdrop(axis: Axes, points: Tensor) -> None:
    """Faint points, to see arrows and paths against."""
    x, y = points.cpu().T
    axis.scatter(x, y, s=2, color="#f2b134", alpha=0.35, linewidths=0)


def show_points(rows: dict[str, dict[str, Tensor]], limit: float = 2.6, size: float = 1.45, title: str = "") -> Figure:
    """A grid of point clouds [N, 2]: row name -> column name -> points."""
    columns = max(len(row) for row in rows.values())
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(columns * size + 0.6, len(rows) * (size + 0.1) + (0.3 if title else 0)),
        squeeze=False,
    )
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name, fontsize=8)
        for axis, (column, points) in zip(line, row.items(), strict=False):
            points = points.detach().cpu()
            axis.scatter(points[:, 0], points[:, 1], s=1.5, color=TEAL, alpha=0.5, linewidths=0)
            plane(axis, limit, column)
    if title:
        figure.suptitle(title, fontsize=10)
    return done(figure)


@torch.no_grad()
def show_flow(
    schedule: NoiseSchedule,
    denoisers: dict[str, Denoiser],
    x_0: Tensor,
    noise: Tensor,
    data: Tensor,
    times: Sequence[int],
    paths: dict[str, Sequence[Tensor]],
    limit: float = 2.6,
) -> Figure:
    """A row a denoiser: arrows from noisy points x_t half the way to √ᾱ_t times the predicted x_0; then paths.

    Args:
        denoisers: name -> a denoiser that predicts noise.
        paths: the same names -> the sampler's points [N, 2], step by step.
        x_0, noise: [N, 2] data and noise, from which the arrows' feet are made.
        data: points [M, 2] drawn faintly behind everything, times √ᾱ_t.
    """
    figure, axes = plt.subplots(len(denoisers), len(times) + 1, figsize=(9, 2.2 * len(denoisers)), squeeze=False)
    for line, (name, denoiser) in zip(axes, denoisers.items(), strict=True):
        for axis, t in zip(line, times, strict=False):
            x_t = add_noise(schedule, x_0, t, noise)
            t_batch = torch.full((len(x_t),), t, device=x_t.device)
            goal = schedule.alpha_bar(t, like=x_t).sqrt() * predict_x0(schedule, x_t, t, denoiser(x_t, t_batch))
            backdrop(axis, schedule.alpha_bar(t, like=data).sqrt() * data)
            feet, arrows = x_t.cpu(), (goal - x_t).cpu()
            axis.quiver(
                *feet.T,
                *arrows.T,
                angles="xy",
                scale_units="xy",
                scale=2,
                width=0.004,
                headwidth=5,
                color=INK,
                alpha=0.75,
            )
            plane(axis, limit, f"t = {t}")
        backdrop(line[-1], data)
        track = torch.stack([points.detach().cpu() for points in paths[name]])  # [steps, N, 2]
        for i in range(track.shape[1]):
            line[-1].plot(track[:, i, 0], track[:, i, 1], color=GRAY, lw=0.5, alpha=0.6)
        line[-1].scatter(*track[0].T, s=4, color=RED, linewidths=0, label="noise")
        line[-1].scatter(*track[-1].T, s=4, color=TEAL, linewidths=0, label="drawn")
        plane(line[-1], limit, "paths of DDIM")
        line[0].set_ylabel(name, fontsize=9)
    axes[0, -1].legend(fontsize=6, loc="lower right", handletextpad=0.1, borderpad=0.2)
    return done(figure)
