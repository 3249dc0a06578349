"""Other people's dataset objects as a stream of pictures and captions: Hugging Face `datasets` and torchvision's."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from course_utils.data.folders import as_captions, caption_column, check_template, class_caption
from course_utils.data.squares import open_picture

PICTURE_COLUMNS = ("image", "img", "picture")


class Sample(NamedTuple):
    """A picture, what is said of it, and which row or pair it is."""

    where: str
    picture: Any
    captions: list[str]


def samples_of_rows(
    rows: Iterable[Any], image: str | None, caption: str | None, template: str, unconditional: bool
) -> Iterator[Sample]:
    """The rows of a `datasets.Dataset`; see `CaptionedImages.from_rows`."""
    check_template(template)
    if isinstance(rows, Mapping):  # a DatasetDict
        raise ValueError(
            f"that is not one set, but {', '.join(map(str, rows))}: give one of them, such as data['train']"
        )
    columns: list[str] = []
    for i, row in enumerate(rows):
        where = f"row {i}"
        if not isinstance(row, Mapping):
            raise TypeError(f"{where} should have named columns, got {type(row).__name__}; for pairs use from_pairs")
        if not columns:
            columns = list(getattr(rows, "column_names", None) or row)
            image = _picture_column(columns, image)
            caption = caption_column(columns, "the set", caption) or ("label" if "label" in columns else None)
            if caption is None and not unconditional:
                raise ValueError(
                    f"no column of {', '.join(columns)} is known to hold captions: say which, as caption=…"
                )
            names = getattr((getattr(rows, "features", None) or {}).get(caption), "names", None)
        said = row.get(caption) if caption else None
        yield Sample(where, row.get(image), _captions(said, where, names, template, unconditional))


def samples_of_pairs(pairs: Any, classes: Sequence[str] | None, template: str, unconditional: bool) -> Iterator[Sample]:
    """The pairs of a dataset of torchvision's; see `CaptionedImages.from_pairs`."""
    check_template(template)
    inner = pairs
    while classes is None and inner is not None:  # a torch.utils.data.Subset holds its dataset
        classes, inner = getattr(inner, "classes", None), getattr(inner, "dataset", None)
    # A dataset of torch's may have __getitem__ and __len__ only, and nothing that says where it ends when iterated.
    source = (pairs[i] for i in range(len(pairs))) if hasattr(pairs, "__len__") else pairs
    for i, pair in enumerate(source):
        where = f"pair {i}"
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{where} should be (picture, label or caption), got {type(pair).__name__}")
        yield Sample(where, pair[0], _captions(pair[1], where, classes, template, unconditional))


def as_opened(picture: Any) -> Any:
    """The picture itself; read, if it is still {"bytes": …} as `datasets` keeps it undecoded. ValueError as there."""
    if not isinstance(picture, Mapping):
        return picture
    if not isinstance(picture.get("bytes"), bytes):
        raise ValueError("the picture is only named and not there: load the set with its pictures decoded")
    return open_picture(io.BytesIO(picture["bytes"]))


def _picture_column(columns: Sequence[str], asked: str | None) -> str:
    found = [name for name in ((asked,) if asked else PICTURE_COLUMNS) if name in columns]
    if not found:
        raise ValueError(f"no column of {', '.join(columns)} holds pictures under a known name: say which, as image=…")
    return found[0]


def _captions(said: Any, where: str, names: Sequence[Any] | None, template: str, unconditional: bool) -> list[str]:
    """A caption, several, or a class by its number."""
    if hasattr(said, "item") and getattr(said, "ndim", None) == 0:  # a label as numpy or torch have it
        said = said.item()
    if not isinstance(said, int) or isinstance(said, bool):
        return as_captions(said, where, unconditional)
    if names is None:
        raise ValueError(
            f"{where} has the label {said}, and the set has no names for labels: give from_pairs classes=…"
        )
    if not 0 <= said < len(names):
        if said == -1 and unconditional:  # how `datasets` marks a row whose class is not told
            return [""]
        raise ValueError(f"{where} has the label {said}, and there are {len(names)} classes")
    name = names[said]
    return [class_caption(template, name if isinstance(name, str) else name[0])]  # ImageNet's have several words
