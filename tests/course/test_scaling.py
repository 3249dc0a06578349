"""experiments/scaling.py: one setting end to end on almost nothing, a second call, the tables and the plot."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scaling
import scaling_report
from PIL import Image

from course_utils.data.batches import CaptionedImages
from course_utils.lessons.plots import show_rows
from course_utils.models.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from course_utils.models.unet import UNetConfig
from course_utils.models.vae import VAEConfig
from course_utils.profiles import PROFILES, Budget, Profile
from course_utils.training.parts import train_parts
from course_utils.weights.artifacts import checkpoints_folder

# A tokenizer trained on so little cuts words into pieces, and prompts with them.
pytestmark = pytest.mark.filterwarnings("ignore:the text has")
OPTIONS: dict[str, Any] = {"profile": "smoke", "fraction": 1.0, "unet_minutes": None, "scenes": None}
TINY = replace(
    PROFILES["smoke"],
    scenes=128, test_scenes=8, evaluation_pictures=4,
    vae=VAEConfig((8, 8, 8, 16), norm_groups=4),
    vae_budget=Budget(2, 4, 3e-3, 0.02),
    clip=CLIPConfig(
        text=CLIPTextConfig(vocab_size=1024, max_length=16, width=32, layers=1, heads=2),
        vision=CLIPVisionConfig(image_size=64, patch_size=8, width=32, layers=1, heads=2),
        embed_dim=32,
    ),
    clip_budget=Budget(2, 8, 1e-3, 0.02),
    unet=UNetConfig(channels=(32, 32), attention=(False, True), heads=2, context_width=32, norm_groups=8),
    unet_budget=Budget(2, 8, 1e-3, 0.02),
    judge_budget=Budget(2, 8, 2e-3, 0.02),
)  # fmt: skip
OWNER = scaling.Setting("more", objects=70)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder in which one setting has been run, and another that takes its VAE."""
    root = tmp_path_factory.mktemp("scaling")
    start(root, OWNER)
    start(root, replace(OWNER, name="few", objects=64, vae_of="more"))
    return root


def start(root: Path, setting: scaling.Setting, profile: Profile = TINY, **options: Any) -> dict[str, Any]:
    return scaling.run_setting(scaling.Run(setting, profile, root, "cpu", {**OPTIONS, **options}))


def read(root: Path, name: str) -> dict[str, Any]:
    return json.loads((root / f"{name}.json").read_text(encoding="utf-8"))


def test_a_setting_is_trained_and_measured(root):
    results = read(root, "more")
    assert list(results["stages"]) == list(scaling.STAGES)
    for name in ("vae", "clip", "unet", "judge"):
        assert results["stages"][name]["steps"] == 2 and results["stages"][name]["seconds"] >= 0
        assert (root / "more" / f"{name}.safetensors").exists()
    assert 0.1 < results["peak_gb"] < 100 and 0 < results["stages"]["vae"]["psnr"] < 40
    for key in ("object_and_color", "all_named"):
        for split in ("seen", "held_out"):
            assert 0 <= results["stages"]["scores"][f"{key}_{split}"] <= 1
            assert 0 <= results["stages"]["judge"][f"{key}_{split}"] <= 1
    assert all(results["stages"]["told"][key] in (0, 0.25, 0.5, 0.75, 1) for key in ("vae", "clip"))  # of 4 pictures


def test_trained_networks_can_tell_the_objects_of_real_pictures():
    profile = replace(PROFILES["cpu"], evaluation_pictures=64)
    run = scaling.Run(scaling.Setting("course"), profile, checkpoints_folder(), "cpu", {})
    run.folder = checkpoints_folder()
    told = scaling.told(run)
    assert told["vae"] > 0.95 and told["clip"] > 0.5 and told["pictures"] == 64  # chance is 1/64


def test_a_second_setting_takes_the_first_ones_vae(root):
    more, few = read(root, "more"), read(root, "few")
    assert few["stages"]["vae"]["taken_from"] == "more"
    assert few["stages"]["vae"]["seconds"] == more["stages"]["vae"]["seconds"]
    weights = [scaling.load_model(scaling.VAE, scaling.VAEConfig, "vae", root / name) for name in ("more", "few")]
    assert all((a == b).all() for a, b in zip(*(w.state_dict().values() for w in weights), strict=True))


def test_what_is_done_is_not_done_again_and_what_is_missing_is(root):
    results = read(root, "few")
    scores = results["stages"].pop("scores")
    (root / "few.json").write_text(json.dumps(results), encoding="utf-8")
    again = start(root, scaling.Setting("few", vae_of="more"))
    assert {k: v for k, v in again["stages"]["scores"].items() if k != "stage_seconds"} == {
        k: v for k, v in scores.items() if k != "stage_seconds"
    }
    assert {k: v for k, v in again["stages"].items() if k != "scores"} == results["stages"]


def test_results_of_other_options_are_not_mixed(root):
    with pytest.raises(SystemExit, match="was made with options"):
        start(root, OWNER, fraction=0.5)


def test_minutes_become_steps(tmp_path):
    run = scaling.Run(scaling.Setting("timed"), TINY, tmp_path, "cpu", {**OPTIONS, "unet_minutes": 0.1})
    more = scaling.Run(scaling.Setting("timed"), TINY, tmp_path, "cpu", {**OPTIONS, "unet_minutes": 100.0})
    assert 1 <= scaling.plan(run)["unet_steps"] < scaling.plan(more)["unet_steps"]


def test_the_command_runs_a_setting_in_a_process_of_its_own_and_stops_with_it(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("COURSE_ARTIFACTS", str(tmp_path))
    folder = tmp_path / "smoke" / "scaling"
    folder.mkdir(parents=True)
    stored = {"setting": {"name": "of another kind"}, "options": OPTIONS, "stages": {}}
    (folder / "96-pixels.json").write_text(json.dumps(stored), encoding="utf-8")
    assert scaling.main(["--profile", "smoke", "--only", "96-pixels"]) == 1
    output = capfd.readouterr()
    assert "96-pixels: stopped; what is done is kept" in output.out
    assert "was made with setting {'name': 'of another kind'}" in output.err
    monkeypatch.setattr(scaling, "ROOT", tmp_path)  # with nothing published there yet
    assert scaling.main(["--profile", "smoke", "--publish"]) == 1


def test_fractions_and_scenes():
    half = scaling.scaled(PROFILES["cpu"], 0.5, 99)
    assert half.unet_budget == replace(PROFILES["cpu"].unet_budget, steps=PROFILES["cpu"].unet_budget.steps // 2)
    assert half.scenes == 99 and scaling.scaled(half, 1e-9, None).vae_budget.steps == 1


def test_the_vae_that_others_take_is_trained_first():
    assert scaling.jobs(["64-objects", "96-pixels"]) == [
        ("1000-objects", "vae"), ("64-objects", "scores"), ("96-pixels", "scores"),
    ]  # fmt: skip
    assert scaling.jobs(["128-pixels"]) == [("128-pixels", "scores")]


def made_up(root: Path) -> dict[str, Any]:
    results = {}
    for i, (name, setting) in enumerate(scaling.SETTINGS.items()):
        result = copy.deepcopy(read(root, "more"))
        result["setting"] = dataclasses.asdict(setting)
        result["stages"]["unet"] |= {"steps": 100, "seconds": 150.0 * (i + 1)}
        result["stages"]["scores"]["object_and_color_seen"] = 0.9 - 0.1 * i
        results[name] = result
    seconds = {"vae": 0.2, "clip": 0.3, "unet": 0.5}
    times = {str(n): {"latent": n // 8, **seconds, "peak_gb": n / 64, "processor": "one"} for n in (64, 96)}
    return {"settings": results, "step_times": times}


def test_what_differs_between_rows_is_said_of_each(root):
    rows = list(made_up(root)["settings"].values())[:2]
    assert scaling_report.samplers(rows) == "Drawn by DDPM."
    del rows[0]["stages"]["scores"]["sampler"]  # a row from before it was written down
    assert scaling_report.samplers(rows) == "Drawn by DDIM (64 objects, 64 pixels); DDPM (200 objects, 64 pixels)."


def only(found: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**found, "settings": {name: found["settings"][name] for name in names}}


def test_tables_and_plot_are_written_between_the_markers(root, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    text = "before\n<!-- scaling -->\nold\n<!-- /scaling -->\nafter\n<!-- step times -->\n<!-- /step times -->\n"
    (docs / "scaling.md").write_text(text, encoding="utf-8")
    for _ in range(2):  # the second time replaces the first
        assert scaling_report.write_report(made_up(root), tmp_path, docs) == 0
    written = (docs / "scaling.md").read_text(encoding="utf-8")
    assert written.startswith("before\n<!-- scaling -->\n") and "<!-- /scaling -->\nafter\n" in written
    assert "old" not in written and written.count("](scaling.png)") == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in written.splitlines() if line[:1] == "|"]
    cost = {row[0]: row for row in rows[2:9]}
    assert cost["1,000 objects, 64 pixels"][4:7] == ["4.500", "100", "7.5"]
    assert "*" in cost["200 objects, 64 pixels"][2] and "*" not in cost["64 objects, 96 pixels"][2]
    assert "64 objects, 96 pixels, going on from 64 pixels" in cost
    assert "200 objects, 64 pixels, going on from 64 objects" in cost
    assert rows[11][0] == "64 objects, 64 pixels" and rows[11][2] == "90.0 %"
    assert rows[-1] == ["96 × 96", "12 × 12", "0.20 (1.0 ×)", "0.30 (1.0 ×)", "0.50 (1.0 ×)", "1.5 (1.5 ×)"]
    assert Image.open(docs / "scaling.png").size[0] > 900


def test_what_was_published_stays_beside_what_is_new(root, tmp_path):
    docs, found = tmp_path / "docs", made_up(root)
    docs.mkdir()
    marks = "<!-- scaling -->\n<!-- /scaling -->\n<!-- step times -->\n<!-- /step times -->\n"
    (docs / "scaling.md").write_text(marks, encoding="utf-8")
    assert scaling_report.write_report({**only(found, "64-objects", "200-objects")}, tmp_path, docs) == 0
    new = {"settings": copy.deepcopy(only(found, "200-objects")["settings"]), "step_times": {}}
    new["settings"]["200-objects"]["processor"] = "another"
    assert scaling_report.write_report(new, tmp_path, docs) == 0
    kept = json.loads((docs / "scaling.json").read_text(encoding="utf-8"))
    assert list(kept["settings"]) == ["64-objects", "200-objects"] and list(kept["step_times"]) == ["64", "96"]
    written = (docs / "scaling.md").read_text(encoding="utf-8")
    assert "another (200 objects, 64 pixels)." in written and "| 96 × 96 |" in written


def test_a_panel_with_one_point_is_not_drawn(root, tmp_path):
    found = made_up(root)
    assert scaling_report.write_report(only(found, "64-objects", "96-pixels"), tmp_path) == 0
    assert Image.open(tmp_path / "scaling.png").size[0] < 700  # there is no second number of objects
    assert scaling_report.write_report({**found, "step_times": {}}, tmp_path) == 0
    assert Image.open(tmp_path / "scaling.png").size[0] < 700
    assert [
        axis.get_title() for axis in scaling_report.plot(list(found["settings"].values()), found["step_times"]).axes
    ] == [
        "the same budget, more objects",
        "the same networks, more pixels",
    ]


def test_steps_are_timed_for_a_size(tmp_path):
    facts = scaling.step_times(TINY, 128, "cpu", steps=1)
    assert facts["latent"] == 16 and all(facts[name] > 0 for name in ("vae", "clip", "unet", "peak_gb"))
    (tmp_path / "step_times_128.json").write_text(json.dumps(facts), encoding="utf-8")
    assert scaling.measured(tmp_path) == {"settings": {}, "step_times": {"128": facts}}


def test_going_on_with_larger_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    train_parts(TINY, CaptionedImages.scenes(TINY.scenes), folder=tmp_path / "cpu", report=lambda line: None)
    found = start(tmp_path, scaling.Setting("larger", size=96, trained_on=0.25))
    assert list(found["stages"]) == list(scaling.GOING_ON) and found["stages"]["vae"]["steps"] == 1
    assert found["stages"]["before"]["psnr"] != found["stages"]["vae"]["psnr"]
    assert (tmp_path / "larger" / "unet.safetensors").exists() and 0 < found["stages"]["vae"]["psnr"] < 40
    written = scaling_report.tables([found])
    assert "| – |" in written and "| 64 objects, 96 pixels, going on from 64 pixels: before it | " in written
    drawn = scaling.side_by_side(tmp_path / "larger", ["a dog", "a cat"])  # each at the size that its card says
    assert {name: pictures.shape[-1] for name, pictures in drawn.items()} == {"64 pixels": 64, "96 pixels": 96}
    figure = show_rows(drawn, titles=["a dog", "a cat"])
    assert [axis.get_title() for axis in figure.axes] == ["a dog", "a cat", "", ""]


def test_the_profile_for_larger_pictures():
    larger, more = (scaling.SETTINGS[f"{name}-trained-on"] for name in ("96-pixels", "200-objects"))
    profile = scaling.for_training_on(PROFILES["cpu"], larger)
    assert profile.timestep_shift == 1.5 and profile.unet_budget == PROFILES["cpu"].unet_budget.part(0.35, 1 / 2)
    assert scaling.for_training_on(PROFILES["cpu"], more).timestep_shift == 1.0


def test_a_report_of_nothing_of_a_mixture_and_a_document_without_markers(root, tmp_path, capsys):
    assert scaling_report.write_report({"settings": {}, "step_times": {}}, tmp_path) == 1
    assert "no setting is finished" in capsys.readouterr().out
    results = made_up(root)
    results["settings"]["200-objects"]["options"] = {**OPTIONS, "fraction": 0.5}
    assert scaling_report.write_report(results, tmp_path) == 1
    assert "different options" in capsys.readouterr().out and not (tmp_path / "scaling.png").exists()
    (tmp_path / "scaling.md").write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="needs the lines <!-- scaling -->"):
        scaling_report.write_report(made_up(root), tmp_path, tmp_path)
