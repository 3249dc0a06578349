"""Our VAE and U-Net weights under diffusers' names, and back.

The architectures are the same, block for block; only attribute names differ. Each table below lists pairs
(ours, diffusers') of key fragments, applied in order, so that both directions come from one place.
"""

from __future__ import annotations

import re

from torch import Tensor

from course_utils.models.unet import UNetConfig
from course_utils.models.vae import VAEConfig

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


def _rename(key: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def vae_key_to_diffusers(key: str) -> str:
    """The name that diffusers' AutoencoderKL gives to a tensor of our VAE."""
    return _rename(key, _VAE + _SHARED)


def unet_key_to_diffusers(key: str) -> str:
    """The name that diffusers' UNet2DConditionModel gives to a tensor of our UNet."""
    return _rename(key, _UNET + _SHARED)


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
