"""Figures of notebook 03: the chain and its bound, v as a rotation, the score, points flowing back, an animation."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from course_utils.diffusion.forward import add_noise
from course_utils.diffusion.reverse import Denoiser, predict_x0
from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.lessons.boxes import GRAY, INK, MARK, TEAL
from course_utils.lessons.plots import Pictures, as_arrays, done


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
        line[-1].scatter(*track[0].T, s=4, color=MARK, linewidths=0, label="noise")
        line[-1].scatter(*track[-1].T, s=4, color=TEAL, linewidths=0, label="drawn")
        plane(line[-1], limit, "paths of DDIM")
        line[0].set_ylabel(name, fontsize=9)
    axes[0, -1].legend(fontsize=6, loc="lower right", handletextpad=0.1, borderpad=0.2)
    return done(figure)


def plot_bound_chain() -> Figure:
    """The chain with q to the right and p to the left, and the term of the bound that belongs to each arrow."""
    figure, axis = plt.subplots(figsize=(9, 2.6))
    names = ["$x_0$", "$x_1$", "$x_2$", r"$\cdots$", "$x_{T-1}$", "$x_T$"]
    for i, name in enumerate(names):
        if i != 3:
            shade = 1 - 0.13 * i
            axis.add_patch(plt.Circle((i, 0), 0.24, fc=(shade, shade, shade), ec=INK, zorder=2))
        color = "white" if i > 3 else INK
        axis.text(i, 0, name, ha="center", va="center", fontsize=11, color=color, zorder=3)
    terms = ["$L_0$", "$L_1$", "", "", "$L_{T-1}$"]
    for i, term in enumerate(terms):
        forth = {"arrowstyle": "-|>", "color": TEAL, "lw": 1.5, "connectionstyle": "arc3,rad=-0.35"}
        back = {"arrowstyle": "-|>", "color": MARK, "lw": 1.5, "connectionstyle": "arc3,rad=-0.35"}
        axis.annotate("", (i + 0.82, 0.2), (i + 0.18, 0.2), arrowprops=forth)
        axis.annotate("", (i + 0.18, -0.2), (i + 0.82, -0.2), arrowprops=back)
        axis.text(i + 0.5, -0.66, term, ha="center", fontsize=12, color=MARK)
    axis.text(0.5, 0.45, "$q(x_1|x_0)$", ha="center", fontsize=9, color=TEAL)
    axis.text(1.5, 0.45, "$q(x_2|x_1)$", ha="center", fontsize=9, color=TEAL)
    axis.text(4.5, 0.45, "$q(x_T|x_{T-1})$", ha="center", fontsize=9, color=TEAL)
    axis.text(5.38, 0.0, "$L_T$:  is it N(0, 1)?", ha="left", va="center", fontsize=10, color=INK)
    axis.text(0.5, -1.0, "$p(x_0|x_1)$", ha="center", fontsize=9, color=MARK)
    axis.text(1.5, -1.0, "$p(x_1|x_2)$", ha="center", fontsize=9, color=MARK)
    axis.text(4.5, -1.0, "$p(x_{T-1}|x_T)$", ha="center", fontsize=9, color=MARK)
    axis.text(-0.4, 0.45, "q, fixed:", ha="right", va="center", fontsize=9, color=TEAL)
    axis.text(-0.4, -0.63, "term of the bound:", ha="right", va="center", fontsize=9, color=MARK)
    axis.text(-0.4, -0.96, "p, learned:", ha="right", va="center", fontsize=9, color=MARK)
    axis.set(xlim=(-1.9, 7.1), ylim=(-1.15, 0.7))
    axis.set_aspect("equal")
    axis.axis("off")
    return done(figure)


def plot_bound_bars(rows: Mapping[str, Tensor], groups: Sequence[tuple[str, int, int]], truth: float) -> Figure:
    """Terms of the bound, added up in groups, as bars side by side, one colour a row; the sums stand in the legend.

    Args:
        rows: name -> [T + 1] nats: L_0, L_1, …, L_T. groups: name, first and last + 1 of the terms in it.
        truth: −log q(x_0), the sum that no bound can go below on the average.
    """
    figure, axis = plt.subplots(figsize=(9, 3))
    width = 0.8 / len(rows)
    for i, ((name, terms), color) in enumerate(zip(rows.items(), (GRAY, TEAL, MARK, INK), strict=False)):
        heights = [terms[first:last].sum().item() for _, first, last in groups]
        places = [k + (i - (len(rows) - 1) / 2) * width for k in range(len(groups))]
        bars = axis.bar(places, heights, width * 0.92, color=color, label=f"{name}: sum {terms.sum().item():.2f}")
        axis.bar_label(bars, [f"{height:.2f}" for height in heights], fontsize=7, padding=1)
    axis.axhline(0, color=INK, lw=0.8)
    axis.set_xticks(range(len(groups)), [name for name, _, _ in groups], fontsize=8)
    axis.set_ylabel("nats a point", fontsize=8)
    axis.set_title(f"terms of the bound, from the clean end to the noise; the truth is {truth:.2f}", fontsize=9)
    axis.margins(y=0.15)
    axis.legend(fontsize=8)
    return done(figure)


def plot_rotation(degrees: float = 35) -> Figure:
    """x_0 and noise as two axes at right angles; x_t is the first, turned by φ, and v the second."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.9))
    for axis, angle in zip(axes, (8, degrees, 82), strict=True):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        arrows = {"$x_0$": (1, 0, GRAY), r"$\varepsilon$": (0, 1, GRAY), "$x_t$": (c, s, TEAL), "$v$": (-s, c, MARK)}
        turn = torch.linspace(0, math.radians(angle), 40)
        axis.plot(0.45 * turn.cos(), 0.45 * turn.sin(), color=TEAL, lw=1)
        axis.plot(-0.45 * turn.sin(), 0.45 * turn.cos(), color=MARK, lw=1)
        for name, (x, y, color) in arrows.items():
            axis.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.8})
            beside = 0.13 if angle < 45 else -0.13  # ε is written on the side where v or x_t does not come
            near = {"$x_0$": (0.02, -0.15), r"$\varepsilon$": (beside, 0.02)}
            shift = near.get(name, (0.16 * x, 0.16 * y))
            axis.text(x + shift[0], y + shift[1], name, ha="center", va="center", fontsize=12, color=color)
        half = math.radians(angle / 2)
        if angle > 20:
            for x, y, color in ((math.cos(half), math.sin(half), TEAL), (-math.sin(half), math.cos(half), MARK)):
                axis.text(0.58 * x, 0.58 * y, "φ", ha="center", va="center", fontsize=10, color=color)
        axis.set(xlim=(-1.3, 1.35), ylim=(-0.3, 1.3), xticks=[], yticks=[])
        axis.set_aspect("equal")
        axis.set_title(rf"$\bar\alpha$ = cos²φ = {c * c:.2f}   (φ = {angle:g}°)", fontsize=9)
        axis.spines[:].set_visible(False)
    return done(figure)


@torch.no_grad()
def plot_score(
    schedule: NoiseSchedule, denoiser: Denoiser, means: Tensor, std: Tensor, times: Sequence[int], limit: float = 2.6
) -> Figure:
    """Density of the noised mixture as shades, and on a grid the arrows of ∇ log q(x_t) = −ε̂ / √(1 − ᾱ_t).

    Args:
        denoiser: one that predicts noise. means, std: the mixture's components [K, 2], [K], equally likely.
    """
    figure, axes = plt.subplots(1, len(times), figsize=(9, 9 / len(times) + 0.3))
    fine, coarse = torch.linspace(-limit, limit, 120), torch.linspace(-limit * 0.92, limit * 0.92, 15)
    for axis, t in zip(axes, times, strict=True):
        bar = schedule.alphas_cumprod[t].item()
        variance = (bar * std.cpu() ** 2 + 1 - bar)[:, None]
        x, y = torch.meshgrid(fine, fine, indexing="xy")
        place = torch.stack([x.flatten(), y.flatten()], dim=1)
        square = ((place[None] - math.sqrt(bar) * means.cpu()[:, None]) ** 2).sum(2)  # [K, N]
        density = (torch.exp(-square / (2 * variance)) / variance).mean(0).reshape(x.shape)
        axis.imshow(density.sqrt(), extent=(-limit, limit, -limit, limit), origin="lower", cmap="Blues", alpha=0.8)
        x, y = torch.meshgrid(coarse, coarse, indexing="xy")
        place = torch.stack([x.flatten(), y.flatten()], dim=1).to(means)
        said = denoiser(place, torch.full((len(place),), t, device=place.device))
        arrow = (-said / math.sqrt(1 - bar)).cpu()
        length = arrow.norm(dim=1, keepdim=True)
        arrow = arrow / length * length.clamp(max=3).div(3).sqrt()  # the longest are cut, the shortest kept visible
        axis.quiver(*place.cpu().T, *arrow.T, angles="xy", scale_units="xy", scale=3, width=0.005, color=INK)
        plane(axis, limit, f"t = {t},  ᾱ = {bar:.2f}")
    return done(figure)


def animation(frames: Sequence[Pictures], columns: int = 6, milliseconds: int = 150, pixels: int = 64) -> HTML:
    """Grids of pictures as a GIF that plays in the page, over and over; at most 300 kB of it, or ValueError.

    Args:
        frames: each a batch of pictures [B, 3, H, W] in [-1, 1]. pixels: width of one picture on the screen.
    """
    grids = []
    for pictures in frames:
        shown = [Image.fromarray(array) for array in as_arrays(pictures)]
        arrays = [picture.resize((pixels, pixels), Image.Resampling.NEAREST) for picture in shown]
        rows = -(-len(arrays) // columns)
        grid = Image.new("RGB", (columns * (pixels + 4), rows * (pixels + 4)), "white")
        for i, picture in enumerate(arrays):
            grid.paste(picture, (i % columns * (pixels + 4) + 2, i // columns * (pixels + 4) + 2))
        grids.append(grid)
    durations = [milliseconds] * (len(grids) - 1) + [2000]
    for colors in (128, 64, 32, 16, 8):  # as many as the page has room for
        file = io.BytesIO()
        first, *others = (grid.quantize(colors, dither=Image.Dither.NONE) for grid in grids)
        first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
        if len(file.getvalue()) <= 220_000:  # a third more in base64
            break
    else:
        raise ValueError(f"the animation has {len(file.getvalue()):,} bytes, above 220,000: fewer frames or pictures")
    coded = base64.b64encode(file.getvalue()).decode()
    return HTML(f'<img alt="noise turning into pictures, step by step" src="data:image/gif;base64,{coded}">')
