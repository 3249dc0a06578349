"""Sheets of pictures, uncurated, each over what it should have been; drawn with PIL, for matplotlib may be missing."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from course_utils.pictures import to_pil

TITLE = 12  # pixels for a line of text


def sheet_of_pairs(
    above: Tensor, below: Tensor, titles: Sequence[str], columns: int = 16, scale: int = 2, gap: int = 4
) -> Image.Image:
    """Pictures [N, 3, H, W] in [-1, 1] two by two, one over the other, with a line of text over each pair."""
    side = above.shape[-1] * scale
    rows = -(-len(above) // columns)
    width, height = side + gap, TITLE + 2 * side + 3 * gap
    sheet = Image.new("RGB", (columns * width + gap, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (upper, lower) in enumerate(zip(to_pil(above), to_pil(below), strict=True)):
        row, column = divmod(i, columns)
        left, top = gap + column * width, row * height
        pen.text((left, top), titles[i], fill="black")
        for j, picture in enumerate((upper, lower)):
            enlarged = picture.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left, top + TITLE + j * (side + gap)))
    return sheet
