"""From a trained model to another picture set: new words get vectors, and the networks are trained on.

In the notebooks CLIP's text encoder stays as it is while the U-Net learns to read it. Here the two are trained
together, by the U-Net's loss, as in the first text-to-image model of latent diffusion (Rombach et al. 2022,
arXiv 2112.10752, equation 3): what a new picture set says may be something that CLIP never had to know.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.data.batches import CaptionedImages, data_fingerprint
from course_utils.files import only_run
from course_utils.models.clip import CLIP, TextEncoder
from course_utils.models.tokenizer import Tokenizer
from course_utils.models.unet import UNet
from course_utils.profiles import Profile
from course_utils.training.loop import History
from course_utils.training.parts import (
    Parts,
    finished,
    latent_scale,
    load_part,
    save_part,
    save_trained,
)
from course_utils.training.recipes import (
    Recipe,
    check_captions,
    denoising_facts,
    denoising_recipe,
    device_of,
    encode_latents,
    train_recipe,
    train_tokenizer,
    vae_recipe,
)
from course_utils.weights.artifacts import LICENSE


class ReadingUNet(nn.Module):
    """A U-Net and the text encoder that it reads: (x_t [B, C, h, w], t [B], ids [B, L]) -> prediction, as x_t."""

    def __init__(self, unet: UNet, text: TextEncoder):
        super().__init__()
        self.unet, self.text = unet, text

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(x_t, t, self.text(ids))


def with_vocabulary(clip: CLIP, old: Tokenizer, new: Tokenizer, seed: int = 0) -> CLIP:
    """A copy of CLIP that reads another tokenizer: pieces that both have keep their vectors, others begin afresh.

    Raises:
        ValueError: the new tokenizer makes longer texts than the text encoder can read.
    """
    config = clip.config.text
    if new.max_length > config.max_length:
        raise ValueError(
            f"texts of {new.max_length} tokens are too long for a text encoder that reads {config.max_length}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = CLIP(replace(clip.config, text=replace(config, vocab_size=len(new))))
    vectors = grown.text.token_embedding.weight.data
    for piece, i in new.vocabulary.items():
        if piece in old.vocabulary:
            vectors[i] = clip.text.token_embedding.weight.data[old.vocabulary[piece]]
    grown.load_state_dict({**clip.state_dict(), "text.token_embedding.weight": vectors})
    return grown.to(device_of(clip))


def reading_recipe(profile: Profile, latents: Tensor, ids: Tensor, empty: Tensor, network: ReadingUNet) -> Recipe:
    """U-Net and text encoder trained together. A step draws as that of `unet_recipe`: which latents, t, noise, drops.

    Args:
        latents: [N, C, h, w], scaled. ids: int64 [N, L], the captions' tokens. empty: [1, L], those of "".

    Raises:
        ValueError: another number of captions than of latents.
    """
    if len(ids) != len(latents) or empty.shape != (1, ids.shape[1]):
        raise ValueError(
            f"latents {list(latents.shape)} need ids [{len(latents)}, L] and empty [1, L], "
            f"got {list(ids.shape)} and {list(empty.shape)}"
        )
    there = device_of(network)
    ids, empty = ids.to(there), empty.to(there)

    def words(chosen: Tensor, dropped: Tensor) -> Tensor:
        return torch.where(dropped[:, None], empty, ids[chosen])  # [B, L]

    return denoising_recipe(profile, latents, network, words)


def finetune_parts(
    profile: Profile,
    data: CaptionedImages,
    start: Parts,
    folder: str | Path,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    license: str = LICENSE,
    report: Callable[[str], object] = print,
    **options: Any,
) -> Parts:
    """Train the parts of `start` on with other pictures: the VAE, then the U-Net together with its text encoder.

    Args:
        profile: budgets, vocabulary and dropout; the networks' sizes are those of `start`, which stays as it is.
        folder: gets the VAE, the U-Net and a CLIP with the new text encoder (its picture encoder is still the old one).
            The same call goes on from there and keeps what is finished. options: more for `train`.
        license: what the cards say about it; by default that of the course's scenes, so name your own pictures'.

    Raises:
        ValueError: `start` lacks a part; captions that are too long, pictures whose sides do not fit the networks.
    """
    start.pipeline()  # refuses to go on from half a model
    assert start.tokenizer is not None
    tokenizer = train_tokenizer(profile, data)
    check_captions(data.captions, tokenizer)  # now, rather than when the VAE is trained
    clip = with_vocabulary(start.clip, start.tokenizer, tokenizer, seed)
    unit, sides = start.vae.config.factor * start.unet.config.factor, list(data.images.shape[-2:])
    if any(side % unit for side in sides):
        raise ValueError(f"the sides of the pictures must be multiples of {unit}, got {sides}: use another size")
    device, folder = torch.device(device), Path(folder)
    profile = replace(profile, vae=start.vae.config, unet=start.unet.config)
    parts, content = Parts(), data_fingerprint(data)

    def take(name: str, made_from: list[Any], recipe: Callable[[], Recipe], keep: Callable[[Recipe], None]) -> None:
        budget = asdict(getattr(profile, f"{name}_budget"))
        key = hashlib.sha256(json.dumps([name, seed, content, budget, *made_from]).encode()).hexdigest()[:12]
        if finished(name, folder, key):
            return load_part(name, parts, folder, device)
        made = recipe()
        history: History = train_recipe(
            made, seed=seed, folder=folder / "training" / key, precision=precision, keep_state=True, **options
        )
        parts.losses[name], parts.seconds[name] = history.losses, round(history.seconds, 1)
        parts.metrics[name] = {"loss": history.smoothed(100)[-1]}
        keep(made)
        save_trained(name, parts, folder, profile=profile, size=data.images.shape[-1], seed=seed, key=key,
                     license=license)  # fmt: skip
        loss = parts.metrics[name]["loss"]
        report(f"{name}: {len(history.losses):,} steps in {history.seconds:,.0f} s, loss {loss:.4g}")

    def old_vae() -> Recipe:
        recipe = vae_recipe(profile, data, seed=seed, device=device)
        recipe.network.load_state_dict(start.vae.state_dict())
        return recipe

    def keep_vae(recipe: Recipe) -> None:
        parts.vae = recipe.network
        parts.vae.latent_scale.fill_(latent_scale(parts.vae, data, seed))

    def old_unet() -> Recipe:
        parts.tokenizer, parts.clip = tokenizer, clip.to(device)
        both = ReadingUNet(copy.deepcopy(start.unet), parts.clip.text).to(device)
        latents = encode_latents(parts.vae, data, precision)
        return reading_recipe(profile, latents, tokenizer.encode(data.captions), tokenizer.encode(""), both)

    def keep_unet(recipe: Recipe) -> None:
        parts.unet = recipe.network.unet
        note = "its text encoder was trained on with the U-Net"
        save_part("clip", parts, folder, profile=profile.name, note=note, license=license)

    with only_run(folder / ".lock"):
        take("vae", [weights_fingerprint(start.vae), profile.vae_beta], old_vae, keep_vae)
        before = [weights_fingerprint(m) for m in (start.unet, start.clip, parts.vae)]
        take("unet", [*before, profile.vocab_size, *denoising_facts(profile)], old_unet, keep_unet)
        if parts.clip is None:  # the U-Net was there already
            load_part("clip", parts, folder, device)
            del parts.metrics["clip"], parts.seconds["clip"]  # it has none of its own
    return parts


def weights_fingerprint(network: nn.Module) -> str:
    """The sha256 of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
