"""Make a finished run the course's own: weights to checkpoints/, pictures to docs/, scores into the README.

    python tools/publish.py           after `python tools/run_course.py --profile long`
    python tools/publish.py --table   the README's table alone: the weights of checkpoints/, and beside them an hour's

The hour's scores are those of `artifacts/cpu/`, which `python tools/run_course.py --profile cpu --save` leaves.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import matplotlib
from safetensors.torch import load_file
from torch import Tensor

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from pages import fill  # noqa: E402

from course_utils.data.batches import CaptionedImages  # noqa: E402
from course_utils.lessons.plots import show_images  # noqa: E402
from course_utils.weights.artifacts import (  # noqa: E402
    artifacts_folder,
    sha256,
    write_card,
    write_safely,  # noqa: E402
)

PARTS = ("vae", "noise_reader", "unconditional", "clip", "unet", "judge")
LIMIT = 25_000_000  # bytes in checkpoints/

# What the README says of each number: (key in a card's metrics, text, unit).
MEASURES = [
    ("nearest_true_scene", "PSNR to the nearest true scene, on the object's rectangle (every object twice)", "dB"),
    ("nearest_true_scene_vae", "its ceiling: true scenes through the VAE", "dB"),
    ("nearest_wrong_object", "its floor: the nearest scene of another object", "dB"),
    ("nearest_is_right", "pictures whose nearest scene of all 64 objects is of the right one", "%"),
    ("object_and_color_seen", "prompt accuracy (object and colour both right), pairs seen in training", "%"),
    ("object_and_color_held_out", "the same, pairs held out of all training", "%"),
    ("all_named_seen", "every attribute that the prompt names right, seen", "%"),
    ("all_named_held_out", "the same, held out", "%"),
    ("frechet", "Fréchet distance of drawn pictures to real ones, in the judge's features", ""),
    ("frechet_floor", "its floor: real pictures to other real ones", ""),
    ("frechet_vae", "the same for real pictures through the VAE: the floor, and what the autoencoder adds to it", ""),
    ("diversity", "diversity: mean distance between drawn pictures of one prompt", ""),
    ("diversity_real", "the same for real scenes of that prompt", ""),
    ("judge_on_real_pictures", "the judge on real pictures, all four attributes right: the most one can score", "%"),
    ("vae_psnr", "VAE, PSNR on unseen scenes at 48 : 1", "dB"),
    ("clip_retrieval", "CLIP, the right one of 64 different captions", "%"),
]


def halved(tensor: Tensor) -> Tensor:
    """Large float tensors in half precision, which pictures do not show; small ones (norms, scales) as they are."""
    return tensor.half() if tensor.is_floating_point() and tensor.numel() > 1000 else tensor


def copy_weights(source: Path, target: Path) -> None:
    """The six parts in half precision, their cards and the tokenizer, in place of what is in `target`.

    Leaves `target` as it is if a part is missing or the whole would be too large.
    """
    names = [f"{part}{ending}" for part in PARTS for ending in (".safetensors", ".json")]
    missing = [name for name in [*names, "scores.json", "tokenizer"] if not (source / name).exists()]
    if missing:
        sys.exit(f"not published: {', '.join(missing)} missing in {source}; run the course first")
    new = target.with_name(f"{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source / "tokenizer", new / "tokenizer")
    cards = {name: json.loads((source / f"{name}.json").read_text(encoding="utf-8")) for name in [*PARTS, "scores"]}
    checksums = {}  # of the file in float32 -> of the file in half precision
    for part in PARTS:
        tensors = {key: halved(value) for key, value in load_file(source / f"{part}.safetensors").items()}
        write_safely(new / f"{part}.safetensors", tensors, {"class": cards[part]["class"]})
        checksums[cards[part]["sha256"]] = sha256(new / f"{part}.safetensors")
    for name, card in cards.items():
        text = json.dumps(card)
        for whole, half in checksums.items():
            text = text.replace(whole, half)
        write_card(new / f"{name}.json", json.loads(text))
    size = sum(f.stat().st_size for f in new.rglob("*") if f.is_file())
    if size > LIMIT:
        shutil.rmtree(new)
        sys.exit(f"not published: {size / 1e6:.1f} MB, and {target.name}/ may take {LIMIT / 1e6:.0f} MB")
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
    print(f"{target.name}/: {size / 1e6:.1f} MB")


def draw_pages(source: Path, docs: Path) -> None:
    """A page of scenes, and the row of prompts that notebook 06 drew."""
    docs.mkdir(exist_ok=True)
    scenes = CaptionedImages.scenes(32, seed=7)
    matplotlib.rcParams.update({"figure.dpi": 110, "figure.constrained_layout.use": True})
    show_images(scenes.images, scenes.captions, columns=8).savefig(docs / "scenes.png")
    for name in ("06_prompts.png", "06_forming.png", "06_nearest.png"):
        shutil.copyfile(source / "pictures" / name, docs / name.removeprefix("06_"))
    print(f"{docs.name}/: {', '.join(sorted(f.name for f in docs.glob('*.png')))}")


def score_table(course_s: Path, hour: Path) -> str:
    """The measures of notebook 06 as a Markdown table, an hour's beside the course's, and the hour's wall time.

    Args:
        course_s: the folder of the course's weights. hour: that of a run in the `cpu` profile. Both hold a scores.json.
    """
    both = [json.loads((folder / "scores.json").read_text(encoding="utf-8"))["metrics"] for folder in (hour, course_s)]
    lines = ["| measure | an hour: `make course` | twice the training: `checkpoints/` |", "| --- | ---: | ---: |"]
    for key, text, unit in MEASURES:
        for metrics in both:
            if key not in metrics:
                sys.exit(f"not published: scores.json lacks the measure {key!r}")
        cells = [f"{100 * m[key]:.1f} %" if unit == "%" else f"{m[key]:.2f} {unit}".strip() for m in both]
        lines.append(f"| {text} | {cells[0]} | {cells[1]} |")
    times = hour / "times.json"
    if times.exists():
        minutes = {k: v / 60 for k, v in json.loads(times.read_text()).items()}
        each = ", ".join(f"{k.split('_')[0]}: {v:.1f}" for k, v in minutes.items())
        lines += ["", f"Wall time of the hour on two CPU cores: {sum(minutes.values()):.0f} minutes ({each})."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", default="long")
    parser.add_argument("--table", action="store_true", help="write the README's table and nothing else")
    options = parser.parse_args()
    checkpoints = ROOT / "checkpoints"
    if not options.table:
        source = artifacts_folder(options.profile)
        copy_weights(source, checkpoints)
        draw_pages(source, ROOT / "docs")
    fill(ROOT / "README.md", "scores", score_table(checkpoints, artifacts_folder("cpu")))
    print("README.md: scores written")


if __name__ == "__main__":
    main()
