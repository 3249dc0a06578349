"""What would break on a GPU, or keep it waiting, found without one: see `fake_gpu`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from course_utils.data.batches import CaptionedImages
from course_utils.diffusion.guidance import guided
from course_utils.diffusion.reverse import denoising_loss, elbo_terms
from course_utils.diffusion.samplers import noise_like, sample
from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.evaluation import metrics
from course_utils.models.clip import TextEncoder, contrastive_loss
from course_utils.models.denoisers import LatentDenoiser, NoiseReader, ToyDenoiser
from course_utils.models.unet import UNet
from course_utils.models.vae import VAE, vae_loss
from course_utils.profiles import PROFILES
from course_utils.training import loop, state
from course_utils.training.loop import train
from course_utils.training.recipes import Recipe, clip_recipe, unet_recipe, vae_recipe
from tests.unit.fake_gpu import CUDA, FakeGPU, fake_gpu
from tests.unit.tiny import PROFILE, SIZE, scenes

# All of it takes one to two minutes of processor time: `pytest -m slow tests/unit/test_fake_gpu.py` runs it.
pytestmark = pytest.mark.slow

WIDTH, LENGTH, SIDE, LATENT = 16, 32, SIZE, 4
RECIPES = ("vae", "clip", "unet")
STANDARD = NoiseSchedule.cosine(1000)


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
    """A recipe on the fake GPU."""
    if name == "vae":
        return vae_recipe(PROFILE, pictures(), device=CUDA)
    if name == "clip":
        return clip_recipe(PROFILE, pictures(), tokenizer, device=CUDA, groups=[])
    latents, states = torch.randn(64, 4, LATENT, LATENT), torch.randn(64, LENGTH, WIDTH).half()
    return unet_recipe(PROFILE, latents, states, torch.arange(64), states[:1].float(), device=CUDA)


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


# Devices


def draw_pictures(sampler: str) -> Tensor:
    """Guided sampling with noise from a CPU generator, then the decoder: all of a drawing but the tokenizer."""
    with torch.device(CUDA):
        unet, vae = UNet(PROFILE.unet).eval(), VAE(PROFILE.vae).eval()
        cond, uncond = torch.randn(2, LENGTH, WIDTH), torch.randn(1, LENGTH, WIDTH)
    generator = torch.Generator()
    schedule = STANDARD.to(CUDA)
    start = noise_like(torch.empty(2, 4, LATENT, LATENT, device=CUDA), generator)
    with torch.no_grad():
        *_, x_0 = sample(
            guided(unet, cond, uncond, 2.0), schedule, start, None, sampler=sampler, timesteps=[900, 500, 100],
            prediction_type="v_prediction", generator=generator,
        )  # fmt: skip
        return vae.from_latents(x_0)


def see(network: nn.Module, *given: Tensor) -> Tensor:
    """A forward and backward pass on the GPU."""
    made = network(*given)
    made.float().mean().backward()
    assert all(p.grad is None or p.grad.is_cuda for p in network.parameters())
    return made


def on_gpu(*shape: int) -> Tensor:
    return torch.randn(shape, device=CUDA)


def times(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.int64, device=CUDA)


NETWORKS: dict[str, Callable[[], Tensor]] = {
    "denoiser of notebook 03": lambda: see(LatentDenoiser(1000).to(CUDA), on_gpu(2, 4, 8, 8), times(2)),
    "toy": lambda: see(ToyDenoiser(1000).to(CUDA), on_gpu(5, 2), times(5)),
    "reader of noise": lambda: see(NoiseReader().to(CUDA), on_gpu(2, 4, 8, 8)),
    "text encoder": lambda: see(TextEncoder(PROFILE.clip.text).to(CUDA), times(2 * LENGTH).reshape(2, LENGTH)),
    "U-Net of the gpu profile": lambda: see(
        UNet(PROFILES["gpu"].unet).to(CUDA), on_gpu(2, 4, 8, 8), times(2), on_gpu(2, 16, 128)
    ),
    "VAE of the gpu profile": lambda: see(VAE(PROFILES["gpu"].vae).to(CUDA).decoder, on_gpu(2, 4, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_runs_there(gpu, name):
    assert NETWORKS[name]().is_cuda


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_every_sampler_runs_there(gpu, sampler):
    made = draw_pictures(sampler)
    assert made.is_cuda and made.shape == (2, 3, SIDE, SIDE)


def test_losses_bounds_and_measures_run_there(gpu):
    schedule, x_0 = STANDARD, on_gpu(3, 4, 8, 8)
    for prediction in ("epsilon", "sample", "v_prediction"):
        loss = denoising_loss(lambda x, t: 0.5 * x, schedule, x_0, times(3), on_gpu(3, 4, 8, 8), prediction)
        assert loss.is_cuda
    assert elbo_terms(lambda x, t: x, schedule, x_0, times(3), on_gpu(3, 4, 8, 8)).is_cuda
    x = on_gpu(3, 3, 8, 8)
    assert metrics.psnr(x, x).is_cuda and vae_loss(x, x, x.flatten(1).sum(1), 0.1).is_cuda
    assert contrastive_loss(on_gpu(3, 5), on_gpu(3, 5), on_gpu()).is_cuda
    metrics.retrieval_accuracy(on_gpu(3, 5), on_gpu(3, 5))
    metrics.nearest(x, torch.zeros(7, 3, 8, 8, dtype=torch.uint8))
    metrics.prompt_accuracy(times(8).reshape(2, 4), torch.zeros(2, 4, dtype=torch.int64))


@pytest.mark.parametrize("name", RECIPES)
def test_training_needs_no_float64(tokenizer, name, monkeypatch):
    """Apple's GPUs have none. (PyTorch's own scaler of fp16 losses spares them, too, so float32 is what counts.)"""
    with fake_gpu(monkeypatch, refused=torch.float64) as gpu:
        steps_and_waits(gpu, recipe(name, tokenizer), 2, precision="float32")


def test_drawing_needs_no_float64(monkeypatch):
    with fake_gpu(monkeypatch, refused=torch.float64):
        draw_pictures("ddpm")


# Planted errors


def planted_in_recipe(name: str, spoil: Callable[[Recipe], object]) -> Callable:
    """A mistake made in a recipe or its network, then the course's own loop in float32: autocast spares what lies on
    the CPU, and the complaint would be of float16 beside float32."""

    def run(gpu, tokenizer, monkeypatch):
        made = recipe(name, tokenizer)
        return steps_and_waits(gpu, spoil(made) or made, 2, precision="float32")

    return run


def planted(name: str, module: str, attribute: str, make: Callable) -> Callable:
    """A function of the course replaced by one with a mistake: `make(old)`; then the recipe `name`, or "drawing"."""

    def run(gpu, tokenizer, monkeypatch):
        place = importlib.import_module(f"course_utils.{module}")
        owner, _, last = attribute.rpartition(".")
        owner = getattr(place, owner) if owner else place
        monkeypatch.setattr(owner, last, make(getattr(owner, last)))
        if name == "drawing":
            draw_pictures("ddpm")
            return []
        return steps_and_waits(gpu, recipe(name, tokenizer), 2, precision="fp16")

    return run


def old_step(optimizers, scaler, parameters, clip_norm):
    """Looks at the length of the gradient, as the loop once did."""
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    if nn.utils.clip_grad_norm_(parameters, clip_norm).isfinite():
        for optimizer in optimizers:
            scaler.step(optimizer)
    scaler.update()


def looking(loss: Callable, look: Callable[[Tensor], object]) -> Callable:
    def looked(*args):
        value = loss(*args)
        look(value)
        return value

    return looked


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    return values[where].mean()


PLANTED: dict[str, Callable] = {
    "a mask made on the CPU": planted("clip", "models.clip", "causal_mask", lambda old: lambda n, device=None: old(n)),
    "a table left on the CPU": planted(
        "unet", "diffusion.schedule", "extract",
        lambda old: lambda table, index, like=None: old(table.cpu(), index, like).cpu(),
    ),
    "waves counted on the CPU": planted(
        "unet", "models.unet", "timestep_embedding", lambda old: lambda t, dim: old(t, dim) * torch.ones(dim)
    ),
    "right answers on the CPU": planted(
        "clip", "training.recipes", "contrastive_loss",
        lambda old: lambda a, b, scale: nn.functional.cross_entropy(scale * a @ b.T, torch.arange(len(a))),
    ),
    "noise that stays on the CPU": planted("vae", "training.recipes", "moved", lambda old: lambda x, device: x),
    "a copy that is waited for": planted("vae", "training.recipes", "moved", lambda old: torch.Tensor.to),
    "a copy from memory that is not page-locked": planted(
        "unet", "training.recipes", "moved", lambda old: lambda x, device: x.to(device, non_blocking=True)
    ),
    "pictures left on the CPU": planted("vae", "training.recipes", "kept_near", lambda old: lambda x, device: x),
    "a CPU generator asked for the GPU's noise": planted(
        "drawing", "diffusion.samplers", "noise_like",
        lambda old: lambda x, generator: torch.randn(x.shape, generator=generator, device=x.device),
    ),
    "float64 where there is none": planted(
        "unet", "diffusion.schedule", "extract", lambda old: lambda *given: old(*given).double()
    ),
    "a part of the network not moved": planted_in_recipe("vae", lambda made: made.network.decoder.to("cpu") and None),
    "a vector that is no buffer": planted(
        "vae", "models.vae", "VAE.decode", lambda old: lambda self, z: old(self, z + torch.zeros(z.shape[-1]))
    ),
    "momentum on the CPU": planted(
        "vae", "training.muon", "Muon.__init__",
        lambda old: lambda self, params, **options: (
            old(self, params, **options),
            self.state.update({p: {"momentum": torch.zeros(p.shape)} for p in self.param_groups[0]["params"]}),
        )[0],
    ),
    "an average on the CPU": planted(
        "clip", "training.loop", "update_ema", lambda old: lambda average, *given: old(average.to("cpu"), *given)
    ),
    "an overflow told on the CPU": planted(
        "vae", "training.steps", "step_unless", lambda old: lambda overflow, optimizers: old(overflow.cpu(), optimizers)
    ),
    "a look at the gradient's length": planted("vae", "training.loop", "step_optimizers", lambda old: old_step),
    "a loss read in each step": planted("clip", "training.loop", "READ_EVERY", lambda old: 1),
    "a number printed": planted(
        "vae", "training.recipes", "vae_loss", lambda old: looking(old, lambda loss: f"{loss.item():.3f}")
    ),
    "a branch on a number": planted(
        "unet", "training.recipes", "denoising_loss", lambda old: looking(old, lambda loss: bool(loss > 1))
    ),
    "numbers chosen by a mask": planted(
        "vae", "training.recipes", "vae_loss",
        lambda old: lambda x, y, kl, beta: old(x, y, kl, beta) + mean_where(kl, kl > 0),
    ),
    "a time checked by its value": planted(
        "unet", "diffusion.schedule", "NoiseSchedule.check_t",
        lambda old: lambda self, t, *more: (old(self, t, *more), isinstance(t, Tensor) and int(t.max()))[0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_errors_are_found(kind, tokenizer, monkeypatch):
    """Each is refused, as it would be on a GPU, or makes Python wait in a step that has nothing to read."""
    refused = torch.float64 if "float64" in kind else None
    with fake_gpu(monkeypatch, refused) as gpu:
        try:
            each = PLANTED[kind](gpu, tokenizer, monkeypatch)
        except (RuntimeError, TypeError, ValueError) as error:
            assert any(word in str(error).lower() for word in ("device", "cpu")), error
            return
    assert each and each[0], f"{kind}: nothing was refused, and the first step did not wait"


# A saved state


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_state_saved_anywhere_goes_on_there(gpu, tokenizer, tmp_path, monkeypatch, precision):
    """What is stored lies on the CPU; taken up on a GPU, every optimiser has its own part there."""
    stored: dict = {}

    def write(path, tensors, metadata):
        stored["tensors"], stored["metadata"] = {k: v.detach().cpu() for k, v in tensors.items()}, metadata
        path.touch()

    class File:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def keys(self):
            return stored["tensors"].keys()

        def get_tensor(self, key):
            return stored["tensors"][key]

        def metadata(self):
            return stored["metadata"]

    monkeypatch.setattr(state, "write_safely", write)
    monkeypatch.setattr(state, "safe_open", lambda path, kind: File())
    options = {"steps": 4, "lr": 1e-3, "muon_lr": 0.02, "precision": precision, "folder": tmp_path, "save_seconds": 0}
    made, calls = recipe("vae", tokenizer), []

    def stops(generator):
        calls.append(1)
        if len(calls) == 3:
            raise SystemExit
        return made(generator)

    with pytest.raises(SystemExit):
        train(made.network, stops, **options)
    assert {v.device.type for v in stored["tensors"].values()} == {"cpu"}
    seen: list = []
    make = loop.make_optimizers
    monkeypatch.setattr(loop, "make_optimizers", lambda *given: seen.extend(make(*given)) or list(seen))
    again = recipe("vae", tokenizer)
    assert len(train(again.network, again, **options).losses) >= 2
    devices = {v.device.type for o in seen for held in o.state.values() for v in held.values()}
    assert len(seen) == 2 and devices == {"cuda"}
