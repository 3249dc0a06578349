"""What each of several processes does in test_distributed.py: `torchrun … distributed_worker.py FOLDER`.

Every process writes process<i>.json, and its networks' weights, into the folder.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from course_utils.training import processes, recipes
from course_utils.training.loop import TrainingDiverged, train
from course_utils.training.parts import train_parts
from course_utils.training.recipes import Recipe, train_recipe
from tests.unit.tiny import BATCH, PROFILE, recipe, scenes

INTERRUPTED_AT = 3  # steps that are done by then


def in_step(recipe: Recipe, step: int, act) -> Recipe:
    """The recipe with its loss passed through `act` in one step."""
    calls = []

    def loss(network, *batch):
        calls.append(len(batch[0]))
        value = recipe.loss(network, *batch)
        return act(value) if len(calls) == step + 1 else value

    return replace(recipe, loss=loss)


def interrupt(value: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGINT)
    return value


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    data, me = scenes(), accelerator.process_index
    options = {"accelerator": accelerator, "precision": "float32"}
    found: dict = {"processes": accelerator.num_processes}

    def weights(name: str, network: torch.nn.Module) -> None:
        save_file(network.state_dict(), folder / f"{name}.process{me}.safetensors")

    previewed: list[int] = []
    printed = io.StringIO()
    for name in ("vae", "clip", "unet"):
        one = recipe(name, data)
        with redirect_stdout(printed):
            history = train_recipe(one, preview=lambda step, *_: previewed.append(step), previews=2, **options)
        found[name] = history.losses
        weights(name, one.network)
    found["previewed"], found["printed"] = previewed, printed.getvalue()

    parts = train_parts(PROFILE, data, folder=folder / "parts", **options)
    found["parts"], found["scale"] = parts.losses, parts.vae.latent_scale.item()
    again = train_parts(PROFILE, data, folder=folder / "parts", which=("unet",), given=parts, **options)
    found["trained again"] = list(again.losses)

    one = recipe("clip", data)  # the gradient of a single batch
    batch = one.draw(torch.Generator().manual_seed(1))
    loss_of_part = processes.divide(one.network, one, accelerator)
    loss_of_part(torch.Generator().manual_seed(1)).backward()
    save_file({k: p.grad for k, p in one.network.named_parameters()}, folder / f"gradients.process{me}.safetensors")
    found["part"] = [len(t) for t in processes.own_part(batch, accelerator)]

    for name, step in (("vae", 2), ("unet", 2)):  # an interrupt reaches one process: all stop, and one saves
        one = recipe(name, data)
        one = in_step(one, step, interrupt) if me == 1 else one
        try:
            train_recipe(one, folder=folder / "stopped_by_two", **options)
        except KeyboardInterrupt:
            found[f"{name} stopped"] = True

    one = recipe("vae", data)  # a state that one process has left
    found["vae continued"] = train_recipe(one, folder=folder / "stopped_by_one", **options).losses
    weights("vae_continued", one.network)

    one = recipe("vae", data)
    one = in_step(one, 2, lambda value: value * float("nan")) if me == 1 else one
    try:
        train_recipe(one, **options)
    except TrainingDiverged as error:
        found["diverged"] = str(error)

    states = folder / f"seen_by_{me}_alone"  # not one folder for all
    if me == 0:
        states.mkdir()
        (states / "vae.safetensors").write_bytes((folder / "stopped_by_one_copy" / "vae.safetensors").read_bytes())
    try:
        train_recipe(recipe("vae", data), folder=states, **options)
    except ValueError as error:
        found["other states"] = str(error)

    uneven = replace(PROFILE, vae_budget=replace(PROFILE.vae_budget, batch_size=BATCH + 1))
    for key, call in {
        "uneven": lambda: train_recipe(recipe("vae", data, uneven), **options),
        "plain": lambda: train(one.network, lambda generator: None, steps=1, lr=1e-3, **options),
    }.items():
        try:
            call()
        except (ValueError, TypeError) as error:
            found[key] = str(error)

    # Two mistakes that must not go unseen.
    right, processes.own_part = processes.own_part, lambda batch, a: tuple(t.chunk(a.num_processes)[0] for t in batch)
    found["vae, both on the first part"] = train_recipe(recipe("vae", data), **options).losses
    processes.own_part, recipes.gather = right, lambda x: x
    found["clip, each on its own pairs"] = train_recipe(recipe("clip", data), **options).losses

    (folder / f"process{me}.json").write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
