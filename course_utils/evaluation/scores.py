"""Scores of a text-to-image model: prompts to try it on, pictures drawn for them, and what the judge sees.

Nothing here knows how pictures are made. A model under test is a callable `draw(prompts, generator)` that gives
pictures float [B, 3, H, W] in [-1, 1], one a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from course_utils.data.scenes import (
    ATTRIBUTES,
    COLORS,
    OBJECTS,
    first_objects,
    held_out_pairs,
    is_held_out_color,
    parse_caption,
    prompt_for,
    random_scene,
    value_name,
)
from course_utils.evaluation.judge import Judge
from course_utils.evaluation.metrics import frechet_distance, prompt_accuracy

Draw = Callable[[list[str], torch.Generator], Tensor]

SPLITS = ("seen", "held_out")


def prompts_of(attributes: Tensor, named: Sequence[str] = ATTRIBUTES) -> list[str]:
    """The plain prompt of each scene: attributes int64 [N, 4] -> N strings that name the attributes in `named`.

    Raises:
        ValueError: `named` lacks object or color, which every prompt says, or has something else.
    """
    if not {"object", "color"} <= set(named) <= set(ATTRIBUTES):
        raise ValueError(f"named must hold object and color, maybe size and place, got {tuple(named)}")
    prompts = []
    for row in attributes.tolist():
        values = {name: value_name(name, i) for name, i in zip(ATTRIBUTES, row, strict=True) if name in named}
        prompts.append(prompt_for(**values))
    return prompts


def make_prompts(
    n: int,
    generator: torch.Generator,
    split: str = "seen",
    named: Sequence[str] = ("object", "color"),
    objects: int = len(OBJECTS),
) -> list[str]:
    """n prompts at random, whose combinations training has "seen", or that were "held_out" of all of it.

    With `named` object and color, the pair is a held-out one, or not. With all four attributes a held-out prompt has
    a held-out (object, color) or (object, place) pair, a seen one has neither. Pairs come in turn, in a shuffled order,
    so that each is asked about equally often. `objects`: the prompts are about the first so many of ALL_OBJECTS.

    Raises:
        ValueError: another split, n below 1, impossible `objects`, or `named` as for `prompts_of`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    prompts_of(torch.zeros(0, len(ATTRIBUTES)), named)  # refuses a bad `named` first
    if set(named) != {"object", "color"}:
        scenes = [random_scene(generator, "train" if split == "seen" else "held_out", objects) for _ in range(n)]
        return prompts_of(torch.tensor([scene.attributes for scene in scenes]), named)
    held_out = held_out_pairs(objects)[0]
    seen = [(name, color) for name in first_objects(objects) for color in COLORS if not is_held_out_color(name, color)]
    pairs = seen if split == "seen" else held_out
    order = torch.randperm(len(pairs), generator=generator).tolist()
    return [prompt_for(*pairs[order[i % len(pairs)]]) for i in range(n)]


@torch.no_grad()
def draw_for_prompts(draw: Draw, prompts: Sequence[str], generator: torch.Generator, batch_size: int = 64) -> Tensor:
    """A picture for each prompt, drawn in batches: float [N, 3, H, W] in [-1, 1], on the CPU."""
    if not prompts:
        raise ValueError("there are no prompts to draw for")
    batches = []
    for start in range(0, len(prompts), batch_size):
        batch = list(prompts[start : start + batch_size])
        pictures = draw(batch, generator)
        if len(pictures) != len(batch):
            raise ValueError(f"draw gave {len(pictures)} pictures for {len(batch)} prompts")
        batches.append(pictures.detach().float().clamp(-1, 1).cpu())
    return torch.cat(batches)


def score_pictures(judge: Judge, pictures: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """How often pictures [N, 3, H, W] show what their prompts name, as the judge sees it: see `prompt_accuracy`."""
    device = next(judge.parameters()).device
    return prompt_accuracy(judge.predict(pictures.to(device).clamp(-1, 1)).cpu(), [parse_caption(p) for p in prompts])


def score_prompts(
    draw: Draw, judge: Judge, prompts: Sequence[str], generator: torch.Generator, batch_size: int = 64
) -> dict[str, float]:
    """Draw a picture for each prompt and let the judge say what it shows: shares in 0 ... 1.

    Returns:
        "object", "color", "size", "place" (of the prompts that name it), "object_and_color" and "all_named".
    """
    return score_pictures(judge, draw_for_prompts(draw, prompts, generator, batch_size), prompts)


@torch.no_grad()
def judge_features(judge: Judge, pictures: Tensor, batch_size: int = 256) -> Tensor:
    """The judge's features of pictures [N, 3, H, W] in [-1, 1]: float [N, F] on the CPU."""
    device = next(judge.parameters()).device
    return torch.cat([judge.features(chunk.to(device)).float().cpu() for chunk in pictures.split(batch_size)])


def frechet_and_floor(judge: Judge, drawn: Tensor, real: Tensor, other_real: Tensor) -> tuple[float, float]:
    """Fréchet distance of drawn pictures to real ones, and of other real ones to the same: (distance, floor).

    All [N, 3, H, W] in [-1, 1] with the same N: an estimate from few pictures is too large, and by the same amount
    only for the same number.

    Raises:
        ValueError: the three sets have different sizes.
    """
    if not len(drawn) == len(real) == len(other_real):
        raise ValueError(f"the three sets must have the same size, got {len(drawn)}, {len(real)} and {len(other_real)}")
    features = [judge_features(judge, pictures) for pictures in (drawn, real, other_real)]
    return frechet_distance(features[0], features[1]), frechet_distance(features[2], features[1])
