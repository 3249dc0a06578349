"""Our VAE and U-Net weights under diffusers' names, and back.

The architectures are the same, block for block; only attribute names differ. Each table below lists pairs
(ours, diffusers') of key fragments, applied in order, so that both directions come from one place.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from course_utils.models.unet import UNet, UNetConfig
from course_utils.models.vae import VAE, VAEConfig
from course_utils.weights.renaming import fitted, some

# Patterns in our names -> replacement in diffusers' names.
_SHARED = [
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\bnorm_out\.", "conv_norm_out."),
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.out\.", ".to_out.0."),
]
_VAE = [
    (r"^encoder\.levels\.(\d+)\.blocks\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.levels\.(\d+)\.resample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.levels\.(\d+)\.blocks\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.levels\.(\d+)\.resample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.middle\.block1\.", ".mid_block.resnets.0."),
    (r"\.middle\.block2\.", ".mid_block.resnets.1."),
    (r"\.middle\.attention\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.middle\.attention\.", ".mid_block.attentions.0."),
]
_UNET = [
    (r"^time_mlp\.linear(\d)\.", r"time_embedding.linear_\1."),
    (r"\.time_projection\.", ".time_emb_proj."),
    (r"^middle_block1\.", "mid_block.resnets.0."),
    (r"^middle_block2\.", "mid_block.resnets.1."),
    (r"^middle_transformer\.", "mid_block.attentions.0."),
    (r"^down\.(\d+)\.resample\.", r"down_blocks.\1.downsamplers.0."),
    (r"^up\.(\d+)\.resample\.", r"up_blocks.\1.upsamplers.0."),
    (r"^(down|up)\.(\d+)\.blocks\.", r"\1_blocks.\2.resnets."),
    (r"^(down|up)\.(\d+)\.transformers\.", r"\1_blocks.\2.attentions."),
    (r"\.block\.", ".transformer_blocks.0."),
    (r"\.self_attention\.", ".attn1."),
    (r"\.cross_attention\.", ".attn2."),
    (r"\.feed_forward\.0\.linear\.", ".ff.net.0.proj."),
    (r"\.feed_forward\.1\.", ".ff.net.2."),
]
# diffusers' names for the VAE's attention up to 0.16, still in the files of Stable Diffusion 1.5 -> today's.
_OLD_VAE = [
    (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
]
# What diffusers' configs may say without changing what is computed in float32.
_FREE = {"sample_size", "scaling_factor", "force_upcast", "upcast_attention", "dropout"}


def _apply(key: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def vae_key_to_diffusers(key: str) -> str:
    """The name that diffusers' AutoencoderKL gives to a tensor of our VAE."""
    return _apply(key, _VAE + _SHARED)


def unet_key_to_diffusers(key: str) -> str:
    """The name that diffusers' UNet2DConditionModel gives to a tensor of our UNet."""
    return _apply(key, _UNET + _SHARED)


def vae_to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's state dict under diffusers' names; the latent scale goes to diffusers' config instead."""
    return {vae_key_to_diffusers(k): v for k, v in state.items() if k != "latent_scale"}


def unet_to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A U-Net's state dict under diffusers' names."""
    return {unet_key_to_diffusers(k): v for k, v in state.items()}


def vae_config_to_diffusers(config: VAEConfig, latent_scale: float = 1.0) -> dict:
    """Keyword arguments that make diffusers' AutoencoderKL the same network."""
    levels = len(config.channels)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": config.channels,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": latent_scale,
    }


def unet_config_to_diffusers(config: UNetConfig, sample_size: int = 8) -> dict:
    """Keyword arguments that make diffusers' UNet2DConditionModel the same network."""
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)]
    return {
        "sample_size": sample_size,
        "in_channels": config.latent_channels,
        "out_channels": config.latent_channels,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "block_out_channels": config.channels,
        "layers_per_block": config.layers_per_block,
        "cross_attention_dim": config.context_width,
        "attention_head_dim": config.heads,  # diffusers' name says dimension, its code means the number of heads
        "norm_num_groups": config.norm_groups,
    }


def vae_from_diffusers(state: Mapping[str, Tensor], vae: VAE) -> dict[str, Tensor]:
    """An AutoencoderKL's tensors, with today's names or the old ones, under those of `vae`; without the latent scale.

    The shapes must be those of `vae`, which may be on the meta device. Raises ValueError naming missing, unknown or
    misshapen tensors.
    """
    state = {_apply(name, _OLD_VAE): tensor for name, tensor in state.items()}
    names = {vae_key_to_diffusers(ours): ours for ours in vae.state_dict() if ours != "latent_scale"}
    return fitted(state, vae, names)


def unet_from_diffusers(state: Mapping[str, Tensor], unet: UNet) -> dict[str, Tensor]:
    """A UNet2DConditionModel's tensors under the names of `unet`; its shapes and the errors as for the VAE."""
    return fitted(state, unet, {unet_key_to_diffusers(ours): ours for ours in unet.state_dict()})


def vae_config_from_diffusers(values: Mapping[str, Any]) -> tuple[VAEConfig, float]:
    """Our config and the latent scale of the AutoencoderKL that a config.json describes.

    Raises ValueError naming each setting that our VAE does not have.
    """
    from diffusers import AutoencoderKL

    given = _complete(values, AutoencoderKL)
    config = VAEConfig(
        channels=given["block_out_channels"],
        layers_per_block=given["layers_per_block"],
        latent_channels=given["latent_channels"],
        norm_groups=given["norm_num_groups"],
    )
    _check_settings("vae", given, {**_complete({}, AutoencoderKL), **vae_config_to_diffusers(config)})
    scale = given["scaling_factor"]
    if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise ValueError(f"vae: scaling_factor must be a number above 0, got {scale!r:.40}")
    return config, float(scale)


def unet_config_from_diffusers(values: Mapping[str, Any]) -> UNetConfig:
    """Our config for the UNet2DConditionModel that a config.json describes.

    Raises ValueError naming each setting that our U-Net does not have; says so of Stable Diffusion 2 and SDXL.
    """
    from diffusers import UNet2DConditionModel

    given = _complete(values, UNet2DConditionModel)
    for unlike, kind in (
        (given["addition_embed_type"] is not None, "of SDXL (addition_embed_type)"),
        (given["use_linear_projection"], "of Stable Diffusion 2 or later (use_linear_projection)"),
        (not isinstance(given["attention_head_dim"], int), "of Stable Diffusion 2 or later (attention_head_dim)"),
        (given["in_channels"] != given["out_channels"], "for inpainting, depth or edits (in_channels)"),
    ):
        if unlike:
            raise ValueError(f"unet: this is a U-Net {kind}; only Stable Diffusion 1.x is supported")
    config = UNetConfig(
        channels=given["block_out_channels"],
        attention=tuple(kind == "CrossAttnDownBlock2D" for kind in given["down_block_types"]),
        layers_per_block=given["layers_per_block"],
        heads=given["attention_head_dim"],
        context_width=given["cross_attention_dim"],
        latent_channels=given["in_channels"],
        norm_groups=given["norm_num_groups"],
    )
    _check_settings("unet", given, {**_complete({}, UNet2DConditionModel), **unet_config_to_diffusers(config)})
    return config


def _complete(values: Mapping[str, Any], model: type) -> dict[str, Any]:
    """A config with diffusers' defaults for what it leaves out, as diffusers itself reads it."""
    parameters = inspect.signature(model.__init__).parameters.values()  # type: ignore[misc]
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**defaults, **{name: value for name, value in values.items() if not name.startswith("_")}}


def _check_settings(what: str, given: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    other = [
        f"{name} is {plain(value)}, ours {plain(ours.get(name))}"
        for name, value in given.items()
        if name not in _FREE and plain(value) != plain(ours.get(name))
    ]
    if other:
        raise ValueError(f"{what}: this is not the network of Stable Diffusion 1.x: {some(other)}")
