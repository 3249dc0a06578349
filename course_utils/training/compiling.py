"""`torch.compile` for the course's networks, where it repays the half minute or more that it takes to start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def parts_to_compile(network: nn.Module) -> list[nn.Module]:
    """What is called as a module in training: a VAE's two halves, CLIP's two encoders, else the whole network."""
    pairs = (("encoder", "decoder"), ("vision", "text"))
    for pair in pairs:
        if all(isinstance(getattr(network, name, None), nn.Module) for name in pair):
            return [getattr(network, name) for name in pair]
    return [network]


@contextmanager
def compiled(network: nn.Module, enabled: bool = True, backend: str | None = None) -> Iterator[None]:
    """The network compiled in place until the block ends; weights, names and copies of it stay what they are.

    Where the compiler fails on a part, or is not there, PyTorch runs that part as it is. backend: by default inductor
    on a GPU; elsewhere "aot_eager", which traces as inductor does and compiles nothing.
    """
    if not enabled:
        yield
        return
    import torch._dynamo

    if backend is None:
        backend = "inductor" if next(network.parameters()).is_cuda else "aot_eager"
    before, torch._dynamo.config.suppress_errors = torch._dynamo.config.suppress_errors, True
    parts = parts_to_compile(network)
    try:
        for part in parts:
            part.compile(backend=backend)
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None
        torch._dynamo.config.suppress_errors = before
