"""A look at a folder of one's own pictures before anything is trained on it: what is there, and what would go wrong."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from course_utils.data.batches import CaptionedImages
from course_utils.data.folders import picture_files, read_folder
from course_utils.data.squares import open_picture
from course_utils.lessons.plots import Figure, show_images
from course_utils.profiles import Profile
from course_utils.training.recipes import train_tokenizer

SIDES = (128, 96, 64)  # docs/scaling.md says what each costs
SHOWN = 96  # pictures on a sheet


@dataclass
class Look:
    """A folder's pictures as training would see them, and what there is to say about them, a line each."""

    data: CaptionedImages
    lines: list[str]

    def sheet(self) -> Figure:
        """The pictures with their captions; of many, SHOWN that are spread over all."""
        picks = np.unique(np.linspace(0, len(self.data) - 1, min(SHOWN, len(self.data))).round().astype(int))
        captions = [shorten(self.data.captions[i], 80, placeholder=" …") or "(no caption)" for i in picks]
        captions = [caption.replace("$", r"\$") for caption in captions]  # to matplotlib it begins a formula
        return show_images(self.data.images[picks], captions, title=self.lines[0])


def look_at(folder: str | Path, profile: Profile, size: int = 64, **reading: Any) -> Look:
    """Read a folder as `CaptionedImages.from_folder` does, with the same options, and say what it holds.

    Raises as `from_folder` does: what cannot be read cannot be looked at.
    """
    folder = Path(folder)
    data = CaptionedImages.from_folder(folder, size, **reading)
    options = {name: value for name, value in reading.items() if name != "white"}
    entries = read_folder(folder, **options)
    files = list(dict.fromkeys(entry.path for entry in entries))
    lines = [f"{len(files):,} pictures and {len(data):,} captions, {len(set(data.captions)):,} of them different"]
    lines += _sizes(files, size)
    lines += _duplicates([entry.path for entry in entries for _ in entry.captions], data)
    lines += _lengths(data, profile)
    left = {path.resolve() for path in picture_files(folder)} - {path.resolve() for path in files}
    if left:
        lines.append(f"in the folder and in no row of its table: {len(left):,} ({_some(sorted(left))})")
    return Look(data, lines)


def _sizes(files: list[Path], size: int) -> list[str]:
    """The pictures' own sides, which of them would be enlarged, and the side that suits most."""
    sides = [open_picture(path).size for path in files]
    short = np.array([min(s) for s in sides])
    small = [path for path, side in zip(files, short, strict=True) if side < size]
    fitting = next((side for side in SIDES if np.median(short) >= side), SIDES[-1])
    lines = [
        f"sides from {min(sides)[0]}×{min(sides)[1]} to {max(sides)[0]}×{max(sides)[1]} pixels, read as {size}×{size}"
    ]
    if small:
        lines.append(f"smaller than {size} pixels, to be enlarged: {len(small):,} ({_some(small)})")
    long = [path for path, (w, h) in zip(files, sides, strict=True) if max(w, h) > 2 * min(w, h)]
    if long:
        lines.append(f"more than twice as long as wide, with the ends cut off: {len(long):,} ({_some(long)})")
    lines.append(f"half of them or more have the pixels for --size {fitting}; 64 is the fastest")
    return lines


def _duplicates(paths: list[Path], data: CaptionedImages) -> list[str]:
    """Files that hold the same picture, and the same picture with the same caption twice."""
    pixels = [picture.numpy().tobytes() for picture in data.images]
    files: dict[bytes, dict[Path, None]] = {}
    for path, key in zip(paths, pixels, strict=True):
        files.setdefault(key, {})[path] = None
    same = [list(group) for group in files.values() if len(group) > 1]
    lines = [f"the same picture: {_some(group)}" for group in same[:5]]
    if len(same) > 5:
        lines.append(f"and {len(same) - 5:,} more pictures that are there under several names")
    twice = sum(n - 1 for n in Counter(zip(pixels, data.captions, strict=True)).values())
    return lines + ([f"{twice:,} times a picture is there again with the same caption"] if twice else [])


def _lengths(data: CaptionedImages, profile: Profile) -> list[str]:
    """The captions' lengths in tokens, and those that the text encoder could not read to the end."""
    tokenizer = train_tokenizer(profile, data)
    tokens = {caption: len(tokenizer.tokenize(caption)) + 2 for caption in dict.fromkeys(data.captions)}
    long = [caption for caption, n in tokens.items() if n > tokenizer.max_length]
    lines = [f"captions of {min(tokens.values())} to {max(tokens.values())} tokens with start and end"]
    if long:
        lines[0] += f"; only {tokenizer.max_length} can be read. Shorten those that are cut off: {len(long):,}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the cutting, which is what is asked for
            lines += [f"  {caption!r} to {tokenizer.decode(tokenizer.encode(caption)[0])!r}" for caption in long[:10]]
    empty = data.captions.count("")
    return lines + ([f"without a caption, and learned so: {empty:,}"] if empty else [])


def _some(paths: list[Path], most: int = 4) -> str:
    return ", ".join(path.name for path in paths[:most]) + (", …" if len(paths) > most else "")
