"""From the processor to a GPU without waiting: what a step draws is small, and goes there while the GPU still works."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device. To a CUDA GPU out of page-locked memory, so that Python does not wait for the copy."""
    if tensor.device.type != "cpu" or device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def kept_near(tensor: Tensor, device: torch.device, share: float = 0.25) -> Tensor:
    """A whole picture set on the device, for batches to be chosen there; where it lies, if it takes more than `share`
    of what a CUDA GPU has free."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        free, _ = torch.cuda.mem_get_info(device)
        if tensor.numel() * tensor.element_size() > share * free:
            return tensor
    return tensor.to(device)
