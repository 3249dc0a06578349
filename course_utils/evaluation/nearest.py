"""The nearest true scene: what a drawn picture should have looked like.

Scenes are drawn by a program, so all true pictures of a prompt can be drawn: every size and place that it leaves open,
flipped or not. Of these the one with the smallest squared error is what the model meant, and how far it is from that
can be measured in dB, without a judge that might be fooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from course_utils.data.batches import to_float
from course_utils.data.scenes import (
    OBJECTS,
    PLACES,
    SIZES,
    Scene,
    draw,
    object_box,
    parse_caption,
    prompt_for,
    random_scene,
    shifts,
)

WHOSE = ("own", "other", "any")


class Sharpness(NamedTuple):
    """Means over the prompts, with standard errors; PSNR in dB on the object's box."""

    psnr: float
    psnr_error: float
    right: float  # share whose nearest scene among all objects is of the prompt's object, 0 … 1
    right_error: float


def true_scenes(name: str, color: str, size: str | None = None, place: str | None = None) -> list[Scene]:
    """All scenes that a prompt with these words may show; what is None is left open."""
    return [
        Scene(name, color, s, p, flip, dx, dy)
        for s in (SIZES if size is None else (size,))
        for p in (PLACES if place is None else (place,))
        for dx, dy in shifts(s, p)
        for flip in (False, True)
    ]


def nearest_scenes(
    pictures: Tensor, prompts: Sequence[str], whose: str = "own", objects: Sequence[str] = OBJECTS
) -> list[Scene]:
    """For each picture the true scene with the smallest squared error over the whole picture.

    Args:
        pictures: [N, 3, H, H] in [-1, 1]; what lies outside is cut off.
        prompts: N of the course's grammar, which name object and colour at least.
        whose: scenes of the prompt's "own" object, of every "other" one, or of "any"; colour, and size and place where
            the prompt names them, are the prompt's in each case.
        objects: what "other" and "any" are taken from.

    Raises:
        ValueError: sizes that do not fit, or a prompt that names no object or no colour.
    """
    if whose not in WHOSE:
        raise ValueError(f"whose must be one of {WHOSE}, got {whose!r}")
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] != pictures.shape[3]:
        raise ValueError(f"pictures must be [N, 3, H, H], got {list(pictures.shape)}")
    if len(pictures) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many pictures, got {len(pictures)}")
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}  # pictures of one background are compared at once
    for i, prompt in enumerate(prompts):
        named = parse_caption(prompt)
        if not {"object", "color"} <= named.keys():
            raise ValueError(f"a prompt must name an object and a colour of the course, got {prompt!r}")
        asked = named.pop("object")
        named = named if whose == "any" else {**named, whose: asked}
        groups.setdefault(tuple(sorted(named.items())), []).append(i)

    found: list[Scene | None] = [None] * len(prompts)
    library: dict[Scene, Tensor] = {}
    for key, rows in sorted(groups.items()):
        named = dict(key)
        own, other = named.pop("own", None), named.pop("other", None)
        if library and next(iter(library)).color != named["color"]:
            library.clear()  # the groups come colour by colour
        names = [own] if own else [name for name in objects if name != other]
        scenes = [scene for name in names for scene in true_scenes(name, **named)]
        for scene in scenes:
            if scene not in library:
                library[scene] = torch.from_numpy(draw(scene, pictures.shape[-1]).transpose(2, 0, 1).copy()).flatten()
        distances = torch.cat([  # [rows, scenes]
            torch.cdist(
                pictures[rows].float().cpu().clamp(-1, 1).flatten(1),
                to_float(torch.stack([library[scene] for scene in scenes[start : start + 512]])),
                compute_mode="use_mm_for_euclid_dist",
            )
            for start in range(0, len(scenes), 512)
        ], dim=1)  # fmt: skip
        for row, best in zip(rows, distances.argmin(dim=1).tolist(), strict=True):
            found[row] = scenes[best]
    return [scene for scene in found if scene is not None]


def draw_scenes(scenes: Sequence[Scene], size: int = 64) -> Tensor:
    """Scenes as pictures, float [N, 3, size, size] in [-1, 1]."""
    return to_float(torch.from_numpy(np.stack([draw(scene, size) for scene in scenes])).permute(0, 3, 1, 2))


def box_psnr(pictures: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """PSNR in dB of each picture [N, 3, H, H] to its scene, on the rectangle around the scene's object: [N].

    Values are taken in 0 … 1: 10 log₁₀ (1 / mean squared error). The plain background around it would only flatter.
    """
    size = pictures.shape[-1]
    values = []
    for picture, scene, true in zip(pictures, scenes, draw_scenes(scenes, size), strict=True):
        left, top, w, h = object_box(scene, size)
        off = (picture.float().cpu().clamp(-1, 1) - true)[:, top : top + h, left : left + w] / 2
        values.append(-10 * torch.log10(off.square().mean()))
    return torch.stack(values)


def sharpness(pictures: Tensor, prompts: Sequence[str]) -> Sharpness:
    """How near drawn pictures [N, 3, H, H] are to true scenes of their prompts, see `Sharpness`."""
    psnr = box_psnr(pictures, nearest_scenes(pictures, prompts))
    nearest = nearest_scenes(pictures, prompts, "any")
    asked = [parse_caption(prompt)["object"] for prompt in prompts]
    right = torch.tensor([scene.object == name for scene, name in zip(nearest, asked, strict=True)]).float()
    n = len(prompts) ** 0.5
    return Sharpness(
        psnr.mean().item(), psnr.std().item() / n, right.mean().item(), right.std(correction=0).item() / n
    )


def prompts_for_each_object(times: int, generator: torch.Generator, objects: Sequence[str] = OBJECTS) -> list[str]:
    """`times` prompts about every object, in the objects' order, that name all four attributes; seen and held out as
    they come."""
    scenes = [replace(random_scene(generator, "all"), object=name) for name in objects for _ in range(times)]
    return [prompt_for(s.object, s.color, s.size, s.place) for s in scenes]


def random_true_scenes(prompts: Sequence[str], generator: torch.Generator) -> list[Scene]:
    """One true scene of each prompt, each equally likely."""
    scenes = []
    for prompt in prompts:
        named = parse_caption(prompt)
        choices = true_scenes(named.pop("object"), **named)
        scenes.append(choices[int(torch.randint(len(choices), (1,), generator=generator))])
    return scenes


def floor_scenes(scenes: Sequence[Scene]) -> list[Scene]:
    """For each scene the nearest one of another object: with these pictures a model would score by luck alone."""
    prompts = [prompt_for(scene.object, scene.color, scene.size, scene.place) for scene in scenes]
    return nearest_scenes(draw_scenes(scenes), prompts, "other")
