"""What is timed, section by section; each gives rows of the table."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.measure import alternate, best_product_size, count_operations, matrix_product, timed
from benchmarks.networks import NETWORKS, SIDES, check_same, trainer
from benchmarks.table import Row
from course_utils.data.batches import CaptionedImages
from course_utils.data.scenes import COLORS, OBJECTS, caption, prompt_for, random_scene
from course_utils.models.tokenizer import Tokenizer
from course_utils.pipeline import TextToImage
from course_utils.profiles import Profile
from course_utils.training.loop import autocast, lacks_bf16
from course_utils.weights.artifacts import checkpoints_folder

PRECISIONS = ("float32",) if lacks_bf16() else ("float32", "bf16")  # without instructions for it, a step takes minutes
PICTURES = 16
GUIDANCE = 3.0
Tick = Callable[[str], object]


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds of turns of so many seconds, and the sizes of matrix to try."""

    rounds: int
    seconds: float
    sizes: tuple[int, ...] = (512, 1024, 2048, 3072, 4096)


FULL = Effort(rounds=7, seconds=1.0)
QUICK = Effort(rounds=3, seconds=0.3, sizes=(1024, 2048))


def product_sizes(effort: Effort) -> dict[str, int]:
    """The best size of matrix for each precision."""
    return {precision: best_product_size(precision, effort.sizes) for precision in PRECISIONS}


def training_rows(key: str, profile: Profile, effort: Effort, sizes: dict[str, int], tick: Tick) -> list[Row]:
    """Training steps of one network: ours, theirs, the course's own loop, and matrix products between them."""
    network = NETWORKS[key](profile)
    check_same(network)
    operations = {side: count_operations(trainer(network, side, "float32")) for side in ("ours", "course")}
    sides = {(side, p): trainer(network, side, p) for p in PRECISIONS for side in SIDES}
    sides |= {("product", p): timed(matrix_product(sizes[p], p)) for p in PRECISIONS}
    named = {" ".join(names): run for names, run in sides.items()}
    rates = alternate(named, effort.rounds, effort.seconds, lambda name: tick(f"{network.name}, {name}"))
    what, rows = f"{network.name}, batch of {network.budget.batch_size}", []
    for p in PRECISIONS:
        product = [2 * sizes[p] ** 3 * rate for rate in rates[f"product {p}"]]
        rows.append(
            Row(f"{key} {p}", f"{what}: plain step", p, "steps/s", rates[f"ours {p}"], rates[f"theirs {p}"],
                operations["ours"], product, (f"{key} ours {p}", f"{key} theirs {p}"))
        )  # fmt: skip
        rows.append(
            Row(f"{key} course {p}", f"{what}: the course's own step", p, "steps/s", rates[f"course {p}"], None,
                operations["course"], product, (f"{key} course {p}", None))
        )  # fmt: skip
    return rows


def prompts() -> list[str]:
    """Sixteen prompts, each for another object."""
    pairs = zip(OBJECTS, itertools.cycle(COLORS), strict=False)
    return [prompt_for(name, color) for name, color in itertools.islice(pairs, PICTURES)]


def sampler(side: str, precision: str, steps: int) -> Callable[[], list]:
    """The pipeline of checkpoints/, or diffusers' own with the same weights, as something that draws 16 pictures."""
    with redirect_stdout(io.StringIO()):
        ours = TextToImage.from_pretrained(checkpoints_folder())
    if side == "theirs":
        pipe = ours.to_diffusers()
        pipe.set_progress_bar_config(disable=True)
    else:
        pipe = ours
    del ours
    texts = prompts()

    def draw() -> list:
        generator = torch.Generator().manual_seed(0)
        with autocast("cpu", precision):
            drawn = pipe(texts, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=generator)
        return drawn.images

    return draw


def check_same_pictures(ours: list, theirs: list, most: int = 3) -> None:
    """Raise RuntimeError where two lists of PIL pictures differ by more than a few of 255 levels."""
    worst = max(int(np.abs(np.int16(a) - np.int16(b)).max()) for a, b in zip(ours, theirs, strict=True))
    if worst > most:
        raise RuntimeError(
            f"the two pipelines draw different pictures (by {worst} of 255 levels), so their speeds cannot be compared"
        )


def sampling_rows(profile: Profile, effort: Effort, tick: Tick) -> list[Row]:
    """Sixteen guided pictures from a list of prompts to PIL pictures, by both pipelines."""
    steps = profile.sampling_steps
    draw = {(side, p): sampler(side, p, steps) for p in PRECISIONS for side in ("ours", "theirs")}
    check_same_pictures(draw["ours", "float32"](), draw["theirs", "float32"]())
    named = {" ".join(names): timed(action) for names, action in draw.items()}
    rates = alternate(named, effort.rounds, effort.seconds, lambda name: tick(f"sampling, {name}"), least=1)
    pictures = {name: [PICTURES * rate for rate in each] for name, each in rates.items()}
    what = f"sampling, {PICTURES} pictures at once, {steps} DDIM steps, guidance {GUIDANCE:g}"
    return [
        Row(f"sampling {p}", what, p, "pictures/s", pictures[f"ours {p}"], pictures[f"theirs {p}"],
            memory=(f"sampling ours {p}", f"sampling theirs {p}"))
        for p in PRECISIONS
    ]  # fmt: skip


def data_rows(profile: Profile, effort: Effort, tick: Tick, count: int = 256) -> list[Row]:
    """Drawing scenes, making captions, reading them, and taking batches out of memory."""
    scenes = CaptionedImages.scenes(count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = Tokenizer.train(scenes.captions, profile.vocab_size, max_length=profile.clip.text.max_length)
    generator = torch.Generator().manual_seed(0)

    def captions() -> list[str]:
        return [caption(random_scene(generator), generator) for _ in range(count)]

    actions = {
        "scenes drawn, with captions": ("scenes/s", lambda: CaptionedImages.scenes(count)),
        "captions made, without drawing": ("captions/s", captions),
        "captions turned into tokens": ("captions/s", lambda: tokenizer.encode(scenes.captions)),
        "pictures taken from memory, as float": (
            "pictures/s", lambda: scenes.batch(torch.randint(len(scenes), (count,), generator=generator)),
        ),
    }  # fmt: skip
    runs = {name: timed(action) for name, (_, action) in actions.items()}
    rates = alternate(runs, effort.rounds, effort.seconds, lambda name: tick(f"data, {name}"))
    return [
        Row(name, f"data: {name}", "", unit, [count * rate for rate in rates[name]])
        for name, (unit, _) in actions.items()
    ]


def product_rows(rows: list[Row], sizes: dict[str, int]) -> list[Row]:
    """The matrix products that stood between the training steps, over all networks."""
    found = []
    for p in PRECISIONS:
        rates = [
            rate / 1e9 for row in rows if row.product and row.theirs and row.precision == p for rate in row.product
        ]
        if rates:
            found.append(Row(f"product {p}", f"matrix product, {sizes[p]:,} × {sizes[p]:,}", p, "GFLOP/s", rates))
    return found
