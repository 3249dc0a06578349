"""Check of notebook 01, first part: the plain training loop."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from course_utils.checks.base import Mistake, check_for
from course_utils.training import plain as package

STEPS = 6


class _Task:
    """One weight w is fitted to batches by (w − batch)², and whatever a loop asks for is counted."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
        self.batches = torch.linspace(-1.0, 1.5, 64).reshape(32, 2)
        self.drawn, self.asked = 0, 0
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1)

    def draw_batch(self) -> Tensor:
        self.drawn += 1
        return self.batches[(self.drawn * 7) % 32]

    def loss(self, batch: Tensor) -> Tensor:
        self.asked += 1
        return (self.weight - batch).square().sum()


def _run(loop: Callable[..., Any], steps: int = STEPS) -> tuple[_Task, Any]:
    task = _Task()
    return task, loop(task.draw_batch, task.loss, task.optimizer, steps)


def _slip(kind: str) -> Callable[..., list[float]]:
    """The loop with one mistake in it."""

    def loop(draw_batch: Callable[[], Any], loss: Callable[[Any], Tensor], optimizer: Any, steps: int) -> list[float]:
        losses, first = [], draw_batch() if kind == "one" else None
        for _ in range(steps):
            value = loss(draw_batch() if first is None else first)
            if kind == "late":
                optimizer.step()
            if kind not in ("sum", "late"):
                optimizer.zero_grad()
            if kind == "late":
                optimizer.zero_grad()
            value.backward()
            if kind != "late":
                optimizer.step()
            losses.append(value.item())
        return losses

    return loop


SLIPS = {
    "sum": "the gradients are never cleared: backward() adds to what is there, so call optimizer.zero_grad() each step",
    "late": "step() comes before backward(): each step then follows the gradient of the batch before",
    "one": "the same batch is used all the time: call draw_batch() inside the loop",
}


@check_for(package.training_loop)
def training_loop(candidate: Callable[..., Any]) -> None:
    """The weights after six steps, the losses on the way, and how often batches and losses were asked for."""
    task, losses = _run(candidate)
    right, expected = _run(package.training_loop)
    _expect_numbers(losses)
    start = _Task().weight
    if torch.equal(task.weight, start):
        raise Mistake(_why_nothing_moved(task))
    for kind, message in SLIPS.items():
        if torch.allclose(task.weight, _run(_slip(kind))[0].weight, atol=1e-6):
            raise Mistake(message)
    if task.drawn != STEPS:
        raise Mistake(f"{STEPS} steps need {STEPS} batches, one each; draw_batch was called {task.drawn} times")
    if len(losses) != STEPS:
        raise Mistake(f"{STEPS} steps leave {STEPS} losses, one each; the list holds {len(losses)}")
    if not torch.allclose(task.weight, right.weight, atol=1e-6):
        raise Mistake("the weights are wrong: in each step a batch, its loss, zero_grad(), backward(), step()")
    if not torch.allclose(torch.tensor(losses), torch.tensor(expected), atol=1e-5):
        raise Mistake("the list must hold the loss of each step, in order, as it was before the weights moved")
    if task.asked != STEPS:
        raise Mistake(f"the loss was worked out {task.asked} times in {STEPS} steps: keep the value and use it twice")
    if list(_run(candidate, 0)[1]) != []:
        raise Mistake("with steps = 0 nothing happens, and the list is empty")


def _expect_numbers(losses: Any) -> None:
    if not isinstance(losses, list | tuple):
        raise Mistake(f"return the list of losses, one a step; got {type(losses).__name__} (is a return missing?)")
    if any(isinstance(value, Tensor) for value in losses):
        raise Mistake(
            "the list holds tensors, and each keeps the whole graph of its step alive until memory runs out: keep "
            "the number, value.item()"
        )
    if not all(isinstance(value, Real) for value in losses):
        raise Mistake("the list must hold plain numbers, value.item()")


def _why_nothing_moved(task: _Task) -> str:
    if task.drawn == 0:
        return "no batch was drawn: the loop runs for `steps` steps, and each begins with draw_batch()"
    if task.weight.grad is None or not bool(task.weight.grad.abs().sum() > 0):
        return (
            "the weights never move, for there is no gradient when step() is called: backward() makes it, and "
            "zero_grad() must come before backward(), not after"
        )
    return "the weights never move: backward() only works out the gradients, and optimizer.step() follows them"
