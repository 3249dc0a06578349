"""Two processes train what one trains. They are real ones, started by torchrun, that talk through gloo.

They are started once; each writes down what it saw (distributed_worker.py), and the tests compare.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from course_utils.pipeline import TextToImage
from course_utils.training import processes
from course_utils.training.parts import train_parts
from course_utils.training.recipes import train_recipe
from tests.unit.distributed_worker import INTERRUPTED_AT, in_step, interrupt
from tests.unit.tiny import BATCH, PROFILE, STEPS, recipe, scenes

ROOT = Path(__file__).resolve().parents[2]
EXACT = {"precision": "float32"}
CLOSE = {"rel": 1e-5}


def run_two(*arguments: str, seconds: float = 240) -> None:
    """Two processes of a Python file or module, on a free port; none is left behind."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except BaseException:
            process.send_signal(signal.SIGTERM)  # torchrun ends its processes
            output, _ = process.communicate(timeout=60)
            raise
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def alone():
    """What one process finds: losses and weights of each part."""
    data, found = scenes(), {}
    for name in ("vae", "clip", "unet"):
        one = recipe(name, data)
        found[name] = train_recipe(one, **EXACT).losses, one.network.state_dict()
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(folder, what process 0 found, what process 1 found)."""
    folder = tmp_path_factory.mktemp("two")
    stopped = in_step(recipe("vae", scenes()), INTERRUPTED_AT - 1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(stopped, folder=folder / "stopped_by_one", **EXACT)
    shutil.copytree(folder / "stopped_by_one", folder / "stopped_by_one_copy")
    run_two(str(ROOT / "tests" / "unit" / "distributed_worker.py"), str(folder))
    first, second = (json.loads((folder / f"process{i}.json").read_text()) for i in (0, 1))
    assert first["processes"] == second["processes"] == 2
    return folder, first, second


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over all tensors, the largest distance between two of a name, over the length of the second.

    The keys' biases are left out: one vector added to all keys changes no attention weight, so that their gradient is
    nothing but rounding, which AdamW makes as large as any other.
    """
    assert a.keys() == b.keys()
    kept = [k for k in a if not k.endswith("attention.key.bias")]
    return max(((a[k] - b[k]).norm() / b[k].norm().clamp(min=1e-6)).item() for k in kept)


@pytest.mark.parametrize("name", ["vae", "clip", "unet"])
def test_two_processes_train_what_one_does(two, alone, name):
    folder, first, second = two
    losses, weights = alone[name]
    assert len(losses) == STEPS
    assert first[name] == second[name] == pytest.approx(losses, **CLOSE)
    mine, theirs = (load_file(folder / f"{name}.process{i}.safetensors") for i in (0, 1))
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert largest_difference(mine, weights) < 1e-3


def test_two_processes_make_one_pipeline(two):
    folder, first, second = two
    parts = train_parts(PROFILE, scenes(), report=str, **EXACT)
    for found in (first, second):
        assert found["scale"] == pytest.approx(parts.vae.latent_scale.item(), **CLOSE)
        assert found["trained again"] == []  # all was there
        for name in ("vae", "clip", "unet"):
            assert found["parts"][name] == pytest.approx(parts.losses[name], rel=1e-4)
    TextToImage.from_pretrained(folder / "parts")


def test_the_comparison_sees_mistakes(two, alone):
    _, first, _ = two
    assert first["vae, both on the first part"] != pytest.approx(alone["vae"][0], rel=1e-2)
    assert first["clip, each on its own pairs"] != pytest.approx(alone["clip"][0], rel=1e-2)


def test_contrastive_gradients_are_those_of_the_whole_batch(two):
    folder, first, _ = two
    one = recipe("clip", scenes())
    one(torch.Generator().manual_seed(1)).backward()
    wanted = {k: p.grad for k, p in one.network.named_parameters()}
    for i in (0, 1):
        assert largest_difference(load_file(folder / f"gradients.process{i}.safetensors"), wanted) < 1e-4
    assert first["part"] == [BATCH // 2]


def test_only_the_main_process_prints_and_previews(two):
    _, first, second = two
    assert "vae" in first["printed"] and second["printed"] == ""
    assert first["previewed"] == [3, 6] * 3 and second["previewed"] == []


@pytest.mark.parametrize("name", ["vae", "unet"])
def test_one_process_goes_on_where_two_were_stopped(two, alone, name, tmp_path, capsys):
    folder, first, second = two
    assert first[f"{name} stopped"] and second[f"{name} stopped"]
    shutil.copy(folder / "stopped_by_two" / f"{name}.safetensors", tmp_path)
    one = recipe(name, scenes())
    assert train_recipe(one, folder=tmp_path, **EXACT).losses == pytest.approx(alone[name][0], **CLOSE)
    assert f"going on from step {INTERRUPTED_AT}" in capsys.readouterr().out
    assert largest_difference(one.network.state_dict(), alone[name][1]) < 1e-3


def test_two_processes_go_on_where_one_was_stopped(two, alone):
    folder, first, second = two
    assert first["vae continued"] == second["vae continued"] == pytest.approx(alone["vae"][0], **CLOSE)
    assert largest_difference(load_file(folder / "vae_continued.process1.safetensors"), alone["vae"][1]) < 1e-3
    assert not list((folder / "stopped_by_one").iterdir())  # it is over, and its state is gone


def test_nan_in_one_process_stops_all(two):
    for found in two[1:]:
        assert "the loss became nan at step 2" in found["diverged"]


def test_what_cannot_be_divided_is_refused(two):
    for found in two[1:]:
        assert "a batch of 9 cannot be shared equally by 2 processes" in found["uneven"]
        assert "train needs a Recipe" in found["plain"]
        assert "different saved states" in found["other states"]


def test_one_precision_is_in_charge():
    one = recipe("vae", scenes(16))
    with pytest.raises(ValueError, match="mixed_precision='fp16'.*train chooses the precision"):
        processes.divide(one.network, one, SimpleNamespace(mixed_precision="fp16"))
    with pytest.raises(ValueError, match="not the model to be trained"):
        processes.divide(torch.nn.Linear(1, 1), replace(one), SimpleNamespace(mixed_precision="no"))


@pytest.mark.slow
def test_the_command_stops_and_goes_on_in_two_processes(tmp_path):
    """Ctrl-C reaches the launcher; all processes finish their step, one saves, and the same command goes on."""
    command = [sys.executable, "-m", "course_utils", "train", "--cpu", "--processes", "2", "--profile", "smoke"]
    command += ["--only", "vae", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=subprocess.STDOUT) as process:
        seen = b""
        while b" 2/8 steps" not in seen and process.poll() is None:
            seen += os.read(process.stdout.fileno(), 4096)
        process.send_signal(signal.SIGINT)
        seen += process.communicate(timeout=120)[0]
    assert process.returncode == 130 and b"vae: stopped at step" in seen, seen.decode()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "in 2 processes" in done.stdout and done.stdout.count("vae: going on from step") == 1
    assert (tmp_path / "vae.json").exists() and not list((tmp_path / "training").iterdir())
