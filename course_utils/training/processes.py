"""Several processes that train one network together, usually one a GPU, through Hugging Face Accelerate.

All of them draw the same batch from the same generator and each computes the loss on its own part of it;
DistributedDataParallel (Li et al. 2020, arXiv 2006.15704) makes the gradient the mean over the parts, which is the
gradient of the whole batch. So all take the same steps, and N processes train what one would, up to rounding.

Each function here takes an `Accelerator`, or None for a process that is alone, where it does next to nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


class _LossOf(nn.Module):
    """A network and its loss as one module, so that all of the network's work is done inside one `forward`.

    DistributedDataParallel prepares itself in `forward` for the gradients to come; a loss that calls `vae.encode` and
    `vae.decode` from outside would pass it by.
    """

    def __init__(self, network: nn.Module, loss: Callable[..., Tensor]):
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.network, *batch)


def divide(model: nn.Module, recipe: Any, accelerator: Accelerator) -> Callable[[torch.Generator], Tensor]:
    """The loss of this process's part of each batch; its backward pass leaves the gradient of the whole batch.

    Keep the function that is returned until the backward pass is over: what averages the gradients goes with it.

    Args:
        model: all processes get the main one's weights, on their own devices.
        recipe: a `Recipe` for it, whose `draw` gives whole batches.

    Raises:
        TypeError: a loss that draws and computes in one cannot be divided. ValueError: the recipe is for another
            network, the accelerator has a precision of its own, or (at the first step) the batch cannot be divided.
    """
    if not (hasattr(recipe, "draw") and hasattr(recipe, "loss")):
        raise TypeError(
            "with an accelerator, train needs a Recipe, whose draw and loss are apart (training/recipes.py), "
            f"got {type(recipe).__name__}"
        )
    if recipe.network is not model:
        raise ValueError("the recipe's network is not the model to be trained: give train(recipe.network, recipe, …)")
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"the accelerator has mixed_precision={accelerator.mixed_precision!r}, but train chooses the precision: "
            "give train(precision=…) and Accelerator(mixed_precision='no')"
        )
    part_loss = accelerator.prepare(_LossOf(model, recipe.loss))
    return lambda generator: part_loss(*own_part(recipe.draw(generator), accelerator))


def check_batch_size(size: int, accelerator: Accelerator | None) -> None:
    """ValueError unless the processes can share a batch of `size` equally."""
    if accelerator is not None and size % accelerator.num_processes:
        raise ValueError(
            f"a batch of {size} cannot be shared equally by {accelerator.num_processes} processes: use a number of "
            "processes that divides it, or change batch_size in the budget"
        )


def own_part(batch: Sequence[Tensor], accelerator: Accelerator) -> tuple[Tensor, ...]:
    """The rows of a batch that this process works on: the first B / N of them are the first process's, and so on."""
    check_batch_size(len(batch[0]), accelerator)
    n, i = accelerator.num_processes, accelerator.process_index
    return tuple(tensor.chunk(n)[i] for tensor in batch)


class _Gather(torch.autograd.Function):
    """All processes' rows on each of them; backwards, the sum over processes of the gradients of one's own rows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """The rows [B, …] of all processes one after another, [N · B, …], with gradients; x itself in a single process.

    For a loss that compares samples with one another, as CLIP's does. Every process then computes the same loss L of
    the whole batch, and each of the N copies of L sends a gradient back to a row: N · ∂L/∂row in sum. The mean over
    processes that follows divides by N, which leaves ∂L/∂row, the gradient that one process would find.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return _Gather.apply(x) if several else x


def is_main(accelerator: Accelerator | None) -> bool:
    """True in the process that writes files and talks to the reader."""
    return accelerator is None or accelerator.is_main_process


@contextmanager
def only_main_prints(accelerator: Accelerator | None) -> Iterator[None]:
    """What the other processes print is swallowed."""
    if is_main(accelerator):
        yield
    else:
        with redirect_stdout(io.StringIO()):
            yield


def mean(value: Tensor, accelerator: Accelerator | None) -> Tensor:
    """The mean over processes of a scalar, where it lies; nan for all if it is nan for one."""
    return value.detach() if accelerator is None else accelerator.reduce(value.detach().float(), "mean")


def wait(accelerator: Accelerator | None) -> None:
    """Go on when all processes have come here."""
    if accelerator is not None:
        accelerator.wait_for_everyone()


def anywhere(flag: bool, accelerator: Accelerator | None) -> bool:
    """True for all processes if it is true for one."""
    if accelerator is None:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def from_main(value: Any, accelerator: Accelerator | None) -> Any:
    """The main process's value, on all of them."""
    if accelerator is None or accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def check_same_start(step: int, accelerator: Accelerator | None) -> None:
    """ValueError, for all, if processes would begin at different steps."""
    if anywhere(from_main(step, accelerator) != step, accelerator):
        raise ValueError(
            "the processes found different saved states: the folder must be one that all of them see, such as a disk "
            "shared by the machines; or begin afresh with restart=True"
        )
