"""Figures of the harder scenes: what was drawn for each task with its verdict, and where the words of a prompt look."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from course_utils.data.batches import to_float
from course_utils.data.descriptions import TASKS, parse_description
from course_utils.diffusion.forward import add_noise
from course_utils.evaluation.geneval import TITLES, Cell, Verdict
from course_utils.lessons.boxes import MARK, TEAL
from course_utils.lessons.plots import as_arrays, done
from course_utils.lessons.unet_plots import show_word_maps
from course_utils.models.layers import attention_weights, split_heads, to_picture
from course_utils.models.transformer import TransformerBlock
from course_utils.pipeline import TextToImage


def show_samples(cells: Sequence[Cell], columns: int = 8) -> Figure:
    """A row a task: the first pictures drawn for it, seen pairs and then held-out ones, each with its verdict."""
    figure, axes = plt.subplots(len(TASKS), columns, figsize=(1.8 * columns, 2.55 * len(TASKS)))
    for line, task in zip(axes, TASKS, strict=True):
        halves = [c for c in cells if c.task == task]
        share = columns // len(halves)
        shown = [(c, i) for c in halves for i in range(min(share, len(c.prompts)))]
        for axis in line:
            axis.set(xticks=[], yticks=[], frame_on=False)
        for axis, (cell, i) in zip(line, shown, strict=False):
            verdict = cell.verdicts[i]
            color = TEAL if verdict.right else MARK
            axis.imshow(as_arrays(cell.pictures[i : i + 1])[0], interpolation="nearest")
            axis.set_title(_two_lines(cell.prompts[i]), fontsize=9, pad=3)
            mark = "✓" if verdict.right else f"✗ {verdict.reason}"
            axis.set_xlabel(f"{mark}\n{cell.split.replace('_', ' ')}", fontsize=8.5, color=color)
            axis.set(frame_on=True)
            axis.spines[:].set(color=color, linewidth=2)
        line[0].set_ylabel(TITLES[task], fontsize=10)
    figure.suptitle("the first pictures of each task, none chosen", fontsize=12)
    return done(figure)


def _two_lines(text: str) -> str:
    words = text.split()
    lengths = [abs(len(" ".join(words[:i])) - len(" ".join(words[i:]))) for i in range(len(words) + 1)]
    middle = lengths.index(min(lengths)) if len(text) > 20 else len(words)
    return " ".join(words[:middle]) + "\n" + " ".join(words[middle:])


@torch.no_grad()
def word_maps(pipe: TextToImage, picture: Tensor, prompt: str, words: Sequence[str], seed: int) -> Tensor:
    """Where the U-Net looks at each word, [words, side, side], at its finest cross-attention; mean over heads and t.

    picture: float [1, 3, H, W] in [-1, 1], noised to three levels and denoised with the prompt, as in notebook 05.
    """
    seen: dict[int, list[Tensor]] = {}

    def listen(module: nn.Module, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pixels, context = inputs
        query, key = split_heads(module.query(pixels), module.heads), split_heads(module.key(context), module.heads)
        side = math.isqrt(pixels.shape[1])
        seen.setdefault(side, []).append(to_picture(attention_weights(query, key).mean(dim=1), side, side))

    layers = [m.cross_attention for m in pipe.unet.modules() if isinstance(m, TransformerBlock)]
    hooks = [layer.register_forward_hook(listen) for layer in layers]
    latent, context = pipe.vae.to_latents(picture.to(pipe.device)), pipe.encode_prompt(prompt)
    for t in (300, 500, 700):
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)).to(latent)
        pipe.unet(add_noise(pipe.schedule, latent, t, noise), torch.tensor([t], device=pipe.device), context)
    for hook in hooks:
        hook.remove()
    places = [1 + pipe.tokenizer.tokenize(prompt).index(f"{word}</w>") for word in words]
    return torch.stack(seen[max(seen)]).mean(dim=0)[0, places].cpu()


def show_attention(pipe: TextToImage, cells: Sequence[Cell], seed: int) -> Figure:
    """The two objects of a prompt, and where each is looked at: in the first right and the first wrong picture."""
    chosen: dict[bool, tuple[str, Tensor, Verdict]] = {}
    for task in ("two", "position", "binding"):
        for cell in (c for c in cells if c.task == task):
            for text, picture, verdict in zip(cell.prompts, cell.pictures, cell.verdicts, strict=True):
                chosen.setdefault(verdict.right, (text, picture, verdict))
    rows = [chosen[right] for right in (True, False) if right in chosen]
    words = [list(parse_description(text).objects) for text, _, _ in rows]
    maps = [
        word_maps(pipe, to_float(picture[None]), text, names, seed)
        for (text, picture, _), names in zip(rows, words, strict=True)
    ]
    figure = show_word_maps(torch.stack([picture for _, picture, _ in rows]), maps, words, size=1.6)
    for row, (text, _, verdict) in enumerate(rows):
        axis = figure.axes[3 * row]
        axis.set_title(f"{text}\n{'right' if verdict.right else f'wrong: {verdict.reason}'}", fontsize=8)
    return figure
