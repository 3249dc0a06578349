"""The training loop with nothing around it: what `train` does at bottom, before averages, saved states and progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def training_loop(
    draw_batch: Callable[[], Any], loss: Callable[[Any], Tensor], optimizer: torch.optim.Optimizer, steps: int
) -> list[float]:
    """Train for a number of steps; the weights are those that the optimizer holds.

    Args:
        draw_batch: gives another batch at each call.
        loss: says of a batch how bad the network is on it, one number that gradients pass through.
        optimizer: for instance torch.optim.Adam(model.parameters()). steps: how often the weights are moved.

    Returns:
        The loss of each step as a plain number, measured before the weights were moved.
    """
    losses = []
    for _ in range(steps):
        value = loss(draw_batch())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses
