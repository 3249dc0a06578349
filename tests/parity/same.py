"""What the parity tests share: random weights that hide nothing, and a comparison that names the layer at fault."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from course_utils.weights.compare import first_difference, relative_error

MODULE = 1e-5  # largest difference over largest value, float32
WHOLE = 1e-4  # rounding adds up over a whole network


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shuffle_weights(module: nn.Module, seed: int) -> None:
    """Random numbers everywhere, so that no zero start hides a layer that is never reached.

    Of a size that keeps signals near 1: a nearly constant map would blow up its rounding in the next group norm.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise / p[0].numel() ** 0.5)
            else:
                p.copy_(0.3 * noise + (1 if name.endswith("weight") else 0))


@torch.no_grad()
def assert_same(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape and theirs.isfinite().all() and theirs.abs().max() > 0
    error = relative_error(ours, theirs)
    assert error <= tolerance, f"relative error {error:.1e}"


@torch.no_grad()
def assert_same_network(ours, theirs, run, names, tolerance, run_theirs=None) -> None:
    """Both networks in eval mode, `run` gives a tensor; where they differ, the message names the first layer."""
    error = relative_error(run(ours), (run_theirs or run)(theirs))
    if error > tolerance:
        found = first_difference(ours, theirs, run, names, run_theirs, tolerance / 10)
        raise AssertionError(f"relative error {error:.1e}; {found or 'each layer with weights agrees'}")
