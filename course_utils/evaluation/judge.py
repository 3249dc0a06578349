"""A picture classifier that judges pictures: it reads object, colour, size and place off them, or says "none of these".

It knows nothing of the models under test. Trained on real scenes and on spoiled ones, it says what a sampled picture
shows, if anything, and its features measure how far one set of pictures is from another (`metrics.frechet_distance`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.data.scenes import ATTRIBUTES, VALUES, first_objects

NONE = -1  # the object in `predict` where a picture shows none
SPOILED = 0.2  # share of the pictures in training that show no object


def _classes(objects: int) -> tuple[int, ...]:
    """How many answers there are for each attribute; the object's last one is "none of these"."""
    return (objects + 1, *(len(VALUES[attribute]) for attribute in ATTRIBUTES[1:]))


@dataclass(frozen=True)
class JudgeConfig:
    """Sizes of the judge. Pictures are [3, image_size, image_size]; `classes`: how many answers each attribute has."""

    image_size: int = 64
    channels: tuple[int, ...] = (32, 64, 96, 128)
    what_dim: int = 128
    where_dim: int = 32
    classes: tuple[int, ...] = _classes(len(VALUES["object"]))

    def __post_init__(self) -> None:
        if self.image_size < 16 or self.image_size % 16:
            raise ValueError(f"image_size must be a multiple of 16, not {self.image_size}")
        if len(self.channels) != 4 or len(self.classes) != len(ATTRIBUTES):
            raise ValueError(
                f"the judge takes 4 channels and {len(ATTRIBUTES)} classes ({', '.join(ATTRIBUTES)}), "
                f"got {self.channels} and {self.classes}"
            )

    @classmethod
    def for_objects(cls, objects: int, **sizes: Any) -> JudgeConfig:
        """For the first `objects` of ALL_OBJECTS: `JudgeConfig.for_objects(200, image_size=96)`."""
        return cls(classes=_classes(len(first_objects(objects))), **sizes)


def conv_block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Convolution, group norm, SiLU: [B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, out_channels),
        nn.SiLU(),
    )


class Judge(nn.Module):
    """Classifier with a head for each attribute: judge(x) -> {attribute: logits [B, classes]}.

    x [B, 3, H, W] in [-1, 1]. Object and colour are read from "what", features pooled over the picture; size and
    place from "where", a narrow map that keeps positions. So the object cannot be guessed from its place, nor the
    place from the object: on held-out pairs such guesses would be wrong.
    """

    def __init__(self, config: JudgeConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or JudgeConfig()
        first, second, third, fourth = config.channels
        self.near = nn.Sequential(
            nn.PixelUnshuffle(2),  # [B, 12, H/2, W/2]: nothing is lost, and all that follows is quick
            conv_block(12, first),
            conv_block(first, second, stride=2),  # [B, second, H/4, W/4], each cell sees 10 x 10 pixels
        )
        self.what = nn.Sequential(
            conv_block(second, third, stride=2),
            conv_block(third, fourth),
            conv_block(fourth, config.what_dim, stride=2),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.where = nn.Sequential(
            nn.Conv2d(second, 4, 1),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * (config.image_size // 8) ** 2, 2 * config.where_dim),
            nn.SiLU(),
            nn.Linear(2 * config.where_dim, config.where_dim),
            nn.SiLU(),
        )
        widths = (config.what_dim, config.what_dim, config.where_dim, config.where_dim)
        self.heads = nn.ModuleList(nn.Linear(w, n) for w, n in zip(widths, config.classes, strict=True))

    def what_and_where(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> what [B, what_dim], where [B, where_dim]."""
        side = self.config.image_size
        if x.ndim != 4 or x.shape[1:] != (3, side, side):
            raise ValueError(f"the judge wants pictures [B, 3, {side}, {side}], got {list(x.shape)}")
        near = self.near(x)
        return self.what(near), self.where(near)

    def features(self, x: Tensor) -> Tensor:
        """What the heads look at, and how fine it is drawn: [B, 3, H, W] -> [B, F].

        F = what_dim + where_dim + 2 · channels[1]. The last part is the mean and the spread over the picture of the
        first layers' maps, which see 10 x 10 pixels and answer to edges: blurring a picture changes them even where
        its object can still be told.
        """
        near = self.near(x)
        return torch.cat([*self.what_and_where(x), near.mean(dim=(2, 3)), near.std(dim=(2, 3))], dim=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        what, where = self.what_and_where(x)
        inputs = (what, what, where, where)
        return {name: head(f) for name, head, f in zip(ATTRIBUTES, self.heads, inputs, strict=True)}

    @torch.no_grad()
    def predict(self, x: Tensor, batch_size: int = 256) -> Tensor:
        """The likeliest (object, color, size, place) of each picture, NONE where it shows no object: int64 [B, 4]."""
        found = torch.cat(
            [
                torch.stack([logits.argmax(dim=1) for logits in self(chunk).values()], dim=1)
                for chunk in x.split(batch_size)
            ]
        )
        found[found[:, 0] == self.config.classes[0] - 1, 0] = NONE
        return found


def recombine(images: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
    """Give each scene the background of the next one of the batch, and the place of the one after that.

    images [B, 3, H, W] in [-1, 1], attributes int64 [B, 4] -> the same; the attributes say what the new pictures show.
    Without this a judge learns which pairs are held out ("no dog was ever on red, so this is none") and misjudges just
    the pictures it is needed for. In a recombined batch no attribute tells anything about another. So the judge,
    unlike the models it judges, does meet held-out pairs: put together from training pictures.
    """
    old = images[:, :, :1, :1]  # the corner always shows the background
    new = old.roll(-1, dims=0)
    background = ((images - old).abs().amax(dim=1, keepdim=True) < 0.02).to(images)  # [B, 1, H, W]
    # Next to the background lie pixels where it is mixed with a black outline: by how much tells their brightness.
    edge = F.max_pool2d(background, 3, stride=1, padding=1) - background
    mixed = ((images + 1) * (old + 1)).sum(dim=1, keepdim=True) / (old + 1).square().sum(dim=1, keepdim=True)
    images = images + (background + edge * mixed.clamp(0, 1)) * (new - old)
    rows, columns = (_moved((background == 0).any(dim=dim).flatten(1)) for dim in (3, 2))  # [B, H], [B, W]
    pixels = (rows[:, None, :, None] * images.shape[3] + columns[:, None, None, :]).expand_as(images).flatten(2)
    images = images.flatten(2).gather(2, pixels).view_as(images)
    o, c, s, p = attributes.unbind(dim=1)
    return images, torch.stack([o, c.roll(-1), s, p.roll(-2)], dim=1)


def _moved(shown: Tensor) -> Tensor:
    """Which row to take each row from, so that what is shown [B, side] moves to the place it has two scenes further.

    Places are compared by the share of the free room that lies before the object, for objects differ in size.
    """
    before, after = (rows.to(torch.uint8).argmax(dim=1) for rows in (shown, shown.flip(1)))  # empty rows
    room = before + after
    shift = ((before / room.clamp(min=1)).roll(-2) * room).round().long() - before
    return (torch.arange(shown.shape[1], device=shown.device) - shift[:, None]) % shown.shape[1]  # [B, side]


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, tint and noise, each picture by its own amount, so that the judge reads imperfect pictures too."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device).to(images)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device).to(images)

    b = len(images)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, blurred, uniform(b, 1, 1, 1))
    return images + 0.03 * normal(b, 3, 1, 1) + 0.15 * uniform(b, 1, 1, 1) * normal(*images.shape)


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures that show none of the objects, made of a batch that does: blobs, mixtures, halves and noise in turn.

    images [B, 3, H, W] in [-1, 1] -> the same. These are what a model draws that has not learned enough: the mean of
    several objects, or something of the right colours without a shape.
    """
    background = images[:, :, :1, :1]  # the corner always shows it
    shown = images - background
    side = images.shape[-1]
    blobs = F.interpolate(F.adaptive_avg_pool2d(shown, side // 10), size=(side, side), mode="bilinear")
    mixtures = (shown + shown.roll(1, dims=0) + shown.roll(2, dims=0)) / 3
    halves = _half_of(shown)
    noise = torch.randn(shown.shape, generator=generator, device=generator.device).to(shown)
    noises = (F.avg_pool2d(shown, 5, stride=1, padding=2) != 0) * noise
    kind = torch.randint(4, (len(images), 1, 1, 1), generator=generator, device=generator.device).to(images.device)
    spoiled = torch.where(kind == 0, blobs, torch.where(kind == 1, mixtures, torch.where(kind == 2, halves, noises)))
    return (background + spoiled).clamp(-1, 1)


def _half_of(shown: Tensor) -> Tensor:
    """Each object's upper half, or its left one, in turn: [B, 3, H, W], 0 where there is background."""
    there = shown.abs().amax(dim=1) > 0.02  # [B, H, W]
    rows, columns = there.any(dim=2), there.any(dim=1)  # [B, H], [B, W]
    upper, left = (lines.cumsum(dim=1) <= lines.sum(dim=1, keepdim=True) / 2 for lines in (rows, columns))
    turn = torch.arange(len(shown), device=shown.device)[:, None, None, None] % 2 == 0
    return shown * torch.where(turn, upper[:, None, :, None], left[:, None, None, :])


def judge_loss(judge: Judge, images: Tensor, attributes: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Sum of the heads' cross-entropies in nats, averaged over the pictures whose attribute is known: a scalar.

    images [B, 3, H, W] in [-1, 1]; attributes int64 [B, 4], -1 where unknown. With a generator the pictures are
    recombined and degraded first, as they should be in training, and a share of them spoiled: "none of these".
    """
    if attributes.shape != (len(images), len(ATTRIBUTES)):
        raise ValueError(f"attributes must be [{len(images)}, {len(ATTRIBUTES)}], got {list(attributes.shape)}")
    if generator is not None:
        images, attributes = recombine(images, attributes)
        n = round(SPOILED * len(images))
        none = attributes.new_tensor([judge.config.classes[0] - 1, -1, -1, -1])
        images = torch.cat([spoil(images[:n], generator), images[n:]]) if n else images
        attributes = torch.cat([none.expand(n, -1), attributes[n:]])
        images = degrade(images, generator)
    loss = images.new_zeros(())
    for column, logits in enumerate(judge(images).values()):
        known = attributes[:, column] >= 0
        total = F.cross_entropy(logits, attributes[:, column], ignore_index=-1, reduction="sum")
        loss = loss + total / known.sum().clamp(min=1)
    return loss
