"""Does the U-Net hear a word? Asked without drawing: which of two captions helps it more to take noise off a picture.

A denoiser that has understood a caption predicts the noise in a picture better with the right caption than with one in
which one thing is wrong. With many captions to choose from this is the diffusion classifier (Li, Prabhudesai, Duggal,
Brown and Pathak 2023, arXiv 2303.16203, algorithm 1); with two of them it says which words are heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from course_utils.data.compositions import compositions
from course_utils.data.descriptions import NUMBERS, RELATIONS, TASKS, Description, in_words
from course_utils.data.vocabulary import COLORS, OBJECTS
from course_utils.diffusion.forward import add_noise
from course_utils.diffusion.reverse import target
from course_utils.pipeline import TextToImage

TIMESTEPS = (300, 500, 700, 850, 950)  # of 1,000: from a picture with some noise to noise with some picture
CHANGED = {
    "single": "the object",
    "two": "one of the objects",
    "counting": "the number, by one",
    "colors": "the background",
    "position": "the relation, turned round",
    "binding": "the sizes, exchanged",
}


def altered(asked: Description, generator: torch.Generator) -> Description:
    """The same with one thing wrong, that which its task is about (`CHANGED`)."""

    def other(choices: Sequence, than: Sequence):
        left = [choice for choice in choices if choice not in than]
        return left[int(torch.randint(len(left), (), generator=generator))]

    if asked.relation:
        return replace(asked, relation=RELATIONS[asked.relation])
    if asked.sizes:
        return replace(asked, sizes=asked.sizes[::-1])
    if asked.count:
        near = [n for n in (asked.count - 1, asked.count + 1) if 1 <= n <= len(NUMBERS)]
        return replace(asked, count=other(near, ()))
    if asked.task == "colors":
        return replace(asked, color=other(list(COLORS), (asked.color,)))
    return replace(asked, objects=(other(OBJECTS, asked.objects), *asked.objects[1:]))


@torch.no_grad()
def denoising_errors(
    pipe: TextToImage, pictures: Tensor, captions: Sequence[str], timesteps: Sequence[int] = TIMESTEPS, seed: int = 0
) -> Tensor:
    """The U-Net's mean squared error on each picture [N, 3, H, W] with its caption, float [N] on the CPU.

    Summed over the timesteps; the noise follows the seed and the picture's place, so that two captions can be compared.
    """
    if len(pictures) != len(captions):
        raise ValueError(f"each picture needs a caption, got {len(pictures)} pictures and {len(captions)} captions")
    found = []
    for part in torch.arange(len(pictures)).split(64):
        latents = pipe.vae.to_latents(pictures[part].to(pipe.device))
        context = pipe.encode_prompt([captions[i] for i in part.tolist()])
        generator = torch.Generator().manual_seed(seed + int(part[0]))
        total = torch.zeros(len(part))
        for t in timesteps:
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            steps = torch.full((len(part),), t, device=pipe.device)
            prediction = pipe.unet(add_noise(pipe.schedule, latents, steps, noise), steps, context)
            error = prediction - target(pipe.schedule, latents, steps, noise, pipe.prediction_type)
            total += (error**2).flatten(1).mean(dim=1).cpu()
        found.append(total)
    return torch.cat(found)


def hears(pipe: TextToImage, n: int, seed: int, split: str = "train") -> dict[str, float]:
    """For each of TASKS the share of n new pictures that are denoised better with the right caption: 0.5 is guessing.

    split: "train", pictures of combinations that training shows, or "held_out".
    """
    shares = {}
    for task in TASKS:
        data, made = compositions(n, seed, split, {task: 1}, pipe.size)
        generator = torch.Generator().manual_seed(seed)
        asked = [composition.description() for composition in made]
        wrong = [altered(description, generator) for description in asked]
        pictures = data.batch(range(n))[0]
        errors = [denoising_errors(pipe, pictures, [in_words(d) for d in texts], seed=seed) for texts in (asked, wrong)]
        shares[task] = (errors[0] < errors[1]).float().mean().item()
    return shares


def hearing_table(columns: dict[str, dict[str, float]], pictures: int) -> str:
    """Markdown: a row a task, a column for each of {"seen combinations": hears(...), ...}."""
    lines = [f"| what is wrong in the other caption | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    for task, changed in CHANGED.items():
        lines.append(f"| {changed} | {' | '.join(f'{100 * column[task]:.0f} %' for column in columns.values())} |")
    error = 100 * (0.25 / pictures) ** 0.5
    return "\n".join([*lines, "", f"{pictures} real pictures a number; guessing is 50 ± {error:.0f} %."])
