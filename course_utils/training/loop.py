"""One training loop for every network of the course; nothing in it knows what a picture is.

`train(model, loss, steps=…, lr=…)` asks `loss(generator)` for a scalar, steps AdamW (and Muon, if asked), keeps an
exponential moving average of the weights, and returns a `History`. It saves its whole state now and then, so that an
interrupted run, or one whose kernel died, goes on where it stopped and ends with the weights it would have had.
With an `accelerator` several processes share each batch (`processes.py`) and take the steps that one would take.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from course_utils.files import check_room, only_run
from course_utils.training.compiling import compiled
from course_utils.training.interrupt import held_interrupts, without_traceback
from course_utils.training.muon import make_optimizers
from course_utils.training.processes import (
    anywhere,
    check_same_start,
    divide,
    from_main,
    is_main,
    mean,
    only_main_prints,
    wait,
)
from course_utils.training.progress import progress_bar
from course_utils.training.state import load_state, save_state
from course_utils.training.steps import LossReader, learning_rate, step_optimizers, update_ema

if TYPE_CHECKING:
    from accelerate import Accelerator

READ_EVERY = 25  # steps on a GPU from one look at the losses to the next
Loss = Callable[[torch.Generator], Tensor]
Preview = Callable[[int, nn.Module, list[float]], None]


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number."""


@dataclass
class History:
    """What a training run left behind: one loss a step, and how long it took in this and earlier sittings."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps_per_second(self) -> float:
        return len(self.losses) / max(self.seconds, 1e-9)

    def smoothed(self, window: int = 50) -> list[float]:
        """The running mean of the losses, which a plot can be read from."""
        window = max(1, min(window, len(self.losses)))
        sums = torch.tensor([0.0, *self.losses], dtype=torch.float64).cumsum(0)
        return ((sums[window:] - sums[:-window]) / window).tolist()


def product_seconds(dtype: torch.dtype, side: int) -> float:
    """How long the processor takes for the product of two square matrices: the best of six tries."""
    a = torch.ones(side, side, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times)


@functools.lru_cache
def lacks_bf16() -> bool:
    """Whether the processor has no instructions for bfloat16: then a product takes some hundred times as long in it."""
    return product_seconds(torch.bfloat16, 128) > 5 * product_seconds(torch.float32, 128)


@functools.lru_cache
def best_precision(device_type: str) -> str:
    """ "float32", "bf16" or "fp16": what this machine multiplies matrices fastest in, measured on a processor."""
    if device_type == "cuda":
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    if device_type != "cpu":
        return "float32"

    if lacks_bf16():  # asked first, with small matrices: the large ones would take a second each
        return "float32"
    return "bf16" if product_seconds(torch.float32, 768) > 1.5 * product_seconds(torch.bfloat16, 768) else "float32"


def autocast(device_type: str, precision: str = "auto"):
    """The context in which a forward pass runs in `precision`."""
    if precision == "auto":
        precision = best_precision(device_type)
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision == "float32":
        return nullcontext()
    if precision not in dtypes:
        raise ValueError(f"precision must be 'auto', 'float32', 'bf16' or 'fp16', got {precision!r}")
    return torch.autocast(device_type, dtype=dtypes[precision])


def train(
    model: nn.Module,
    loss: Loss,
    *,
    steps: int,
    lr: float,
    muon_lr: float | None = None,
    name: str = "training",
    folder: str | Path | None = None,
    made_from: Any = None,
    warmup: int | None = None,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.99),
    clip_norm: float = 1.0,
    ema: float | None = 0.999,
    precision: str = "auto",
    seed: int = 0,
    preview: Preview | None = None,
    previews: int = 8,
    save_seconds: float = 30.0,
    restart: bool = False,
    keep_state: bool = False,
    accelerator: Accelerator | None = None,
    with_compiler: bool = False,
) -> History:
    """Train `model` in place; at the end it holds the averaged weights (with `ema=None`, the last ones).

    Args:
        model: any module; its device is where the loss is computed.
        loss: draws its own batch with the generator it is given and returns a scalar. All randomness must come from
            that generator (it lives on the CPU), so that a resumed run sees what an uninterrupted one would have.
        steps: optimiser steps.
        lr: AdamW's peak learning rate, reached after `warmup` steps (a twentieth of all if None). weight_decay, betas:
            AdamW's. clip_norm: longer gradients are cut to this length.
        muon_lr: with a number, hidden matrices and convolutions are trained by Muon at this rate instead.
        name, folder: where the resumable state lies, `folder/name.safetensors`; without a folder nothing is saved.
        made_from: what else the run rests on, as JSON can hold it: the checksums of other networks, say. A state that
            was saved with something else is not taken up.
        ema: decay of the moving average of the weights, warmed up so that short runs are not held back by it.
        precision: "auto", "float32", "bf16", "fp16" for the forward pass.
        preview: called about `previews` times, and at the end, with (step, averaged model in eval mode, losses so far).
        restart: ignore a saved state and begin afresh.
        keep_state: leave the state of the finished run, from which the same call has its result at once, for the caller
            to delete when that is safe. By default the run deletes it.
        accelerator: for several processes that make this call together, with a `Recipe` as the loss. Only the main
            one prints, previews and saves; a state saved by any number of processes is continued by any other.
        with_compiler: run the network's parts through `torch.compile`, for long runs on a GPU.

    Raises:
        TrainingDiverged: the loss is not a finite number; what was saved before stays. On a GPU losses are read every
            READ_EVERY steps, before a preview and before a save, and a bad one is noticed then.
        OSError: there is no room for the state, or another run saves it there. If later a save fails, that is said, and
            the training goes on.
        KeyboardInterrupt: after the step at hand is done and saved, so that the same call goes on from there. A second
            Ctrl-C does not wait for the step, and the call goes on from what was saved before.
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    if accelerator is not None:
        loss = divide(model, loss, accelerator)
    device = next(model.parameters()).device
    precision = from_main(best_precision(device.type) if precision == "auto" else precision, accelerator)
    warmup = max(1, steps // 20) if warmup is None else max(1, warmup)
    optimizers = make_optimizers(model, lr, muon_lr, betas, weight_decay, precision)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    average = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    history, start = History(), 0
    reader = LossReader(
        history,
        READ_EVERY if device.type == "cuda" and accelerator is None else 1,
        lambda step, value: TrainingDiverged(_diverged(name, step, value, history, lr, precision)),
    )

    path = Path(folder) / f"{name}.safetensors" if folder else None
    settings = {
        "steps": steps,
        "lr": lr,
        "muon_lr": muon_lr,
        "warmup": warmup,
        "seed": seed,
        "ema": ema,
        "weight_decay": weight_decay,
        "betas": betas,
        "clip_norm": clip_norm,
        "made_from": made_from,
    }
    with only_main_prints(accelerator):
        if path and path.exists() and not restart:
            start = load_state(path, settings, model, average, optimizers, generator, scaler, history)
    check_same_start(start, accelerator)
    main = is_main(accelerator)
    every = max(1, steps // max(1, previews))
    lock = only_run(path.with_suffix(".lock")) if path and main else nullcontext()
    if path and main:  # weights, their average and two numbers of AdamW's
        check_room(path.parent, 4 * sum(p.numel() * p.element_size() for p in model.parameters()))

    def save(done: int) -> bool:
        reader.read()
        try:
            if path and main:
                save_state(path, settings, done, model, average, optimizers, generator, scaler, history)
        except OSError as error:
            bar.say(f"{name}: step {done} could not be saved. {error}")
            return False
        return True

    model.train()
    parameters = list(model.parameters())
    begun, saved = time.perf_counter() - history.seconds, time.perf_counter()
    done, step = start, start - 1
    with (
        only_main_prints(accelerator), lock, compiled(model, with_compiler), held_interrupts() as interrupted,
        progress_bar(name, start, steps) as bar,
    ):  # fmt: skip
        try:
            for step in range(start, steps):
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(step, steps, group["initial_lr"], warmup)
                with autocast(device.type, precision):
                    value = loss(generator)
                reader.add(mean(value, accelerator))
                model.zero_grad(set_to_none=True)
                scaler.scale(value).backward()
                step_optimizers(optimizers, scaler, parameters, clip_norm)
                if ema is not None:
                    update_ema(average, model, min(ema, (1 + step) / (10 + step)))
                done = step + 1
                shown = preview and main and (done % every == 0 or done == steps)
                if shown or done == steps:
                    reader.read()
                history.seconds = time.perf_counter() - begun
                bar.step(history.losses)
                if preview and shown:
                    preview(done, average if ema is not None else model.eval(), history.losses)
                    model.train()
                if path and time.perf_counter() - saved > save_seconds:
                    save(done)
                    saved = time.perf_counter()
                if anywhere(interrupted(), accelerator):
                    raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            kept = "nothing is saved, for no folder was given."
            if path and step == done:  # a part of the state is ahead of the other
                kept = "in the middle of the next one; the same call goes on from what was saved before, if anything."
            elif path:
                kept = "and that is lost."
                if save(done):
                    kept = f"saved to {path.parent.name}/{path.name}; the same call goes on from here."
            bar.note(f"{name}: stopped at step {done} of {steps}, {kept}")
            wait(accelerator)  # a process that ends early may take the one that saves with it
            raise without_traceback(error, f"{name} was stopped") from None
        if keep_state and start < steps:
            save(done)
    if ema is not None:
        model.load_state_dict(average.state_dict())
    model.eval()
    if path and main and not keep_state:
        path.unlink(missing_ok=True)
    return history


def _diverged(name: str, step: int, value: float, history: History, lr: float, precision: str) -> str:
    before = ", ".join(f"{x:.3g}" for x in history.losses[-3:]) or "none"
    return (
        f"{name}: the loss became {value} at step {step} (the last ones: {before}). Nothing was overwritten. "
        f"Try a lower learning rate than {lr:g}, precision='float32' instead of {precision!r}, and look for a "
        "division by zero or a logarithm of zero in the loss; restart=True begins afresh."
    )
