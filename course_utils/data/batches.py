"""Captioned pictures in memory: one interface, whichever picture set stands behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from course_utils.data.captions import with_article
from course_utils.data.folders import TEMPLATE, read_folder
from course_utils.data.samples import Sample, as_opened, samples_of_pairs, samples_of_rows
from course_utils.data.scenes import ATTRIBUTES, OBJECTS, caption, draw, random_scene
from course_utils.data.squares import check_white, open_picture, square


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
    def from_folder(
        cls,
        path: str | Path,
        size: int = 64,
        *,
        caption: str | None = None,
        template: str = TEMPLATE,
        unconditional: bool = False,
        white: float | None = None,
    ) -> CaptionedImages:
        """Your own pictures: a folder as Hugging Face's imagefolder reads it.

        It has a table metadata.csv, metadata.jsonl or metadata.parquet with a column "file_name", or a folder for each
        class. A picture with several captions, as a list or in several rows, is there once for each. Each picture is
        cut to a centred square and resized to [3, size, size]; transparency becomes white. All attributes are unknown.

        Args:
            caption: the column with the captions; by default that called text, caption or prompt (or texts, …).
            template: for a folder for each class: what the caption says of a picture in it.
            unconditional: pictures without a caption get "" and are not refused.
            white: the number that means white in pictures of more than 8 bits, where that is not plain from their
                numbers, such as 4095 for 12 bits (see `squares.eight_bits`).

        Raises:
            FileNotFoundError, ValueError: it names the row or file to mend. ModuleNotFoundError: parquet needs pyarrow.
        """
        check_side(size)
        check_white(white)
        read: dict[Path, np.ndarray] = {}
        pictures, captions = [], []
        for where, file, texts in read_folder(Path(path), caption, template, unconditional):
            if file not in read:
                try:
                    read[file] = square(open_picture(file), size, white)
                except ValueError as error:
                    raise ValueError(f"{where}: {file} {error}, or take it out") from error
            pictures += [read[file]] * len(texts)
            captions += texts
        return cls._of_squares(pictures, captions)

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Any],
        size: int = 64,
        *,
        image: str | None = None,
        caption: str | None = None,
        template: str = TEMPLATE,
        unconditional: bool = False,
        white: float | None = None,
    ) -> CaptionedImages:
        """A `datasets.Dataset`, or other rows {"image": a picture, "text": its caption or several}; see `from_folder`.

        image, caption: their columns, by default those called image, img or picture, and text, caption or prompt; else
        a column "label" whose numbers the dataset has names for, which go into the template.

        Raises:
            TypeError, ValueError: it names the row that cannot be used, or the columns that are there.
        """
        return cls._of_samples(samples_of_rows(rows, image, caption, template, unconditional), size, white)

    @classmethod
    def from_pairs(
        cls,
        pairs: Any,
        size: int = 64,
        *,
        classes: Sequence[str] | None = None,
        template: str = TEMPLATE,
        unconditional: bool = False,
        white: float | None = None,
    ) -> CaptionedImages:
        """A dataset of torchvision's, or other pairs (picture, label), (picture, caption) or (picture, captions).

        classes: the labels' names that go into the template; by default those the dataset has. See `from_folder`.

        Raises:
            TypeError, ValueError: it names the pair that cannot be used.
        """
        return cls._of_samples(samples_of_pairs(pairs, classes, template, unconditional), size, white)

    @classmethod
    def _of_samples(cls, samples: Iterable[Sample], size: int, white: float | None) -> CaptionedImages:
        check_side(size)
        check_white(white)
        pictures, captions = [], []
        for where, picture, texts in samples:
            try:
                pictures += [square(as_opened(picture), size, white)] * len(texts)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{where}: {error}") from error
            captions += texts
        return cls._of_squares(pictures, captions)

    @classmethod
    def _of_squares(cls, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> CaptionedImages:
        """Made of uint8 [H, W, 3] arrays of one size. ValueError if there is none."""
        if not pictures:
            raise ValueError("there is no picture in it; a set needs one at least")
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
