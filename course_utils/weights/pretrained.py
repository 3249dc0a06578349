"""Stable Diffusion 1.x in our own classes: its networks, tokenizer and schedule out of diffusers' folder format.

What is supported and what is not stands at the top of the package (`course_utils.weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from course_utils.diffusion.reverse import check_prediction_type
from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.models.clip import TextEncoder
from course_utils.models.tokenizer import END, Tokenizer, stored_length
from course_utils.models.unet import UNet
from course_utils.models.vae import VAE
from course_utils.weights import hub
from course_utils.weights.diffusers import (
    unet_config_from_diffusers,
    unet_from_diffusers,
    vae_config_from_diffusers,
    vae_from_diffusers,
)
from course_utils.weights.renaming import fitted
from course_utils.weights.transformers import text_config_from_transformers, text_names, text_state_without_prefix

Model = TypeVar("Model", bound=nn.Module)
Renaming = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


def load_vae(
    source: str | Path,
    *,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> VAE:
    """A VAE with its latent scale, in eval mode.

    Args:
        source: a Stable Diffusion 1.x folder in diffusers' format (or its `vae` folder), or a hub name.
        variant: "fp16" for the files called `….fp16.safetensors`.
        dtype: what to compute in, whatever the file holds. device: where to.

    Raises:
        FileNotFoundError: a file is missing. ConnectionError: the hub does not give it.
        ValueError: a tensor is missing, unknown or misshapen, or the network is another; the message names it.
    """
    folder = hub.part_folder(source, "vae", variant)
    config, latent_scale = vae_config_from_diffusers(_config(folder, "AutoencoderKL"))
    with torch.device("meta"):
        vae = VAE(config)
    state = _read("vae", lambda state: vae_from_diffusers(state, vae), folder, variant)
    vae = _filled(vae, {**state, "latent_scale": torch.tensor(latent_scale)}, dtype, device)
    vae.latent_scale = torch.tensor(latent_scale, device=device)  # one number, worth more than half precision
    return vae


def load_unet(
    source: str | Path,
    *,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> UNet:
    """A U-Net in eval mode; arguments and errors as in `load_vae`."""
    folder = hub.part_folder(source, "unet", variant)
    config = unet_config_from_diffusers(_config(folder, "UNet2DConditionModel"))
    with torch.device("meta"):
        unet = UNet(config)
    state = _read("unet", lambda state: unet_from_diffusers(state, unet), folder, variant)
    return _filled(unet, state, dtype, device)


def load_text_encoder(
    source: str | Path,
    *,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> TextEncoder:
    """CLIP's text encoder in eval mode; arguments and errors as in `load_vae`."""
    from transformers import CLIPTextConfig

    folder = hub.part_folder(source, "text_encoder", variant)
    values = hub.read_json(folder / "config.json")
    if values.get("model_type") not in ("clip_text_model", None):
        raise ValueError(f"text_encoder: {values['model_type']!r} is not CLIP's text encoder, clip_text_model")
    try:
        config = text_config_from_transformers(CLIPTextConfig(**values).to_dict())
    except ValueError as error:
        raise ValueError(f"text_encoder: this is not the one of Stable Diffusion 1.x: {error}") from None
    with torch.device("meta"):
        encoder = TextEncoder(config)
    names = {theirs: ours for ours, theirs in text_names(config.layers).items()}

    def ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return fitted(text_state_without_prefix(state), encoder, names)

    return _filled(encoder, _read("text_encoder", ours, folder, variant), dtype, device)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """CLIP's tokenizer, out of vocab.json and merges.txt, or out of the tokenizer.json of transformers 5.

    Raises:
        FileNotFoundError: there is none. ValueError: another kind of tokenizer, or one that pads with another token.
    """
    folder = hub.part_folder(source, "tokenizer")
    config = hub.read_json(folder / "tokenizer_config.json")
    pad = config.get("pad_token", END)
    pad = pad.get("content") if isinstance(pad, dict) else pad
    if pad != END:
        raise ValueError(f"tokenizer: it pads with {pad!r}, as Stable Diffusion 2 does, not with {END!r}")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return Tokenizer.load(folder)
    model = hub.read_json(folder / "tokenizer.json").get("model", {})
    if model.get("type") != "BPE" or model.get("end_of_word_suffix") != "</w>":
        raise ValueError(f"tokenizer: {model.get('type')!r} with {model.get('end_of_word_suffix')!r} is not CLIP's")
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    try:
        length = min(stored_length(config), 77)
    except (TypeError, ValueError) as error:
        raise ValueError(f"tokenizer: tokenizer_config.json is damaged, {error}: fetch it again") from None
    return Tokenizer([(first, second) for first, second in merges], model["vocab"], length)


def load_parts(
    source: str | Path,
    *,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """A whole Stable Diffusion 1.x in our own classes, the arguments of `TextToImage` by name; see `load_vae`.

    What the U-Net predicts, the schedule and its timesteps, the latent scale and the size of the pictures come out of
    the folder's config files. DDIM then takes the same steps as diffusers' DDIMScheduler in a StableDiffusionPipeline
    (whose stride is T // n even where that is not the next timestep: with "linspace", or an n that does not divide T).
    """
    folder = hub.local_folder(source, PARTS, variant)
    if not (folder / "model_index.json").is_file():
        hub.part_folder(folder, "unet")  # says what the folder is, where that is known
    kind = hub.read_json(folder / "model_index.json").get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise ValueError(f"{folder.name} is a {kind}; only StableDiffusionPipeline (1.x) is supported")
    schedule, sampling = schedule_from_diffusers(hub.read_json(folder / "scheduler" / "scheduler_config.json"))
    unet_values = hub.read_json(folder / "unet" / "config.json")
    unet = load_unet(folder, variant=variant, dtype=dtype, device=device)
    vae = load_vae(folder, variant=variant, dtype=dtype, device=device)
    text_encoder = load_text_encoder(folder, variant=variant, dtype=dtype, device=device)
    tokenizer = load_tokenizer(folder)
    size = unet_values.get("sample_size")
    size = (64 if size is None else size) * vae.config.factor
    networks = {"vae": vae, "unet": unet, "text_encoder": text_encoder, "tokenizer": tokenizer}
    return {**networks, "schedule": schedule, "size": size, "origin": str(source), **sampling}


def schedule_from_diffusers(values: Mapping[str, Any]) -> tuple[NoiseSchedule, dict[str, Any]]:
    """The schedule of a scheduler_config.json, and TextToImage's settings for what it predicts and where it steps.

    Whatever the scheduler's class, it is read as the config of a DDIMScheduler, diffusers' own way to change samplers;
    and as in every StableDiffusionPipeline the "leading" timesteps are moved on by 1.

    Raises ValueError for betas, predictions or corrections that we do not have.
    """
    from diffusers import DDIMScheduler

    config = dict(DDIMScheduler.from_config(dict(values)).config)
    for name in ("rescale_betas_zero_snr", "thresholding"):
        if values.get(name):
            raise ValueError(f"scheduler: {name} is not supported")
    kind, T = config["beta_schedule"], config["num_train_timesteps"]
    if config["trained_betas"] is not None:
        schedule = NoiseSchedule(config["trained_betas"])
    elif kind == "squaredcos_cap_v2":
        schedule = NoiseSchedule.cosine(T)
    elif kind in ("linear", "scaled_linear"):
        make = NoiseSchedule.linear if kind == "linear" else NoiseSchedule.scaled_linear
        schedule = make(T, config["beta_start"], config["beta_end"])
    else:
        raise ValueError(f"scheduler: beta_schedule {kind!r} is not one of linear, scaled_linear, squaredcos_cap_v2")
    spacing = config["timestep_spacing"]
    check_prediction_type(config["prediction_type"])
    return schedule, {
        "prediction_type": config["prediction_type"],
        "spacing": spacing,
        "steps_offset": 1 if spacing == "leading" else 0,
        "last_t": -1 if config["set_alpha_to_one"] else 0,
    }


def _config(folder: Path, kind: str) -> dict[str, Any]:
    values = hub.read_json(folder / "config.json")
    if values.get("_class_name", kind) != kind:
        raise ValueError(f"{folder.name} holds a {values['_class_name']}, not a {kind}")
    return values


def _read(part: str, ours: Renaming, folder: Path, variant: str | None) -> dict[str, Tensor]:
    try:
        return ours(hub.read_weights(folder, part, variant))
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from None


def _filled(model: Model, state: Mapping[str, Tensor], dtype: torch.dtype, device: str | torch.device) -> Model:
    """The tensors put in the place of a model's own, which were on the meta device and took no memory."""
    model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in state.items()}, assign=True)
    return model.eval()
