"""An object detector for scenes of several objects: what is in a picture, where and how large, and on which background.

Small, and made like CenterNet (Zhou, Wang and Krähenbühl 2019, "Objects as Points", arXiv 1904.07850): an object is a
peak in the heat map of its class. It knows nothing of the models it judges. Like `judge.Judge` it is trained on real
pictures with all pairs and numbers, the held-out ones too, or it would learn which ones never occur and misjudge just
the pictures that it is needed for; the models under test never see those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.data.compositions import Composition
from course_utils.data.placing import CANVAS, MAX_THINGS
from course_utils.data.vocabulary import COLORS, OBJECTS, value_index
from course_utils.evaluation.judge import conv_block, degrade

STRIDE = 4  # pixels of the picture a cell of the heat map: CenterNet's R
SURE = 0.2  # the least score of an object that counts: a centre on a cell's edge shares its heat with the next cell
RARE = 0.01  # what the untrained heat map says everywhere: most cells hold no centre


class Detection(NamedTuple):
    """An object found: its centre and longer side in pixels of a 64 × 64 canvas, and how sure that is, 0 ... 1."""

    object: str
    x: float
    y: float
    size: float
    score: float


class Seen(NamedTuple):
    """What a picture shows: its objects, the surest first, and its background."""

    objects: list[Detection]
    color: str


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes of the detector. Pictures are [3, image_size, image_size]; channels at a half, quarter and eighth of it."""

    image_size: int = CANVAS
    channels: tuple[int, int, int] = (32, 64, 128)
    objects: int = len(OBJECTS)
    colors: int = len(COLORS)

    def __post_init__(self) -> None:
        first, second, third = self.channels
        object.__setattr__(self, "channels", (first, second, third))
        if self.image_size < 16 or self.image_size % 8 or any(c % 8 for c in self.channels):
            raise ValueError(
                f"image_size must be a multiple of 8, at least 16, and channels multiples of 8; "
                f"got {self.image_size} and {self.channels}"
            )


class Detector(nn.Module):
    """detector(x [B, 3, H, W] in [-1, 1]) -> heat, boxes, color: logits [B, objects, h, w], [B, 3, h, w], [B, colors].

    h = H / STRIDE. A cell of the heat map stands for the object whose centre lies in it; `boxes` say, for such cells,
    where in the cell (offset to the right and down, in cells) and the object's longer side in cells.
    """

    def __init__(self, config: DetectorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DetectorConfig()
        first, second, third = config.channels
        self.near = nn.Sequential(
            nn.PixelUnshuffle(2),  # [B, 12, H/2, W/2]
            conv_block(12, first),
            conv_block(first, second, stride=2),  # [B, second, H/4, W/4]
        )
        self.far = nn.Sequential(
            conv_block(second, third, stride=2),
            conv_block(third, third),
            conv_block(third, third),
            nn.Conv2d(third, second, 1),
        )
        self.together = conv_block(second, third)
        self.heat = nn.Conv2d(third, config.objects, 1)
        self.boxes = nn.Conv2d(third, 3, 1)
        self.color = nn.Linear(second, config.colors)
        nn.init.constant_(self.heat.bias, math.log(RARE / (1 - RARE)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        side = self.config.image_size
        if x.ndim != 4 or x.shape[1:] != (3, side, side):
            raise ValueError(f"the detector wants pictures [B, 3, {side}, {side}], got {list(x.shape)}")
        near = self.near(x)
        far = F.interpolate(self.far(near), scale_factor=2.0, mode="nearest")
        both = self.together(near + far)  # [B, third, H/4, W/4]
        return self.heat(both), self.boxes(both), self.color(near.mean(dim=(2, 3)))


def things_of(compositions: Sequence[Composition]) -> Tensor:
    """What pictures show, as numbers: float [N, MAX_THINGS, 4] of (class, x, y, pixels), -1 where there is no more."""
    things = torch.full((len(compositions), MAX_THINGS, 4), -1.0)
    for i, composition in enumerate(compositions):
        for k, thing in enumerate(composition.things):
            things[i, k] = torch.tensor([value_index("object", thing.object), thing.x, thing.y, thing.pixels])
    return things


def encode(things: Tensor, classes: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The heat map, boxes and mask that a perfect detector would give: [B, classes, side, side], [B, 3, ...], [B, ...].

    things: [B, n, 4] as from `things_of`. A centre's cell has heat 1, those around it less, by a Gaussian as wide as
    a sixth of the object (CenterNet, section 3); `mask` is True in the cells that hold a centre.
    """
    b, n, _ = things.shape
    device = things.device
    there = things[..., 0] >= 0  # [B, n]
    unit = CANVAS / side  # pixels of the canvas a cell
    spot = things[..., 1:3] / unit  # [B, n, 2], in cells
    cell = spot.floor().clamp(0, side - 1)
    pixels = things[..., 3] / unit
    grid = torch.arange(side, device=device)
    dx, dy = (grid - cell[..., i, None] for i in (0, 1))  # [B, n, side]
    spread = (pixels / 6).clamp(min=0.5)[..., None, None]
    bump = torch.exp(-(dy[..., :, None] ** 2 + dx[..., None, :] ** 2) / (2 * spread**2))  # [B, n, side, side]
    heat = torch.zeros(b, classes, side, side, device=device)
    boxes = torch.zeros(b, 3, side, side, device=device)
    mask = torch.zeros(b, side, side, dtype=torch.bool, device=device)
    rows = torch.arange(b, device=device)
    for k in range(n):
        row, name = rows[there[:, k]], things[there[:, k], k, 0].long()
        heat[row, name] = torch.maximum(heat[row, name], bump[row, k])
        x, y = cell[row, k].long().unbind(dim=-1)
        boxes[row, :, y, x] = torch.cat([spot[row, k] - cell[row, k], pixels[row, k, None]], dim=1)
        mask[row, y, x] = True
    return heat, boxes, mask


def decode(heat: Tensor, boxes: Tensor, threshold: float = SURE, most: int = 16) -> list[list[Detection]]:
    """The objects of each picture, the surest first: heat [B, classes, h, w] in 0 ... 1, boxes [B, 3, h, w].

    An object is a cell whose best class is at least `threshold` and not less than its neighbours' (CenterNet, section
    4). A place holds one object: what lies within a surer one, nearer than 0.6 of the mean of their sides, is dropped.
    """
    best, name = heat.max(dim=1)  # [B, h, w]
    peaks = torch.where(best == F.max_pool2d(best[:, None], 3, stride=1, padding=1)[:, 0], best, 0.0)
    scores, at = peaks.flatten(1).topk(min(most, peaks[0].numel()), dim=1)  # [B, most]
    x, y = at % heat.shape[3], at // heat.shape[3]
    rows = torch.arange(len(heat), device=heat.device)[:, None]
    names, (right, down, sides) = name[rows, y, x], boxes[rows, :, y, x].unbind(dim=-1)
    unit = CANVAS / heat.shape[3]  # pixels of the canvas a cell
    numbers = torch.stack([names, (x + right) * unit, (y + down) * unit, sides * unit, scores], dim=-1)
    found = []
    for picture in numbers.tolist():
        kept: list[Detection] = []
        for index, cx, cy, size, score in picture:
            inside = any(max(abs(cx - k.x), abs(cy - k.y)) < 0.3 * (size + k.size) for k in kept)
            if score >= threshold and not inside:
                kept.append(Detection(OBJECTS[int(index)], cx, cy, size, score))
        found.append(kept)
    return found


@torch.no_grad()
def detect(detector: Detector, pictures: Tensor, threshold: float = SURE, batch_size: int = 256) -> list[Seen]:
    """What each picture [B, 3, H, W] in [-1, 1] shows, on any device."""
    device = next(detector.parameters()).device
    seen = []
    for chunk in pictures.split(batch_size):
        heat, boxes, color = detector(chunk.to(device))
        objects = decode(heat.float().sigmoid().cpu(), boxes.float().cpu(), threshold)
        colors = [list(COLORS)[i] for i in color.argmax(dim=1).tolist()]
        seen += [Seen(o, c) for o, c in zip(objects, colors, strict=True)]
    return seen


def detector_loss(
    detector: Detector, images: Tensor, things: Tensor, colors: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Loss of a batch, a scalar: focal loss of the heat, L1 of offsets and sizes, cross-entropy of the background.

    images [B, 3, H, W] in [-1, 1]; things [B, n, 4] as from `things_of`; colors int64 [B]. With a generator the
    pictures are degraded first (`judge.degrade`), as they should be in training.
    Source: CenterNet, equations 1 (with α = 2, β = 4), 2 and 3; the weight of the sizes is its λ = 0.1.
    """
    if things.ndim != 3 or len(things) != len(images) or colors.shape != (len(images),):
        raise ValueError(
            f"{len(images)} pictures want things [{len(images)}, n, 4] and colors [{len(images)}], "
            f"got {list(things.shape)} and {list(colors.shape)}"
        )
    if generator is not None:
        images = degrade(images, generator)
    logits, boxes, color = (out.float() for out in detector(images))
    heat, boxes_wanted, mask = encode(things.to(images.device), logits.shape[1], logits.shape[2])
    centres = heat == 1
    number = mask.sum().clamp(min=1)
    p = logits.sigmoid()
    hit = (1 - p) ** 2 * F.logsigmoid(logits)
    miss = (1 - heat) ** 4 * p**2 * F.logsigmoid(-logits)
    focal = -torch.where(centres, hit, miss).sum() / number
    error = ((boxes - boxes_wanted).abs() * mask[:, None]).sum(dim=(0, 2, 3)) / number  # right, down, side
    return focal + error[0] + error[1] + 0.1 * error[2] + F.cross_entropy(color, colors)
