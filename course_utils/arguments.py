"""What the command line takes; nothing here loads torch, so that --help comes at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from course_utils import __version__

SAMPLERS = ("ddim", "ddpm", "dpmpp_2m")  # as in diffusion.samplers, which would load torch before --help
PARTS = ("vae", "clip", "unet")  # as in training.parts, for the same reason


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m course_utils", description="Stable Diffusion, small.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    sample = commands.add_parser("sample", help="draw pictures from a prompt")
    sample.add_argument("prompt", help='such as "a dog on a red background"; "" draws without a condition')
    sample.add_argument("--output", type=Path, help="the PNG to write; default: a new one in samples/")
    sample.add_argument("--count", type=int, default=4, help="how many pictures (default %(default)s)")
    sample.add_argument("--steps", type=int, default=10, help="denoising steps (default %(default)s)")
    sample.add_argument("--guidance-scale", type=float, default=5.0, help="1: no guidance (default %(default)s)")
    sample.add_argument(
        "--guidance-interval", type=int, nargs=2, default=(400, 999), metavar=("LOWEST", "HIGHEST"),
        help="the timesteps at which there is guidance (default 400 999)",
    )  # fmt: skip
    sample.add_argument(
        "--sampler", choices=SAMPLERS, default="ddpm", help="dpmpp_2m is DPM-Solver++ (default %(default)s)"
    )
    sample.add_argument("--negative", default=None, metavar="PROMPT", help="what the picture should not show")
    sample.add_argument("--seed", type=int, default=0, help="same seed, same picture (default %(default)s)")
    sample.add_argument("--scale", type=int, default=4, help="enlarge 64×64 by this (default %(default)s)")
    sample.add_argument("--weights", default="checkpoints", help="their folder (default %(default)s)")
    train = commands.add_parser("train", help="train the VAE, CLIP and the U-Net without the notebooks")
    train.add_argument("--profile", default=None, help="smoke, cpu, long or gpu (default: what fits)")
    train.add_argument("--seed", type=int, default=0, help="of scenes, weights and batches (default %(default)s)")
    train.add_argument(
        "--folder", type=Path, help="where the parts go, in place of those of that name (default: artifacts/<profile>)"
    )
    train.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="train these, and take the others there")
    train.add_argument("--restart", action="store_true", help="train anew what is finished or begun there")
    train.add_argument("--processes", type=int, default=1, help="how many, one for each GPU (default %(default)s)")
    train.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    train.add_argument("--pictures", type=Path, help="a folder of your own pictures to train on with, see look")
    train.add_argument("--start", type=Path, help="with --pictures: weights to begin with (yours, else checkpoints/)")
    trial = commands.add_parser("gpu-trial", help="check, measure and train on a machine with CUDA, and report")
    trial.add_argument("--minutes", type=float, default=8.0, help="for everything (default %(default)s)")
    trial.add_argument("--out", type=Path, required=True, help="a folder; the same one again goes on where it stopped")
    trial.add_argument("--profile", default="gpu", help="smoke tries it all on a processor (default %(default)s)")
    trial.add_argument("--seed", type=int, default=0, help="of scenes, weights and batches (default %(default)s)")
    trial.add_argument("--unpack", type=Path, metavar="HOME", help="instead: the weights that lie there, into --out")
    look = commands.add_parser("look", help="say what is in a folder of your own pictures, and draw a sheet of them")
    look.add_argument("pictures", type=Path, help="the folder")
    look.add_argument("--output", type=Path, help="the PNG to write; default: a new one in samples/")
    look.add_argument("--profile", default=None, help="whose longest caption counts (default: what fits)")
    for command in (look, train):
        reading = command.add_argument_group("how the folder is read (docs/own_pictures.md)")
        reading.add_argument("--size", type=int, default=64, help="the pictures' side in pixels (default %(default)s)")
        reading.add_argument("--caption", metavar="COLUMN", help="in the table; default: text, caption, …")
        reading.add_argument("--template", default="a photo of a {}", help="for a folder a class (default %(default)r)")
        reading.add_argument("--unconditional", action="store_true", help="take pictures without a caption, too")
        reading.add_argument("--white", type=float, default=None, help="white's number in pictures of more than 8 bits")
    commands.add_parser("info", help="versions, device, profile and the weights that are there")
    return parser
