"""Naming blind: can a person who has seen no prompts and no list say what the pictures show?

    python experiments/naming.py                       draws docs/naming/sheet.png and the key, from checkpoints/
    python experiments/naming.py --answers FILE        a line "number: words" a picture; writes docs/naming/naming.md

One picture of each of the 64 objects, not picked out, in a shuffled order, with numbers and nothing else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import torch  # noqa: E402
from quality import CHOSEN  # noqa: E402

from course_utils.data.scenes import parse_caption  # noqa: E402
from course_utils.evaluation.nearest import prompts_for_each_object  # noqa: E402
from course_utils.evaluation.scores import draw_for_prompts  # noqa: E402
from course_utils.lessons.plots import show_images  # noqa: E402
from course_utils.pipeline import TextToImage  # noqa: E402
from course_utils.weights.artifacts import checkpoints_folder, read_card  # noqa: E402

FOLDER = ROOT / "docs" / "naming"
# Other words for the same thing. Whoever says "puppy" has seen the dog; whoever says "animal" has not.
SYNONYMS = {
    "dog": "puppy", "cat": "kitten", "bear": "teddy brown bear", "cow": "bull ox calf cattle", "pig": "piglet hog",
    "frog": "toad", "horse": "pony", "turtle": "tortoise", "fish": "goldfish angelfish tropical", "octopus": "squid",
    "crab": "lobster", "butterfly": "moth", "ladybug": "ladybird beetle", "lemon": "lime citrus",
    "watermelon": "melon", "burger": "hamburger cheeseburger sandwich", "donut": "doughnut", "cupcake": "muffin cake",
    "car": "automobile taxi", "bus": "coach van", "train": "locomotive engine steam", "rocket": "spaceship spacecraft",
    "helicopter": "chopper", "airplane": "plane aeroplane jet aircraft", "motorcycle": "motorbike bike scooter",
    "sailboat": "boat ship yacht sail", "palm": "palmtree", "rose": "tulip",
    "pumpkin": "jack-o-lantern halloween", "mushroom": "toadstool fungus", "clover": "shamrock", "leaf": "maple",
    "umbrella": "parasol",
    "diamond": "gem jewel crystal", "clock": "alarm watch", "robot": "android",
    "ghost": "spirit", "house": "home hut building cottage", "gift": "present box package parcel",
    "parachute": "skydiver", "crown": "tiara", "book": "notebook",
}  # fmt: skip


def draw_sheet(weights: Path, seed: int) -> None:
    """The sheet, and the key that says what was asked for."""
    pipe = TextToImage.from_pretrained(weights)
    generator = torch.Generator().manual_seed(seed)
    prompts = prompts_for_each_object(1, generator)
    prompts = [prompts[i] for i in torch.randperm(len(prompts), generator=generator).tolist()]

    sampler, steps, scale = CHOSEN

    def paint(texts: list[str], generator: torch.Generator) -> torch.Tensor:
        return pipe(texts, None, steps, scale, generator, sampler=sampler).pictures

    pictures = draw_for_prompts(paint, prompts, generator)
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure = show_images(pictures, [str(i) for i in range(1, len(prompts) + 1)], columns=8, size=1.25)
    figure.savefig(FOLDER / "sheet.png", dpi=110, bbox_inches="tight")
    key = {"unet": read_card("unet", weights)["sha256"], "seed": seed, "prompts": prompts}
    (FOLDER / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


def is_right(answer: str, name: str) -> bool:
    """Whether the words of an answer hold the object's name or a synonym."""
    words = set(re.findall(r"[a-z-]+", answer.lower()))
    words |= {word.removesuffix("s") for word in words}
    return bool(words & {name, *SYNONYMS.get(name, "").split()})


def score(path: Path) -> str:
    """The answers beside what was asked for, as Markdown."""
    prompts = json.loads((FOLDER / "key.json").read_text(encoding="utf-8"))["prompts"]
    answers = dict(re.findall(r"^\s*(\d+)\s*[:.]\s*(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
    rows, right = [], 0
    for i, prompt in enumerate(prompts, start=1):
        answer = answers.get(str(i), "")
        good = is_right(answer, parse_caption(prompt)["object"])
        right += good
        rows.append(f"| {i} | {answer} | {prompt} | {'yes' if good else 'no'} |")
    return "\n".join([
        "# Named blind",
        "",
        f"A reader who had seen neither the prompts nor the list of objects named {right} of {len(prompts)} pictures "
        f"({100 * right / len(prompts):.0f} %). Synonyms count.",
        "",
        "![64 pictures, one of each object, in a shuffled order](sheet.png)",
        "",
        "| picture | answer | prompt | right |",
        "| ---: | --- | --- | --- |",
        *rows,
    ]) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, default=checkpoints_folder())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--answers", type=Path)
    given = parser.parse_args()
    if given.answers is None:
        draw_sheet(given.weights, given.seed)
        print(f"written to {FOLDER}")
        return
    page = score(given.answers)
    (FOLDER / "naming.md").write_text(page, encoding="utf-8")
    print(page.splitlines()[2])


if __name__ == "__main__":
    main()
