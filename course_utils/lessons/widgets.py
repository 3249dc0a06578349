"""Things to play with: a figure redrawn as sliders move, and one still of it for readers without a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
import torch
from IPython.display import display
from matplotlib.figure import Figure


def explore(draw: Callable[..., Figure], **controls: Any) -> None:
    """Show `draw(**values)` with a control for each argument, and below it the still picture of the first values.

    Args:
        draw: returns a figure; called with gradients off.
        controls: name=widget, or what ipywidgets makes one of: (low, high, step), a list of choices, a text.

    Sliders redraw when they are let go, so that a slow `draw` is not asked too often.
    """
    widgets = {name: _widget(name, value) for name, value in controls.items()}
    out = ipywidgets.Output()

    def redraw(*_: object) -> None:
        with torch.no_grad():
            figure = draw(**{name: widget.value for name, widget in widgets.items()})
        out.clear_output(wait=True)
        with out:
            display(figure)

    for widget in widgets.values():
        widget.observe(redraw, names="value")
    display(ipywidgets.VBox([ipywidgets.HBox(list(widgets.values()), layout={"flex_flow": "row wrap"}), out]))
    with torch.no_grad():
        still = draw(**{name: widget.value for name, widget in widgets.items()})
    display(still)


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
    return widget
