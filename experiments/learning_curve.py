"""How good the pictures are after how many minutes, from nothing to a trained U-Net: a table and a plot.

    python experiments/learning_curve.py                    the cpu profile: training, then some ten minutes of drawing
    python experiments/learning_curve.py --profile smoke    a minute, to see that it works

What is timed is what has to be computed for a first picture: drawing the scenes, training the VAE, CLIP and the U-Net
as notebooks 01, 04 and 05 do, and encoding everything in between. Now and then the U-Net's averaged weights are put
aside; pictures are drawn with them afterwards, off the clock, and read by the judge of checkpoints/.
Everything goes to artifacts/<profile>/learning_curve/; a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from pages import fill, publish_picture  # noqa: E402
from quality import CHOSEN  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from course_utils.data.batches import CaptionedImages, to_float  # noqa: E402
from course_utils.evaluation.judge import Judge, JudgeConfig  # noqa: E402
from course_utils.evaluation.reconstruction import reconstruction_psnr  # noqa: E402
from course_utils.evaluation.scores import (  # noqa: E402
    SPLITS,
    draw_for_prompts,
    frechet_and_floor,
    make_prompts,
    prompts_of,
    score_pictures,
)
from course_utils.models.unet import UNet  # noqa: E402
from course_utils.profiles import PROFILES, Profile  # noqa: E402
from course_utils.training.parts import NAMES, Parts, train_parts  # noqa: E402
from course_utils.weights.artifacts import (  # noqa: E402
    artifacts_folder,
    checkpoints_folder,
    load_model,
    read_card,
    write_card,
)

POINTS = 10  # of the curve
SAMPLER, STEPS, GUIDANCE = CHOSEN  # as the scores of notebook 06
STAGES = {"scenes": "scenes drawn", "vae": "VAE", "clip": "CLIP", "unet": "U-Net"}


class Record:
    """What is known so far, in one JSON file that is written after each stage; made in another way, it begins anew.

    seconds: of each finished stage. begun: what unfinished ones have taken in earlier sittings.
    """

    def __init__(self, path: Path, made: dict[str, Any]):
        self.path = path
        self.found: dict[str, Any] = {"made": made, "seconds": {}, "begun": {}, "snapshots": [], "points": {}}
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.found = stored if stored["made"] == made else self.found

    def write(self) -> None:
        write_card(self.path, self.found)

    def timed(self, stage: str, action: Callable[[], Any]) -> Any:
        """Do it, and note how long it took in all sittings, unless an earlier one has finished it."""
        if stage in self.found["seconds"]:
            return action()
        before, begun = self.found["begun"].get(stage, 0.0), time.perf_counter()
        try:
            value = action()
        finally:
            self.found["begun"][stage] = before + time.perf_counter() - begun
            self.write()
        self.found["seconds"][stage] = self.found["begun"].pop(stage)
        self.write()
        return value


def train_all(profile: Profile, folder: Path, record: Record, seed: int) -> Parts:
    """All parts trained, snapshots of the U-Net in `folder`; each stage's seconds in the record."""
    data = record.timed("scenes", lambda: CaptionedImages.scenes(profile.scenes, seed=seed))
    parts = Parts()
    for name in NAMES:
        begun, spent = time.perf_counter() - record.found["begun"].get(name, 0.0), 0.0

        def keep(step: int, model: nn.Module, losses: list[float], begun: float = begun) -> None:
            nonlocal spent
            now = time.perf_counter()
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / f"step_{step}.safetensors")
            snapshots = [s for s in record.found["snapshots"] if s["step"] < step]
            record.found["snapshots"] = [*snapshots, {"step": step, "seconds": now - begun - spent}]
            record.found["points"].pop(str(step), None)
            record.write()
            spent += time.perf_counter() - now  # writing them is not part of training

        more: dict[str, Any] = {"preview": keep, "previews": POINTS} if name == "unet" else {}
        parts = record.timed(
            name, lambda name=name, parts=parts, more=more:
            train_parts(profile, data, seed=seed, folder=folder, which=(name,), given=parts, **more),
        )  # fmt: skip
    return parts


class Measured:
    """Prompts and real pictures that every point of the curve is measured with."""

    def __init__(self, weights: Path, pictures: int, steps: int, seed: int):
        self.judge = load_model(Judge, JudgeConfig, "judge", weights)
        self.steps, self.seed = steps, seed
        self.prompts = {s: make_prompts(pictures, torch.Generator().manual_seed(seed + 1), s) for s in SPLITS}
        asked = CaptionedImages.scenes(pictures, seed=seed + 4000)
        other = CaptionedImages.scenes(pictures, seed=seed + 5000)
        self.full = prompts_of(asked.attributes)
        self.asked, self.other = to_float(asked.images), to_float(other.images)

    def point(self, parts: Parts, size: int) -> dict[str, float]:
        """Accuracy for seen and held-out pairs, all four attributes, Fréchet distance and its floor."""
        pipe = parts.pipeline(size)

        def paint(texts: list[str], generator: torch.Generator) -> Tensor:
            return pipe(texts, None, self.steps, GUIDANCE, generator, sampler=SAMPLER).pictures

        def drawn(prompts: Sequence[str]) -> Tensor:
            return draw_for_prompts(paint, prompts, torch.Generator().manual_seed(self.seed + 2))

        found = {s: score_pictures(self.judge, drawn(p), p)["object_and_color"] for s, p in self.prompts.items()}
        pictures = drawn(self.full)
        found["all_named"] = score_pictures(self.judge, pictures, self.full)["all_named"]
        distance, floor = frechet_and_floor(self.judge, pictures, self.other, self.asked)
        return found | {"frechet": distance, "frechet_floor": floor}


def before_unet(found: dict[str, Any]) -> float:
    return sum(found["seconds"][stage] for stage in STAGES if stage != "unet")


def table(found: dict[str, Any]) -> str:
    """The stages, then the points, as Markdown."""
    seconds = found["seconds"]
    stages = ", ".join(f"{text} {seconds[name] / 60:.1f}" for name, text in STAGES.items())
    lines = [
        f"Minutes: {stages}; together {sum(seconds.values()) / 60:.1f}. VAE: {found['vae_psnr']:.2f} dB. "
        f"Pictures drawn with {found['marks']['steps']} steps of {SAMPLER.upper()} and w = {GUIDANCE:g}.",
        "",
        "| minutes from nothing | U-Net steps | object and colour: seen | held out | all four | Fréchet (floor) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for snapshot in found["snapshots"]:
        point = found["points"][str(snapshot["step"])]
        minutes = (before_unet(found) + snapshot["seconds"]) / 60
        shares = " | ".join(f"{100 * point[name]:.1f} %" for name in (*SPLITS, "all_named"))
        distance = f"{point['frechet']:.1f} ({point['frechet_floor']:.1f})"
        lines.append(f"| {minutes:.1f} | {snapshot['step']:,} | {shares} | {distance} |")
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], path: Path) -> None:
    """Accuracy on the left axis and Fréchet distance on the right, over minutes; the stages as bands."""
    figure, left = plt.subplots(figsize=(8, 3.6), layout="constrained", dpi=110)
    begun = 0.0
    for i, (name, text) in enumerate(STAGES.items()):
        end = begun + found["seconds"][name] / 60
        left.axvspan(begun, end, color=("#f2f2f2", "#dfe9f5")[i % 2], zorder=0)
        if end - begun > 0.05 * sum(found["seconds"].values()) / 60:
            left.text((begun + end) / 2, 103, text, ha="center", va="bottom", fontsize=9)
        begun = end
    minutes = [(before_unet(found) + s["seconds"]) / 60 for s in found["snapshots"]]
    points = [found["points"][str(s["step"])] for s in found["snapshots"]]
    for name, text, style in (
        ("seen", "object and colour, seen pairs", "o-"),
        ("held_out", "object and colour, held-out pairs", "s--"),
        ("all_named", "all four attributes", "^:"),
    ):
        left.plot(minutes, [100 * p[name] for p in points], style, ms=4, label=text)
    left.set(xlabel="minutes from nothing", ylabel="prompts right, %", ylim=(0, 102), xlim=(0, 1.015 * begun))
    right = left.twinx()
    right.plot(minutes, [p["frechet"] for p in points], "x-", color="tab:gray", ms=4, label="Fréchet distance")
    right.axhline(points[-1]["frechet_floor"], color="tab:gray", lw=0.8, ls=":")
    right.set_ylabel("Fréchet distance (dotted: its floor)")
    right.set_ylim(bottom=0)
    handles = [line for axes in (left, right) for line in axes.get_legend_handles_labels()[0]]
    left.legend(handles, [h.get_label() for h in handles], loc="center left", fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--profile", choices=tuple(PROFILES), default="cpu", help="whose sizes and steps; trained on the processor"
    )
    parser.add_argument("--pictures", type=int, default=None, help="prompts a score (the profile's)")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="steps a picture (%(default)s; more of them are no better)"
    )
    parser.add_argument("--judge", type=Path, default=checkpoints_folder(), help="folder of the judge (checkpoints/)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--docs", action="store_true", help="put table and pictures into docs/ as well")
    given = parser.parse_args(arguments)
    profile = PROFILES[given.profile]
    folder = given.output or artifacts_folder(profile.name) / "learning_curve"
    folder.mkdir(parents=True, exist_ok=True)
    made = {"profile": json.loads(json.dumps(dataclasses.asdict(profile))), "seed": given.seed}
    record = Record(folder / "learning_curve.json", made)
    parts = train_all(profile, folder, record, given.seed)
    unseen = to_float(CaptionedImages.scenes(256, seed=given.seed + 1000).images)
    record.found["vae_psnr"] = reconstruction_psnr(parts.vae, unseen)
    pictures = given.pictures or profile.evaluation_pictures
    marks = {"pictures": pictures, "steps": given.steps, "judge": read_card("judge", given.judge)["sha256"]}
    marks |= {"sampler": SAMPLER, "guidance_scale": GUIDANCE}
    if record.found.setdefault("marks", marks) != marks:
        record.found.update(marks=marks, points={})  # points of one curve are drawn and judged alike
    measured = Measured(given.judge, pictures, given.steps, given.seed)
    for snapshot in tqdm(record.found["snapshots"], desc="points"):
        step = str(snapshot["step"])
        if step not in record.found["points"]:
            unet = UNet(profile.unet)
            unet.load_state_dict(load_file(folder / f"step_{step}.safetensors"))
            parts.unet = unet.eval()
            record.found["points"][step] = measured.point(parts, profile.clip.vision.image_size)
            record.write()
    (folder / "learning_curve.md").write_text(table(record.found), encoding="utf-8")
    plot(record.found, folder / "learning_curve.png")
    if given.docs:
        fill(ROOT / "docs" / "performance.md", "learning curve", table(record.found))
        publish_picture(folder / "learning_curve.png", ROOT / "docs" / "learning_curve.png")
    print(table(record.found))
    print(f"written to {folder}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # what was being trained is saved, and has said so
        sys.exit(130)
