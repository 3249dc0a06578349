"""Trained parts made small for the way home: weights in half precision, in files of at most so many bytes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file
from safetensors.torch import save as save_bytes
from torch import Tensor

from course_utils.files import replacing
from course_utils.training.parts import NAMES
from course_utils.weights.artifacts import sha256, write_safely
from course_utils.weights.cards import write_card

MOST = 16_000_000  # bytes a file


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float16; buffers and temperatures, which are single numbers, as they are."""
    return {k: v.half() if v.is_floating_point() and v.ndim else v for k, v in state.items()}


def pack(folder: Path, home: Path, most: int = MOST) -> list[Path]:
    """The parts that lie in `folder`, with cards and tokenizer, as `weights.tar.00`, `.01`, … in `home`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

        for name in NAMES:
            path = folder / f"{name}.safetensors"
            if path.exists() and path.with_suffix(".json").exists():
                add(path.name, save_bytes(half(load_file(path)), {"precision": "half"}))
                add(f"{name}.json", path.with_suffix(".json").read_bytes())
        for path in sorted((folder / "tokenizer").glob("*")):
            add(f"tokenizer/{path.name}", path.read_bytes())
    home.mkdir(parents=True, exist_ok=True)
    for old in home.glob("weights.tar.*"):
        old.unlink()
    content, paths = buffer.getvalue(), []
    for i in range(-(-len(content) // most)):
        paths.append(home / f"weights.tar.{i:02}")
        with replacing(paths[-1]) as temporary:
            temporary.write_bytes(content[i * most : (i + 1) * most])
    return paths


def unpack(home: Path, folder: Path) -> list[str]:
    """The parts out of `home` as artifacts in `folder`, in float32 with cards that fit; their names.

    Raises:
        FileNotFoundError: there is no archive. ValueError: a piece of it is missing, or holds other files.
    """
    pieces = sorted(home.glob("weights.tar.*"))
    if not pieces:
        raise FileNotFoundError(f"there is no weights.tar.00 in {home}")
    if [p.suffix for p in pieces] != [f".{i:02}" for i in range(len(pieces))]:
        raise ValueError(f"a piece of weights.tar is missing in {home}: {', '.join(p.name for p in pieces)}")
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(p.read_bytes() for p in pieces))) as archive:
            files = {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}  # type: ignore[union-attr]
    except tarfile.TarError as error:
        raise ValueError(f"{home} does not hold a whole archive ({error}): was the last piece left behind?") from error
    allowed = {f"{name}.{ending}" for name in NAMES for ending in ("safetensors", "json")}
    for name, content in files.items():
        inside = name.split("/")
        if name not in allowed and not (len(inside) == 2 and inside[0] == "tokenizer" and inside[1] not in ("", "..")):
            raise ValueError(f"the archive in {home} holds {name!r}, which no trial packs")
        if inside[0] == "tokenizer":
            (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    names = [name for name in NAMES if f"{name}.safetensors" in files]
    fingerprints: dict[str, str] = {}
    for name in names:
        stored = load_bytes(files[f"{name}.safetensors"])
        state = {k: v.float() if v.dtype == torch.float16 else v for k, v in stored.items()}
        path = folder / f"{name}.safetensors"
        card = json.loads(files[f"{name}.json"])
        write_safely(path, state, {"class": card["class"]})
        card["sha256"] = fingerprints[name] = sha256(path)
        if "trained_with" in card:  # the same parts, rounded
            card["trained_with"] = {k: fingerprints.get(k, v) for k, v in card["trained_with"].items()}
        write_card(folder / f"{name}.json", {**card, "note": "weights rounded to half precision"})
    return names
