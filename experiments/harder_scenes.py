"""Harder scenes: two objects, numbers, places beside one another and sizes, trained on and scored as GenEval does.

    python experiments/harder_scenes.py                    in the profile that suits this machine
    python experiments/harder_scenes.py --profile smoke    seconds a stage, to see that it runs; the scores mean nothing

Draws the pictures, trains a detector to judge by, trains on what the notebooks have left (your own parts, else those of
checkpoints/), draws pictures for prompts of each task and scores them. With --from-nothing VAE, CLIP and U-Net begin
anew, as in the notebooks. Everything goes to artifacts/<profile>/harder_scenes/: the parts, what was drawn, and
scores.json, scores.md, hearing.md, verdicts.json, samples.png and attention.png. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import matplotlib.pyplot as plt  # noqa: E402
from pages import fill, publish_picture  # noqa: E402

from course_utils.data.batches import CaptionedImages, to_float, to_uint8  # noqa: E402
from course_utils.data.compositions import compositions  # noqa: E402
from course_utils.data.descriptions import TASKS  # noqa: E402
from course_utils.evaluation import geneval  # noqa: E402
from course_utils.evaluation.detector import Detector, DetectorConfig, detect, detector_loss, things_of  # noqa: E402
from course_utils.evaluation.listening import hearing_table, hears  # noqa: E402
from course_utils.evaluation.reconstruction import reconstruct  # noqa: E402
from course_utils.evaluation.scores import draw_for_prompts  # noqa: E402
from course_utils.lessons.harder_plots import show_attention, show_samples  # noqa: E402
from course_utils.lessons.setup import choose_device  # noqa: E402
from course_utils.pipeline import TextToImage  # noqa: E402
from course_utils.profiles import PROFILES, Budget, Profile, get_profile  # noqa: E402
from course_utils.training.finetuning import finetune_parts  # noqa: E402
from course_utils.training.loop import train  # noqa: E402
from course_utils.training.parts import Parts, data_fingerprint, load_parts, train_parts  # noqa: E402
from course_utils.weights.artifacts import (  # noqa: E402
    artifacts_folder,
    load_model,
    read_card,
    save_artifact,
    sha256,
    write_card,
    write_safely,  # noqa: E402
)

DETECTOR_BUDGET = Budget(1000, 64, 2e-3, 0.02)
DETECTOR_EMA = 0.99  # an average over some hundred steps: the run is short
# Who stands where is decided while there is little but noise, and is asked by one task only: more of both.
TIMESTEP_SHIFT = 2.0
MIXTURE = {"single": 1, "two": 1, "counting": 2, "colors": 1, "position": 4, "binding": 2}
SAMPLER, STEPS = "ddpm", 10  # docs/lab_book.md: fresh noise repairs, and more steps are not more right
GOOD_JUDGE = 0.97  # what a judge must reach on real pictures, task by task, before its word counts


class Settings(NamedTuple):
    """What one run is asked for."""

    profile: Profile
    folder: Path
    count: int  # pictures drawn for each task and split
    seed: int
    guidance_scale: float
    start: Path | None = None  # folder of the parts to begin with; None: your own, else those of checkpoints/
    from_nothing: bool = False


def trained_detector(settings: Settings, device: torch.device) -> Detector:
    """The judge, trained on real pictures of every pair; the one in the folder where it was made the same way."""
    profile, folder, seed = settings.profile, settings.folder, settings.seed
    budget = profile.judge_budget if profile.name == "smoke" else DETECTOR_BUDGET
    print(f"drawing {profile.scenes:,} pictures for the judge", flush=True)
    data, made = compositions(profile.scenes, seed=seed + 1, split="all")
    content = data_fingerprint(data)[:12]
    made_from = {"data": content, "seed": seed, "steps": budget.steps, "batch_size": budget.batch_size}
    if (folder / "detector.json").exists() and read_card("detector", folder).get("made_from") == made_from:
        return load_model(Detector, DetectorConfig, "detector", folder).to(device)
    things, colors = things_of(made), data.attributes[:, 1]
    torch.manual_seed(seed)
    detector = Detector().to(device)

    def loss(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(data), (budget.batch_size,), generator=generator)
        pictures = data.batch(chosen)[0].to(device)
        return detector_loss(detector, pictures, things[chosen], colors[chosen].to(device), generator)

    history = train(
        detector, loss, steps=budget.steps, lr=budget.lr, muon_lr=budget.muon_lr, ema=DETECTOR_EMA, name="detector",
        folder=folder / "training" / content, seed=seed,
    )  # fmt: skip
    facts = {"profile": profile.name, "steps": budget.steps, "seconds": round(history.seconds, 1), "seed": seed}
    save_artifact(
        "detector", detector, folder=folder, metrics={"loss": history.smoothed(100)[-1]}, made_from=made_from, **facts
    )
    return detector


def trained_parts(settings: Settings, data: CaptionedImages, device: torch.device) -> Parts:
    """VAE, text encoder and U-Net for these pictures: trained on from what there is, or from nothing."""
    profile, folder, seed = settings.profile, settings.folder, settings.seed
    if settings.from_nothing:
        return train_parts(profile, data, seed=seed, folder=folder, device=device)
    return finetune_parts(profile, data, load_parts(settings.start, device), folder, seed=seed, device=device)


def draw_cell(pipe: TextToImage, prompts: list[str], path: Path, seed: int, settings: Settings, bar: tqdm) -> Tensor:
    """Pictures for prompts, uint8 [N, 3, H, W]: those in `path` if the same U-Net drew them in the same way."""
    steps, scale = STEPS, settings.guidance_scale
    unet = sha256(settings.folder / "unet.safetensors")
    how = f"{SAMPLER}, {steps} steps, guidance {scale:g}, seed {seed}"
    origin = {"prompts": json.dumps(prompts), "origin": f"{unet}, {how}"}
    if path.exists():
        with safe_open(path, "pt") as file:
            if file.metadata() == origin:
                bar.update(len(prompts))
                return file.get_tensor("pictures")

    def draw(texts: list[str], generator: torch.Generator) -> Tensor:
        pictures = pipe(texts, None, steps, scale, generator, sampler=SAMPLER).pictures
        bar.update(len(texts))
        return pictures

    pictures = to_uint8(draw_for_prompts(draw, prompts, torch.Generator().manual_seed(seed)))
    write_safely(path, {"pictures": pictures}, origin)
    return pictures


def draw_and_judge(pipe: TextToImage, detector: Detector, settings: Settings) -> list[geneval.Cell]:
    """For each task and split the prompts, a picture each, and a verdict on it."""
    halves = [(task, split) for task in TASKS for split in geneval.splits_of(task)]
    cells = []
    with tqdm(total=settings.count * len(halves), desc="pictures", file=sys.stdout, mininterval=0.5) as bar:
        for number, (task, split) in enumerate(halves):
            seed = settings.seed + 100 + 2 * number
            prompts = geneval.make_task_prompts(settings.count, torch.Generator().manual_seed(seed), task, split)
            path = settings.folder / "pictures" / f"{task}_{split}.safetensors"
            pictures = draw_cell(pipe, prompts, path, seed + 1, settings, bar)
            seen = detect(detector, to_float(pictures))
            verdicts = [geneval.verdict(text, s) for text, s in zip(prompts, seen, strict=True)]
            cells.append(geneval.Cell(task, split, prompts, pictures, verdicts))
    return cells


def run(settings: Settings) -> None:
    """Every stage in turn; what an earlier sitting finished is taken up again."""
    profile, folder, count, seed, guidance_scale, *_ = settings
    device = choose_device()
    begun = time.perf_counter()
    detector = trained_detector(settings, device)
    many = max(count, 512) if profile.name != "smoke" else count
    judge = {split: geneval.score_real_pictures(detector, many, seed + 50, split) for split in geneval.SPLITS}
    worst = min((judge[split][task], split, task) for split in judge for task in TASKS)
    print(f"the judge on new real pictures: {judge['seen']['overall']:.1%} right, worst {worst[0]:.1%} ({worst[2]})")
    if worst[0] < GOOD_JUDGE and profile.name != "smoke":
        sys.exit(f"the judge is right in {worst[0]:.1%} of {worst[2]} ({worst[1]}) only: train it longer")

    print(f"drawing {profile.scenes:,} pictures to train on", flush=True)
    data, _ = compositions(profile.scenes, seed=seed, mixture=MIXTURE)
    parts = trained_parts(settings, data, device)
    pipe = parts.pipeline(size=data.images.shape[-1])

    limit = geneval.score_real_pictures(detector, count, seed + 60, "held_out", partial(reconstruct, pipe.vae))
    cells = draw_and_judge(pipe, detector, settings)
    scores = {split: geneval.scores_of(cells, split) for split in geneval.SPLITS}
    heard = {
        "seen in training": hears(pipe, count, seed + 70, "train"),
        "held out": hears(pipe, count, seed + 80, "held_out"),
    }
    columns = {
        "seen in training": scores["seen"],
        "held out": scores["held_out"],
        "real pictures": {task: min(judge[split][task] for split in judge) for task in judge["seen"]},
        "real, through the VAE": limit,
    }
    facts = {
        "profile": profile.name, "seed": seed, "pictures": count, "guidance_scale": guidance_scale,
        "sampler": SAMPLER, "sampling_steps": STEPS, "steps": {"detector": read_card("detector", folder)["steps"]},
        "seconds": {**parts.seconds, "detector": read_card("detector", folder)["seconds"]},
    }  # fmt: skip
    facts["steps"] |= {name: read_card(name, folder)["steps"] for name in parts.seconds}
    reference = geneval.STABLE_DIFFUSION_15
    found = {"scores": scores, "judge": judge, "vae": limit, "heard": heard, "sd15": reference}
    write_card(folder / "scores.json", {**facts, **found})
    rows = [
        {"prompt": text, "task": c.task, "split": c.split, "right": v.right, "reason": v.reason}
        for c in cells
        for text, v in zip(c.prompts, c.verdicts, strict=True)
    ]
    write_card(folder / "verdicts.json", {"verdicts": rows})
    table = geneval.score_table(columns, count)
    hearing = hearing_table(heard, count)
    (folder / "scores.md").write_text(table + "\n", encoding="utf-8")
    (folder / "hearing.md").write_text(hearing + "\n", encoding="utf-8")
    with plt.rc_context({"figure.constrained_layout.use": True}):
        show_samples(cells).savefig(folder / "samples.png", dpi=120)
        show_attention(pipe, cells, seed).savefig(folder / "attention.png", dpi=130, bbox_inches="tight")
    print(f"\n{table}\n\n{hearing}\n\n{folder}: done, {(time.perf_counter() - begun) / 60:.1f} minutes in this sitting")


def publish(folder: Path, docs: Path) -> None:
    """Put the two tables into docs/harder_scenes.md, between their marks, and the two figures beside it."""
    page = docs / "harder_scenes.md"
    for name in ("scores", "hearing"):
        fill(page, name, (folder / f"{name}.md").read_text(encoding="utf-8"))
    for name in ("samples", "attention"):
        publish_picture(folder / f"{name}.png", docs / f"harder_{name}.png")
    print(f"{docs.name}/: {page.name}, harder_samples.png, harder_attention.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", choices=list(PROFILES), help="default: what suits this machine")
    parser.add_argument("--steps", type=int, help="steps of the U-Net, instead of the profile's")
    parser.add_argument(
        "--pictures", type=int, help="drawn for each task and split; default: a quarter of the profile's"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", action="store_true", help="put the table and the figures into docs/ as well")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale w")
    parser.add_argument("--start", type=Path, help="folder to begin with; default: yours, else checkpoints/")
    parser.add_argument("--from-nothing", action="store_true", help="begin with untrained networks")
    given = parser.parse_args(arguments)
    profile = get_profile(given.profile)
    os.environ["COURSE_PROFILE"] = profile.name  # whose parts are "your own"
    profile = profile if given.from_nothing else profile.going_on(vae=1 / 3, unet=1.4, timestep_shift=TIMESTEP_SHIFT)
    if given.steps is not None:
        profile = replace(profile, unet_budget=replace(profile.unet_budget, steps=given.steps))
    count = max(8, profile.evaluation_pictures // 4) if given.pictures is None else given.pictures
    folder = artifacts_folder(profile.name) / ("harder_scenes_from_nothing" if given.from_nothing else "harder_scenes")
    run(Settings(profile, folder, count, given.seed, given.guidance, given.start, given.from_nothing))
    if given.docs:
        publish(folder, ROOT / "docs")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # what was being trained is saved, and has said so
        sys.exit(130)
