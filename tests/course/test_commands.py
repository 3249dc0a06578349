"""The command line, the make targets, and the files that set the course up."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bootstrap
import check
import harder_scenes
import pytest
import quality
import scaling
from PIL import Image

from course_utils import __main__ as command
from course_utils.diffusion import samplers

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
    assert pipe.asked["sampler"] == "dpmpp_2m" and command.SAMPLERS == samplers.SAMPLERS
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
    wrong = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.!]+", line)]
    assert lines and not wrong


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
