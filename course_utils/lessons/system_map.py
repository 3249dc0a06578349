"""The map of Stable Diffusion that each notebook begins with, today's parts lit."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

LIT, DIM, INK, LINE, PALE = "#ffd166", "#eef1f4", "#22303c", "#7b8a97", "#5b6975"
HALF = 0.31  # half the height of a box

# name -> (text, x, y, width). The U-Net is one network that is asked twice at each step, so it has two boxes.
_PARTS = {
    "picture": ("picture\n3×64×64", 0.0, 3.0, 1.1),
    "encoder": ("VAE\nencoder", 1.6, 3.0, 1.1),
    "latent": ("latent x₀\n4×8×8", 3.2, 3.0, 1.1),
    "forward": ("add noise\n(forward)", 4.8, 3.0, 1.1),
    "noisy": ("noisy x$_t$", 6.4, 3.0, 1.1),
    "prompt": ("“a dog on a\nred background”", 0.12, 1.45, 1.34),
    "nothing": ("“”\n(no words)", 0.12, 0.55, 1.34),
    "clip": ("CLIP\ntext encoder", 1.85, 1.0, 1.15),
    "unet": ("U-Net\n(x$_t$, t, text)", 3.55, 1.45, 1.25),
    "unet again": ("U-Net\n(x$_t$, t, “”)", 3.55, 0.55, 1.25),
    "guidance": ("guidance\nu + w (c − u)", 5.25, 1.0, 1.2),
    "sampler": ("sampler step\nx$_t$ → x$_{t-1}$", 6.85, 1.0, 1.15),
    "drawn": ("latent x₀", 6.85, -0.5, 1.15),
    "decoder": ("VAE\ndecoder", 5.25, -0.5, 1.2),
    "output": ("picture", 3.55, -0.5, 1.25),
}
_LIT_TOGETHER = {"unet": "unet again", "prompt": "nothing"}


def system_map(*lit: str) -> Figure:
    """The map of Stable Diffusion with today's parts lit: names such as "encoder", "unet", "guidance", "sampler".

    Raises:
        ValueError: there is no part of that name.
    """
    names = [name for name in _PARTS if name not in _LIT_TOGETHER.values()]
    unknown = set(lit) - set(names)
    if unknown:
        raise ValueError(f"no part called {sorted(unknown)}: there are {', '.join(names)}")
    on = {*lit, *(_LIT_TOGETHER[name] for name in lit if name in _LIT_TOGETHER)}
    figure, axis = plt.subplots(figsize=(8.8, 4.2))
    for a, b in [("picture", "encoder"), ("encoder", "latent"), ("latent", "forward"), ("forward", "noisy")]:
        _arrow(axis, _right(a), _left(b))
    _arrow(axis, _right("prompt"), _left("clip", 0.12))
    _arrow(axis, _right("nothing"), _left("clip", -0.12))
    _arrow(axis, _right("clip", 0.12), _left("unet"))
    _arrow(axis, _right("clip", -0.12), _left("unet again"))
    _arrow(axis, _right("unet"), _left("guidance", 0.12), text="c", at=(4.48, 1.41))
    _arrow(axis, _right("unet again"), _left("guidance", -0.12), text="u", at=(4.48, 0.56))
    _arrow(axis, _right("guidance"), _left("sampler"))
    _loop(axis)
    x, y, _ = _place("drawn")
    _arrow(axis, (x, 1.0 - HALF), (x, y + HALF), text="after T steps", at=(x + 0.07, 0.36), side="left")
    _arrow(axis, _left("drawn"), _right("decoder"))
    _arrow(axis, _left("decoder"), _right("output"))
    x, y, _ = _place("noisy")
    _arrow(
        axis, (x + 0.55, y), (x + 1.0, y), text="to the U-Net, which\nlearns to undo it", at=(x + 1.05, y), side="left"
    )
    for name, (text, x, y, width) in _PARTS.items():
        _box(axis, text, (x, y), width, name in on)
    axis.text(-0.55, 3.62, "training: the U-Net sees latents that were noised on purpose", **_SAID)
    axis.text(-0.55, 2.18, "drawing: at each step the U-Net is asked twice, with the text and without", **_SAID)
    axis.axhline(2.5, color="#d5dbe0", lw=0.8)
    axis.set(xlim=(-0.62, 8.75), ylim=(-0.9, 3.85))
    axis.axis("off")
    plt.close(figure)
    return figure


_SAID: dict[str, Any] = {"fontsize": 8.5, "color": LINE, "style": "italic", "va": "center"}


def _place(name: str) -> tuple[float, float, float]:
    _, x, y, width = _PARTS[name]
    return x, y, width


def _right(name: str, up: float = 0.0) -> tuple[float, float]:
    x, y, width = _place(name)
    return x + width / 2, y + up


def _left(name: str, up: float = 0.0) -> tuple[float, float]:
    x, y, width = _place(name)
    return x - width / 2, y + up


def _arrow(
    axis: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    at: tuple[float, float] = (0.0, 0.0),
    side: str = "center",
) -> None:
    style: dict[str, Any] = {
        "arrowstyle": "-|>",
        "mutation_scale": 11,
        "color": LINE,
        "lw": 1.2,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axis.add_patch(FancyArrowPatch(start, end, **style))
    if text:
        axis.text(*at, text, ha=side, va="center", fontsize=8, color=PALE)


def _box(axis: Axes, text: str, middle: tuple[float, float], width: float, lit: bool) -> None:
    corner = (middle[0] - width / 2, middle[1] - HALF)
    style: dict[str, Any] = {"fc": LIT, "ec": INK, "lw": 1.6} if lit else {"fc": DIM, "ec": LINE, "lw": 0.8}
    axis.add_patch(FancyBboxPatch(corner, width, 2 * HALF, boxstyle="round,pad=0,rounding_size=0.1", **style))
    axis.text(*middle, text, ha="center", va="center", fontsize=8, color=INK if lit else PALE)


def _loop(axis: Axes) -> None:
    """x_{t−1} goes back from the sampler, over the top, to both calls of the U-Net."""
    (x, y, width), (u, high, wide), (_, low, _) = _place("sampler"), _place("unet"), _place("unet again")
    top, side = 1.98, u + wide / 2 + 0.16
    axis.plot([x, x, u], [y + HALF, top, top], color=LINE, lw=1.2, solid_joinstyle="round")
    _arrow(axis, (u, top), (u, high + HALF))
    _arrow(axis, (u, high - HALF), (u, low + HALF), text="the same x$_t$", at=(u + 0.06, 1.0), side="left")
    axis.text(
        (x + side) / 2,
        top + 0.02,
        "x$_{t-1}$ is the next x$_t$, T times round",
        ha="center",
        va="bottom",
        fontsize=8,
        color=PALE,
    )
    axis.text(x + width / 2 + 0.1, y, "begins with\npure noise x$_T$", ha="left", va="center", fontsize=8, color=PALE)
