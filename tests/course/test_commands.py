"""The command line, the make targets, and the files that set the course up."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bootstrap
import check
import harder_scenes
import pytest
import quality
import scaling
import torch
from packaging.requirements import Requirement
from PIL import Image

from course_utils import __main__ as command
from course_utils.arguments import SAMPLERS
from course_utils.diffusion import samplers
from course_utils.training.parts import train_parts

ROOT = Path(__file__).resolve().parents[2]


class StandIn:
    """Draws pictures of one colour and remembers what it was asked for."""

    def __call__(self, prompt: list[str], **options: Any) -> Any:
        self.asked = {"prompt": prompt, **options}
        return SimpleNamespace(images=[Image.new("RGB", (64, 64), "red") for _ in prompt])


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    from course_utils.pipeline import TextToImage

    stand_in = StandIn()
    monkeypatch.setattr(TextToImage, "from_pretrained", classmethod(lambda cls, folder, device: stand_in))
    monkeypatch.chdir(tmp_path)
    return stand_in


def test_sample_writes_a_sheet_and_prints_its_path(pipe: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sample", "a dog on a red background", "--count", "3", "--steps", "5", "--seed", "7"]
    assert command.main([*arguments, "--negative", "a cat", "--guidance-scale", "2", "--sampler", "dpmpp_2m"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path == Path("samples/a-dog-on-a-red-background-seed7.png")
    assert Image.open(path).size == (3 * 260 + 4, 264)
    assert pipe.asked["prompt"] == ["a dog on a red background"] * 3
    assert pipe.asked["num_inference_steps"] == 5 and pipe.asked["guidance_scale"] == 2
    assert pipe.asked["sampler"] == "dpmpp_2m" and SAMPLERS == samplers.SAMPLERS
    assert pipe.asked["negative_prompt"] == "a cat" and pipe.asked["generator"].initial_seed() == 7


def test_sample_draws_as_the_published_scores_were_measured(pipe: StandIn) -> None:
    assert command.main(["sample", "a dog on a red background"]) == 0
    scores = json.loads((ROOT / "checkpoints" / "scores.json").read_text(encoding="utf-8"))
    for name in ("sampler", "num_inference_steps", "guidance_scale"):
        assert pipe.asked[name] == scores[name]
    assert list(pipe.asked["guidance_interval"]) == scores["guidance_interval"]
    assert quality.CHOSEN[:2] == (scores["sampler"], scores["num_inference_steps"])  # it tries guidance at all times
    for tool in (harder_scenes, scaling):  # each with a guidance scale of its own
        assert (tool.SAMPLER, tool.STEPS) == quality.CHOSEN[:2]


def test_sample_writes_over_nothing(pipe: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert command.main(["sample", "", "--count", "1"]) == 0
    assert sorted(p.name for p in Path("samples").iterdir()) == [
        "unconditional-seed0-2.png",
        "unconditional-seed0.png",
    ]
    given = Path("mine.png")
    given.write_text("mine")
    assert command.main(["sample", "a dog", "--output", "mine.png"]) == 1
    assert "exists already" in capsys.readouterr().err and given.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps is 0"),
        (["--count", "-1"], "--count is -1"),
        (["--guidance-scale", "-2"], "--guidance-scale is -2.0"),
        (["--output", "dog.gif"], "should end in .png"),
    ],
)
def test_sample_refuses_what_cannot_work(
    pipe: StandIn, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command.main(["sample", "a dog", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_sample_says_what_to_do_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["sample", "a dog", "--weights", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("course_utils: ") and "Traceback" not in message


def test_what_the_disk_refuses_is_said_in_one_line(
    pipe: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert command.main(["sample", "a dog"]) == 1
    assert capsys.readouterr().err == "course_utils: [Errno 28] No space left on device\n"


def own_set(folder: Path) -> Path:
    """Four pictures of the course with a table: one twice, one small, one whose caption is too long, one in no row."""
    folder.mkdir()
    sides = {"a.png": (64, 64), "copy.png": (64, 64), "long.png": (200, 64), "small.png": (20, 20)}
    sides["left.png"] = (64, 64)
    for i, (name, size) in enumerate(sides.items()):
        Image.new("RGB", size, (40 * max(1, i), 0, 0)).save(folder / name)
    captions = ["a dog", "a red dog", " ".join(["word"] * 15), ""]
    rows = [f"{name},{caption}" for name, caption in zip(sides, captions, strict=False)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *rows]), encoding="utf-8")
    return folder


def test_look_says_what_is_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(own_set(tmp_path / "mine"))
    assert command.main(["look", folder]) == 1
    assert 'metadata.csv, line 5 has no "text"' in capsys.readouterr().err
    assert command.main(["look", folder, "--unconditional", "--profile", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [
        "4 pictures and 4 captions, 4 of them different",
        "sides from 20×20 to 200×64 pixels, read as 64×64",
        "smaller than 64 pixels, to be enlarged: 1 (small.png)",
        "more than twice as long as wide, with the ends cut off: 1 (long.png)",
        "half of them or more have the pixels for --size 64; 64 is the fastest",
        "the same picture: a.png, copy.png",
        "captions of 2 to 17 tokens with start and end; only 16 can be read. Shorten those that are cut off: 1",
        f"  {' '.join(['word'] * 15)!r} to {' '.join(['word'] * 14)!r}",
        "without a caption, and learned so: 1",
        "in the folder and in no row of its table: 1 (left.png)",
    ]
    assert lines[-1] == str(Path("samples/mine-size64.png"))
    with Image.open(lines[-1]) as sheet:
        assert {(40, 0, 0), (80, 0, 0), (120, 0, 0)} <= {color for _, color in sheet.convert("RGB").getcolors(1 << 20)}
    assert command.main(["look", folder, "--output", "sheet.gif"]) == 1


def test_train_goes_on_with_own_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from course_utils.training import command as training
    from course_utils.weights.artifacts import read_card
    from tests.unit import tiny

    profile = replace(tiny.PROFILE, vocab_size=1024)
    monkeypatch.setattr(training, "get_profile", lambda name: profile)
    start = train_parts(profile, tiny.scenes(), folder=tmp_path / "start")
    tiny_set = tmp_path / "mine"
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tiny_set / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), color).save(tiny_set / name / "1.png")
    size = str(tiny.scenes().images.shape[-1])
    arguments = ["train", "--cpu", "--pictures", str(tiny_set), "--start", str(tmp_path / "start"), "--size", size]
    arguments += ["--template", "all {}", "--folder", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    assert 'to draw: python -m course_utils sample "all blue" --weights' in capsys.readouterr().out
    card = read_card("unet", tmp_path / "out")
    assert card["license"].startswith("that of the pictures in mine") and card["size"] == int(size)
    unet = training.load_parts(tmp_path / "out").unet
    assert not torch.equal(unet.conv_in.weight, start.unet.conv_in.weight)
    assert command.main([*arguments, "--processes", "2"]) == 1
    assert "leave out --processes" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    from course_utils.data.batches import CaptionedImages

    (tmp_path / "file").write_text("in the way")
    blocked = str(tmp_path / "file" / "out")
    drawn: list[int] = []
    monkeypatch.setattr(CaptionedImages, "scenes", lambda n, **_: drawn.append(n))
    for arguments in (
        ["train", "--cpu", "--profile", "smoke", "--folder", blocked],
        ["train", "--cpu", "--profile", "smoke", "--folder", blocked, "--pictures", "gone"],
        ["sample", "a dog", "--output", f"{blocked}/dog.png"],
    ):
        assert command.main(arguments) == 1
        assert "cannot be written to (Not a directory): choose another folder" in capsys.readouterr().err
    assert not drawn and not hasattr(pipe, "asked")


def test_info_names_version_and_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["info"]) == 0
    assert "profile" in capsys.readouterr().out


def test_sheet_has_eight_pictures_to_a_row() -> None:
    sheet = command.contact_sheet([Image.new("RGB", (8, 8))] * 9, scale=1, gap=0)
    assert sheet.size == (64, 16)


# --- setting up ---------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_without_a_target_lists_the_targets() -> None:
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "course", "lab", "sample", "test", "sync", "sync-check", "lint", "unit", "clean"):
        assert f"make {target} " in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_takes_the_profile_from_the_environment() -> None:
    for environment, arguments, profile in (({}, [], "cpu"), ({"COURSE_PROFILE": "smoke"}, [], "smoke"),
                                            ({"COURSE_PROFILE": "smoke"}, ["PROFILE=gpu"], "gpu")):  # fmt: skip
        clean = {k: v for k, v in os.environ.items() if k not in ("COURSE_PROFILE", "PROFILE")}
        done = subprocess.run(["make", "-ns", "course", *arguments], cwd=ROOT, env=clean | environment,
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert f"--profile {profile}" in done.stdout


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.read_text().splitlines()[-1] == "make test"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"


def test_constraints_are_names_and_versions_only() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    wrong = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.!]+(; .+)?", line)]
    assert lines and not wrong


@pytest.mark.parametrize("python", ["3.10.12", "3.11.2", "3.11.9", "3.12.3", "3.13.1"])
def test_each_python_has_one_version_of_each_package(python: str) -> None:
    here = {"python_version": ".".join(python.split(".")[:2]), "python_full_version": python}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    taken = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate(here)]
    assert len(taken) == len(set(taken))
    assert {"torch", "torchvision", "numpy", "soupsieve", "transformers", "diffusers", "matplotlib"} <= set(taken)


def test_bootstrap_names_the_cause_and_not_its_consequence() -> None:
    output = """ERROR: Cannot install nbconvert because these package versions have conflicting dependencies.

The conflict is caused by:
    beautifulsoup4 4.15.0 depends on soupsieve>=1.6.1
    The user requested (constraint) soupsieve==4.1.2

To fix this you could try to:"""
    assert bootstrap.cause(output) == [
        "beautifulsoup4 4.15.0 depends on soupsieve>=1.6.1", "The user requested (constraint) soupsieve==4.1.2",
    ]  # fmt: skip
    assert bootstrap.cause("WARNING: x\nERROR: no such thing\nmore") == ["ERROR: no such thing"]
    assert bootstrap.cause("") == ["pip said nothing"]


def test_constraints_cover_what_the_project_asks_for() -> None:
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in open(ROOT / "constraints.txt")}
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|dev) = \[(.*?)^\]", text, re.M | re.S)
    asked = {name.lower() for listing in lists for name in re.findall(r'"([a-zA-Z0-9_-]+)', listing)}
    assert len(lists) == 2 and asked <= pinned, asked - pinned


def test_bootstrap_can_be_read_by_an_old_python() -> None:
    ast.parse(Path(bootstrap.__file__).read_text(encoding="utf-8"), feature_version=(3, 5))


def test_bootstrap_refuses_an_old_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 1))
    with pytest.raises(SystemExit):
        bootstrap.check_python()
    assert "This is Python 3.8" in capsys.readouterr().err


@pytest.mark.parametrize("pins_work", [True, False])
def test_bootstrap_falls_back_where_the_pins_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], pins_work: bool
) -> None:
    calls: list[tuple[str, ...]] = []

    def install(*options: str) -> tuple[bool, str]:
        calls.append(options)
        return (pins_work or not options), "ERROR: No matching distribution found for torch==9"

    monkeypatch.setattr(bootstrap, "READY", tmp_path / "ready")
    monkeypatch.setattr(bootstrap, "usable", lambda: True)
    monkeypatch.setattr(bootstrap, "install", install)
    bootstrap.main()
    out = capsys.readouterr().out
    assert (tmp_path / "ready").exists()
    assert calls[0] == ("-c", "constraints.txt")
    assert ("No matching distribution" in out) == (not pins_work) and len(calls) == (1 if pins_work else 2)


def test_bootstrap_leaves_no_stamp_when_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bootstrap, "READY", tmp_path / "ready")
    monkeypatch.setattr(bootstrap, "usable", lambda: True)
    monkeypatch.setattr(bootstrap, "install", lambda *options: (False, "no network"))
    (tmp_path / "ready").touch()
    with pytest.raises(SystemExit):
        bootstrap.main()
    assert not (tmp_path / "ready").exists()


def test_check_runs_all_stages_and_fails_if_one_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "run_stage", lambda name: name != "types")
    assert check.main([]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out and all(name in out for name in check.STAGES)
    assert check.main(["lint"]) == 0 and check.main(["none"]) == 2
