"""Whether the parts of a pipeline belong together, and which pictures they can draw."""

from __future__ import annotations

from course_utils.models.clip import TextEncoder
from course_utils.models.tokenizer import Tokenizer
from course_utils.models.unet import UNet
from course_utils.models.vae import VAE

MAX_SIDE = 4096  # pixels: beyond that even one picture fills most memories


def check_fit(vae: VAE, unet: UNet, text_encoder: TextEncoder, tokenizer: Tokenizer) -> None:
    """ValueError unless the parts of a pipeline fit together."""
    text, channels, taken = text_encoder.config, vae.config.latent_channels, unet.config.latent_channels
    if len(tokenizer) > text.vocab_size:
        raise ValueError(f"{len(tokenizer)} tokens, but the text encoder knows {text.vocab_size}: they are not a pair")
    if tokenizer.max_length > text.max_length:
        lengths = f"texts of {tokenizer.max_length} tokens, the text encoder reads {text.max_length}"
        raise ValueError(f"tokenizer and text encoder do not fit together: the one makes {lengths}")
    if text.width != unet.config.context_width:
        widths = f"{text.width} numbers a token, the U-Net reads {unet.config.context_width}"
        raise ValueError(f"text encoder and U-Net do not fit together: the one gives {widths}")
    if channels != taken:
        raise ValueError(f"VAE and U-Net do not fit together: their latents have {channels} and {taken} channels")


def check_size(size: int, vae: VAE, unet: UNet) -> None:
    """ValueError unless the two can draw pictures of `size` pixels a side."""
    unit = vae.config.factor * unet.config.factor
    if not isinstance(size, int) or not unit <= size <= MAX_SIDE or size % unit:
        raise ValueError(f"size must be a multiple of {unit} pixels, got {size!r} (at most {MAX_SIDE:,})")
