"""Our pipeline as diffusers' own: an object, or a folder that `StableDiffusionPipeline.from_pretrained` opens."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.models.clip import TextEncoder
from course_utils.models.tokenizer import Tokenizer
from course_utils.models.unet import UNet
from course_utils.models.vae import VAE
from course_utils.weights.diffusers import (
    unet_config_to_diffusers,
    unet_to_diffusers,
    vae_config_to_diffusers,
    vae_to_diffusers,
)
from course_utils.weights.transformers import clip_text_model

SCHEDULERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler"}
MADE_HERE = """\
---
license: cc-by-sa-4.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [stable-diffusion, text-to-image]
---
"""
OPENMOJI = """\
The weights were trained from nothing on pictures made of [OpenMoji](https://openmoji.org) artwork, the open-source
emoji and icon project, by its designers and contributors, licensed
[CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/). The weights are under the same licence: name OpenMoji
and share what you make of them alike.

The model knows one kind of picture, an emoji on a plain background, and the words of the captions that it was trained
with. There is no safety checker; what it was trained on needs none.
"""


class Parts(Protocol):
    """What is written: the networks and the facts that `TextToImage` holds, under the names it gives them."""

    vae: VAE
    unet: UNet
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    schedule: NoiseSchedule
    prediction_type: str
    size: int
    spacing: str
    last_t: int
    origin: str | None

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...


def pipeline_to_diffusers(pipe: Parts, sampler: str = "ddim") -> Any:
    """The same networks, tokenizer and schedule as a diffusers StableDiffusionPipeline; the weights are copied.

    The same prompt, guidance scale of 1 or more and `torch.Generator` seed give the same picture as `pipe`. (Below 1
    diffusers does not guide. Its DDIMScheduler steps by T // n: with a number of steps n that does not divide T its
    pictures are slightly others.) For another scheduler: `X.from_config(p.scheduler.config)`.

    Args:
        sampler: "ddim" for a DDIMScheduler, "ddpm" for a DDPMScheduler.

    Raises:
        ValueError: another sampler.
    """
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    scheduler = scheduler_to_diffusers(pipe, sampler)
    vae = AutoencoderKL(**vae_config_to_diffusers(pipe.vae.config, pipe.vae.latent_scale.item()))
    vae.load_state_dict(vae_to_diffusers(pipe.vae.state_dict()))
    side = pipe.size // pipe.vae.config.factor
    unet = UNet2DConditionModel(**unet_config_to_diffusers(pipe.unet.config, side))
    unet.load_state_dict(unet_to_diffusers(pipe.unet.state_dict()))
    made = StableDiffusionPipeline(
        vae=vae.eval(), unet=unet.eval(), text_encoder=clip_text_model(pipe.text_encoder, pipe.tokenizer.end_id),
        tokenizer=tokenizer_to_transformers(pipe.tokenizer), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return made.to(pipe.device) if pipe.dtype == torch.float32 else made.to(pipe.device, pipe.dtype)


def scheduler_to_diffusers(pipe: Parts, sampler: str = "ddim") -> Any:
    """A DDIMScheduler or DDPMScheduler with the pipeline's betas, prediction and timesteps."""
    import diffusers

    if sampler not in SCHEDULERS:
        raise ValueError(f"sampler must be one of {tuple(SCHEDULERS)}, got {sampler!r}; see the docstring for others")
    # More than the class itself reads: another scheduler made from this config finds what it needs to know, too, and
    # does not fall back on its own defaults, such as to clip latents as if they were pixels.
    settings = {
        "num_train_timesteps": pipe.schedule.num_train_timesteps,
        "trained_betas": pipe.schedule.betas.tolist(),
        "prediction_type": pipe.prediction_type,
        "timestep_spacing": pipe.spacing,
        "steps_offset": 1,  # StableDiffusionPipeline insists on it; only the spacing "leading" reads it
        "set_alpha_to_one": pipe.last_t < 0,
        "clip_sample": False,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "skip_prk_steps": True,
    }
    if sampler == "ddpm":
        settings["variance_type"] = "fixed_small"  # σ² = β̃, as in `ddpm_step`
    return getattr(diffusers, SCHEDULERS[sampler]).from_config(settings)


def tokenizer_to_transformers(tokenizer: Tokenizer) -> Any:
    """transformers' CLIPTokenizer with our vocabulary and merges."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return CLIPTokenizer.from_pretrained(folder)


def save_pipeline(
    pipe: Parts,
    folder: str | Path,
    *,
    sampler: str = "ddim",
    overwrite: bool = False,
    card: str | None = None,
) -> Path:
    """Write a folder that `StableDiffusionPipeline.from_pretrained` opens, whole or not at all: safetensors,
    CLIPTokenizer files, configs and a model card.

    Args:
        folder: where to; it must be new or empty.
        sampler: "ddim" or "ddpm".
        overwrite: replace a folder that holds such a pipeline already.
        card: the text of README.md. By default the course's own, which names OpenMoji and the licence CC BY-SA 4.0;
            give your own if you trained on other pictures.

    Returns:
        The folder.

    Raises:
        ValueError: another sampler. FileExistsError: the folder holds something, and either `overwrite` is False or
            it is not a pipeline in diffusers' format.
    """
    folder = Path(folder).expanduser().resolve()
    _check_free(folder, overwrite)
    made = pipeline_to_diffusers(pipe, sampler)
    with _scratch(folder) as scratch:
        new, own = scratch / "new", scratch / "tokenizer"
        made.save_pretrained(new, safe_serialization=True)
        pipe.tokenizer.save(own)
        for name in ("vocab.json", "merges.txt"):  # transformers 4 reads these, 5 writes tokenizer.json only
            shutil.copyfile(own / name, new / "tokenizer" / name)
        (new / "README.md").write_text(model_card(pipe, folder.name) if card is None else card, encoding="utf-8")
        rights = (new / "README.md").stat().st_mode
        for path in new.rglob("*.safetensors"):  # written for their owner alone
            path.chmod(rights)
        if folder.exists():
            _check_free(folder, overwrite, scratch)  # nothing was put there in the meantime
            _replace(folder, new, scratch)
        else:
            new.rename(folder)
    return folder


def model_card(pipe: Parts, name: str) -> str:
    """What README.md says: what the parts are, how to draw with them, where the weights come from, the licence."""
    parts: dict[str, nn.Module] = {"VAE": pipe.vae, "U-Net": pipe.unet, "text encoder": pipe.text_encoder}
    sizes = ", ".join(f"{part} {sum(p.numel() for p in model.parameters()):,}" for part, model in parts.items())
    side, channels = pipe.size // pipe.vae.config.factor, pipe.vae.config.latent_channels
    head, source = MADE_HERE, OPENMOJI
    if pipe.origin is not None:
        head, source = "", f"The weights were read from {pipe.origin}; its licence and terms hold for this copy, too.\n"
    return f"""{head}# {name}

Stable Diffusion 1's architecture with its own sizes: pictures of {pipe.size}×{pipe.size} pixels, latents of
{channels}×{side}×{side} numbers. Parameters: {sizes}. The U-Net predicts `{pipe.prediction_type}` over
{pipe.schedule.num_train_timesteps} timesteps.

```python
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{name}")
pipe("a dog on a red background", num_inference_steps=25, guidance_scale=3.0,
     generator=torch.Generator().manual_seed(0)).images[0]
```

{source}"""


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder on the same disk, in the folder itself if there is one: what it lies in may not be ours to write to."""
    place = folder if folder.exists() else folder.parent
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=place) as scratch:
        yield Path(scratch)


def _replace(folder: Path, new: Path, scratch: Path) -> None:
    """Put what `new` holds in the place of what the folder holds. The folder stays: somebody may be working in it."""
    old = scratch / "old"
    old.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for source, target in ((folder, old), (new, folder)):
            for path in sorted(p for p in source.iterdir() if p != scratch):
                moved.append((path, path.rename(target / path.name)))
    except OSError:  # on Windows a file of it may be open elsewhere
        for before, now in reversed(moved):
            now.rename(before)
        raise


def _check_free(folder: Path, overwrite: bool, but: Path | None = None) -> None:
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; give a folder")
    if not folder.exists() or not any(path != but for path in folder.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} holds files already: give another folder, or overwrite=True")
    if not (folder / "model_index.json").is_file():
        raise FileExistsError(f"{folder} holds other things than a diffusers pipeline; it is not overwritten")
