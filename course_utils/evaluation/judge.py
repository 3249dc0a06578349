"""A picture classifier that judges pictures: it reads object, colour, size and place off them.

It knows nothing of the models under test. Trained on real scenes only, it says what a sampled picture shows, and its
features measure how far one set of pictures is from another (`metrics.frechet_distance`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.data.scenes import ATTRIBUTES, VALUES


@dataclass(frozen=True)
class JudgeConfig:
    """Sizes of the judge. Pictures are [3, image_size, image_size]; `classes`: how many values each attribute has."""

    image_size: int = 64
    channels: tuple[int, ...] = (64, 96, 128)
    what_dim: int = 128
    where_dim: int = 32
    classes: tuple[int, ...] = tuple(len(VALUES[attribute]) for attribute in ATTRIBUTES)

    def __post_init__(self) -> None:
        if self.image_size < 16 or self.image_size % 16:
            raise ValueError(f"image_size must be a multiple of 16, not {self.image_size}")
        if len(self.channels) != 3 or len(self.classes) != len(ATTRIBUTES):
            raise ValueError(
                f"the judge takes 3 channels and {len(ATTRIBUTES)} classes ({', '.join(ATTRIBUTES)}), "
                f"got {self.channels} and {self.classes}"
            )


def _block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, out_channels),
        nn.SiLU(),
    )


class Judge(nn.Module):
    """Classifier with a head for each attribute: judge(x) -> {attribute: logits [B, classes]}.

    x [B, 3, H, W] in [-1, 1]. Object and colour are read from "what", features averaged over the picture; size and
    place from "where", a narrow map that keeps positions. So the object cannot be guessed from its place, nor the
    place from the object: on held-out pairs such guesses would be wrong.
    """

    def __init__(self, config: JudgeConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or JudgeConfig()
        first, second, third = config.channels
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(4),  # [B, 48, H/4, W/4]: nothing is lost, and all that follows is quick
            _block(48, first),
            _block(first, second, stride=2),
            _block(second, third),  # [B, third, H/8, W/8]
        )
        self.what = _block(third, config.what_dim, stride=2)
        self.where = nn.Sequential(
            nn.Conv2d(third, 8, 1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(8 * (config.image_size // 8) ** 2, config.where_dim),
            nn.SiLU(),
        )
        widths = (config.what_dim, config.what_dim, config.where_dim, config.where_dim)
        self.heads = nn.ModuleList(nn.Linear(w, n) for w, n in zip(widths, config.classes, strict=True))

    def what_and_where(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> what [B, what_dim], where [B, where_dim]."""
        side = self.config.image_size
        if x.ndim != 4 or x.shape[1:] != (3, side, side):
            raise ValueError(f"the judge wants pictures [B, 3, {side}, {side}], got {list(x.shape)}")
        h = self.trunk(x)
        return self.what(h).mean(dim=(2, 3)), self.where(h)

    def features(self, x: Tensor) -> Tensor:
        """What the heads look at: [B, 3, H, W] -> [B, what_dim + where_dim]."""
        return torch.cat(self.what_and_where(x), dim=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        what, where = self.what_and_where(x)
        inputs = (what, what, where, where)
        return {name: head(f) for name, head, f in zip(ATTRIBUTES, self.heads, inputs, strict=True)}

    @torch.no_grad()
    def predict(self, x: Tensor, batch_size: int = 256) -> Tensor:
        """The likeliest (object, color, size, place) of each picture: int64 [B, 4]."""
        return torch.cat(
            [
                torch.stack([logits.argmax(dim=1) for logits in self(chunk).values()], dim=1)
                for chunk in x.split(batch_size)
            ]
        )


def augment(images: Tensor, attributes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training pictures made harder, in two ways. [B, 3, H, W] in [-1, 1] and int64 [B, 4] -> the same.

    Three quarters get a background of any colour, and are asked for all but the colour; the others keep theirs and
    are not asked for the object (their attribute becomes -1). Else the judge would learn which pairs are held out:
    "never seen a dog on red, so this is no dog". Then blur, tint and noise, so that it reads imperfect pictures too.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device).to(images)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device).to(images)

    b = len(images)
    repaint = uniform(b) < 0.75
    object_unknown, color_unknown = ~repaint, repaint
    unknown = torch.stack([object_unknown, color_unknown, *[torch.zeros_like(repaint)] * 2], dim=1)  # [B, 4]
    background = (images - images[:, :, :1, :1]).abs().amax(dim=1, keepdim=True) < 0.1  # as the corner: [B, 1, H, W]
    painted = torch.where(background, 2 * uniform(b, 3, 1, 1) - 1, images)
    images = torch.where(repaint[:, None, None, None], painted, images)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, blurred, uniform(b, 1, 1, 1))
    images = images + 0.03 * normal(b, 3, 1, 1) + 0.15 * uniform(b, 1, 1, 1) * normal(*images.shape)
    return images, attributes.masked_fill(unknown.to(attributes.device), -1)


def judge_loss(
    judge: Judge, images: Tensor, attributes: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Sum of the heads' cross-entropies in nats, averaged over the pictures whose attribute is known: a scalar.

    images [B, 3, H, W] in [-1, 1]; attributes int64 [B, 4], -1 where unknown. With a generator the pictures are
    augmented first, as they should be in training.
    """
    if attributes.shape != (len(images), len(ATTRIBUTES)):
        raise ValueError(f"attributes must be [{len(images)}, {len(ATTRIBUTES)}], got {list(attributes.shape)}")
    if generator is not None:
        images, attributes = augment(images, attributes, generator)
    loss = images.new_zeros(())
    for column, logits in enumerate(judge(images).values()):
        known = attributes[:, column] >= 0
        total = F.cross_entropy(logits, attributes[:, column], ignore_index=-1, reduction="sum")
        loss = loss + total / known.sum().clamp(min=1)
    return loss
