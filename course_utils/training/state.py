"""The whole state of a training run in one safetensors file: no pickle, written beside and then moved into place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

from course_utils.weights.artifacts import write_safely

if TYPE_CHECKING:
    from course_utils.training.loop import History


def save_state(
    path: Path,
    settings: dict,
    step: int,
    model: nn.Module,
    average: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    generator: torch.Generator,
    scaler: torch.amp.GradScaler,
    history: History,
) -> None:
    """Store everything that the next step depends on."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for n, optimizer in enumerate(optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{n}.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["generator"] = generator.get_state()
    tensors["losses"] = torch.tensor(history.losses, dtype=torch.float64)
    metadata = {
        "settings": json.dumps(settings, sort_keys=True),
        "step": str(step),
        "seconds": str(history.seconds),
        "scaler": json.dumps(scaler.state_dict()),
    }
    write_safely(path, tensors, metadata)


def load_state(
    path: Path,
    settings: dict,
    model: nn.Module,
    average: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    generator: torch.Generator,
    scaler: torch.amp.GradScaler,
    history: History,
) -> int:
    """Put a stored state back and return the step to go on from; 0, and a line that says why, where it does not fit."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Copied out of the file: Windows neither replaces nor deletes one that is still mapped into memory.
            tensors = {k: file.get_tensor(k).clone() for k in file.keys()}  # noqa: SIM118
    except Exception as error:  # a file cut short by a full disk, say
        print(f"{path.name}: cannot be read ({error}); training begins afresh.")
        return 0
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    stored = {k.removeprefix("model."): v.shape for k, v in tensors.items() if k.startswith("model.")}
    if json.loads(metadata.get("settings", "{}")) != json.loads(json.dumps(settings)) or shapes != stored:
        print(f"{path.name}: saved with other settings or another network; training begins afresh.")
        return 0

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(part("model."))
    average.load_state_dict(part("average."))
    for n, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part(f"optimizer.{n}.").items():
            i, name = key.split(".", 1)
            state.setdefault(int(i), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    generator.set_state(tensors["generator"])
    scale = json.loads(metadata.get("scaler", "{}"))
    if scale and scaler.is_enabled():  # empty where the forward pass is not in fp16
        scaler.load_state_dict(scale)
    history.losses = tensors["losses"].tolist()
    history.seconds = float(metadata["seconds"])
    step = int(metadata["step"])
    print(f"{path.stem}: going on from step {step:,}, where an earlier run stopped (restart=True begins afresh).")
    return step
