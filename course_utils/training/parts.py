"""From captioned pictures to a text-to-image pipeline: the VAE, CLIP and the U-Net, one after another."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from course_utils.data.batches import CaptionedImages, data_fingerprint
from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.files import only_run
from course_utils.models.clip import CLIP, CLIPConfig
from course_utils.models.tokenizer import Tokenizer
from course_utils.models.unet import UNet, UNetConfig
from course_utils.models.vae import VAE, DiagonalGaussian, VAEConfig, measure_latent_scale
from course_utils.pipeline import TextToImage
from course_utils.profiles import Profile
from course_utils.training.loop import best_precision
from course_utils.training.processes import check_batch_size, from_main, is_main, only_main_prints, wait
from course_utils.training.recipes import (
    PREDICTION_TYPE,
    Recipe,
    caption_states,
    check_captions,
    check_pictures,
    clip_recipe,
    cosine_schedule,
    denoising_facts,
    device_of,
    encode_latents,
    train_recipe,
    train_tokenizer,
    unet_recipe,
    vae_recipe,
)
from course_utils.weights.artifacts import (
    LICENSE,
    find_parts,
    fingerprints,
    load_artifact,
    load_model,
    read_card,
    save_artifact,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

NAMES = ("vae", "clip", "unet")
_CLASSES: dict[str, tuple[type[nn.Module], type]] = {
    "vae": (VAE, VAEConfig),
    "clip": (CLIP, CLIPConfig),
    "unet": (UNet, UNetConfig),
}


@dataclass
class Parts:
    """The networks so far, in eval mode; for each what was measured, and the seconds and losses of its training."""

    vae: Any = None
    clip: Any = None
    tokenizer: Tokenizer | None = None
    unet: Any = None
    schedule: NoiseSchedule = field(default_factory=cosine_schedule)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # {"vae": {"loss": …}, …}
    seconds: dict[str, float] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)  # only of what was trained in this call

    def pipeline(self, size: int = 64) -> TextToImage:
        """All parts as one pipeline, for pictures of `size` pixels a side. ValueError if one is missing."""
        missing = [name for name in (*NAMES, "tokenizer") if getattr(self, name) is None]
        if missing or self.tokenizer is None:
            raise ValueError(f"a pipeline needs all parts, and there is no {', '.join(missing)}")
        return TextToImage(
            self.vae, self.unet, self.clip.text, self.tokenizer, self.schedule, PREDICTION_TYPE, size=size
        )


def train_parts(
    profile: Profile,
    data: CaptionedImages,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    which: Sequence[str] = NAMES,
    given: Parts | None = None,
    measure: Callable[[str, Parts], dict[str, float]] | None = None,
    report: Callable[[str], object] = print,
    accelerator: Accelerator | None = None,
    device: str | torch.device = "cpu",
    restart: bool = False,
    precision: str = "auto",
    license: str = LICENSE,
    **options: Any,
) -> Parts:
    """Train the parts named in `which`, in the order VAE, CLIP, U-Net, as notebooks 01, 04 and 05 do.

    Args:
        profile: sizes and budgets. data: pictures whose side is the profile's clip.vision.image_size (see `resized`).
        folder: where each part is saved, and in `folder/training` the state of an unfinished one. The same call goes
            on from there; a part that lies there finished, from the same data, seed, sizes and budget, is kept.
        which: some of "vae", "clip", "unet". Others that are needed come from `given`, else from `folder`.
        measure: called with the name of each part just trained, and all parts; its numbers join the metrics.
        report: gets a line about each part.
        accelerator: for several processes; its device is used then, and every process makes the same call.
        restart: train anew what is there already.
        precision: of training and encoding. options: more for `train`, such as `save_seconds`.
        license: what the cards say about it; by default that of the course's scenes, so name your own pictures'.

    Raises:
        ValueError: an unknown part, data that do not fit the profile. FileNotFoundError: a needed part is nowhere.
        OSError: nothing can be written to the folder, or another run is writing there.
    """
    check_which(which)
    check_pictures(profile, data)
    device = torch.device(device) if accelerator is None else accelerator.device
    main = is_main(accelerator)
    for name in which:
        check_batch_size(getattr(profile, f"{name}_budget").batch_size, accelerator)
    folder = None if folder is None else Path(folder)
    lock = only_run(folder / ".lock") if main and folder else nullcontext()
    parts = Parts() if given is None else dataclasses.replace(given, metrics={}, seconds={}, losses={})
    precision = from_main(best_precision(device.type) if precision == "auto" else precision, accelerator)
    content = data_fingerprint(data) if folder else ""

    with only_main_prints(accelerator), lock:
        for name in [n for n in NAMES if n not in which and "unet" in which]:
            _take(name, parts, folder, main, device)
        wait(accelerator)
        if "clip" in which:
            parts.tokenizer = train_tokenizer(profile, data)
            check_captions(data.captions, parts.tokenizer)  # now, rather than when the VAE is trained
        for name in [n for n in NAMES if n in which]:
            key = _key(name, profile, seed, content, folder)
            if folder and not restart and finished(name, folder, key):
                load_part(name, parts, folder, device)
                continue
            recipe = _recipe(name, profile, data, parts, seed, device, precision)
            state = folder / "training" / key if folder else None
            history = train_recipe(
                recipe,
                seed=seed,
                folder=state,
                accelerator=accelerator,
                restart=restart,
                precision=precision,
                keep_state=True,
                **options,
            )
            if name == "vae":
                scale = from_main(latent_scale(recipe.network, data, seed), accelerator)
                recipe.network.latent_scale.fill_(scale)
            setattr(parts, name, recipe.network)
            parts.losses[name], parts.seconds[name] = history.losses, round(history.seconds, 1)
            measured = measure(name, parts) if measure and main else {}
            parts.metrics[name] = from_main({"loss": history.smoothed(100)[-1], **measured}, accelerator)
            if main:
                scores = ", ".join(f"{k} {v:.4g}" for k, v in parts.metrics[name].items())
                report(f"{name}: {len(history.losses):,} steps in {history.seconds:,.0f} s, {scores}")
            if main and folder:
                save_trained(name, parts, folder, profile=profile, size=data.images.shape[-1], seed=seed, key=key,
                             license=license)  # fmt: skip
            wait(accelerator)  # what the main process wrote is there for all
    return parts


def check_which(which: Sequence[str]) -> None:
    """ValueError unless it names one part or more, and no others."""
    if not which or set(which) - set(NAMES):
        raise ValueError(f"the parts are {', '.join(NAMES)}; name one or more, got {list(which)}")


@torch.no_grad()
def latent_scale(vae: VAE, data: CaptionedImages, seed: int) -> float:
    """The scale of notebook 01: measured on samples from the clouds of the first 2,048 pictures."""
    x = data.batch(range(min(2048, len(data))))[0]
    clouds = [vae.encode(part.to(device_of(vae))) for part in x.split(64)]
    cloud = DiagonalGaussian(torch.cat([torch.cat([c.mean, c.log_variance], dim=1) for c in clouds]))
    return measure_latent_scale(cloud.sample(torch.Generator().manual_seed(seed + 7)))


def _recipe(
    name: str, profile: Profile, data: CaptionedImages, parts: Parts, seed: int, device: torch.device, precision: str
) -> Recipe:
    """The recipe of one part; what the U-Net is trained on is encoded here."""
    if name == "vae":
        return vae_recipe(profile, data, seed=seed, device=device)
    assert parts.tokenizer is not None  # trained or taken before
    if name == "clip":
        return clip_recipe(profile, data, parts.tokenizer, seed=seed, device=device)
    latents = encode_latents(parts.vae, data, precision)
    states, caption_of, empty = caption_states(parts.clip.text, parts.tokenizer, data.captions)
    return unet_recipe(profile, latents, states, caption_of, empty, seed=seed, device=device)


def _key(name: str, profile: Profile, seed: int, content: str, folder: Path | None) -> str:
    """A short name for all that a part's training depends on; it stands in the part's card as `made_from`."""
    origin = {
        "seed": seed,
        "data": content,
        "config": dataclasses.asdict(getattr(profile, name)),
        "budget": dataclasses.asdict(getattr(profile, f"{name}_budget")),
        "more": {
            "vae": profile.vae_beta,
            "clip": profile.vocab_size,
            "unet": denoising_facts(profile),
        }[name],
    }
    if folder and name == "unet":
        origin["trained_with"] = fingerprints("vae", "clip", folder=folder)
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:12]


def save_trained(
    name: str, parts: Parts, folder: Path, *, profile: Profile, size: int, seed: int, key: str, license: str
) -> None:
    """Save a part just trained, its card with how it came about, and only then drop the state of its run."""
    facts = {"profile": profile.name, "steps": len(parts.losses[name]), "seconds": parts.seconds[name]}
    facts |= {"seed": seed, "made_from": key, "license": license}
    if name == "unet":  # what drawing with it needs to know
        facts |= {
            "betas": parts.schedule.betas.tolist(),
            "prediction_type": PREDICTION_TYPE,
            "condition_dropout": profile.condition_dropout,
            "size": size,
            "trained_with": fingerprints("vae", "clip", folder=folder),
        }
    save_part(name, parts, folder, **facts)
    shutil.rmtree(folder / "training" / key, ignore_errors=True)


def finished(name: str, folder: Path, key: str) -> bool:
    """Whether that part lies there, whole and made from just what `key` stands for; a line where it is damaged."""
    if not all((folder / f"{name}{ending}").exists() for ending in (".safetensors", ".json")):
        return False
    try:
        if read_card(name, folder).get("made_from") != key:
            return False
        load_artifact(name, folder)
        if name == "clip":
            Tokenizer.load(folder / "tokenizer")
        return True
    except (ValueError, FileNotFoundError) as error:  # its tokenizer may be the one that is missing
        print(f"{name}: trained again. {error}")
        return False


def load_part(name: str, parts: Parts, folder: Path, device: torch.device) -> None:
    """Put a finished part from the folder, with its metrics and seconds, among the others."""
    model_class, config_class = _CLASSES[name]
    setattr(parts, name, load_model(model_class, config_class, name, folder).to(device))
    card = read_card(name, folder)
    parts.metrics[name], parts.seconds[name] = card.get("metrics", {}), card.get("seconds", 0.0)
    if name == "clip":
        parts.tokenizer = Tokenizer.load(folder / "tokenizer")


def load_parts(folder: str | Path | None = None, device: str | torch.device = "cpu") -> Parts:
    """VAE, CLIP with its tokenizer and U-Net from a folder; None: your own, else those of checkpoints/."""
    parts = Parts()
    for name, where in find_parts(folder).items():
        load_part(name, parts, where, torch.device(device))
    return parts


def save_part(name: str, parts: Parts, folder: Path, **facts: Any) -> None:
    """Write a part and its card, and before them CLIP's tokenizer: if all stops in between, the old card tells."""
    if name == "clip" and parts.tokenizer is not None:
        parts.tokenizer.save(folder / "tokenizer")
    save_artifact(name, getattr(parts, name), folder=folder, metrics=parts.metrics.get(name), **facts)


def _take(name: str, parts: Parts, folder: Path | None, main: bool, device: torch.device) -> None:
    """A part that the U-Net needs and that is not trained now: the one given (saved with the rest), else from disk."""
    given = getattr(parts, name)
    if given is None or (name == "clip" and parts.tokenizer is None):
        if folder is None:
            raise FileNotFoundError(f"the U-Net needs a {name}: train it too, give it in `given`, or name its folder")
        return load_part(name, parts, folder, device)
    given.to(device).eval()
    if folder is None or not main:
        return
    if (folder / f"{name}.safetensors").exists():
        stored, ours = load_artifact(name, folder)[0], given.state_dict()
        if stored.keys() != ours.keys() or any(not torch.equal(stored[k], ours[k].cpu().float()) for k in ours):
            raise ValueError(f"{folder} holds another {name} than the one given: choose another folder")
    else:
        save_part(name, parts, folder)
