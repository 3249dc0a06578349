"""A CUDA GPU that is not there: tensors without numbers, and the rules by which a real one refuses or makes one wait.

PyTorch's `FakeTensorMode` knows shape, dtype and device of every result and raises where devices are mixed. `FakeGPU`
adds what it lets pass: generators of another device, what a CPU tensor cannot be indexed with, a dtype that the device
lacks (float64 on Apple's), and a list of all moments at which Python would wait for the GPU.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.training import recipes

ATEN = torch.ops.aten
CUDA = torch.device("cuda", 0)


class FakeGPU(TorchDispatchMode):
    """Entered inside a FakeTensorMode. `waits`: where Python waited, "file:line in function", one entry a time."""

    def __init__(self, refused: torch.dtype | None = None):
        super().__init__()
        self.refused, self.waits = refused, []
        self.pinned: set[int] = set()

    def wait(self) -> None:
        frames = [f for f in traceback.extract_stack() if "course_utils" in f.filename or "/tests/" in f.filename]
        frame = next((f for f in reversed(frames) if "fake_gpu" not in f.filename), traceback.extract_stack()[0])
        self.waits.append(f"{frame.filename.split('/')[-1]}:{frame.lineno} in {frame.name}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_gpu = any(x.is_cuda for x in given)
        if func is ATEN._local_scalar_dense.default:  # .item(), float(x), if x:
            if on_gpu:
                self.wait()
            return False if args[0].dtype == torch.bool else 0.5 if args[0].is_floating_point() else 0
        if func is ATEN.is_pinned.default:
            return id(args[0]) in self.pinned
        if func in (ATEN._pin_memory.default, getattr(ATEN, "pin_memory", ATEN._pin_memory).default):
            found = args[0].clone()
            self.keep = [*getattr(self, "keep", []), found][-64:]  # alive, so that no other tensor gets its id
            self.pinned.add(id(found))
            return found
        if func is ATEN.index.Tensor and any(x is not None and x.device != args[0].device for x in args[1]):
            if not args[0].is_cuda:
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            self.wait()  # CUDA takes indices from the processor, and copies them first
        if func in (ATEN.index.Tensor, ATEN.index_put_.default) and args[0].is_cuda:
            if any(x is not None and x.dtype == torch.bool for x in args[1]):
                self.wait()  # for how many there are; here there is one
                where = [[torch.zeros(1, dtype=torch.int64, device=CUDA)] * x.ndim for x in args[1]]
                args = (args[0], [index for each in where for index in each], *args[2:])
        found = func(*args, **kwargs)
        made = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        generator = kwargs.get("generator")
        if generator is not None and any(x.device.type != generator.device.type for x in made):
            raise RuntimeError(f"Expected a '{made[0].device.type}' device type for generator but found 'cpu'")
        if self.refused and any(x.is_cuda and x.dtype == self.refused for x in made):
            raise TypeError(f"Cannot convert a tensor to {self.refused}: the device has no such numbers")
        if func in (ATEN._to_copy.default, ATEN.copy_.default):
            source = args[1] if func is ATEN.copy_.default else args[0]
            if source.device != made[0].device:
                asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
                if made[0].device.type == "cpu" or not (asynchronous and id(source) in self.pinned):
                    self.wait()
        return found


def _apply(self: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """nn.Module._apply for parameters without numbers, which PyTorch's own cannot exchange."""
    for module in self.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(function(p.detach()), p.requires_grad)
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = function(b)
    return self


def give_gradients(loss: Tensor, *given: Any, **options: Any) -> None:
    """Tensor.backward where the autograd engine would ask a driver that is not there: a gradient for every weight that
    the loss depends on. The operations of a backward pass lie on the devices of the forward's, so none is missed."""
    assert loss.ndim == 0 and loss.grad_fn is not None
    found, rest = set(), [loss.grad_fn]
    while rest:
        node = rest.pop()
        if node in found:
            continue
        found.add(node)
        if hasattr(node, "variable"):
            with torch.no_grad():
                node.variable.grad = torch.empty_like(node.variable)
        rest.extend(before for before, _ in node.next_functions if before is not None)


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch, refused: torch.dtype | None = None) -> Iterator[FakeGPU]:
    """Everything inside is done on fake tensors, those on "cuda" as on a GPU of 15 GB."""
    monkeypatch.setattr(nn.Module, "_apply", _apply)
    standard = NoiseSchedule.cosine(1000)  # its numbers are looked at when it is made
    monkeypatch.setattr(recipes, "cosine_schedule", lambda: standard)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (14_000_000_000, 15_000_000_000))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(Tensor, "backward", give_gradients)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.cache_enabled = False  # with it PyTorch 2.15 has crashed here, on tensors that lie nowhere
    with mode, FakeGPU(refused) as gpu:
        yield gpu
