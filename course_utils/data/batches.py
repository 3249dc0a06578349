"""Captioned pictures in memory: one interface, whichever picture set stands behind it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from course_utils.data.captions import with_article
from course_utils.data.scenes import ATTRIBUTES, OBJECTS, caption, draw, random_scene


def to_float(pictures: Tensor) -> Tensor:
    """uint8 in 0 ... 255 -> float32 in [-1, 1], same shape."""
    if pictures.dtype != torch.uint8:
        raise TypeError(f"to_float wants uint8 pictures, got {pictures.dtype}")
    return pictures.to(torch.float32) / 127.5 - 1


def to_uint8(pictures: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8 in 0 ... 255, same shape; what lies outside [-1, 1] is cut off."""
    if not pictures.is_floating_point():
        raise TypeError(f"to_uint8 wants float pictures in [-1, 1], got {pictures.dtype}")
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MOST_PIXELS = 64_000_000  # a large photograph; it takes a quarter of a gigabyte, and for a moment three times that

_FASHION = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


class CaptionedImages(Dataset):
    """Pictures with captions and attributes.

    images: uint8 [N, 3, H, W].  captions: N strings.
    attributes: int64 [N, 4], indices of (object, color, size, place), -1 where unknown; None: all unknown.
    `dataset[i]` is (picture float32 [3, H, W] in [-1, 1], caption, attributes [4]).
    """

    def __init__(self, images: Tensor, captions: Sequence[str], attributes: Tensor | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}")
        if attributes is None:
            attributes = torch.full((len(images), len(ATTRIBUTES)), -1, dtype=torch.int64)
        if len(captions) != len(images) or tuple(attributes.shape) != (len(images), len(ATTRIBUTES)):
            raise ValueError(
                f"{len(images)} images need as many captions (got {len(captions)}) and attributes "
                f"[{len(images)}, {len(ATTRIBUTES)}] (got {list(attributes.shape)})"
            )
        self.images, self.captions, self.attributes = images, list(captions), attributes.to(torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, str, Tensor]:
        return to_float(self.images[index]), self.captions[index], self.attributes[index]

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, list[str], Tensor]:
        """Some pictures at once: (images float32 [B, 3, H, W] in [-1, 1], B captions, attributes [B, 4])."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        return to_float(self.images[indices]), [self.captions[i] for i in indices], self.attributes[indices]

    @classmethod
    def scenes(
        cls, n: int, seed: int = 0, split: str = "train", size: int = 64, objects: int = len(OBJECTS)
    ) -> CaptionedImages:
        """n random scenes, drawn now. The same seed, split and objects give the same scenes, whatever n and size.

        size: side of a picture in pixels.  objects: how many there are to choose from, see `random_scene`.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        check_side(size)
        generator = torch.Generator().manual_seed(seed)
        images, captions, attributes = torch.empty(n, 3, size, size, dtype=torch.uint8), [], []
        for i in range(n):
            scene = random_scene(generator, split, objects)
            images[i] = torch.from_numpy(draw(scene, size)).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]
            captions.append(caption(scene, generator))
            attributes.append(scene.attributes)
        return cls(images, captions, torch.tensor(attributes))

    @classmethod
    def from_folder(cls, path: str | Path, size: int = 64) -> CaptionedImages:
        """Your own pictures: a folder with a metadata.jsonl, a row {"file_name": ..., "text": ...} a picture.

        Each picture is cut to a centred square and resized to [3, size, size]; transparency becomes white.
        All attributes are unknown. Raises FileNotFoundError or ValueError that names the row or file to mend.
        """
        check_side(size)
        folder = Path(path)
        pictures, captions = [], []
        for where, file_name, text in _read_metadata(folder / "metadata.jsonl"):
            pictures.append(_read_picture(folder, file_name, size, where))
            captions.append(text)
        return cls(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(), captions)

    @classmethod
    def fashion_mnist(
        cls, root: str | Path, size: int = 64, *, train: bool = True, download: bool = False
    ) -> CaptionedImages:
        """torchvision's Fashion-MNIST (Xiao et al. 2017) in three equal channels; captions like "a sneaker".

        Nothing is fetched unless download=True. Raises FileNotFoundError where the files are missing, and
        RuntimeError where the download fails.
        """
        from torchvision.datasets import FashionMNIST  # slow to import, and most never need it

        check_side(size)
        try:
            source = FashionMNIST(str(root), train=train, download=download)
        except Exception as error:  # torchvision raises several kinds
            if download:
                raise RuntimeError(f"Fashion-MNIST could not be fetched ({error}); are you online?") from error
            raise FileNotFoundError(
                f"no Fashion-MNIST in {root}; call again with download=True (30 MB, online)"
            ) from error
        captions = [with_article(_FASHION[label]) for label in source.targets.tolist()]
        gray = torch.cat([_resize(chunk, size) for chunk in source.data.split(2000)])  # [N, 1, size, size]
        return cls(gray.expand(-1, 3, -1, -1), captions)


def data_fingerprint(data: CaptionedImages) -> str:
    """The sha256 of pictures, captions and attributes."""
    digest = hashlib.sha256(data.images.contiguous().numpy())
    digest.update("\n".join(data.captions).encode())
    digest.update(data.attributes.contiguous().numpy())
    return digest.hexdigest()


def check_side(size: int) -> None:
    """ValueError unless it is a side that a picture can have."""
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 4096:
        raise ValueError(f"size is the side of a picture in pixels, 1 … 4096, got {size!r}")


def _resize(gray: Tensor, size: int) -> Tensor:
    """uint8 [B, h, w] -> uint8 [B, 1, size, size]."""
    large = F.interpolate(gray[:, None].float(), size=(size, size), mode="bilinear", antialias=True)
    return large.round().clamp(0, 255).to(torch.uint8)


def _read_metadata(path: Path) -> list[tuple[str, str, str]]:
    """(where, file name, text) of each row of a metadata.jsonl."""
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} is missing; write one row {{"file_name": "a.png", "text": "a cat"}} a picture into it'
        )
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # some editors put a mark before the first line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}); save it again in that encoding") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # no JSON, or a number of thousands of digits, or a deep nest
            reason = getattr(error, "msg", error)
            raise ValueError(f"{where} is not JSON ({reason}); a line is one object in braces") from error
        for key in ("file_name", "text"):
            if not (isinstance(row, dict) and isinstance(row.get(key), str) and row[key].strip()):
                raise ValueError(f'{where} has no "{key}"; a row is {{"file_name": "a.png", "text": "a cat"}}')
            if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in row[key]):
                raise ValueError(f'{where}: "{key}" holds a character that is no text: {row[key]!r:.60}')
        rows.append((where, row["file_name"], row["text"]))
    if not rows:
        raise ValueError(f"{path} has no rows; write one for each picture")
    return rows


def _read_picture(folder: Path, file_name: str, size: int, where: str) -> np.ndarray:
    """One picture of the folder as uint8 [size, size, 3]."""
    path = folder / file_name
    try:
        inside, there = path.resolve().is_relative_to(folder.resolve()), path.is_file()
    except (OSError, ValueError) as error:  # too long a name, a loop of links
        raise ValueError(f"{where} names {file_name!r:.60}, which cannot be a file here ({error})") from error
    if not inside:
        raise ValueError(f"{where}: {file_name!r} lies outside the folder; copy it into {folder}")
    if not there:
        raise FileNotFoundError(f"{where} names {path}, which is missing; add it or take out the row")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, before it is read
            # By name, for Pillow would start Ghostscript for an EPS, whatever the file is called.
            opened = Image.open(path, formats=FORMATS)
        with opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise OSError(f"{opened.width} × {opened.height} pixels are too many, make it smaller")
            deep = opened.mode == "F" or opened.mode.startswith("I")  # converted, they would become white or black
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{where}: {path} cannot be read as a picture ({error}); save it again as PNG or JPEG, or take out its row"
        ) from error
    if deep:
        raise ValueError(f"{path} has more than 8 bits a channel; save it again as an 8-bit PNG")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return np.asarray(ImageOps.fit(white.convert("RGB"), (size, size), Image.Resampling.LANCZOS))
