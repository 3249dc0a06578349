"""How good the pictures are, by guidance scale, sampler and number of steps: a table, two plots, a contact sheet.

    python experiments/quality.py                     the weights in checkpoints/, about an hour on two cores
    python experiments/quality.py --weights FOLDER --pictures 64 --real 256     others, quicker

Everything goes to artifacts/quality/. Each row is kept in quality.json as soon as it is there, so that a run that was
stopped goes on where it was; the table and the pictures are made from that file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from pages import fill, publish_picture  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from course_utils.data.batches import CaptionedImages, to_float  # noqa: E402
from course_utils.data.scenes import ATTRIBUTES, COLORS, OBJECTS, is_held_out_color, prompt_for  # noqa: E402
from course_utils.evaluation.judge import Judge, JudgeConfig  # noqa: E402
from course_utils.evaluation.metrics import diversity  # noqa: E402
from course_utils.evaluation.scores import (  # noqa: E402
    SPLITS,
    draw_for_prompts,
    frechet_and_floor,
    make_prompts,
    prompts_of,
    score_pictures,
)
from course_utils.lessons.plots import show_images  # noqa: E402
from course_utils.lessons.setup import choose_device  # noqa: E402
from course_utils.pipeline import TextToImage  # noqa: E402
from course_utils.weights.artifacts import (  # noqa: E402
    artifacts_folder,
    checkpoints_folder,
    load_model,
    read_card,
    write_card,
)

Setting = tuple[str, int, float]  # sampler, steps, guidance scale
SAMPLERS = {"ddim": "DDIM", "ddpm": "DDPM", "dpmpp_2m": "DPM-Solver++ (2M)"}
STEPS = (4, 6, 10, 15, 25)
GUIDANCE = (1.0, 2.0, 3.0, 5.0, 8.0)
CHOSEN: Setting = ("ddpm", 10, 2.0)  # as the scores of notebook 06, but for their guidance, strong and at t ≥ 400 only
CALM: Setting = ("ddim", 10, 2.0)  # the same without fresh noise
FAR: tuple[Setting, ...] = (CHOSEN, ("ddpm", 10, 3.0), CALM, ("ddim", 10, 3.0), ("dpmpp_2m", 10, 2.0))


def settings() -> list[Setting]:
    """Every setting that is tried: steps for each sampler, then guidance scales for CHOSEN and for CALM."""
    found = [(sampler, n, CHOSEN[2]) for sampler in SAMPLERS for n in STEPS]
    found += [(sampler, n, w) for sampler, n, _ in (CHOSEN, CALM) for w in GUIDANCE]
    return list(dict.fromkeys(found))


def key(setting: Setting) -> str:
    sampler, steps, scale = setting
    return f"{sampler} {steps} {scale:g}"


class Bench:
    """The model under test, the judge, and the real pictures it is measured against."""

    def __init__(self, weights: Path, pictures: int, real: int, alike: int = 64, seed: int = 0):
        device = choose_device()
        self.pipe = TextToImage.from_pretrained(weights, device)
        self.judge = load_model(Judge, JudgeConfig, "judge", weights).to(device)
        self.pictures, self.alike, self.seed = pictures, alike, seed
        self.asked = CaptionedImages.scenes(real, seed=seed + 4000)  # these are asked for …
        self.other = CaptionedImages.scenes(real, seed=seed + 5000)  # … and compared with these, never with themselves

    def draw(self, setting: Setting, prompts: Sequence[str], seed: int) -> Tensor:
        """[N, 3, H, W] in [-1, 1]."""
        sampler, steps, scale = setting

        def paint(texts: list[str], generator: torch.Generator) -> Tensor:
            return self.pipe(texts, None, steps, scale, generator, sampler=sampler).pictures

        return draw_for_prompts(paint, prompts, torch.Generator().manual_seed(self.seed + seed))

    def row(self, setting: Setting) -> dict[str, Any]:
        """Accuracy for seen and held-out prompts, in all and in full, diversity, and seconds a picture."""
        found: dict[str, Any] = {"sampler": setting[0], "steps": setting[1], "guidance_scale": setting[2]}
        begun, drawn = time.perf_counter(), 0
        for i, split in enumerate(SPLITS):
            prompts = make_prompts(self.pictures, torch.Generator().manual_seed(self.seed + i), split)
            pictures = self.draw(setting, prompts, 100 + i)
            found[f"object_and_color_{split}"] = score_pictures(self.judge, pictures, prompts)["object_and_color"]
            full = make_prompts(self.pictures, torch.Generator().manual_seed(self.seed + 10 + i), split, ATTRIBUTES)
            pictures = self.draw(setting, full, 110 + i)
            found[f"all_named_{split}"] = score_pictures(self.judge, pictures, full)["all_named"]
            drawn += len(prompts) + len(full)
        found["seconds_a_picture"] = (time.perf_counter() - begun) / drawn
        alike = self.draw(setting, ["a dog on a red background"] * self.alike, 120)
        found["diversity"] = diversity(alike)
        return found

    def frechet(self, setting: Setting) -> dict[str, float]:
        """Fréchet distance of pictures drawn for real scenes' attributes to other real scenes, beside its floor."""
        drawn = self.draw(setting, prompts_of(self.asked.attributes), 130)
        real, asked = (to_float(data.images) for data in (self.other, self.asked))
        distance, floor = frechet_and_floor(self.judge, drawn, real, asked)
        return {"frechet": distance, "frechet_floor": floor}


def kept(path: Path, marks: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run with the same marks found, or an empty start."""
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["marks"] == marks:
            return found
    return {"marks": marks, "rows": {}, "frechet": {}}


def table(found: dict[str, Any]) -> str:
    """The rows of all settings as Markdown."""
    lines = [
        "| sampler | steps | w | object and colour: seen | held out | all four: seen | held out | Fréchet (floor) | "
        "diversity | ms a picture |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in map(key, settings()):
        row = found["rows"][name]
        shares = [
            f"{100 * row[f'{what}_{split}']:.1f} %" for what in ("object_and_color", "all_named") for split in SPLITS
        ]
        far = found["frechet"].get(name)
        distance = f"{far['frechet']:.1f} ({far['frechet_floor']:.1f})" if far else ""
        cells = [row["sampler"], row["steps"], f"{row['guidance_scale']:g}", *shares, distance,
                 f"{row['diversity']:.3f}", f"{1000 * row['seconds_a_picture']:.0f}"]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def lines_of(found: dict[str, Any], along: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The lines of a panel, label and rows: along "steps" one a sampler, along "guidance_scale" CHOSEN and CALM."""
    if along == "steps":
        lines = {text: [(sampler, n, CHOSEN[2]) for n in STEPS] for sampler, text in SAMPLERS.items()}
    else:
        lines = {f"{SAMPLERS[s]}, {n} steps": [(s, n, w) for w in GUIDANCE] for s, n, _ in (CHOSEN, CALM)}
    for label, line in lines.items():
        yield label, [found["rows"][key(setting)] for setting in line]


def plot(found: dict[str, Any], path: Path) -> None:
    """Held-out accuracy (± 1 standard error) over steps and over guidance, with diversity beside it."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", dpi=110)
    for panel, along, what, title, label in (
        (panels[0], "steps", "object_and_color_held_out", "object and colour", "held-out prompts right, %"),
        (panels[1], "guidance_scale", "all_named_held_out", "all four attributes", "held-out prompts right, %"),
        (panels[2], "guidance_scale", "diversity", "diversity", "distance between pictures"),
    ):
        for line, rows in lines_of(found, along):
            values, errors = [r[what] for r in rows], None
            if what != "diversity":
                errors = [100 * (p * (1 - p) / found["marks"]["pictures"]) ** 0.5 for p in values]
                values = [100 * p for p in values]
            panel.errorbar([r[along] for r in rows], values, errors, fmt="o-", label=line, ms=4, lw=1.4, capsize=2)
        panel.set_xlabel("denoising steps" if along == "steps" else "guidance scale w")
        panel.set_ylabel(label)
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    panels[0].set_xscale("log")
    panels[0].set_xticks(STEPS, map(str, STEPS))
    panels[0].minorticks_off()
    panels[0].set_ylim(min(85, panels[0].get_ylim()[0]), 101)
    figure.savefig(path)
    plt.close(figure)


def contact_sheets(bench: Bench, folder: Path) -> None:
    """Every object on every background, one picture each, as they come, the name above the first of each eight.

    A star marks a pair never trained on, a cross an object that the judge does not recognise.
    """
    pairs = [(name, color) for name in OBJECTS for color in COLORS]
    drawn = bench.draw(CHOSEN, [prompt_for(*pair) for pair in pairs], 140)
    seen = bench.judge.predict(drawn.to(bench.pipe.device)).cpu()[:, 0]
    right = seen == torch.arange(len(OBJECTS)).repeat_interleave(len(COLORS))
    titles = []
    for (name, color), ok in zip(pairs, right.tolist(), strict=True):
        marks = "*" * is_held_out_color(name, color) + "×" * (not ok)
        name = name if color == next(iter(COLORS)) else ""
        titles.append(f"{name}\u00a0{marks}".strip())  # no-break: the mark stays beside the name
    half = len(pairs) // 2  # two pages
    for i, part in enumerate((slice(0, half), slice(half, None))):
        figure = show_images(drawn[part], titles[part], columns=16, size=0.72)
        figure.savefig(folder / f"objects_{i + 1}.png", dpi=110, bbox_inches="tight")
        plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, default=checkpoints_folder(), help="their folder (checkpoints/)")
    parser.add_argument("--pictures", type=int, default=256, help="prompts a score (%(default)s)")
    parser.add_argument("--real", type=int, default=2048, help="pictures for a Fréchet distance (%(default)s)")
    parser.add_argument("--alike", type=int, default=64, help="pictures of one prompt, for diversity (%(default)s)")
    parser.add_argument("--output", type=Path, default=None, help="folder (artifacts/quality)")
    parser.add_argument("--docs", action="store_true", help="put table and pictures into docs/ (lab_book.md) as well")
    given = parser.parse_args(arguments)
    folder = given.output or artifacts_folder("quality")
    marks = {part: read_card(part, given.weights)["sha256"] for part in ("vae", "clip", "unet", "judge")}
    marks |= {"pictures": given.pictures, "real": given.real, "alike": given.alike}
    found = kept(folder / "quality.json", marks)
    bench = Bench(given.weights, given.pictures, given.real, given.alike)
    far = [s for s in FAR if key(s) not in found["frechet"]]
    rows = [s for s in settings() if key(s) not in found["rows"]]
    with tqdm(total=len(rows) + len(far), desc="settings") as bar:
        for setting in rows:
            found["rows"][key(setting)] = bench.row(setting)
            write_card(folder / "quality.json", found)
            bar.update()
        for setting in far:
            found["frechet"][key(setting)] = bench.frechet(setting)
            write_card(folder / "quality.json", found)
            bar.update()
    contact_sheets(bench, folder)
    plot(found, folder / "quality.png")
    (folder / "quality.md").write_text(table(found), encoding="utf-8")
    if given.docs:
        fill(ROOT / "docs" / "lab_book.md", "quality", table(found))
        for name in ("quality", "objects_1", "objects_2"):
            publish_picture(folder / f"{name}.png", ROOT / "docs" / f"{name}.png")
    print(table(found))
    print(f"written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
