"""A CUDA GPU that is not there: tensors that say they lie on one, and the rules by which a real one refuses or waits.

An `OnGPU` keeps its numbers in an ordinary tensor, so that everything is really computed, on the processor. `FakeGPU`
sees each operation and refuses what CUDA would: mixed devices, generators of another device, indices on a GPU for what
is not there, a dtype that the device lacks (float64 on Apple's). It lists all moments at which Python would wait.

(PyTorch's own FakeTensorMode is slower, a second a step, and tests with it have ended the process with a broken heap.)
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

ATEN = torch.ops.aten
CUDA = torch.device("cuda", 0)
MOVES = (ATEN._to_copy.default, ATEN.copy_.default)
INDEXING = (ATEN.index.Tensor, ATEN.index_put_.default)
LOOKS = (  # of which Python has to know the outcome: .item(), float(x), if x: and those that count
    ATEN._local_scalar_dense.default, ATEN.item.default, ATEN.is_nonzero.default, ATEN.equal.default,
    ATEN.nonzero.default, ATEN.masked_select.default,
)  # fmt: skip


def tensors_in(x: Any) -> Iterator[Tensor]:
    """The tensors among an operation's arguments or results. (PyTorch's pytree takes longer than all the rest.)"""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from tensors_in(part)


def exchanged(x: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with every tensor changed."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, (tuple, list)):
        return (tuple if isinstance(x, tuple) else list)(exchanged(part, change) for part in x)
    return x


class OnGPU(Tensor):
    """A tensor that says it lies on the GPU. `held` has its numbers, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGPU:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=CUDA
        )
        made.held = held
        return made

    def __repr__(self, **options: Any) -> str:
        return f"OnGPU({list(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict) -> Tensor:
        made: Tensor = OnGPU(self.held.clone())
        memo[id(self)] = made = nn.Parameter(made, self.requires_grad) if isinstance(self, nn.Parameter) else made
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} was asked of a fake GPU that has been left")


class FakeGPU(TorchDispatchMode):
    """`waits`: where Python waited, "file:line in function", one entry a time. refused: a dtype that it lacks."""

    def __init__(self, refused: torch.dtype | None = None):
        super().__init__()
        self.refused, self.waits = refused, []
        self.pinned = WeakTensorKeyDictionary()

    def wait(self) -> None:
        frames = [f for f in traceback.extract_stack() if "course_utils" in f.filename or "/tests/" in f.filename]
        frame = next((f for f in reversed(frames) if "fake_gpu.py" != f.filename.split("/")[-1]), frames[0])
        self.waits.append(f"{frame.filename.split('/')[-1]}:{frame.lineno} in {frame.name}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [*tensors_in(args), *tensors_in(tuple(kwargs.values()))]
        on_gpu = any(isinstance(x, OnGPU) for x in given)
        if func is ATEN.is_pinned.default:
            return args[0] in self.pinned
        if func is ATEN._pin_memory.default:
            found = args[0].clone()
            self.pinned[found] = True
            return found
        self._check_devices(func, args, given, on_gpu)
        there = on_gpu
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = torch.device("cpu") if there else kwargs["device"]
        generator = kwargs.get("generator")
        if there and generator is not None and generator.device.type != "cuda":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if func is ATEN.copy_.default:
            there = isinstance(args[0], OnGPU)
        if func in MOVES:
            source = args[1] if func is ATEN.copy_.default else args[0]
            asynchronous = kwargs.get("non_blocking") or (func is ATEN.copy_.default and len(args) > 2 and args[2])
            if isinstance(source, OnGPU) != there and not (there and asynchronous and source in self.pinned):
                self.wait()
        known = {id(x.held): x for x in given if isinstance(x, OnGPU)}
        held_args, *values = exchanged((args, *kwargs.values()), lambda x: x.held if isinstance(x, OnGPU) else x)
        held_kwargs = dict(zip(kwargs, values, strict=True))
        if func in (ATEN._softmax.default, ATEN._log_softmax.default) and held_args[2]:  # float16 to float32 in one
            held_args = (held_args[0].float(), held_args[1], False)
        found = func(*held_args, **held_kwargs)
        if there and self.refused and any(x.dtype == self.refused for x in tensors_in(found)):
            raise TypeError(f"Cannot convert a tensor to {self.refused}: the device has no such numbers")
        if not there:
            return found
        # What works in place gives back what it was given.
        return exchanged(found, lambda x: known[id(x)] if id(x) in known else OnGPU(x))

    def _check_devices(self, func: Any, args: Any, given: list[Tensor], on_gpu: bool) -> None:
        """Refuse what mixes devices; note what waits for the GPU's numbers."""
        if func in INDEXING:
            indices = [x for x in args[1] if x is not None]
            if not isinstance(args[0], OnGPU) and any(isinstance(x, OnGPU) for x in indices):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            if isinstance(args[0], OnGPU) and any(not isinstance(x, OnGPU) or x.dtype == torch.bool for x in indices):
                self.wait()  # CUDA takes indices from the processor, and copies them first; a mask has to be counted
            given = [args[0], *args[2:3]]
        elif on_gpu and func in LOOKS:
            self.wait()
        if not on_gpu or func in MOVES:
            return
        strangers = [x for x in given if isinstance(x, Tensor) and not isinstance(x, OnGPU)]
        if torch.Tag.pointwise in func.tags or func in INDEXING:
            strangers = [x for x in strangers if x.ndim]  # single numbers may come from the processor
        if strangers:
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found cuda:0 and cpu")


def _apply(self: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """nn.Module._apply for parameters of another class than before, which PyTorch's own cannot exchange."""
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
                node.variable.grad = torch.full_like(node.variable, 1e-3)
        rest.extend(before for before, _ in node.next_functions if before is not None)


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch, refused: torch.dtype | None = None) -> Iterator[FakeGPU]:
    """Inside, "cuda" is a GPU of 15 GB that computes as the processor does."""
    monkeypatch.setattr(nn.Module, "_apply", _apply)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (14_000_000_000, 15_000_000_000))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(Tensor, "backward", give_gradients)
    monkeypatch.setattr(_foreach_utils, "_foreach_supported_types", [Tensor, nn.Parameter, OnGPU], raising=False)
    torch._C._ensureCUDADeviceGuardSet()
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(1.0, device="cuda") is made here and moved as others are
    try:
        with FakeGPU(refused) as gpu:
            yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
