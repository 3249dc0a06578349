"""What training leaves on disk: weights as safetensors beside a JSON card that says where they come from.

A part is looked for in `artifacts/<profile>/` (what you trained) and then in `checkpoints/` (the course's own), so that
any notebook can be the first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from course_utils import __version__
from course_utils.files import replacing
from course_utils.models.tokenizer import FILES, Tokenizer
from course_utils.profiles import get_profile
from course_utils.weights.cards import REMEDY, artwork_version, check_artwork, check_card, write_card

Model = TypeVar("Model", bound=nn.Module)
MADE_IN = {
    "vae": "notebook 01_vae",
    "clip": "notebook 04_clip",
    "unet": "notebook 05_unet_cfg",
    "judge": "notebook 05_unet_cfg",
}
LICENSE = "CC BY-SA 4.0: trained on OpenMoji artwork, the open-source emoji and icon project (openmoji.org)"


def course_folder() -> Path:
    """The checkout that `artifacts/` and `checkpoints/` lie in; COURSE_HOME overrides it."""
    return Path(os.environ.get("COURSE_HOME") or Path(__file__).resolve().parents[2])


def artifacts_folder(profile: str | None = None) -> Path:
    """Where this profile's own results go; created when something is written."""
    root = os.environ.get("COURSE_ARTIFACTS") or course_folder() / "artifacts"
    return Path(root) / (profile or get_profile().name)


def checkpoints_folder() -> Path:
    """Where the course's reference weights lie."""
    return course_folder() / "checkpoints"


def sha256(path: Path) -> str:
    """The file's checksum, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_safely(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all: a crash in the middle leaves the old file as it was.

    Raises:
        OSError: the disk is full, say; nothing is left of what was written.
    """
    copies = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(copies, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written ({error}): free some room, or choose another folder") from error


def save_artifact(
    name: str,
    model: nn.Module,
    *,
    folder: str | Path | None = None,
    config: Any = None,
    metrics: dict[str, float] | None = None,
    **facts: Any,
) -> Path:
    """Write `<name>.safetensors` and `<name>.json`, each whole or not at all.

    The card of CLIP holds the checksum of the tokenizer beside it, too: save that first.

    Args:
        name: "vae", "clip", "unet", "judge" …
        model: its state dict is stored in float32, its `config` in the card unless one is given.
        folder: `artifacts/<profile>/` if None.
        metrics: numbers measured on it. facts: anything else for the card, such as seed, steps, seconds, and `license`
            if it was not trained on the course's scenes.

    Returns:
        The path of the weights.

    Raises:
        ValueError: a weight is NaN or infinite. OSError: nothing can be written there.
    """
    folder = artifacts_folder() if folder is None else Path(folder)
    path = folder / f"{name}.safetensors"
    config = getattr(model, "config", None) if config is None else config
    state = {k: v.float() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    check_numbers(state, f"the {name} is not saved", "train it again, at a lower learning rate")
    if name == "clip" and (folder / "tokenizer").is_dir():
        facts["tokenizer"] = Tokenizer.load(folder / "tokenizer").sha256
    write_safely(path, state, {"class": type(model).__name__})
    card = {
        "name": name,
        "class": type(model).__name__,
        "config": dataclasses.asdict(config)
        if dataclasses.is_dataclass(config) and not isinstance(config, type)
        else config,
        "parameters": sum(p.numel() for p in model.parameters()),
        "profile": get_profile().name,
        "metrics": metrics or {},
        "license": LICENSE,
        **facts,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "versions": {
            "course": __version__, "torch": torch.__version__, "python": platform.python_version(),
            "artwork": artwork_version(),
        },
        "sha256": sha256(path),
    }
    write_card(folder / f"{name}.json", card)
    return path


def find_artifact(name: str, folder: str | Path | None = None) -> Path:
    """The folder that holds `<name>.safetensors`: the one given, else `artifacts/<profile>/`, else `checkpoints/`.

    Raises:
        FileNotFoundError: it is in none of them; the message says which notebook makes it.
    """
    folders = [Path(folder)] if folder else [artifacts_folder(), checkpoints_folder()]
    for candidate in folders:
        if (candidate / f"{name}.safetensors").exists():
            return candidate
    places = " or ".join(str(f.name if f.name == "checkpoints" else Path(f.parent.name) / f.name) for f in folders)
    notebook = MADE_IN.get(name, "the notebook that trains it")
    raise FileNotFoundError(
        f"there is no {name}.safetensors in {places}: run {notebook}, or restore checkpoints/ with "
        "`git checkout -- checkpoints`"
    )


def read_card(name: str, folder: str | Path | None = None) -> dict:
    """The card of a part, without reading its weights.

    Raises:
        FileNotFoundError: there is no such part, or its card is missing. ValueError: the card is damaged.
    """
    path = find_artifact(name, folder) / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{name}.safetensors lies there without its card {path.name}: train it again or restore both"
        )
    return check_card(path)


def load_artifact(name: str, folder: str | Path | None = None) -> tuple[dict[str, Tensor], dict]:
    """Weights and card of a part, checked against the card's checksums; of CLIP's tokenizer, too.

    Raises:
        FileNotFoundError: there is none, or its card or its tokenizer is missing.
        ValueError: a file was cut short or altered since the card was written, or holds NaN.
    """
    folder = find_artifact(name, folder)
    card = read_card(name, folder)
    path = folder / f"{name}.safetensors"
    found = sha256(path)
    if found != card.get("sha256"):
        raise ValueError(
            f"{path.name} is not the file its card describes (sha256 {found[:12]}…, the card says "
            f"{str(card.get('sha256'))[:12]}…): it was cut short or altered. Train it again or restore it."
        )
    if "tokenizer" in card and Tokenizer.load(folder / "tokenizer").sha256 != card["tokenizer"]:
        raise ValueError(
            f"the tokenizer in {folder.name}/tokenizer ({', '.join(FILES)}) is not the one that {path.name} was "
            "trained with: restore the two together, or train CLIP again (notebook 04)"
        )
    try:
        state = load_file(path)
    except SafetensorError as error:  # a card written for a file that was broken from the start
        raise ValueError(f"{path.name} is not a safetensors file ({error}): train the part again") from None
    check_numbers(state, f"{path.name} cannot be used", REMEDY)
    check_artwork(card)
    return state, card


def check_numbers(state: dict[str, Tensor], what: str, remedy: str) -> None:
    """ValueError if a weight is NaN or infinite, or the scale of latents is not above 0."""
    wrong = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if wrong:
        raise ValueError(f"{what}, {wrong[0]} holds NaN or infinite numbers: {remedy}")
    if not bool((state.get("latent_scale", torch.ones(1)) > 0).all()):
        raise ValueError(f"{what}, latent_scale is {state['latent_scale'].item():g}: {remedy}")


def load_model(model_class: type[Model], config_class: type, name: str, folder: str | Path | None = None) -> Model:
    """A trained part, in eval mode, with a line that says where it came from: `load_model(VAE, VAEConfig, "vae")`.

    Raises:
        FileNotFoundError: there is none. ValueError: it was altered, or its config and weights belong to another class.
    """
    where = find_artifact(name, folder)
    state, card = load_artifact(name, where)
    from_dict = getattr(config_class, "from_dict", None)
    try:
        config = from_dict(card["config"]) if from_dict else config_class(**card["config"])
        check_shapes(model_class, config, state)
        model = model_class(config)
        model.load_state_dict(state)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{name}.safetensors and its card do not describe a {model_class.__name__} ({reason}): train it again"
        ) from error
    print(f"{name}: from {describe(where, card)}")
    return model.eval()


def check_shapes(model_class: type[nn.Module], config: Any, state: dict[str, Tensor]) -> None:
    """ValueError unless the weights are those of such a model, of which no memory is taken to find out."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        wanted = {name: list(value.shape) for name, value in model_class(config).state_dict().items()}
    given = {name: list(value.shape) for name, value in state.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise ValueError(f"{name} is {given.get(name, 'missing')}, and {wanted.get(name, 'unknown')} in the card")


def fingerprints(*names: str, folder: str | Path | None = None) -> dict[str, str]:
    """The sha256 of each part as `load_model` would find it now: a card's note of what a network was trained with.

    `save_artifact("unet", unet, trained_with=fingerprints("vae", "clip"), ...)`
    """
    return {name: read_card(name, folder)["sha256"] for name in names}


def find_parts(folder: str | Path | None = None) -> dict[str, Path]:
    """The folders of "unet", "vae" and "clip", chosen so that the three belong together.

    A U-Net knows the latents of one VAE and the words of one text encoder; others, however good, make noise of its
    pictures. So those are taken that its card names (`trained_with`), from `artifacts/<profile>/` or `checkpoints/`;
    where the card names none, those that lie beside it. Warns where the one it was trained with is gone.

    Raises:
        FileNotFoundError: a part is missing. ValueError: a card cannot be read.
    """
    found = {"unet": find_artifact("unet", folder)}
    trained_with = read_card("unet", found["unet"]).get("trained_with", {})
    places = [found["unet"]] if folder else [found["unet"], artifacts_folder(), checkpoints_folder()]
    for name in ("vae", "clip"):
        there = [place for place in places if (place / f"{name}.safetensors").exists()]
        if not there:
            find_artifact(name, folder)  # raises, and says which notebook makes it
        wanted = trained_with.get(name)
        matching = [place for place in there if wanted in (None, read_card(name, place).get("sha256"))]
        if not matching:
            warnings.warn(
                f"the U-Net was trained with another {name} than the one in {there[0].name}: the pictures will be "
                "wrong. Train the U-Net again (notebook 05), or bring back the old part.",
                stacklevel=2,
            )
        found[name] = (matching or there)[0]
    return found


def describe(where: Path, card: dict) -> str:
    """One line about a part for the reader: which folder, how long it was trained, its scores."""
    own = "your own training" if where.name != "checkpoints" else "the course's checkpoints"
    numbers = [(k, v) for k, v in card.get("metrics", {}).items() if isinstance(v, (int, float))]
    scores = ", ".join(f"{k} {v:.4g}" for k, v in numbers[:2])
    steps = f", {card['steps']:,} steps" if "steps" in card else ""
    return f"{own} ({where.name}/{card['name']}.safetensors{steps}{', ' + scores if scores else ''})"
