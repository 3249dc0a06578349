"""Pictures as people have them, in files and in memory, made into squares of 8 bits a channel."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MOST_PIXELS = 64_000_000  # a large photograph; it takes a quarter of a gigabyte, and for a moment three times that
WHITES = {"f": (1, 255, 65535), "u": (65535,), "i": (65535,)}  # what may stand for white, by the kind of number


def square(picture: Any, size: int, white: float | None = None) -> np.ndarray:
    """A picture as uint8 [size, size, 3]: a centred square is cut out and resized; transparency becomes white.

    Args:
        picture: a PIL picture; numpy's [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]; a tensor [C, H, W] with those C.
        white: the number that means white where there are more than 8 bits, see `eight_bits`.

    Raises:
        TypeError: something else. ValueError: another shape, or a range that is not plain.
    """
    if not isinstance(picture, Image.Image):
        picture = _from_array(picture, white)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):  # Pillow would clip them, to white mostly
        picture = Image.fromarray(eight_bits(np.asarray(picture), white))
    clear = picture.convert("RGBA")
    whole = Image.new("RGBA", clear.size, "white")
    whole.alpha_composite(clear)
    return np.array(ImageOps.fit(whole.convert("RGB"), (size, size), Image.Resampling.LANCZOS))


def _from_array(given: Any, white: float | None) -> Image.Image:
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
        given = given.transpose(1, 2, 0) if given.ndim == 3 else given  # [C, H, W] -> [H, W, C]
    if not isinstance(given, np.ndarray):
        raise TypeError(f"a picture is a PIL picture, a numpy array or a tensor, got {type(given).__name__}")
    if given.ndim == 3 and given.shape[2] == 1:
        given = given[:, :, 0]
    if 0 in given.shape or not (given.ndim == 2 or (given.ndim == 3 and given.shape[2] in (3, 4))):
        raise ValueError(
            f"a picture is an array [H, W], [H, W, 3] or [H, W, 4], or a tensor [C, H, W]; got {list(given.shape)}"
        )
    if given.shape[0] * given.shape[1] > MOST_PIXELS:
        raise ValueError(f"{given.shape[1]} × {given.shape[0]} pixels are too many, make it smaller")
    if given.dtype == np.bool_:
        given = given.astype(np.uint8) * 255
    if given.dtype != np.uint8:
        given = eight_bits(given, white)
    return Image.fromarray(np.ascontiguousarray(given))


def eight_bits(numbers: np.ndarray, white: float | None = None) -> np.ndarray:
    """Numbers of more than 8 bits -> uint8 of the same shape, 0 to black and `white` to 255; nothing is cut off.

    Args:
        white: by default 65535 for whole numbers and 1, 255 or 65535 for floats, whichever the range shows plainly:
            the least that is not exceeded, if the highest number is above a quarter of it (above 0 for 1).

    Raises:
        ValueError: the range is not plain, or goes below 0 or above `white`. TypeError: no numbers.
    """
    if numbers.dtype.kind not in WHITES:
        raise TypeError(f"the numbers of a picture are whole or floating point, got {numbers.dtype}")
    low, high = float(numbers.min()), float(numbers.max())
    if not np.isfinite(numbers).all():
        raise ValueError("it holds NaN or infinite numbers: mend the picture")
    if white is None:
        fitting = [w for w in WHITES[numbers.dtype.kind] if 0 <= low <= high <= w]
        if fitting and (high > fitting[0] / 4 or fitting[0] == 1 or high == 0):
            white = fitting[0]
    if white is None or not 0 <= low <= high <= white:
        known = "which number is white is not plain" if white is None else f"white is {white:g}"
        raise ValueError(
            f"its numbers ({numbers.dtype}) run from {low:g} to {high:g}, and {known}: say what white is, such as "
            "white=4095 for 12 bits, or save it again as an 8-bit PNG"
        )
    return np.rint(numbers.astype(np.float64) / white * 255).astype(np.uint8)


def check_white(white: float | None) -> None:
    """ValueError unless it is None or a number above 0."""
    if white is not None and not (isinstance(white, (int, float)) and 0 < white < float("inf")):
        raise ValueError(f"white is the number that means white, above 0, such as 4095 for 12 bits; got {white!r}")


def open_picture(source: Path | IO[bytes]) -> Image.Image:
    """A picture file, read whole. ValueError if it is none of FORMATS, broken or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, before it is read
            # By name, for Pillow would start Ghostscript for an EPS, whatever the file is called.
            opened = Image.open(source, formats=FORMATS)
        with opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise OSError(f"{opened.width} × {opened.height} pixels are too many, make it smaller")
            return ImageOps.exif_transpose(opened)  # reads it, and turns it as the camera was held
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read as a picture ({error}); save it again as PNG or JPEG") from error
