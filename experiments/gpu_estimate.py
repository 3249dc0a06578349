"""Minutes of the `gpu` profile on four cards, counted for docs/gpu.md: `python experiments/gpu_estimate.py`.

A training step of each network is run on tensors without numbers, backward pass and optimisers included. Each operation
that PyTorch asks for has arithmetic, numbers read and written, and one launch. On a card it takes the longer of the two
times, of its arithmetic and of its memory; a step takes the sum of those, or the launches, whichever is longer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import torch  # noqa: E402
from pages import fill  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.flop_counter import flop_registry  # noqa: E402

from course_utils.models import clip as clip_module  # noqa: E402
from course_utils.models.clip import CLIP, contrastive_loss  # noqa: E402
from course_utils.models.unet import UNet  # noqa: E402
from course_utils.models.vae import VAE, reparameterise, vae_loss  # noqa: E402
from course_utils.profiles import PROFILES, Profile  # noqa: E402
from course_utils.training.muon import make_optimizers  # noqa: E402
from course_utils.training.steps import update_ema  # noqa: E402

LAUNCH = 7e-6  # seconds from one operation to the next when Python asks for them one by one
SUSTAINED = (0.35, 0.7)  # what small networks reach of a card's arithmetic and of its memory's speed
CARDS = {  # operations a second in half precision, bytes a second, of the makers' sheets
    "T4": (65e12, 320e9),
    "L4": (121e12, 300e9),
    "A100": (312e12, 1555e9),
    "H100": (989e12, 3350e9),
}


@dataclass(frozen=True)
class Operation:
    """One launch: floating-point operations, and bytes read and written."""

    flop: float
    bytes: float


class Count(TorchDispatchMode):
    """Collects the operations that are done inside; those that only look at a tensor in another way cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        if made and not func.is_view and "empty" not in func.name() and "detach" not in func.name():
            given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
            count = flop_registry.get(func._overloadpacket)
            flop = count(*args, **(kwargs or {}), out_val=found) if count else 0
            self.done.append(Operation(flop, sum(x.numel() * x.element_size() for x in [*given, *made])))
        return found


def losses(profile: Profile) -> dict[str, tuple[nn.Module, Any]]:
    """Each network with a function that gives its loss on a batch of the profile."""
    side = profile.clip.vision.image_size
    small = side // profile.vae.factor
    vae, clip, unet = VAE(profile.vae), CLIP(profile.clip), UNet(profile.unet)

    def vae_value() -> Tensor:
        x = torch.randn(profile.vae_budget.batch_size, 3, side, side)
        cloud = vae.encode(x)
        z = reparameterise(cloud.mean, cloud.log_variance, torch.randn_like(cloud.mean))
        return vae_loss(x, vae.decode(z).float(), cloud.kl(), profile.vae_beta)

    def clip_value() -> Tensor:
        n, length = profile.clip_budget.batch_size, profile.clip.text.max_length
        pictures = clip.encode_image(torch.randn(n, 3, side, side)).float()
        states = clip.text_projection(clip.text(torch.zeros(n, length, dtype=torch.int64))[:, 0])
        return contrastive_loss(pictures, nn.functional.normalize(states.float()), clip.logit_scale)

    def unet_value() -> Tensor:
        n = profile.unet_budget.batch_size
        x = torch.randn(n, profile.unet.latent_channels, small, small)
        context = torch.randn(n, profile.clip.text.max_length, profile.unet.context_width)
        return (unet(x, torch.zeros(n, dtype=torch.int64), context).float() - x).square().mean()

    return {"vae": (vae, vae_value), "clip": (clip, clip_value), "unet": (unet, unet_value)}


def count_step(network: nn.Module, loss: Any) -> tuple[list[Operation], int]:
    """The operations of one training step, and the bytes that its forward pass keeps for the backward one."""
    optimizers = make_optimizers(network, 1e-3, 0.02, (0.9, 0.99), 0.01, "bf16")
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with Count() as count:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        update_ema(network, network, 0.9)
    return count.done, sum(kept.values())


def seconds(operations: Sequence[Operation], card: str) -> float:
    """A step's time on a card, by the rule above."""
    flops, memory = (share * peak for share, peak in zip(SUSTAINED, CARDS[card], strict=True))
    return max(sum(max(o.flop / flops, o.bytes / memory) for o in operations), LAUNCH * len(operations))


def report(profile: Profile) -> str:
    """The table of the page."""
    lines = [
        "| a step of | TFLOP | GB moved | launches | kept for the backward pass, MB | " + " | ".join(CARDS) + " |",
        "| --- | " + "---: | " * (4 + len(CARDS)),
    ]
    minutes = dict.fromkeys(CARDS, 0.0)
    clip_module.check_ids = lambda ids, config: None  # there are no values to look at
    with FakeTensorMode():
        for name, (network, loss) in losses(profile).items():
            done, kept = count_step(network, loss)
            budget = getattr(profile, f"{name}_budget")
            each = {card: seconds(done, card) for card in CARDS}
            for card in CARDS:
                minutes[card] += each[card] * budget.steps / 60
            flop, moved = sum(o.flop for o in done) / 1e12, sum(o.bytes for o in done) / 1e9
            cells = [f"{flop:.2f}", f"{moved:.1f}", f"{len(done):,}", f"{kept / 1e6:,.0f}"]
            cells += [f"{1000 * s:.0f} ms, {s * budget.steps / 60:.1f} min" for s in each.values()]
            lines.append(f"| {name}, batch of {budget.batch_size}, {budget.steps:,} steps | {' | '.join(cells)} |")
    total = " | ".join(f"**{m:.0f} min**" for m in minutes.values())
    return "\n".join([*lines, f"| all three | | | | | {total} |"])


if __name__ == "__main__":
    text = report(PROFILES["gpu"])
    print(text)
    fill(ROOT / "docs" / "gpu.md", "estimate", text)
