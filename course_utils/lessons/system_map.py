"""The map of Stable Diffusion that each notebook begins with, today's parts lit."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from course_utils.lessons.boxes import DIM, INK, LINE, LIT, arrow, box

PALE = "#5b6975"
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
        arrow(axis, _right(a), _left(b))
    arrow(axis, _right("prompt"), _left("clip", 0.12))
    arrow(axis, _right("nothing"), _left("clip", -0.12))
    arrow(axis, _right("clip", 0.12), _left("unet"))
    arrow(axis, _right("clip", -0.12), _left("unet again"))
    arrow(axis, _right("unet"), _left("guidance", 0.12))
    _say(axis, "c", 4.48, 1.41, "center")
    arrow(axis, _right("unet again"), _left("guidance", -0.12))
    _say(axis, "u", 4.48, 0.56, "center")
    arrow(axis, _right("guidance"), _left("sampler"))
    _loop(axis)
    x, y, _ = _place("drawn")
    arrow(axis, (x, 1.0 - HALF), (x, y + HALF))
    _say(axis, "after T steps", x + 0.07, 0.36)
    arrow(axis, _left("drawn"), _right("decoder"))
    arrow(axis, _left("decoder"), _right("output"))
    x, y, _ = _place("noisy")
    arrow(axis, (x + 0.55, y), (x + 1.0, y))
    _say(axis, "to the U-Net, which\nlearns to undo it", x + 1.05, y)
    for name, (text, x, y, width) in _PARTS.items():
        fill, edge, line, ink = (LIT, INK, 1.6, INK) if name in on else (DIM, LINE, 0.8, PALE)
        box(axis, text, (x, y), (width, 2 * HALF), fill, edge, line, ink)
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


def _say(axis: Axes, text: str, x: float, y: float, ha: str = "left", va: str = "center") -> None:
    axis.text(x, y, text, ha=ha, va=va, fontsize=8, color=PALE)


def _loop(axis: Axes) -> None:
    """x_{t−1} goes back from the sampler, over the top, to both calls of the U-Net."""
    (x, y, width), (u, high, wide), (_, low, _) = _place("sampler"), _place("unet"), _place("unet again")
    top, side = 1.98, u + wide / 2 + 0.16
    axis.plot([x, x, u], [y + HALF, top, top], color=LINE, lw=1.2, solid_joinstyle="round")
    arrow(axis, (u, top), (u, high + HALF))
    arrow(axis, (u, high - HALF), (u, low + HALF))
    _say(axis, "the same x$_t$", u + 0.06, 1.0)
    _say(axis, "x$_{t-1}$ is the next x$_t$, T times round", (x + side) / 2, top + 0.02, "center", "bottom")
    _say(axis, "begins with\npure noise x$_T$", x + width / 2 + 0.1, y)
