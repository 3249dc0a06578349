"""`python -m course_utils train`: its arguments, what it starts, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from course_utils import __main__ as main_module
from course_utils.pipeline import TextToImage
from course_utils.profiles import PROFILES
from course_utils.training import command, parts
from tests.unit.tiny import PROFILE, SIZE

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ("LOCAL_RANK", "WORLD_SIZE", "RANK", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "MASTER_ADDR")


@pytest.fixture(autouse=True)
def started_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    monkeypatch.delenv("COURSE_DEBUG", raising=False)
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny profile under its own name, with scenes of its size."""
    monkeypatch.setitem(PROFILES, "tiny", PROFILE)
    scenes = command.CaptionedImages.scenes
    draw = staticmethod(lambda n, seed: scenes(n, seed=seed, size=SIZE))
    monkeypatch.setattr(command, "CaptionedImages", SimpleNamespace(scenes=draw))


def test_it_trains_all_parts_into_a_folder(tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(tmp_path), "--profile", "tiny"]
    assert main_module.main(["train", *folder, "--only", "vae", "clip"]) == 0
    assert "to draw" not in capsys.readouterr().out
    assert main_module.main(["train", *folder]) == 0
    out = capsys.readouterr().out
    assert "128 scenes" in out and "unet: 6 steps" in out and "to draw: python -m course_utils sample" in out
    assert "vae: from your own training" in out  # it was there
    TextToImage.from_pretrained(tmp_path)
    assert main_module.PARTS == parts.NAMES


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from course_utils.__main__ import build_parser as build; build().format_help()"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_default_folder_is_the_profiles(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_ARTIFACTS", str(tmp_path))
    command.train_course("tiny", torch.device("cpu"), which=("vae",))
    assert (tmp_path / "tiny" / "vae.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "laptop"], "no profile 'laptop'"),
        (["--processes", "0"], "--processes is 0"),
        (["--profile", "tiny", "--only", "unet"], "no vae.safetensors"),
    ],
)
def test_errors_say_what_to_do(tiny, tmp_path: Path, arguments, message, capsys) -> None:
    assert main_module.main(["train", "--folder", str(tmp_path), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("course_utils: ") and message in error


def test_a_loss_that_is_no_number_ends_in_one_line(tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    broken = replace(PROFILE, vae_beta=float("nan"))
    monkeypatch.setitem(PROFILES, "tiny", broken)
    assert main_module.main(["train", "--profile", "tiny", "--folder", str(tmp_path)]) == 1
    assert "course_utils: vae: the loss became nan at step 0" in capsys.readouterr().err


def test_several_processes_are_started_as_torchrun_does(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(torchrun, "run", started.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["--processes", "2", "--cpu", "--only", "vae", "clip"]
    assert main_module.main(["train", *arguments]) == 0
    (options,) = started
    assert options.nproc_per_node == "2" and options.standalone and options.module
    assert options.training_script == "course_utils"
    assert options.training_script_args == ["train", *arguments]


def test_started_processes_start_no_others(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(command, "started_by_a_launcher", lambda: True)
    monkeypatch.setattr(command, "train_course", lambda *args, **options: started.append(options["which"]))
    assert main_module.main(["train", "--processes", "2", "--only", "clip"]) == 0
    assert started == [["clip"]]


def test_a_failed_process_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def fail(options):
        raise ChildFailedError.__new__(ChildFailedError)  # its constructor wants to read the dead process

    monkeypatch.setattr(torchrun, "run", fail)
    assert main_module.main(["train", "--processes", "2"]) == 1
    assert capsys.readouterr().err == "course_utils: the training stopped; the first message above says why\n"


def test_no_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="--processes is 2, and there are 1 GPUs.*--cpu"):
        command.launch(2, [], torch.device("cuda"))


def test_a_launcher_that_starts_too_few_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` sets, and starts, without MPI."""
    import accelerate

    assert command.make_accelerator(torch.device("cpu")) is None
    for name, value in {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_USE_CPU": "True",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: SimpleNamespace(num_processes=1))
    with pytest.raises(ValueError, match="without MPI.*--processes 2"):
        command.make_accelerator(torch.device("cpu"))
    monkeypatch.delenv("MASTER_ADDR")
    assert command.make_accelerator(torch.device("cpu")).num_processes == 1
    assert "LOCAL_RANK" not in os.environ
