"""How each network of the course is trained, for use outside the notebooks: by a command, a script, several processes.

A `Recipe` is a notebook's training cell taken apart. Its loss closure does two things in turn: it draws random numbers,
then it computes. Here they are two functions, `draw` and `loss`, because several processes that share a batch have to
draw the same numbers and compute on different parts of them. Called one after the other they are the notebook's
closure again: same weights at the start, same numbers in the same order, same curve.
Data lie on the device; the numbers are drawn on the processor, so that they are the same everywhere, and sent there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from course_utils.data.batches import CaptionedImages, to_float
from course_utils.diffusion.reverse import denoising_loss
from course_utils.diffusion.schedule import NoiseSchedule, logit_normal_timesteps, shift_timesteps
from course_utils.models.clip import CLIP, TextEncoder, contrastive_loss
from course_utils.models.tokenizer import Tokenizer
from course_utils.models.unet import UNet
from course_utils.models.vae import VAE, reparameterise, vae_loss
from course_utils.profiles import Budget, Profile
from course_utils.training.loop import History, autocast, train
from course_utils.training.moving import kept_near, moved
from course_utils.training.processes import gather

PREDICTION_TYPE = "v_prediction"


@dataclass(frozen=True)
class Recipe:
    """A network, and what one step of its training draws and computes.

    name: names the progress bar and the saved state.
    draw: generator -> CPU tensors, each with the whole batch in dimension 0; all randomness of the step.
    loss: (network, *batch) -> scalar, the mean over the batch it is given, whatever device that is on.
    budget: steps, batch size and learning rates.
    """

    name: str
    network: nn.Module
    draw: Callable[[torch.Generator], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    budget: Budget

    def __call__(self, generator: torch.Generator) -> Tensor:
        """The loss of one step, as `train` asks for it."""
        return self.loss(self.network, *self.draw(generator))


def train_recipe(recipe: Recipe, *, seed: int = 0, folder: str | Path | None = None, **options) -> History:
    """Train a recipe's network for its budget; options (preview, precision, accelerator, restart …) as in `train`."""
    budget = recipe.budget
    return train(
        recipe.network, recipe, steps=budget.steps, lr=budget.lr, muon_lr=budget.muon_lr,
        name=recipe.name, folder=folder, seed=seed, **options,
    )  # fmt: skip


def cosine_schedule() -> NoiseSchedule:
    """The noise schedule of the course's U-Net: 1,000 steps, cosine."""
    return NoiseSchedule.cosine(1000)


def resized(profile: Profile, image_size: int) -> Profile:
    """The profile for pictures of another side: CLIP's picture encoder is told; the other networks take any."""
    vision = replace(profile.clip.vision, image_size=image_size)
    return replace(profile, clip=replace(profile.clip, vision=vision))


def check_pictures(profile: Profile, data: CaptionedImages) -> None:
    """ValueError unless the networks of the profile can take these pictures."""
    height, width = data.images.shape[-2:]
    side, unit = profile.clip.vision.image_size, profile.vae.factor * profile.unet.factor
    if (height, width) != (side, side):
        raise ValueError(
            f"the pictures are {height}×{width}, but the profile's clip.vision.image_size is {side}: draw them at that "
            f"size, or use recipes.resized(profile, {height})"
        )
    if side % unit:
        raise ValueError(f"the pictures are {side}×{side}; VAE and U-Net of this profile need a multiple of {unit}")


def check_captions(captions: Sequence[str], tokenizer: Tokenizer) -> None:
    """ValueError if a caption would be cut: it would promise the network something that it cannot read."""
    lengths = {caption: len(tokenizer.tokenize(caption)) + 2 for caption in set(captions)}
    long = [caption for caption, length in lengths.items() if length > tokenizer.max_length]
    if long:
        longest = max(long, key=lengths.__getitem__)
        raise ValueError(
            f"{len(long)} of {len(lengths)} different captions are longer than max_length = {tokenizer.max_length} "
            f"tokens; the longest, {longest!r}, has {lengths[longest]} with start and end: set the profile's "
            f"clip.text.max_length to {lengths[longest]}, or shorten them"
        )


def vae_recipe(profile: Profile, data: CaptionedImages, *, seed: int = 0, device: str | torch.device = "cpu") -> Recipe:
    """Notebook 01's VAE. A step draws which pictures [B], and the noise of their latents [B, C, h, w].

    Raises:
        ValueError: the pictures' sides are no multiples of the VAE's factor.
    """
    factor, (height, width) = profile.vae.factor, data.images.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"the pictures are {height}×{width}; this VAE needs multiples of {factor}")
    batch_size, beta = profile.vae_budget.batch_size, profile.vae_beta
    shape = (batch_size, profile.vae.latent_channels, height // factor, width // factor)
    images = kept_near(data.images, torch.device(device))

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        chosen = torch.randint(len(data), (batch_size,), generator=generator)
        return chosen, torch.randn(shape, generator=generator) if beta > 0 else torch.zeros(shape)

    def loss(vae: VAE, chosen: Tensor, noise: Tensor) -> Tensor:
        x = to_float(images[moved(chosen, images.device)]).to(device_of(vae))
        cloud = vae.encode(x)
        z = reparameterise(cloud.mean, cloud.log_variance, moved(noise, x.device))  # without noise: the mean
        return vae_loss(x, vae.decode(z).float(), cloud.kl(), beta)

    return Recipe("vae", _seeded(lambda: VAE(profile.vae), seed).to(device), draw, loss, profile.vae_budget)


def train_tokenizer(profile: Profile, data: CaptionedImages) -> Tokenizer:
    """Notebook 04's tokenizer, learned from the captions."""
    return Tokenizer.train(data.captions, profile.vocab_size, max_length=profile.clip.text.max_length)


def background_groups(data: CaptionedImages) -> list[Tensor]:
    """Indices of the pictures of each background colour; no groups where colours are unknown."""
    colors = data.attributes[:, 1]
    return [(colors == color).nonzero()[:, 0] for color in colors[colors >= 0].unique()]


def clip_recipe(
    profile: Profile,
    data: CaptionedImages,
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    groups: Sequence[Tensor] | None = None,
) -> Recipe:
    """Notebook 04's CLIP. A step draws which pairs [B]; with several processes the loss compares all B of them.

    Every second batch, on average, comes from one of `groups` (tensors of indices), by default the pictures of one
    background colour; groups smaller than a batch are left out, and without any all batches are drawn from everything.

    Raises:
        ValueError: pictures of another size, captions that are too long, fewer pictures than a batch.
    """
    check_pictures(profile, data)
    check_captions(data.captions, tokenizer)
    batch_size = profile.clip_budget.batch_size
    if len(data) < batch_size:
        raise ValueError(f"a batch of {batch_size} different pairs needs as many pictures, there are {len(data)}")
    groups = [g for g in (background_groups(data) if groups is None else groups) if len(g) >= batch_size]
    config = replace(profile.clip, text=replace(profile.clip.text, vocab_size=len(tokenizer)))
    ids = tokenizer.encode(data.captions)  # [N, L]
    longest = int((ids != tokenizer.end_id).sum(dim=1).max()) + 1
    ids = ids[:, :longest].to(device)  # behind the end token nothing is read
    images = kept_near(data.images, torch.device(device))

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        among = torch.arange(len(data))
        if groups and torch.rand(1, generator=generator) < 0.5:
            among = groups[int(torch.randint(len(groups), (1,), generator=generator))]
        return (among[torch.randperm(len(among), generator=generator)[:batch_size]],)

    def loss(clip: CLIP, picks: Tensor) -> Tensor:
        x = to_float(images[moved(picks, images.device)]).to(device_of(clip))
        image_features = clip.encode_image(x).float()
        text_features = clip.encode_text(ids[moved(picks, ids.device)]).float()
        return contrastive_loss(gather(image_features), gather(text_features), clip.logit_scale)

    return Recipe("clip", _seeded(lambda: CLIP(config), seed).to(device), draw, loss, profile.clip_budget)


def unet_recipe(
    profile: Profile,
    latents: Tensor,
    states: Tensor,
    caption_of: Tensor,
    empty: Tensor,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Recipe:
    """Notebook 05's U-Net. A step draws which latents, t, noise, and whose caption is dropped: [B] but for the noise.

    It is `conditional_loss` cut in two.

    Args:
        latents: [N, C, h, w], scaled (`encode_latents`).
        states, caption_of, empty: [C, L, D], [N] and [1, L, D] (`caption_states`).

    Raises:
        ValueError: shapes that do not belong together or do not fit the U-Net.
    """
    config = profile.unet
    if (
        latents.ndim != 4
        or latents.shape[1] != config.latent_channels
        or any(s % config.factor for s in latents.shape[2:])
    ):
        raise ValueError(
            f"latents must be [N, {config.latent_channels}, h, w] with sides that are multiples of {config.factor}, "
            f"got {list(latents.shape)}"
        )
    if len(caption_of) != len(latents) or states.ndim != 3 or empty.shape != (1, *states.shape[1:]):
        raise ValueError(
            f"latents {list(latents.shape)} need caption_of [{len(latents)}], states [C, L, D] and empty [1, L, D], "
            f"got {list(caption_of.shape)}, {list(states.shape)} and {list(empty.shape)}"
        )
    if states.shape[2] != config.context_width:
        raise ValueError(
            f"the text's states are {states.shape[2]} wide, the U-Net reads {config.context_width}: set the profile's "
            "unet.context_width to clip.text.width"
        )
    there = torch.device(device)
    states, empty, caption_of = states.to(there), empty.to(there), caption_of.to(there)

    def words(chosen: Tensor, dropped: Tensor) -> Tensor:
        found = states[caption_of[chosen]].float()
        return torch.where(dropped[:, None, None], empty.to(found), found)  # [B, L, D]

    return denoising_recipe(profile, latents, _seeded(lambda: UNet(config), seed).to(there), words)


def denoising_recipe(
    profile: Profile, latents: Tensor, network: nn.Module, words: Callable[[Tensor, Tensor], Tensor]
) -> Recipe:
    """A network that reads, (x_t, t, words) -> prediction, trained on latents [N, C, h, w] with the U-Net's budget.

    words: (which latents, whose caption is dropped), both [B] -> what the network reads, all on the network's device.
    """
    there = device_of(network)
    latents, schedule = latents.to(there), cosine_schedule().to(there)
    batch_size, T = profile.unet_budget.batch_size, schedule.num_train_timesteps

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        chosen = torch.randint(len(latents), (batch_size,), generator=generator)
        t = shift_timesteps(logit_normal_timesteps(batch_size, generator, T), profile.timestep_shift, T)
        noise = torch.randn(batch_size, *latents.shape[1:], generator=generator)
        return chosen, t, noise, torch.rand(batch_size, generator=generator) < profile.condition_dropout

    def loss(network: nn.Module, chosen: Tensor, t: Tensor, noise: Tensor, dropped: Tensor) -> Tensor:
        chosen, t, noise, dropped = (moved(drawn, there) for drawn in (chosen, t, noise, dropped))
        context = words(chosen, dropped)
        return denoising_loss(
            lambda x_t, t: network(x_t, t, context), schedule, latents[chosen], t, noise, PREDICTION_TYPE
        )

    return Recipe("unet", network, draw, loss, profile.unet_budget)


def denoising_facts(profile: Profile) -> list[float | str]:
    """What a step of `denoising_recipe` has beyond the budget: a U-Net trained with other facts is another one."""
    return [profile.condition_dropout, "logit-normal", profile.timestep_shift]


@torch.no_grad()
def encode_latents(vae: VAE, data: CaptionedImages, precision: str = "auto") -> Tensor:
    """The scaled mean latents of all pictures, float32 [N, C, h, w] on the VAE's device, as notebook 05 makes them."""
    device = device_of(vae)
    with autocast(device.type, precision):
        parts = [vae.to_latents(to_float(part.to(device))).float() for part in data.images.split(256)]
    return torch.cat(parts)


@torch.no_grad()
def caption_states(
    encoder: TextEncoder, tokenizer: Tokenizer, captions: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """What the U-Net reads, encoded once: (states, caption_of, empty), on the encoder's device.

    states [C, L, D] in half precision, one for each of the C different captions; caption_of int64 [N] on the CPU, the
    row of each picture's caption; empty [1, L, D], the states of "", the condition of no condition.
    """
    check_captions(captions, tokenizer)
    device, different = device_of(encoder), sorted(set(captions))
    row = {text: i for i, text in enumerate(different)}
    chunks = [different[i : i + 512] for i in range(0, len(different), 512)]
    states = torch.cat([encoder(tokenizer.encode(chunk).to(device)).half() for chunk in chunks])
    caption_of = torch.tensor([row[text] for text in captions])
    return states, caption_of, encoder(tokenizer.encode("").to(device))


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network with the weights that follow `torch.manual_seed(seed)`; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
