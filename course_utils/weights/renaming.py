"""Tensors of one library under the names of another, strictly: each of them finds its place or is named."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def rename(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under new names; `names` is old name -> new name.

    Raises ValueError naming the tensors that are missing from `state` or unknown to `names`.
    """
    missing = [name for name in names if name not in state]
    unknown = [name for name in state if name not in names]
    if missing or unknown:
        lora = "; these look like LoRA weights, which are not supported" if any("lora" in n for n in unknown) else ""
        problem = f"missing: {some(missing)}; unknown: {some(unknown)}"
        raise ValueError(f"the tensors are not those of this network ({problem}){lora}")
    return {new: state[old] for old, new in names.items()}


def check_shapes(state: Mapping[str, Tensor], model: nn.Module, names: Mapping[str, str]) -> None:
    """Raise ValueError naming the tensors that do not fit the model; `names` is old name -> the model's name.

    `state` has the old names, so that the message speaks of what stands in the file.
    """
    wanted = model.state_dict()
    wrong = [
        f"{old} is {list(state[old].shape)}, wanted {list(wanted[new].shape)}"
        for old, new in names.items()
        if state[old].shape != wanted[new].shape
    ]
    if wrong:
        raise ValueError(f"tensors of the wrong shape: {some(wrong)}")


def fitted(state: Mapping[str, Tensor], model: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under the model's names; `names` is old name -> the model's name.

    Raises ValueError naming the tensors that are missing, unknown or misshapen, by their old names.
    """
    renamed = rename(state, names)
    check_shapes(state, model, names)
    return renamed


def some(names: list[str], most: int = 5) -> str:
    """The first few, and how many more: for error messages."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
