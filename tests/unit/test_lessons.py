"""Figures that the notebooks share, and what a notebook says when it is set up."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

import nbclient
import nbformat
import pytest
import torch
from PIL import Image

from course_utils.lessons import setup, widgets
from course_utils.lessons.plots import show_images, show_rows
from course_utils.profiles import PROFILES

ROOT = Path(__file__).resolve().parents[2]


def test_titles_break_at_spaces_only():
    titles = ["butterfly\u00a0*", "one\ntwo", "a long title of words"]
    figure = show_images(torch.zeros(3, 3, 8, 8), titles, columns=3, size=0.72)
    assert [axis.get_title() for axis in figure.axes] == ["butterfly\u00a0*", "one\ntwo", "a long\ntitle of\nwords"]


def test_a_picture_has_an_edge_and_an_empty_place_has_none():
    figure = show_rows({"two": torch.ones(2, 3, 8, 8), "one": torch.ones(1, 3, 8, 8)}, titles=["a dog", "a cat"])
    assert [axis.spines["left"].get_visible() for axis in figure.axes] == [True, True, True, False]
    assert [axis.get_title() for axis in figure.axes] == ["a dog", "a cat", "", ""]


@pytest.mark.parametrize("lacks", [False, True])
def test_a_notebook_says_how_long_it_takes_on_this_processor(lacks, monkeypatch):
    monkeypatch.setattr(setup, "best_precision", lambda device: "float32" if lacks else "bf16")
    minutes = PROFILES["cpu"].minutes["05"] * (setup.WITHOUT_BF16 if lacks else 1)
    said = setup.expected_time(PROFILES["cpu"], "05_unet_cfg", torch.device("cpu"))
    assert f"about {minutes:.0f} minutes" in said and ("without bfloat16" in said) == lacks
    assert "without" not in setup.expected_time(PROFILES["gpu"], "05_unet_cfg", torch.device("cuda"))


TYPED = "a dog 🐶 for $5 or $6 and " + "a long walk to a small red house on the hill " * 3 + "aaaaaaaaaa" * 12


def test_a_typed_title_fits_over_the_pictures_and_is_drawn_without_a_warning():
    figures = [show_images(torch.zeros(4, 3, 8, 8), columns=4, size=1.4, title=title) for title in ("short", TYPED)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in figures:
            figure.canvas.draw()
    short, long = figures
    headline = long.get_suptitle()
    assert "".join(headline.split()) == "".join(TYPED.replace("🐶", "").split())
    assert long.get_window_extent().width >= long._suptitle.get_window_extent().width
    seen = [figure.axes[0].get_window_extent().width for figure in figures]
    assert seen[1] == pytest.approx(seen[0], rel=0.05)  # a higher figure, not smaller pictures
    assert show_images(torch.zeros(1, 3, 8, 8), title="🐶").get_suptitle() == ""


def test_a_text_field_says_that_it_waits_for_enter():
    assert widgets._widget("prompt", "a dog").description == "prompt, then Enter:"
    assert widgets._widget("t", (0, 9)).description == "t"


PLAY = """
import ipywidgets, torch
from course_utils.lessons.plots import show_images
from course_utils.lessons.widgets import explore
count = ipywidgets.IntSlider(value=1, min=1, max=9)
explore(lambda n: show_images(torch.zeros(n, 3, 8, 8), columns=n), n=count)
"""


def test_a_change_redraws_the_figure_in_its_place():
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, (PLAY, "count.value = 4"))])
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    shapes = []
    with client.setup_kernel():
        for i, cell in enumerate(notebook.cells):
            client.execute_cell(cell, i)
            controls, figure = notebook.cells[0].outputs
            assert "application/vnd.jupyter.widget-view+json" in controls.data
            shapes.append(Image.open(io.BytesIO(base64.b64decode(figure.data["image/png"]))).size)
    (before, height), (after, _) = shapes
    assert before < 1.5 * height and after > 3 * height
    assert notebook.cells[1].outputs == []
