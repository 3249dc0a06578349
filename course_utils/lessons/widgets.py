"""Things to play with: a figure redrawn in its place as sliders move, which is a plain picture in a saved notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
import torch
from IPython.display import DisplayHandle, display
from matplotlib.figure import Figure


def explore(draw: Callable[..., Figure], **controls: Any) -> None:
    """Show `draw(**values)` with a control for each argument, and redraw it in its place when one is changed.

    Args:
        draw: returns a figure; called with gradients off.
        controls: name=widget, or what ipywidgets makes one of: (low, high, step), a list of choices, a text.

    Sliders redraw when they are let go, and a text when it is sent off with Enter, so that a slow `draw` is not asked
    too often. The figure is an output of the cell like any other: a saved notebook keeps it, without a kernel, too.

    Raises TypeError for a control that no widget can be made of.
    """
    widgets = {name: _widget(name, value) for name, value in controls.items()}

    @torch.no_grad()
    def figure() -> Figure:
        return draw(**{name: widget.value for name, widget in widgets.items()})

    display(ipywidgets.HBox(list(widgets.values()), layout={"flex_flow": "row wrap"}))
    handle: DisplayHandle | None = display(figure(), display_id=True)
    for widget in widgets.values():
        if handle is not None:  # None outside a notebook
            widget.observe(lambda _: handle.update(figure()), names="value")


def _widget(name: str, value: Any) -> ipywidgets.ValueWidget:
    if isinstance(value, ipywidgets.ValueWidget):
        widget = value
    elif isinstance(value, tuple) and all(isinstance(v, int) for v in value):
        low, high, step = (*value, 1)[:3]
        widget = ipywidgets.IntSlider(value=low, min=low, max=high, step=step)
    elif isinstance(value, tuple):
        low, high, step = (*value, (value[1] - value[0]) / 50)[:3]
        widget = ipywidgets.FloatSlider(value=low, min=low, max=high, step=step)
    elif isinstance(value, list):
        widget = ipywidgets.Dropdown(options=value)
    elif isinstance(value, str):
        widget = ipywidgets.Text(value=value)
    else:
        raise TypeError(f"{name}: give a widget, (low, high, step), a list of choices or a text, got {value!r}")
    if hasattr(widget, "continuous_update"):
        widget.continuous_update = False
    widget.description = widget.description or name
    if isinstance(widget, ipywidgets.Text):
        widget.description += ", then Enter:"
        widget.style.description_width = "initial"  # as wide as these words are
    return widget
