"""Two networks that should compute the same, and do not: which layer is the first to differ?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.models.layers import Upsample


@dataclass(frozen=True)
class Difference:
    """The first layer, in the order of our run, whose output is not the other network's."""

    ours: str  # our module's name
    theirs: str  # the other one's
    error: float  # relative error of the output; infinite where the shapes differ
    input_error: float  # relative error of what went in
    before: str  # our layer that ran just before it, "" if none did

    def __str__(self) -> str:
        where = f"after {self.before}" if self.before else "at the start"
        cause = (
            f"its input agrees (error {self.input_error:.1e}), so the layer itself or its weights differ"
            if self.input_error <= self.error / 10
            else f"its input differs already ({self.input_error:.1e}): look at what happens {where}"
        )
        return f"first difference: {self.ours} (theirs: {self.theirs}), relative error {self.error:.1e}; {cause}"


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over largest value: no cancelling, no element let off. Infinite for other shapes or NaN."""
    if ours.shape != theirs.shape or ours.numel() == 0:
        return float("inf")
    ours, theirs = ours.detach().float(), theirs.detach().float()
    difference, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    if difference == 0:
        return 0.0
    error = difference / size if size else float("inf")
    return error if error == error else float("inf")


@torch.no_grad()
def first_difference(
    ours: nn.Module,
    theirs: nn.Module,
    run: Callable[[Any], Any],
    names: Callable[[str], str] | Mapping[str, str],
    run_theirs: Callable[[Any], Any] | None = None,
    tolerance: float = 1e-4,
) -> Difference | None:
    """Run both networks and compare the outputs of each pair of layers that hold weights; None if all agree.

    A layer without weights of its own, such as an activation, shows as a wrong input of the next one.

    Args:
        run: runs a network once on the inputs in question: `lambda model: model(x, t, context)`.
        names: the other library's name of one of our tensors: `unet_key_to_diffusers`, or a dict as
            `text_names` makes it.
        run_theirs: the same for `theirs`, where it is called in another way.
        tolerance: the largest relative error that counts as the same.
    """
    translate = names if callable(names) else names.__getitem__
    their_modules = dict(theirs.named_modules())
    prefix = "text_model." if "text_model" in their_modules else ""  # CLIPTextModel has it up to transformers 4
    pairs: dict[str, str] = {}
    our_modules = dict(ours.named_modules())
    for key in dict(ours.named_parameters()):
        layer, name = key.rpartition(".")[0], translate(key).rpartition(".")[0]
        holder = layer.rpartition(".")[0]
        if isinstance(our_modules[holder], Upsample):  # which takes its convolution's weights without calling it
            pairs[holder] = name.rpartition(".")[0]
        elif next(our_modules[layer].children(), None) is None:  # not a parameter that a whole encoder holds itself
            pairs[layer] = name if name in their_modules else prefix + name
    our_calls = _record({name: our_modules[name] for name in pairs}, lambda: run(ours))
    wanted = {theirs_name: their_modules[theirs_name] for theirs_name in pairs.values()}
    their_calls = _record(wanted, lambda: (run_theirs or run)(theirs))
    theirs_of: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, entered, left in their_calls:
        theirs_of.setdefault(name, []).append((entered, left))
    before = ""
    for name, entered, left in our_calls:
        there = theirs_of.get(pairs[name])
        if not there:
            continue  # one side uses the weights without calling the layer, as for position embeddings
        their_entered, their_left = there.pop(0)
        error = relative_error(left, _like(their_left, left))
        if error > tolerance:
            return Difference(name, pairs[name], error, relative_error(entered, _like(their_entered, entered)), before)
        before = name
    return None


def _record(modules: Mapping[str, nn.Module], run: Callable[[], Any]) -> list[tuple[str, Tensor, Tensor]]:
    """Name, input and output of each call of these modules, in order."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if inputs and isinstance(output, Tensor):
                calls.append((name, inputs[0].clone(), output.clone()))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in modules.items() if name]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _like(theirs: Tensor, ours: Tensor) -> Tensor:
    """A picture as [B, C, h · w] in one library is [B, C, h, w] in the other."""
    return theirs.reshape(ours.shape) if theirs.numel() == ours.numel() else theirs
