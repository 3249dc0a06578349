"""The three networks of a profile before any training: the same on every device, in every precision, and how fast."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.data.batches import CaptionedImages
from course_utils.models.tokenizer import Tokenizer
from course_utils.profiles import Profile
from course_utils.training.compiling import compiled
from course_utils.training.loop import autocast, best_precision, train
from course_utils.training.moving import moved
from course_utils.training.recipes import Recipe, clip_recipe, unet_recipe, vae_recipe
from course_utils.trial.stopwatch import Waits, finish, peak_memory, time_steps

PRECISIONS = ("float32", "bf16", "fp16")
SCALE = 1024.0  # of the loss in fp16, where small gradients would be lost
# How far loss and gradient may be from those in float32 on the processor: relative error, and 1 - cosine.
LIMITS = {"float32": (2e-3, 2e-3), "bf16": (3e-2, 3e-2), "fp16": (1e-2, 1e-2)}


def untrained_recipe(
    name: str, profile: Profile, data: CaptionedImages, tokenizer: Tokenizer, device: torch.device, seed: int = 0
) -> Recipe:
    """A part's recipe; the U-Net's latents and captions are noise, unit-sized as the real ones are."""
    if name == "vae":
        return vae_recipe(profile, data, seed=seed, device=device)
    if name == "clip":
        return clip_recipe(profile, data, tokenizer, seed=seed, device=device)
    generator = torch.Generator().manual_seed(seed)
    side, n = profile.clip.vision.image_size // profile.vae.factor, min(len(data), 2048)
    latents = torch.randn(n, profile.unet.latent_channels, side, side, generator=generator)
    words = torch.randn(n, profile.clip.text.max_length, profile.unet.context_width, generator=generator)
    return unet_recipe(profile, latents, words.half(), torch.arange(n), words[:1], seed=seed, device=device)


def loss_and_gradient(recipe: Recipe, precision: str, rows: int) -> tuple[float, Tensor]:
    """Loss and gradient (one vector, float32 on the CPU) of the first rows of a batch that is always the same."""
    device = next(recipe.network.parameters()).device
    batch = [drawn[:rows] for drawn in recipe.draw(torch.Generator().manual_seed(5))]
    scale = SCALE if precision == "fp16" else 1.0
    recipe.network.zero_grad(set_to_none=True)
    with autocast(device.type, precision):
        loss = recipe.loss(recipe.network, *batch)
    (scale * loss).backward()
    gradients = [p.grad.flatten().float().cpu() / scale for p in recipe.network.parameters() if p.grad is not None]
    recipe.network.zero_grad(set_to_none=True)
    return loss.item(), torch.cat(gradients)


def parity(recipe: Recipe, reference: Recipe, rows: int = 8) -> dict[str, Any]:
    """Each precision on the recipe's device beside float32 on the CPU: losses, how far off, and whether that is near.

    reference: the same recipe for the CPU.
    """
    expected, gradient = loss_and_gradient(reference, "float32", rows)
    found: dict[str, Any] = {"cpu_float32_loss": expected}
    for precision in PRECISIONS:
        loss, other = loss_and_gradient(recipe, precision, rows)
        off = abs(loss - expected) / abs(expected)
        turned = 1 - torch.cosine_similarity(gradient.double(), other.double(), dim=0).item()
        longer = (other.norm() / gradient.norm()).item()
        near = off <= LIMITS[precision][0] and turned <= LIMITS[precision][1] and abs(longer - 1) < 0.1
        found[precision] = {
            "loss": loss, "relative_error": off, "one_minus_cosine": turned, "length_ratio": longer, "near": near
        }  # fmt: skip
    found["near"] = all(found[precision]["near"] for precision in PRECISIONS)
    return found


def plain_step(recipe: Recipe, precision: str) -> Callable[[], object]:
    """Loss, gradients and fused AdamW on one batch, and nothing else: what a training step costs at least."""
    network = recipe.network.train()
    device = next(network.parameters()).device
    batch = [moved(drawn, device) for drawn in recipe.draw(torch.Generator().manual_seed(0))]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=device.type != "mps")

    def step() -> None:
        with autocast(device.type, precision):
            loss = recipe.loss(network, *batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # fp16 too: nothing is learned here
        optimizer.step()

    return step


@contextmanager
def channels_last(network: nn.Module) -> Iterator[None]:
    """The network's convolutions with their channels last in memory, as tensor cores read them, for a while."""
    network.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        network.to(memory_format=torch.contiguous_format)


def course_step(recipe: Recipe, precision: str, steps: int) -> dict[str, Any]:
    """The course's own loop for so many steps: batches, Muon, clipping, the moving average, the bar; and its waits.

    Waits are counted in 10 of the first steps, of which the GPU's losses are not read, and the steps after those are
    timed; where there are too few for that, all of them.
    """
    device = next(recipe.network.parameters()).device
    counted, waits, marks = range(5, 15), Waits(device), []
    calls = 0

    def loss(generator: torch.Generator) -> Tensor:
        nonlocal calls
        if calls == counted.start and steps > counted.stop:
            waits.start()
        if calls == counted.stop:
            waits.stop()
        if calls in (counted.stop, steps - 1):
            finish(device)
            marks.append(time.perf_counter())
        calls += 1
        return recipe(generator)

    budget = recipe.budget
    with peak_memory(device) as memory, redirect_stdout(io.StringIO()):
        history = train(
            recipe.network, loss, steps=steps, lr=budget.lr, muon_lr=budget.muon_lr, name=recipe.name,
            precision=precision,
        )  # fmt: skip
    timed = steps - 1 - counted.stop
    each = (marks[1] - marks[0]) / timed if timed > 0 else history.seconds / steps
    return {
        "ms": round(1000 * each, 3), "steps": steps, "pictures_per_second": round(budget.batch_size / each, 1),
        "waits_in_10_steps": waits.count if timed > 0 else None, "waits_where": waits.where,
        "loss": [history.losses[0], history.losses[-1]], **memory,
    }  # fmt: skip


def tried(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, or why it was not: one way that fails says nothing about the others."""
    try:
        return measure()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def step_times(recipe: Recipe, seconds: float, with_compiler: bool) -> dict[str, Any]:
    """Times of a training step by way of taking it, such as "plain bf16"; the network is afterwards what it was."""
    network, device = recipe.network, next(recipe.network.parameters()).device
    best, weights = best_precision(device.type), copy.deepcopy(recipe.network.state_dict())
    found: dict[str, Any] = {}

    def plain(precision: str) -> dict[str, Any]:
        return time_steps(plain_step(recipe, precision), device, seconds)

    def course(precision: str) -> dict[str, Any]:
        each = found[f"plain {best}"].get("ms", 1000 * seconds) / 1000
        network.load_state_dict(weights)
        return course_step(recipe, precision, min(200, max(4, round(seconds / each))))

    for precision in dict.fromkeys(("float32", best)):
        found[f"plain {precision}"] = tried(lambda p=precision: plain(p))  # type: ignore[misc]
    if recipe.name != "clip":
        with channels_last(network):
            found[f"channels last {best}"] = tried(lambda: plain(best))
    found[f"course {best}"] = tried(lambda: course(best))
    if device.type == "cuda" and best != "fp16":  # as on a T4, with its scaler
        found["course fp16"] = tried(lambda: course("fp16"))
    if with_compiler:
        with compiled(network):
            found[f"compiled {best}"] = tried(lambda: plain(best))
            found[f"course compiled {best}"] = tried(lambda: course(best))
    network.load_state_dict(weights)
    return found
