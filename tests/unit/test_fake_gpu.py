"""What would break on a GPU, or keep it waiting, found without one: see `fake_gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from course_utils.data.batches import CaptionedImages
from course_utils.diffusion.exact import gaussian_mixture_denoiser
from course_utils.diffusion.guidance import guided
from course_utils.diffusion.reverse import denoising_loss, elbo_terms
from course_utils.diffusion.samplers import noise_like, sample
from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.evaluation import metrics
from course_utils.evaluation.judge import Judge
from course_utils.models.clip import CLIP, TextEncoder, contrastive_loss
from course_utils.models.denoisers import LatentDenoiser, NoiseReader, ToyDenoiser
from course_utils.models.unet import UNet
from course_utils.models.vae import VAE, vae_loss
from course_utils.training import loop
from course_utils.training.loop import train
from course_utils.training.profiles import PROFILES
from course_utils.training.recipes import Recipe, clip_recipe, unet_recipe, vae_recipe
from tests.unit.fake_gpu import CUDA, FakeGPU, fake_gpu
from tests.unit.tiny import BATCH, PROFILE, SIZE, scenes

WIDTH, LENGTH, SIDE, LATENT = 16, 32, SIZE, 4
RECIPES = ("vae", "clip", "unet")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    with fake_gpu(monkeypatch) as found:
        yield found


@pytest.fixture(scope="module")
def tokenizer():
    from course_utils.training.recipes import train_tokenizer

    return train_tokenizer(PROFILE, scenes())


def pictures(n: int = 64) -> CaptionedImages:
    """A picture set without pictures; its captions are all the same one."""
    images = torch.zeros(n, 3, SIDE, SIDE, dtype=torch.uint8)
    return CaptionedImages(images, ["a dog on a red background"] * n)


def recipe(name: str, tokenizer) -> Recipe:
    """A recipe on the fake GPU. A fake CPU tensor says 0 to all questions: so the tokenizer's ids are made here."""
    if name == "vae":
        return vae_recipe(PROFILE, pictures(), device=CUDA)
    if name == "clip":
        return clip_recipe(PROFILE, pictures(), FakeIds(tokenizer), device=CUDA, groups=[])
    latents, states = torch.randn(64, 4, LATENT, LATENT), torch.randn(64, LENGTH, WIDTH).half()
    return unet_recipe(PROFILE, latents, states, torch.arange(64), states[:1].float(), device=CUDA)


class FakeIds:
    """A tokenizer whose ids have a shape and no values."""

    def __init__(self, tokenizer):
        self.tokenizer, self.max_length, self.end_id = tokenizer, LENGTH, 1

    def __len__(self) -> int:
        return len(self.tokenizer)

    def tokenize(self, text: str) -> list:
        return self.tokenizer.tokenize(text)

    def encode(self, captions: list[str]) -> Tensor:
        return torch.zeros(len(captions), LENGTH, dtype=torch.int64)


def steps_and_waits(gpu: FakeGPU, made: Recipe, steps: int, **options) -> list[list[str]]:
    """The waits of each step, from its loss to the next one's, of the course's own loop."""
    marks = []

    def loss(generator):
        marks.append(len(gpu.waits))
        return made(generator)

    budget = made.budget
    train(made.network, loss, steps=steps, lr=budget.lr, muon_lr=budget.muon_lr, **options)
    return [gpu.waits[a:b] for a, b in zip(marks, [*marks[1:], len(gpu.waits)], strict=True)]


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("name", RECIPES)
def test_no_step_waits_between_two_looks_at_the_losses(gpu, tokenizer, name, precision, monkeypatch):
    monkeypatch.setattr(loop, "READ_EVERY", 3)
    each = steps_and_waits(gpu, recipe(name, tokenizer), 8, precision=precision)
    assert [step for step, waits in enumerate(each) if waits] == [2, 5, 7]  # after three losses, and at the end
    assert all(wait.endswith(" in read") for waits in each for wait in waits), gpu.waits


def test_a_wait_in_each_step_would_be_seen(gpu, tokenizer):
    made = recipe("vae", tokenizer)
    spied = replace(made, loss=lambda network, *batch: made.loss(network, *batch) * made.loss(network, *batch).item())
    each = steps_and_waits(gpu, spied, 4, precision="float32")
    assert all(any("<lambda>" in wait for wait in waits) for waits in each)


def test_saving_and_previews_read_the_losses_first(gpu, tokenizer, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "save_state", lambda *args: seen.append(("saved", args[2], len(args[-1].losses))))
    made = recipe("vae", tokenizer)
    train(
        made.network, made, steps=6, lr=1e-3, precision="float32", folder=tmp_path, save_seconds=0, previews=2,
        preview=lambda step, model, losses: seen.append(("shown", step, len(losses))),
    )  # fmt: skip
    assert ("shown", 3, 3) in seen and ("shown", 6, 6) in seen and ("saved", 2, 2) in seen
    assert all(step == losses for _, step, losses in seen)
