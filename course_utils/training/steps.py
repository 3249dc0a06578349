"""What one step of training does once its loss is known, without ever waiting for a GPU.

A processor has a number when the line that computes it is done. A GPU is only asked for it, and goes on asking itself
through a queue while Python runs ahead; `.item()`, `float(x)` or `if x > 0` make Python wait until that queue is empty,
and the GPU then waits for Python. So losses are read now and then, and whether a gradient overflowed is decided there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from course_utils.training.loop import History


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to `peak`, then half a cosine down to zero at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 − decay) · model, weight by weight; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for a, b in zip(average.buffers(), model.buffers(), strict=True):
        a.copy_(b)


class LossReader:
    """Appends the losses of a run to its history, up to `every` of them at a time.

    Args:
        history: whose losses are all that was read so far.
        every: 1 on a processor; more on a GPU, where each reading waits for all that was asked of it before.
        error: (step, loss) -> what is raised for a loss that is no number.
    """

    def __init__(self, history: History, every: int, error: Callable[[int, float], Exception]):
        self.history, self.every, self.error = history, every, error
        self.pending: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Take the next step's loss, a scalar on any device; what `error` makes is raised where it is noticed."""
        self.pending.append(loss.detach())
        if len(self.pending) >= self.every:
            self.read()

    def read(self) -> None:
        """Bring the history up to date. The step of the first loss that is no number is named, however late."""
        pending, self.pending = self.pending, []
        for value in torch.stack(pending).tolist() if pending else []:
            if not math.isfinite(value):
                raise self.error(len(self.history.losses), value)
            self.history.losses.append(value)


def step_unless(overflow: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Step the optimisers where `overflow`, a scalar on their device, is false; it is looked at there."""
    for optimizer in optimizers:
        optimizer.grad_scale, optimizer.found_inf = None, overflow.float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]


def step_optimizers(
    optimizers: Sequence[torch.optim.Optimizer],
    scaler: torch.amp.GradScaler,
    parameters: Iterable[nn.Parameter],
    clip_norm: float,
) -> None:
    """Unscale and clip the gradients and step. In fp16 they overflow now and then: then no weight moves.

    On a GPU the optimisers are told by a number that lies there, `found_inf`, as PyTorch's fused ones can be (and
    `Muon`): all of them by that of the whole gradient, for a length that is not finite spoils every part of it.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    if scaler.is_enabled() and norm.is_cuda:
        step_unless(~norm.isfinite(), optimizers)
    elif not scaler.is_enabled() or norm.isfinite():
        for optimizer in optimizers:
            scaler.step(optimizer)
    scaler.update()
