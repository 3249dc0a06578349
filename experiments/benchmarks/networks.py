"""The three networks of the course, each beside the same one out of diffusers or transformers.

Same config, same weights (renamed by `course_utils.weights`), same batch, same loss; losses and batches are those of
notebooks 01, 04 and 05. The other library is imported only when its network is made.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Run, timed
from course_utils.data.batches import CaptionedImages
from course_utils.diffusion import NoiseSchedule, denoising_loss, logit_normal_timesteps
from course_utils.diffusion.guidance import drop_condition
from course_utils.models.clip import CLIP, contrastive_loss
from course_utils.models.tokenizer import Tokenizer
from course_utils.models.unet import UNet
from course_utils.models.vae import VAE, vae_loss
from course_utils.profiles import Budget, Profile
from course_utils.training.loop import autocast, train
from course_utils.weights.compare import relative_error
from course_utils.weights.diffusers import (
    unet_config_to_diffusers,
    unet_to_diffusers,
    vae_config_to_diffusers,
    vae_to_diffusers,
)
from course_utils.weights.transformers import clip_config_to_transformers, clip_to_transformers

RATE = 1e-6  # learning rate: it costs what a real one costs, and every round does the same work
Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Network:
    """A network, its twin, and how both are trained.

    make_ours, make_theirs: build the network; the same weights each time.
    batch: draws a batch as the notebook's loss does.  our_loss, their_loss: (network, batch, generator) -> scalar.
    """

    name: str
    library: str
    budget: Budget
    make_ours: Callable[[], nn.Module]
    make_theirs: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    our_loss: Callable[[Any, Batch, torch.Generator], Tensor]
    their_loss: Callable[[Any, Batch, torch.Generator], Tensor]


def vae_network(profile: Profile) -> Network:
    """Notebook 01: squared error and β · KL of pictures, encoded, sampled and decoded."""
    scenes = CaptionedImages.scenes(profile.test_scenes)

    def ours() -> VAE:
        torch.manual_seed(0)
        return VAE(profile.vae)

    def theirs() -> nn.Module:
        from diffusers import AutoencoderKL

        model = AutoencoderKL(**vae_config_to_diffusers(profile.vae))
        model.load_state_dict(vae_to_diffusers(ours().state_dict()))
        return model

    def batch(generator: torch.Generator) -> Batch:
        chosen = torch.randint(len(scenes), (profile.vae_budget.batch_size,), generator=generator)
        return (scenes.batch(chosen)[0],)

    def our_loss(model: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        (x,) = batch
        cloud = model.encode(x)
        return vae_loss(x, model.decode(cloud.sample(generator)).float(), cloud.kl(), profile.vae_beta)

    def their_loss(model: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        (x,) = batch
        cloud = model.encode(x).latent_dist
        return vae_loss(x, model.decode(cloud.sample(generator)).sample.float(), cloud.kl(), profile.vae_beta)

    return Network("VAE", "diffusers", profile.vae_budget, ours, theirs, batch, our_loss, their_loss)


def clip_network(profile: Profile) -> Network:
    """Notebook 04: the contrastive loss of pictures and their captions."""
    scenes = CaptionedImages.scenes(profile.test_scenes, size=profile.clip.vision.image_size)
    tokenizer = Tokenizer.train(scenes.captions, profile.vocab_size, max_length=profile.clip.text.max_length)
    ids = tokenizer.encode(scenes.captions)
    ids = ids[:, : int((ids != tokenizer.end_id).sum(dim=1).max()) + 1]

    def ours() -> CLIP:
        torch.manual_seed(0)
        return CLIP(profile.clip)

    def theirs() -> nn.Module:
        from transformers import CLIPConfig, CLIPModel

        model = CLIPModel(CLIPConfig(**clip_config_to_transformers(profile.clip, tokenizer.end_id)))
        model.load_state_dict(clip_to_transformers(ours().state_dict()))
        return model

    def batch(generator: torch.Generator) -> Batch:
        chosen = torch.randperm(len(scenes), generator=generator)[: profile.clip_budget.batch_size]
        return scenes.batch(chosen)[0], ids[chosen]

    def our_loss(model: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        images, texts = model.encode_image(batch[0]), model.encode_text(batch[1])
        return contrastive_loss(images.float(), texts.float(), model.logit_scale)

    def their_loss(model: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        made = model(pixel_values=batch[0], input_ids=batch[1])
        return contrastive_loss(made.image_embeds.float(), made.text_embeds.float(), model.logit_scale)

    return Network("CLIP", "transformers", profile.clip_budget, ours, theirs, batch, our_loss, their_loss)


def unet_network(profile: Profile) -> Network:
    """Notebook 05: squared error of v on cached latents and text states, a tenth of the conditions dropped.

    Latents and states are normal noise here, unit-sized as the real ones are; the time does not depend on them.
    """
    generator = torch.Generator().manual_seed(0)
    side = profile.clip.vision.image_size // profile.vae.factor
    latents = torch.randn(profile.test_scenes, profile.unet.latent_channels, side, side, generator=generator)
    words = (profile.test_scenes, profile.clip.text.max_length, profile.unet.context_width)
    states = torch.randn(words, generator=generator).half()
    empty = states[:1].float()
    schedule = NoiseSchedule.cosine(1000)

    def ours() -> UNet:
        torch.manual_seed(0)
        return UNet(profile.unet)

    def theirs() -> nn.Module:
        from diffusers import UNet2DConditionModel

        model = UNet2DConditionModel(**unet_config_to_diffusers(profile.unet, side))
        model.load_state_dict(unet_to_diffusers(ours().state_dict()))
        return model

    def batch(generator: torch.Generator) -> Batch:
        size = profile.unet_budget.batch_size
        chosen = torch.randint(len(latents), (size,), generator=generator)
        t = logit_normal_timesteps(size, generator)
        noise = torch.randn(size, *latents.shape[1:], generator=generator)
        context = drop_condition(states[chosen].float(), empty, profile.condition_dropout, generator)
        return latents[chosen], t, noise, context

    def our_loss(model: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        x_0, t, noise, context = batch
        return denoising_loss(lambda x_t, t: model(x_t, t, context), schedule, x_0, t, noise, "v_prediction")

    def their_loss(model: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        x_0, t, noise, context = batch
        return denoising_loss(lambda x_t, t: model(x_t, t, context).sample, schedule, x_0, t, noise, "v_prediction")

    return Network("U-Net", "diffusers", profile.unet_budget, ours, theirs, batch, our_loss, their_loss)


NETWORKS: dict[str, Callable[[Profile], Network]] = {"vae": vae_network, "clip": clip_network, "unet": unet_network}
SIDES = ("ours", "theirs", "course")


def trainer(network: Network, side: str, precision: str) -> Run:
    """A fresh network as something that takes n training steps and says how many seconds they took.

    "ours" and "theirs" take plain steps on one batch: loss, gradients, fused AdamW, nothing else. "course" is the
    course's own loop, `train`, with all that notebooks have in it: drawing the batch, Muon beside AdamW, clipped
    gradients, the moving average, the progress bar.
    """
    if side == "course":
        return course_trainer(network, precision)
    model = network.make_ours() if side == "ours" else network.make_theirs()
    loss = network.our_loss if side == "ours" else network.their_loss
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=RATE, fused=True)
    generator = torch.Generator().manual_seed(0)
    batch = network.batch(generator)

    def step() -> None:
        with autocast("cpu", precision):
            value = loss(model, batch, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return timed(step)


def course_trainer(network: Network, precision: str) -> Run:
    """The same for the course's own loop; it is timed by itself, from its first step to its last."""
    model = network.make_ours()
    muon_rate = None if network.budget.muon_lr is None else RATE

    def loss(generator: torch.Generator) -> Tensor:
        return network.our_loss(model, network.batch(generator), generator)

    def run(steps: int) -> float:
        with redirect_stdout(io.StringIO()):
            return train(model, loss, steps=steps, lr=RATE, muon_lr=muon_rate, precision=precision).seconds

    return run


def check_same(network: Network, tolerance: float = 1e-3) -> None:
    """Raise RuntimeError unless both networks give the same loss and gradients of the same size (float32)."""
    found = []
    for make, loss in ((network.make_ours, network.our_loss), (network.make_theirs, network.their_loss)):
        model, generator = make().train(), torch.Generator().manual_seed(0)
        value = loss(model, network.batch(generator), generator)
        value.backward()
        sizes = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        found.append(torch.stack([value.detach(), torch.stack(sizes).norm()]))
    error = max(relative_error(a, b) for a, b in zip(found[0].split(1), found[1].split(1), strict=True))
    if error > tolerance:
        raise RuntimeError(
            f"{network.name}: loss and gradient norm are {found[0].tolist()} here and {found[1].tolist()} in "
            f"{network.library}: this is not the same network, so their speeds cannot be compared"
        )
