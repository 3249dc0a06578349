"""One table of letters, in notebook 02, and no other use of them in notebooks 02 and 03."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
LETTERS = r"$t$ $T$ $x_0$ $x_t$ $\beta_t$ $\bar\alpha_t$ $\varepsilon$ $v$ $q$ $p$ $c$ $w$".split()
STRAY = [r"\ln", " ln ", "c_t", "w_k", r"\,\|\,r", r"c \cdot x", r"c\,x"]  # ln for log, c for a factor, KL(p ‖ r)


def prose(name: str) -> list[str]:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def test_the_table_names_each_letter_once():
    (table,) = [text for text in prose("02_forward_process") if "### The letters of this course" in text]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    for letter in LETTERS:
        assert sum(letter in column for column in first) == 1, letter


@pytest.mark.parametrize("name", ["02_forward_process", "03_reverse_elbo"])
def test_no_letter_means_something_else(name):
    for text in prose(name):
        assert not [stray for stray in STRAY if stray in text], text[:80]


@pytest.mark.parametrize("name", ["02_forward_process", "03_reverse_elbo"])
def test_no_cell_of_prose_is_longer_than_a_page(name):
    assert all(len(text.split()) <= 250 for text in prose(name))
