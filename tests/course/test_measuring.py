"""The tools that measure quality: they run, go on where they stopped, and their tables say what was found."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import learning_curve
import pages
import pytest
import quality
import torch

from course_utils.data.scenes import Scene, draw, parse_caption
from course_utils.models.clip import CLIPTextConfig
from course_utils.models.unet import UNetConfig
from course_utils.models.vae import VAEConfig
from course_utils.profiles import PROFILES, Budget
from course_utils.weights.artifacts import checkpoints_folder, write_card


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "SAMPLERS", {"ddim": "DDIM"})
    monkeypatch.setattr(quality, "STEPS", (1, 2))
    monkeypatch.setattr(quality, "GUIDANCE", (1.0, 3.0))
    monkeypatch.setattr(quality, "CHOSEN", ("ddim", 2, 3.0))
    monkeypatch.setattr(quality, "CALM", ("ddim", 1, 3.0))
    monkeypatch.setattr(quality, "FAR", (("ddim", 2, 3.0),))
    monkeypatch.setattr(quality, "COLORS", {"red": (192, 0, 30)})


def test_quality_measures_goes_on_and_draws(short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--pictures", "4", "--real", "8", "--alike", "2", "--output", str(tmp_path)]
    assert quality.main(arguments) == 0
    found = json.loads((tmp_path / "quality.json").read_text())
    assert set(found["rows"]) == {"ddim 1 3", "ddim 2 3", "ddim 1 1", "ddim 2 1"}
    assert found["frechet"]["ddim 2 3"]["frechet"] > 0
    for row in found["rows"].values():
        shares = [row[f"{what}_{split}"] for what in ("object_and_color", "all_named") for split in quality.SPLITS]
        assert all(0 <= share <= 1 for share in shares)
    assert {f.name for f in tmp_path.iterdir()} == {
        "quality.json", "quality.md", "quality.png", "objects_1.png", "objects_2.png"
    }  # fmt: skip
    assert "| ddim | 2 | 3 |" in capsys.readouterr().out

    found["rows"]["ddim 1 3"]["object_and_color_seen"] = 0.5  # what is there is kept, what is not is measured
    del found["rows"]["ddim 2 1"]
    (tmp_path / "quality.json").write_text(json.dumps(found))
    assert quality.main(arguments) == 0
    again = json.loads((tmp_path / "quality.json").read_text())
    assert again["rows"]["ddim 1 3"]["object_and_color_seen"] == 0.5
    assert again["rows"]["ddim 2 1"]["diversity"] > 0


def test_quality_of_other_weights_begins_afresh(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    write_card(path, {"marks": {"unet": "one"}, "rows": {"ddim 1 3": {}}, "frechet": {}})
    assert quality.kept(path, {"unet": "one"})["rows"] == {"ddim 1 3": {}}
    assert quality.kept(path, {"unet": "two"})["rows"] == {}


def test_every_setting_of_quality_once() -> None:
    found = quality.settings()
    assert len(found) == len(set(found)) == len({quality.key(s) for s in found})
    assert quality.CHOSEN in found
    assert set(quality.FAR) <= set(found)


def test_quality_scores_real_pictures_of_the_right_things_as_right() -> None:
    """With real scenes in place of drawn ones nearly everything is right, and the distance near its floor."""
    bench = quality.Bench(checkpoints_folder(), pictures=24, real=64)

    def real(setting: quality.Setting, prompts: list[str], seed: int) -> torch.Tensor:
        scenes = [Scene(**{"object": "dog", "color": "red", **parse_caption(p)}) for p in prompts]
        return torch.stack([torch.from_numpy(draw(s)).permute(2, 0, 1) / 127.5 - 1 for s in scenes])

    bench.draw = real  # type: ignore[method-assign]
    row = bench.row(quality.CHOSEN)
    assert row["object_and_color_seen"] > 0.9 and row["all_named_held_out"] > 0.9
    assert row["diversity"] == 0
    far = bench.frechet(quality.CHOSEN)
    assert far["frechet"] < 3 * far["frechet_floor"]


def test_learning_curve_trains_scores_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = Budget(4, 4, 1e-3, 0.02)
    tiny = replace(
        PROFILES["smoke"],
        scenes=64,
        vae=VAEConfig((8, 8, 8, 8), norm_groups=4),
        vae_budget=budget,
        clip=replace(PROFILES["smoke"].clip, text=CLIPTextConfig(1024, 16, 16, 1, 2)),
        clip_budget=budget,
        unet=UNetConfig((8, 16), heads=2, context_width=16, norm_groups=4),
        unet_budget=budget,
    )
    monkeypatch.setitem(PROFILES, "smoke", tiny)
    monkeypatch.setattr(learning_curve, "POINTS", 2)
    arguments = ["--profile", "smoke", "--pictures", "4", "--steps", "2", "--output", str(tmp_path)]
    assert learning_curve.main(arguments) == 0
    found = json.loads((tmp_path / "learning_curve.json").read_text())
    assert set(found["seconds"]) == {"scenes", "vae", "clip", "unet"}
    assert [s["step"] for s in found["snapshots"]] == [2, 4]
    assert 0 < found["snapshots"][0]["seconds"] < found["snapshots"][1]["seconds"] < found["seconds"]["unet"]
    assert found["points"]["4"]["frechet"] > 0 and 5 < found["vae_psnr"] < 30
    assert (tmp_path / "learning_curve.png").exists()
    assert capsys.readouterr().out.count("| 0.") >= 2

    del found["points"]["2"]  # only what is missing is measured, and nothing is trained again
    (tmp_path / "learning_curve.json").write_text(json.dumps(found))
    assert learning_curve.main(arguments) == 0
    again = json.loads((tmp_path / "learning_curve.json").read_text())
    assert again["seconds"] == found["seconds"] and again["snapshots"] == found["snapshots"]
    assert set(again["points"]) == {"2", "4"}

    assert learning_curve.main([*arguments, "--steps", "1"]) == 0  # drawn in another way: all points anew
    other = json.loads((tmp_path / "learning_curve.json").read_text())
    assert other["marks"]["steps"] == 1 and other["snapshots"] == found["snapshots"]
    assert all(other["points"][step] != again["points"][step] for step in ("2", "4"))


def test_a_curve_interrupted_adds_up_its_sittings_and_another_seed_begins_anew(tmp_path: Path) -> None:
    path, made = tmp_path / "learning_curve.json", {"profile": "smoke", "seed": 0}

    def interrupted() -> None:
        time.sleep(0.02)
        raise KeyboardInterrupt

    for _ in range(2):
        record = learning_curve.Record(path, made)
        with pytest.raises(KeyboardInterrupt):
            record.timed("vae", interrupted)
    assert record.found["seconds"] == {} and 0.04 < record.found["begun"]["vae"] < 0.4
    record = learning_curve.Record(path, made)
    assert record.timed("vae", lambda: 3) == 3
    assert 0.04 < record.found["seconds"]["vae"] < 0.4 and record.found["begun"] == {}
    assert learning_curve.Record(path, made).found == record.found
    assert learning_curve.Record(path, {**made, "seed": 1}).found["seconds"] == {}


def test_a_page_is_filled_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- one -->\nold\n<!-- /one -->\nbetween\n<!-- two -->\n<!-- /two -->\nafter\n")
    for text in ("| first |", "| new |\n"):
        pages.fill(page, "one", text)
    pages.fill(page, "two", "x")
    assert page.read_text() == (
        "before\n<!-- one -->\n| new |\n<!-- /one -->\nbetween\n<!-- two -->\nx\n<!-- /two -->\nafter\n"
    )
    for spoilt in ("nothing", "<!-- /one --> <!-- one -->", "<!-- one --> <!-- one --> <!-- /one -->"):
        page.write_text(spoilt)
        with pytest.raises(ValueError, match="once each, in this order"):
            pages.fill(page, "one", "x")
        assert page.read_text() == spoilt


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("README.md", "scores"),
        ("docs/scaling.md", "scaling"),
        ("docs/scaling.md", "step times"),
        ("docs/harder_scenes.md", "scores"),
        ("docs/harder_scenes.md", "hearing"),
        ("docs/performance.md", "bench"),
        ("docs/lab_book.md", "quality"),
        ("docs/performance.md", "learning curve"),
    ],
)
def test_the_pages_that_tools_fill_have_their_marks(page: str, name: str, tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text((Path(__file__).resolve().parents[2] / page).read_text(encoding="utf-8"), encoding="utf-8")
    pages.fill(copy, name, "| a table |")
    assert "| a table |" in copy.read_text(encoding="utf-8")
