"""Figures of notebook 02: the two ways to count, schedules, a chain and its closed form, the noise reader."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.lessons.boxes import LINE
from course_utils.lessons.plots import as_arrays, done, frame

COLORS = {"linear": "#3a6ea5", "scaled linear": "#d98e04", "cosine": "#b5334f"}


def color_of(name: str, index: int = 0) -> str:
    return COLORS.get(name, f"C{index}")


def _finish(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)


def plot_schedules(schedules: Mapping[str, NoiseSchedule]) -> Figure:
    """β, ᾱ and log SNR over t, one curve a schedule."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
    for i, (name, schedule) in enumerate(schedules.items()):
        t = range(schedule.num_train_timesteps)
        color, bar = color_of(name, i), schedule.alphas_cumprod
        axes[0].semilogy(t, schedule.betas, color=color, label=name)
        axes[1].plot(t, bar, color=color, label=name)
        axes[2].plot(t, schedule.snr(torch.arange(len(bar))).log10(), color=color, label=name)
    axes[1].axhline(0.5, color=LINE, lw=0.8, ls=":")
    axes[2].axhline(0, color=LINE, lw=0.8, ls=":")
    _finish(axes[0], "t", r"$\beta_t$ (logarithmic)", "noise let in at step t")
    _finish(axes[1], "t", r"$\bar\alpha_t$", "share of the variance that is picture")
    _finish(axes[2], "t", r"$\log_{10}$ SNR", "signal to noise, in powers of ten")
    axes[1].legend(fontsize=8)
    return done(figure)


def plot_counts() -> Figure:
    """The chain as boxes with an arrow a step; under each box its names in the papers and in the code."""
    figure, axis = plt.subplots(figsize=(8.6, 2.3))
    papers = ["$x_0$", "$x_1$", "$x_2$", r"$\cdots$", "$x_T$"]
    code = ["t = −1", "t = 0", "t = 1", r"$\cdots$", "t = T − 1"]
    bars = ["1", "alphas_cumprod[0]", "alphas_cumprod[1]", "", "alphas_cumprod[T − 1]"]
    steps = ["betas[0]", "betas[1]", "", ""]
    for i, (name, t, bar) in enumerate(zip(papers, code, bars, strict=True)):
        if t != r"$\cdots$":
            shade = 1 - 0.16 * i
            axis.add_patch(plt.Rectangle((i - 0.22, 0), 0.44, 0.5, fc=(shade, shade, shade), ec=LINE))
        dark = i == 4
        axis.text(i, 0.25, name, ha="center", va="center", fontsize=13, color="white" if dark else "black")
        axis.text(i, -0.22, t, ha="center", fontsize=10, color=COLORS["cosine"])
        axis.text(i, -0.48, bar, ha="center", fontsize=7.5, family="monospace")
    for i, beta in enumerate(steps):
        axis.annotate("", (i + 0.76, 0.25), (i + 0.24, 0.25), arrowprops={"arrowstyle": "-|>", "color": LINE})
        axis.text(i + 0.5, 0.34, beta, ha="center", fontsize=7.5, family="monospace")
    axis.text(0, 0.58, "clean", ha="center", fontsize=8)
    axis.text(4, 0.58, "noise", ha="center", fontsize=8)
    for y, text in ((0.25, "papers"), (-0.22, "code"), (-0.48, r"$\bar\alpha$")):
        axis.text(-0.55, y, text, ha="right", va="baseline" if y < 0 else "center", fontsize=9)
    axis.set(xlim=(-1, 4.6), ylim=(-0.6, 0.75))
    axis.axis("off")
    return done(figure)


def plot_fan(paths: Tensor, schedule: NoiseSchedule, drawn: int = 30) -> Figure:
    """Chains of single numbers [T + 1, N] from two spikes to a bell: some as lines, all as a histogram at the end.

    Red lines began at +1, blue ones at −1; the thick lines are ±√ᾱ, where the chains of each colour are on average.
    """
    figure, (axis, end) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=[5, 1], sharey=True)
    time = torch.arange(len(paths)) - 1  # the clean numbers stand at t = −1
    root = torch.cat([torch.ones(1), schedule.alphas_cumprod]).sqrt()
    for sign, color, name in ((1, COLORS["cosine"], "+1"), (-1, COLORS["linear"], "−1")):
        group = paths[:, paths[0] * sign > 0]
        axis.plot(time, group[:, : drawn // 2], color=color, lw=0.4, alpha=0.5)
        axis.plot(time, sign * root, color=color, lw=2.2, label=f"mean of those from {name}")
    axis.legend(fontsize=7, loc="upper right")
    _finish(axis, "t", "$x_t$", f"{drawn // 2 * 2} of {paths.shape[1]:,} chains that begin at +1 or −1")
    grid = torch.linspace(-4, 4, 201)
    end.hist(paths[-1].numpy(), bins=40, range=(-4, 4), density=True, orientation="horizontal", color="#c9d3dc")
    end.plot(torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi), grid, color="black", lw=1.2)
    end.set_xticks([])
    end.set_ylim(-4, 4)
    _finish(end, "", "", "at the end, and N(0, 1)")
    return done(figure)


def plot_chain_histograms(snapshots: Mapping[int, Tensor], schedule: NoiseSchedule, start: float = 1.0) -> Figure:
    """Histograms of many chains that began at ±start, half each, with the closed form's density over them."""
    figure, axes = plt.subplots(1, len(snapshots), figsize=(9, 2.3), sharey=False)
    grid = torch.linspace(-4, 4, 801)
    for axis, (t, x) in zip(axes, snapshots.items(), strict=True):
        bar = schedule.alphas_cumprod[t].item()
        spread = math.sqrt(1 - bar)
        density = torch.zeros_like(grid)
        for sign in (-1, 1):
            z = (grid - sign * start * math.sqrt(bar)) / spread
            density += 0.5 * torch.exp(-0.5 * z**2) / (spread * math.sqrt(2 * math.pi))
        axis.hist(x.cpu().numpy(), bins=80, range=(-4, 4), density=True, color="#c9d3dc", label="20,000 chains")
        axis.plot(grid, density, color=COLORS["cosine"], lw=1.3, label="closed form")
        _finish(axis, "$x_t$", "", f"t = {t}")
        axis.set_yticks([])
        axis.set_ylim(0, 1.3 * density.max().item())
    axes[0].set_ylabel("density", fontsize=8)
    axes[-1].legend(fontsize=6.5, loc="upper right")
    return done(figure)


def draw_readings(axis: Axes, true: Tensor, read: Tensor, name: str, color: str) -> None:
    """Predicted against true t / T as small dots, with the diagonal."""
    axis.plot([0, 1], [0, 1], color=LINE, lw=0.9)
    axis.scatter(true.cpu(), read.cpu(), s=4, alpha=0.35, color=color, linewidths=0)
    axis.set_xlim(0, 1)
    axis.set_ylim(-0.1, 1.1)
    _finish(axis, "true t / T", "t / T as read", name)


def plot_readings(
    true: Tensor,
    readings: Mapping[str, Tensor],
    yardsticks: Mapping[str, Tensor],
    shown: int = 24,
) -> Figure:
    """Each reader's dots, and a last panel with the mean absolute error over t beside a yardstick.

    Args:
        true: [n] values of t / T. readings, yardsticks: by schedule, [n, N] and [n].
        shown: dots drawn for each value of t.
    """
    panels = len(readings) + 1
    figure, axes = plt.subplots(1, panels, figsize=(9, 3.3), width_ratios=[1] * (panels - 1) + [1.3])
    last = axes[-1]
    for i, (name, read) in enumerate(readings.items()):
        color = color_of(name, i)
        dots = read[:, :shown]
        draw_readings(axes[i], true[:, None].expand_as(dots), dots, f"{name} schedule", color)
        error = (read - true[:, None]).abs().mean(dim=1)
        last.plot(true, error, color=color, lw=1.6, label=f"reader, {name}")
        last.plot(true, yardsticks[name].clamp(max=1), color=color, lw=1, ls="--", label=f"yardstick, {name}")
    last.plot(true, (true - 0.5).abs(), color=LINE, lw=0.8, ls=":", label="always saying one half")
    last.set_xlim(0, 1)
    last.set_ylim(0, 0.3)
    _finish(last, "true t / T", "mean absolute error", "how far off")
    figure.legend(*last.get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=5)
    return done(figure)


def plot_moment(
    pictures: Mapping[str, Tensor], schedules: Mapping[str, NoiseSchedule], name: str, t: int
) -> Figure:
    """Some pictures of one moment side by side, and where on the schedule's log SNR curve that moment lies."""
    figure, axes = plt.subplots(1, len(pictures) + 1, figsize=(8.2, 2.1), width_ratios=[1] * len(pictures) + [1.5])
    for axis, (title, picture) in zip(axes, pictures.items(), strict=False):
        axis.imshow(as_arrays([picture])[0], interpolation="nearest")
        axis.set_title(title, fontsize=8)
        frame(axis)
    for i, (other, schedule) in enumerate(schedules.items()):
        log_snr = schedule.snr(torch.arange(schedule.num_train_timesteps)).log10()
        on = other == name
        axes[-1].plot(log_snr, color=color_of(other, i), lw=1.6 if on else 0.7, alpha=1 if on else 0.5, label=other)
        if on:
            axes[-1].plot([t], [log_snr[t]], "o", color=color_of(other, i), ms=6)
    bar = schedules[name].alphas_cumprod[t].item()
    _finish(axes[-1], "t", r"$\log_{10}$ SNR", f"t = {t}: " + r"$\bar\alpha$" + f" = {bar:.3g}")
    axes[-1].legend(fontsize=6)
    return done(figure)


def neighbour_correlation(difference: Tensor) -> float:
    """How alike a picture-like tensor [B, C, H, W] is to itself shifted by one pixel to the right, from −1 to 1."""
    a, b = difference[..., :-1].flatten(), difference[..., 1:].flatten()
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())
