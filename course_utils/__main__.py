"""The command line.

python -m course_utils sample "a dog on a red background"
python -m course_utils train --profile cpu
python -m course_utils gpu-trial --minutes 8 --out trial
python -m course_utils look my_pictures
python -m course_utils train --pictures my_pictures
python -m course_utils info
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils import __version__
from course_utils.arguments import PARTS, build_parser
from course_utils.files import check_room

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_ENLARGED = 16_384  # 64×64 pixels of the sheet: 67 million pixels in all


def contact_sheet(images: Sequence[Image], scale: int = 1, gap: int = 4) -> Image:
    """Pictures of one size side by side, at most eight to a row, on white."""
    from PIL import Image

    width, height = (side * scale for side in images[0].size)
    columns = min(len(images), 8)
    rows = -(-len(images) // columns)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        enlarged = image.resize((width, height), Image.Resampling.BICUBIC)
        sheet.paste(enlarged, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def free_path(prompt: str, seed: int, folder: Path = Path("samples"), word: str = "seed") -> Path:
    """A name that says what the picture shows and that no file has yet."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "unconditional"
    number, path = 2, folder / f"{words}-{word}{seed}.png"
    while path.exists():
        path = folder / f"{words}-{word}{seed}-{number}.png"
        number += 1
    return path


def check_seed(seed: int) -> None:
    """Refuse what torch cannot begin with."""
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"--seed is {str(seed)[:40]}; it should be a number of at most 18 digits")


def check_arguments(options: argparse.Namespace) -> None:
    """Refuse what cannot work before the weights are read."""
    for name, most in (("count", 1024), ("steps", 1000), ("scale", 64)):
        value = getattr(options, name)
        if not 1 <= value <= most:
            raise ValueError(f"--{name} is {value}; it should be 1 … {most}")
    if options.count * options.scale**2 > MOST_ENLARGED:
        raise ValueError(f"--count {options.count} at --scale {options.scale} makes too large a picture; lower one")
    if not 0 <= options.guidance_scale <= 1000:
        raise ValueError(f"--guidance-scale is {options.guidance_scale}; it should be 0 … 1000")
    check_output(options.output)


def check_output(path: Path | None) -> None:
    """Refuse a file that is there, or that would be no PNG."""
    if path is not None and path.exists():
        raise ValueError(f"{path} exists already; move it away or give --output another name")
    if path is not None and path.suffix.lower() != ".png":
        raise ValueError(f"--output {path} should end in .png")


def sample(options: argparse.Namespace) -> Path:
    """Draw, save, and return the path of the PNG."""
    check_arguments(options)
    import torch

    from course_utils.lessons.setup import choose_device
    from course_utils.pipeline import TextToImage
    from course_utils.weights.artifacts import checkpoints_folder

    folder = checkpoints_folder() if options.weights == "checkpoints" else Path(options.weights)
    pipe = TextToImage.from_pretrained(folder, choose_device())
    path = options.output or free_path(options.prompt, options.seed)
    check_room(path.parent, 0)  # now, rather than when all is drawn
    begun = time.perf_counter()
    images = pipe(
        [options.prompt] * options.count,
        negative_prompt=options.negative,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance_scale,
        guidance_interval=tuple(options.guidance_interval),
        sampler=options.sampler,
        generator=torch.Generator().manual_seed(options.seed),
    ).images
    contact_sheet(images, options.scale).save(path)
    print(f"{len(images)} pictures in {time.perf_counter() - begun:.1f} s")
    print(path)
    return path


def look(options: argparse.Namespace) -> Path:
    """Say what is in a folder of pictures, save a sheet of them, and return the path of the PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from course_utils.lessons.own_pictures import look_at
    from course_utils.profiles import get_profile

    check_output(options.output)
    found = look_at(options.pictures, get_profile(options.profile), options.size, **how_to_read(options))
    path = options.output or free_path(options.pictures.resolve().name, options.size, word="size")
    check_room(path.parent, 0)
    found.sheet().savefig(path, dpi=130, bbox_inches="tight")
    print("\n".join(found.lines))
    print(path)
    return path


def how_to_read(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `CaptionedImages.from_folder` that were given."""
    return {name: getattr(options, name) for name in ("caption", "template", "unconditional", "white")}


def train(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Train here, or start the processes that do."""
    import torch

    from course_utils.lessons.setup import choose_device
    from course_utils.training.command import launch, started_by_a_launcher, train_course, train_own
    from course_utils.training.loop import TrainingDiverged

    device = torch.device("cpu") if options.cpu else choose_device()
    if options.pictures is not None:
        if options.processes != 1 or options.restart or tuple(options.only) != PARTS:
            raise ValueError("--pictures trains all parts in one process: leave out --processes, --restart and --only")
        try:
            train_own(
                options.profile, device, options.pictures, size=options.size, seed=options.seed, folder=options.folder,
                start=options.start, **how_to_read(options),
            )  # fmt: skip
        except TrainingDiverged as error:
            raise ValueError(str(error)) from error
        return
    if options.processes != 1 and not started_by_a_launcher():
        launch(options.processes, arguments, device)
        return
    try:
        train_course(
            options.profile, device, seed=options.seed, folder=options.folder, which=options.only,
            restart=options.restart,
        )  # fmt: skip
    except TrainingDiverged as error:
        raise ValueError(str(error)) from error


def gpu_trial(options: argparse.Namespace) -> None:
    """Run a trial, or unpack what one has brought home."""
    from course_utils.lessons.setup import choose_device
    from course_utils.trial.packing import unpack
    from course_utils.trial.run import trial

    if options.unpack is not None:
        print(f"{', '.join(unpack(options.unpack, options.out))}: unpacked into {options.out}")
        return
    report = trial(options.out, options.minutes, choose_device(), options.profile, seed=options.seed)
    print(f"written to {report.path.parent}")
    failed = [name for name, found in report.sections.items() if "error" in found]
    if failed:
        raise ValueError(f"these sections failed, {report.path} says why: {', '.join(failed)}")


def info() -> None:
    """Print versions, device, profile and the cards of the weights that lie here."""
    import platform

    import torch

    from course_utils.lessons.setup import choose_device
    from course_utils.profiles import get_profile
    from course_utils.weights.artifacts import artifacts_folder, checkpoints_folder

    print(f"course {__version__} · Python {platform.python_version()} · torch {torch.__version__}")
    print(f"device {choose_device()} · {torch.get_num_threads()} threads · profile {get_profile().name}")
    for folder in (artifacts_folder(), checkpoints_folder()):
        cards = sorted(folder.glob("*.json"))
        print(f"{folder}: {'nothing yet' if not cards else ''}")
        for path in cards:
            try:
                metrics = json.loads(path.read_text(encoding="utf-8")).get("metrics", {})
                scores = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items() if isinstance(v, float))
            except (ValueError, AttributeError, RecursionError):
                scores = "an unreadable card"
            print(f"  {path.stem:<14}{scores}")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = build_parser().parse_args(arguments)
    try:
        if options.command in ("sample", "train"):
            check_seed(options.seed)
        if options.command == "sample":
            sample(options)
        elif options.command == "train":
            train(options, arguments[1:])
        elif options.command == "gpu-trial":
            gpu_trial(options)
        elif options.command == "look":
            look(options)
        else:
            info()
    except KeyboardInterrupt:
        return 130  # what was being trained has been saved, and has said so
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:  # OSError: no such file, no right, disk full
        if os.environ.get("COURSE_DEBUG"):
            raise
        speaker = f"course_utils, process {os.environ['RANK']}" if "RANK" in os.environ else "course_utils"
        print(f"{speaker}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
