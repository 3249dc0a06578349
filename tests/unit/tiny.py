"""A profile and a picture set so small that every network trains in a second, for tests of training itself."""

from __future__ import annotations

from dataclasses import replace

from course_utils.data.batches import CaptionedImages
from course_utils.models.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from course_utils.models.unet import UNetConfig
from course_utils.models.vae import VAEConfig
from course_utils.profiles import PROFILES, Budget, Profile
from course_utils.training.recipes import (
    Recipe,
    caption_states,
    clip_recipe,
    encode_latents,
    train_tokenizer,
    unet_recipe,
    vae_recipe,
)

STEPS, BATCH, SIZE = 6, 8, 16

PROFILE: Profile = replace(
    PROFILES["smoke"],
    name="tiny",
    scenes=128,
    vae=VAEConfig((8, 8, 16), norm_groups=4),
    vae_budget=Budget(STEPS, BATCH, 3e-3, 0.02),
    vocab_size=640,
    clip=CLIPConfig(
        text=CLIPTextConfig(vocab_size=640, max_length=32, width=16, layers=1, heads=2),
        vision=CLIPVisionConfig(image_size=SIZE, patch_size=8, width=16, layers=1, heads=2),
        embed_dim=16,
    ),
    clip_budget=Budget(STEPS, BATCH, 1e-3, 0.02),
    unet=UNetConfig(channels=(8, 16), attention=(False, True), heads=2, context_width=16, norm_groups=4),
    unet_budget=Budget(STEPS, BATCH, 1e-3, 0.02),
    condition_dropout=0.3,
)


def scenes(n: int = PROFILE.scenes, size: int = SIZE) -> CaptionedImages:
    return CaptionedImages.scenes(n, size=size)


def recipe(name: str, data: CaptionedImages, profile: Profile = PROFILE) -> Recipe:
    """The recipe of one part; the U-Net's latents and texts come from networks that have learned nothing."""
    if name == "vae":
        return vae_recipe(profile, data)
    tokenizer = train_tokenizer(profile, data)
    clip = clip_recipe(profile, data, tokenizer)
    if name == "clip":
        return clip
    latents = encode_latents(vae_recipe(profile, data).network.eval(), data, "float32")
    return unet_recipe(profile, latents, *caption_states(clip.network.text.eval(), tokenizer, data.captions))
