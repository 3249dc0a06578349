"""`python -m course_utils gpu-trial`: check, measure, train, draw, score; each section is on disk when it is done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from course_utils.data.batches import CaptionedImages
from course_utils.data.scenes import OBJECTS, parse_caption
from course_utils.evaluation.nearest import (
    box_psnr,
    draw_scenes,
    nearest_scenes,
    prompts_for_each_object,
    random_true_scenes,
    sharpness,
)
from course_utils.evaluation.reconstruction import reconstruct
from course_utils.evaluation.scores import draw_for_prompts
from course_utils.profiles import Profile, get_profile
from course_utils.training.parts import NAMES, Parts, load_parts
from course_utils.training.recipes import train_tokenizer
from course_utils.trial.networks import parity, step_times, untrained_recipe
from course_utils.trial.packing import pack
from course_utils.trial.report import Clock, Report, machine
from course_utils.trial.sheets import sheet_of_pairs
from course_utils.trial.training import train_part

SAMPLING: dict[str, Any] = {
    "sampler": "ddpm",
    "num_inference_steps": 10,
    "guidance_scale": 2.0,
}
RESERVE = 0.15  # of the minutes, for drawing, scoring and packing
WITH_COMPILER = 240.0  # seconds, of which a trial must have as many for the compiler to be tried
LEFT_FOR_COMPILER = 0.65  # share of the seconds that must be left before it is tried on a network


def trial(
    out: Path,
    minutes: float,
    device: torch.device,
    profile_name: str = "gpu",
    *,
    seed: int = 0,
    profile: Profile | None = None,
    with_compiler: bool | None = None,
    say: Callable[[str], object] = print,
) -> Report:
    """Run all sections that are not done yet. In `out/home` lies what is to be kept, in `out/work` what goes on.

    Args:
        minutes: for everything; the training takes what the rest leaves.
        profile: instead of the one of that name. with_compiler: None: where there is a GPU and the time for it.

    Raises:
        ValueError: less than a few seconds, an unknown profile.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes is {minutes:g}; it should be above 0")
    profile = get_profile(profile_name) if profile is None else profile
    clock, home, work = Clock(minutes), out / "home", out / "work"
    report = Report(home / "trial.json", say)
    report.sections.setdefault("asked", {"minutes": minutes, "profile": profile.name, "seed": seed})
    report.section("machine", lambda: machine(device))
    size = profile.clip.vision.image_size
    data = CaptionedImages.scenes(profile.scenes, seed=seed, size=size)
    test = CaptionedImages.scenes(profile.test_scenes, seed=seed + 1, split="all", size=size)
    tokenizer = train_tokenizer(profile, data)
    report.section("data", lambda: {"scenes": len(data), "megabytes": data.images.numel() / 1e6, "left": clock.left()})

    if with_compiler is None:
        with_compiler = device.type == "cuda" and clock.seconds >= WITH_COMPILER
    seconds = min(2.0, clock.seconds / 200)
    for name in NAMES:
        recipe = partial(untrained_recipe, name, profile, data, tokenizer, seed=seed)
        rows = 8 if device.type == "cuda" else 2
        report.section(f"parity {name}", lambda r=recipe, n=rows: parity(r(device), r(torch.device("cpu")), n))  # type: ignore[misc]
    for name in ("unet", "vae", "clip"):  # the compiler is worth most to the first
        recipe = partial(untrained_recipe, name, profile, data, tokenizer, device, seed=seed)
        worth = with_compiler and name != "clip" and clock.left() > LEFT_FOR_COMPILER * clock.seconds
        report.section(f"times {name}", lambda r=recipe, w=worth: step_times(r(), seconds, w))  # type: ignore[misc]

    reserve = RESERVE * clock.seconds
    for name in NAMES:
        train = partial(train_part, name, profile, data, test, report, clock, work, device, reserve=reserve, seed=seed)
        report.section(f"training {name}", train)
        report.section(f"packed up to {name}", lambda: {"bytes": [path.stat().st_size for path in pack(work, home)]})
    report.section("pictures", lambda: pictures(load_parts(work, device), home, size, seed, device))
    report.section("scores", lambda: scores(load_parts(work, device), size, seed, profile.evaluation_pictures))
    report.section("end", lambda: {"seconds_left": round(clock.left(), 1)})
    return report


def drawer(parts: Parts, size: int) -> Callable[[list[str], torch.Generator], torch.Tensor]:
    """The pipeline as something that draws a picture for each prompt."""
    pipe = parts.pipeline(size)
    return lambda prompts, generator: pipe(prompts, generator=generator, **SAMPLING).pictures


def pictures(parts: Parts, home: Path, size: int, seed: int, device: torch.device) -> dict[str, Any]:
    """Two sheets: the first draw of each object over the nearest true scene; true scenes through the VAE and back."""
    prompts = prompts_for_each_object(1, torch.Generator().manual_seed(seed + 11))
    drawn = draw_for_prompts(drawer(parts, size), prompts, torch.Generator().manual_seed(seed + 12))
    true = draw_scenes(nearest_scenes(drawn, prompts), size)
    titles = [parse_caption(prompt)["object"] for prompt in prompts]
    sheet_of_pairs(drawn, true, titles).save(home / "objects.png", optimize=True)
    scenes = draw_scenes(random_true_scenes(prompts[::4], torch.Generator().manual_seed(seed + 13)), size)
    sheet_of_pairs(reconstruct(parts.vae, scenes), scenes, titles[::4]).save(
        home / "reconstructions.png", optimize=True
    )
    return {"objects": len(OBJECTS), "prompts": prompts, "sampling": SAMPLING}


def scores(parts: Parts, size: int, seed: int, most: int) -> dict[str, Any]:
    """Nearest true scene of pictures of every object, with standard errors; the VAE's own distance is the ceiling."""
    times = max(1, min(4, most // len(OBJECTS)))
    prompts = prompts_for_each_object(times, torch.Generator().manual_seed(seed + 21))
    drawn = draw_for_prompts(drawer(parts, size), prompts, torch.Generator().manual_seed(seed + 22))
    scenes = random_true_scenes(prompts, torch.Generator().manual_seed(seed + 23))
    ceiling = box_psnr(reconstruct(parts.vae, draw_scenes(scenes, size)), scenes)
    return {"pictures": len(prompts), **sharpness(drawn, prompts)._asdict(), "vae_psnr_in_box": ceiling.mean().item()}
