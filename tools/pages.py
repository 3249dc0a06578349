"""Pages with a part that a tool writes: the lines between `<!-- name -->` and `<!-- /name -->`, and its pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def marks(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def fill(page: Path, name: str, text: str) -> None:
    """Put text between the two marks of that name, in place of what is there.

    Raises:
        ValueError: a mark is not on the page exactly once, or they stand the wrong way round.
    """
    start, end = marks(name)
    whole = page.read_text(encoding="utf-8")
    if whole.count(start) != 1 or whole.count(end) != 1 or whole.index(start) > whole.index(end):
        raise ValueError(f"{page.name} needs the lines {start} and {end} once each, in this order, around that part")
    before, _, rest = whole.partition(start)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{start}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def publish_picture(source: Path, target: Path) -> None:
    """Copy a PNG with 256 colours: a third of the bytes, the same to the eye."""
    with Image.open(source) as picture:
        picture.convert("RGB").quantize(256).save(target, optimize=True)
