"""Figures that the notebooks share, and what a notebook says when it is set up."""

from __future__ import annotations

import pytest
import torch

from course_utils.lessons import setup
from course_utils.lessons.plots import show_images, show_rows
from course_utils.profiles import PROFILES


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
