"""`python -m course_utils train`: the course's three networks without its notebooks, in one process or in several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from course_utils.data.batches import CaptionedImages
from course_utils.files import check_room
from course_utils.profiles import get_profile
from course_utils.training.finetuning import finetune_parts
from course_utils.training.parts import NAMES, Parts, check_which, load_parts, train_parts
from course_utils.training.processes import check_batch_size, only_main_prints
from course_utils.weights.artifacts import LICENSE, artifacts_folder

if TYPE_CHECKING:
    from accelerate import Accelerator


def started_by_a_launcher() -> bool:
    """True in a process that torchrun, `accelerate launch` or mpirun has started, perhaps beside others."""
    names = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
    return any(name in os.environ for name in names)


def launch(processes: int, arguments: Sequence[str], device: torch.device) -> None:
    """Start this command again in several processes on this machine, and wait for them. It is what torchrun does.

    Raises:
        ValueError: less than one process, or fewer GPUs than processes. ChildProcessError: a process failed.
        KeyboardInterrupt: they were stopped, and have saved their state.
    """
    if processes < 1:
        raise ValueError(f"--processes is {processes}; it should be 1 or more")
    if device.type == "cuda" and processes > torch.cuda.device_count():
        raise ValueError(
            f"--processes is {processes}, and there are {torch.cuda.device_count()} GPUs, one for each process: use as "
            "many processes, or the processor with --cpu"
        )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    command = ["-m", "course_utils", "train", *arguments]
    try:
        run(get_args_parser().parse_args(["--standalone", f"--nproc_per_node={processes}", *command]))
    except ChildFailedError as error:
        raise ChildProcessError("the training stopped; the first message above says why") from error
    except SignalException as error:
        raise KeyboardInterrupt from error


def make_accelerator(device: torch.device) -> Accelerator | None:
    """Accelerate's view of this process and those beside it; None for one that was started by hand.

    Raises:
        ValueError: `accelerate launch --cpu --num_processes N` has started one process and not N.
    """
    if not started_by_a_launcher():
        return None
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")  # `train` chooses the precision
    asked_for_several = "MASTER_ADDR" in os.environ and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if accelerator.num_processes == 1 and asked_for_several and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "without MPI, `accelerate launch --cpu` starts one process, whatever --num_processes says; "
            "use `python -m course_utils train --cpu --processes 2`, or torchrun"
        )
    return accelerator


def train_own(
    profile_name: str | None,
    device: torch.device,
    pictures: Path,
    *,
    size: int = 64,
    seed: int = 0,
    folder: Path | None = None,
    start: str | Path | None = None,
    **reading: Any,
) -> Parts:
    """Train the parts in `start` (yours, else the course's) on with a folder of pictures, save them, say where.

    Args:
        pictures: as `CaptionedImages.from_folder` reads them, with its options. size: their sides, in pixels.

    Raises:
        FileNotFoundError, ValueError: what is wrong with a picture, a caption or the size. OSError: nothing can be
            written to the folder.
    """
    profile = get_profile(profile_name).going_on(vae=1 / 3, unet=1)
    folder = artifacts_folder(profile.name) / "own" / pictures.resolve().name if folder is None else folder
    check_room(folder, 0)
    data = CaptionedImages.from_folder(pictures, size, **reading)
    print(f"profile {profile.name} on {device.type}, seed {seed}: {len(data):,} captioned pictures from {pictures}")
    license = f"that of the pictures in {pictures.resolve().name}; before them: {LICENSE}"
    parts = finetune_parts(
        profile, data, load_parts(start, device), folder, seed=seed, device=device, license=license
    )
    print(f'to draw: python -m course_utils sample "{data.captions[0]}" --weights "{folder}"')
    return parts


def train_course(
    profile_name: str | None,
    device: torch.device,
    *,
    seed: int = 0,
    folder: Path | None = None,
    which: Sequence[str] = NAMES,
    restart: bool = False,
) -> Parts:
    """Draw the profile's scenes, train the parts, save them, and say where they are.

    Every process draws all scenes for itself: each needs them all in memory, they are the same (one seed), and drawing
    takes less time than a minute, so that there is nothing to wait for and no file to share.

    Raises:
        ValueError: an unknown profile or part, a batch that the processes cannot share. FileNotFoundError: a part that
            is needed and not trained lies nowhere.
    """
    profile = get_profile(profile_name)
    check_which(which)
    accelerator = make_accelerator(device)
    for name in which:
        check_batch_size(getattr(profile, f"{name}_budget").batch_size, accelerator)
    folder = artifacts_folder(profile.name) if folder is None else folder
    check_room(folder, 0)  # now, rather than when all scenes are drawn
    device = device if accelerator is None else accelerator.device
    with only_main_prints(accelerator):
        several = "" if accelerator is None else f" in {accelerator.num_processes} processes"
        print(f"profile {profile.name} on {device.type}{several}, seed {seed}: drawing {profile.scenes:,} scenes")
        data = CaptionedImages.scenes(profile.scenes, seed=seed)
        parts = train_parts(
            profile,
            data,
            seed=seed,
            folder=folder,
            which=which,
            accelerator=accelerator,
            device=device,
            restart=restart,
        )
        print(f"saved in {folder}")
        if all((folder / f"{name}.safetensors").exists() for name in NAMES):
            print(f'to draw: python -m course_utils sample "a dog on a red background" --weights "{folder}"')
    if accelerator is not None:
        accelerator.end_training()
    return parts
