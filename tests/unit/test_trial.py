"""`gpu-trial` in a tiny setting on the CPU, where it does all that it does on a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from course_utils import __main__ as command
from course_utils.pipeline import TextToImage
from course_utils.trial import networks, packing, run, training
from course_utils.trial.report import Clock, Report
from course_utils.trial.sheets import sheet_of_pairs
from tests.unit.tiny import PROFILE

CPU = torch.device("cpu")
TINY = replace(PROFILE, test_scenes=32, evaluation_pictures=64)
SECTIONS = [
    "asked", "machine", "data",
    "parity vae", "parity clip", "parity unet", "times unet", "times vae", "times clip", "plan",
    "training vae", "packed up to vae", "training clip", "packed up to clip", "training unet", "packed up to unet",
    "pictures", "scores", "end",
]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trial")
    run.trial(out, 0.2, CPU, profile=TINY, say=lambda line: None)
    return out


def sections(out: Path) -> dict:
    return json.loads((out / "home" / "trial.json").read_text(encoding="utf-8"))


def test_every_section_is_filled(done: Path) -> None:
    found = sections(done)
    assert sorted(found) == sorted(SECTIONS)
    assert {name: entry["error"] for name, entry in found.items() if "error" in entry} == {}
    for name in ("vae", "clip", "unet"):
        assert found[f"parity {name}"]["near"], found[f"parity {name}"]
        assert {"plain float32"} < set(found[f"times {name}"])
        assert all(way["ms"] > 0 for key, way in found[f"times {name}"].items() if key != "section_seconds")
        steps = found["plan"][name]["steps"]
        assert found[f"training {name}"]["steps"] == steps and found[f"training {name}"]["losses"]
    assert found["scores"]["pictures"] == 64 and found["scores"]["psnr_error"] > 0
    assert found["training vae"]["metrics"]["psnr"] > 0
    assert len(found["pictures"]["prompts"]) == 64


def test_sheets_show_all_objects_twice(done: Path) -> None:
    with Image.open(done / "home" / "objects.png") as sheet:
        side = 2 * TINY.clip.vision.image_size
        assert sheet.size == (16 * (side + 4) + 4, 4 * (12 + 2 * side + 12))


def test_what_comes_home_is_small_and_can_be_drawn_with(done: Path, tmp_path: Path, capsys) -> None:
    files = list((done / "home").iterdir())
    assert len(files) <= 8 and all(f.stat().st_size <= 16 * 2**20 for f in files)
    arguments = ["gpu-trial", "--unpack", str(done / "home"), "--out", str(tmp_path)]
    assert command.main(arguments) == 0 and "vae, clip, unet: unpacked" in capsys.readouterr().out
    ours, theirs = (TextToImage.from_pretrained(f) for f in (tmp_path, done / "work"))
    for name, weight in theirs.unet.state_dict().items():
        torch.testing.assert_close(ours.unet.state_dict()[name], weight, rtol=1e-3, atol=1e-5)
    assert "half" in json.loads((tmp_path / "unet.json").read_text())["note"]


def test_pieces_are_cut_and_joined_and_a_lost_one_is_missed(done: Path, tmp_path: Path) -> None:
    pieces = packing.pack(done / "work", tmp_path / "home", most=20_000)
    assert len(pieces) > 2 and max(p.stat().st_size for p in pieces) <= 20_000
    assert packing.unpack(tmp_path / "home", tmp_path / "parts") == ["vae", "clip", "unet"]
    pieces[1].unlink()
    with pytest.raises(ValueError, match="a piece of weights.tar is missing"):
        packing.unpack(tmp_path / "home", tmp_path / "parts")
    with pytest.raises(FileNotFoundError, match="no weights.tar.00"):
        packing.unpack(tmp_path, tmp_path / "parts")


def test_the_same_call_makes_only_what_is_missing(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(done / "home" / "trial.json", lambda line: None)
    del report.sections["scores"]
    report.write()
    monkeypatch.setattr(run, "step_times", lambda *given: pytest.fail("measured again"))
    monkeypatch.setattr(run, "train_part", lambda *given, **options: pytest.fail("trained again"))
    said: list[str] = []
    again = run.trial(done, 0.2, CPU, profile=TINY, say=said.append)
    assert again.sections["scores"]["pictures"] == 64 and "training unet: there already" in said


def test_a_section_that_fails_is_written_down_and_the_next_one_made(tmp_path: Path) -> None:
    report = Report(tmp_path / "trial.json", lambda line: None)

    def fails() -> dict:
        raise RuntimeError("out of memory")

    assert report.section("a", fails) is None and report.section("b", lambda: {"x": 1}) is not None
    found = json.loads((tmp_path / "trial.json").read_text())
    assert found["a"]["error"] == "RuntimeError: out of memory" and found["b"]["x"] == 1
    again = Report(tmp_path / "trial.json", lambda line: None)
    assert again.section("a", lambda: {"x": 2})["x"] == 2  # a failed one is tried again
    assert again.section("b", fails)["x"] == 1


def test_steps_follow_from_the_time_that_is_left() -> None:
    assert training.steps_that_fit("vae", 100, 0.01) == int(0.95 * 0.45 * 100 / 0.01)
    assert training.steps_that_fit("unet", 100, 0.01) == 9500  # nothing comes after it
    assert training.steps_that_fit("clip", 55, 0.01) == 760  # 8 parts of 55
    assert training.steps_that_fit("vae", -3, 0.01) == 1


def test_the_compiler_is_taken_where_it_repays_its_start() -> None:
    times = {"plain bf16": {"ms": 8.0}, "course bf16": {"ms": 10.0}, "course compiled bf16": {"ms": 5.0}}
    assert training.best_way(times, "bf16", 100) == (False, 0.01)  # how long it takes to start is not known
    times["compiled bf16"] = {"ms": 4.0, "first_s": 60.0}
    assert training.best_way(times, "bf16", 100) == (True, 0.005)
    assert training.best_way(times, "bf16", 40) == (False, 0.01)
    times["course bf16"] = {"error": "broken"}
    assert training.best_way(times, "bf16", 10) == (False, 0.008)
    assert training.best_way({}, "bf16", 10) == (False, training.GUESS)


def test_a_wrong_network_is_not_near(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.tiny import recipe, scenes

    data = scenes(32)
    right, wrong = recipe("vae", data, PROFILE), recipe("vae", data, PROFILE)
    assert networks.parity(right, right, rows=2)["near"]
    with torch.no_grad():
        wrong.network.decoder.conv_out.weight *= 1.1
    assert not networks.parity(wrong, right, rows=2)["near"]


def test_the_network_is_what_it_was_after_its_times_were_taken() -> None:
    from tests.unit.tiny import recipe, scenes

    made = recipe("vae", scenes(32), PROFILE)
    before = {k: v.clone() for k, v in made.network.state_dict().items()}
    found = networks.step_times(made, 0.01, with_compiler=False)
    assert any(name.startswith("course") for name in found) and not any("error" in way for way in found.values())
    assert all(torch.equal(before[k], v) for k, v in made.network.state_dict().items())


def test_pairs_stand_one_over_the_other() -> None:
    black, white = torch.full((3, 3, 4, 4), -1.0), torch.ones(3, 3, 4, 4)
    sheet = sheet_of_pairs(black, white, ["", "", ""], columns=2, scale=1, gap=1)
    assert sheet.size == (2 * 5 + 1, 2 * (12 + 8 + 3))
    assert sheet.getpixel((1, 12)) == (0, 0, 0) and sheet.getpixel((1, 12 + 5)) == (255, 255, 255)
    assert sheet.getpixel((1, 23 + 12)) == (0, 0, 0)  # the third stands in the second row


def test_what_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["gpu-trial", "--out", str(tmp_path), "--minutes", "0"]) == 1
    assert "--minutes is 0" in capsys.readouterr().err
    assert command.main(["gpu-trial", "--out", str(tmp_path), "--unpack", str(tmp_path)]) == 1
    assert Clock(1.0).left() <= 60
