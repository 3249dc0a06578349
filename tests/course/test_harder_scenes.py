"""experiments/harder_scenes.py, all stages, with networks so small that each trains in a second."""

from __future__ import annotations

import json
from dataclasses import replace

import harder_scenes
import pytest
from PIL import Image
from safetensors.torch import load_file

from course_utils.data.batches import CaptionedImages
from course_utils.data.descriptions import TASKS, parse_description
from course_utils.models.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from course_utils.models.unet import UNetConfig
from course_utils.models.vae import VAEConfig
from course_utils.pipeline import TextToImage
from course_utils.profiles import PROFILES, Budget
from course_utils.training.parts import train_parts

TINY = replace(
    PROFILES["smoke"],
    scenes=300,
    vae=VAEConfig((8, 8, 8, 8), norm_groups=4),
    clip=CLIPConfig(
        text=CLIPTextConfig(vocab_size=1024, max_length=16, width=16, layers=1, heads=2),
        vision=CLIPVisionConfig(image_size=64, patch_size=32, width=16, layers=1, heads=2),
        embed_dim=16,
    ),
    unet=UNetConfig(channels=(8, 16), attention=(False, True), heads=2, context_width=16, norm_groups=4),
    sampling_steps=2,
    **{f"{part}_budget": Budget(2, 8, 1e-3, 0.02) for part in ("vae", "clip", "unet", "judge")},
)

PARTS = {False: {"vae", "unet"}, True: {"vae", "clip", "unet"}}  # what has seconds of its own


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Parts that have learned one-object scenes, as the notebooks leave them; two steps each."""
    folder = tmp_path_factory.mktemp("start")
    train_parts(TINY, CaptionedImages.scenes(TINY.scenes), folder=folder, report=lambda line: None)
    return folder


@pytest.mark.parametrize("from_nothing", [False, True], ids=["trained on", "from nothing"])
def test_all_stages_and_going_on(tmp_path, start, monkeypatch, capsys, from_nothing):
    settings = harder_scenes.Settings(TINY, tmp_path, 3, 0, 3.0, start, from_nothing)
    harder_scenes.run(settings)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores["scores"]["seen"]) == {*TASKS, "overall"}
    assert set(scores["scores"]["held_out"]) == {*TASKS, "overall"} - {"single"}
    assert set(scores["heard"]["held out"]) == set(TASKS)
    assert "| the sizes, exchanged |" in (tmp_path / "hearing.md").read_text()
    assert scores["pictures"] == 3 and set(scores["seconds"]) == {"detector", *PARTS[from_nothing]}
    verdicts = json.loads((tmp_path / "verdicts.json").read_text())["verdicts"]
    assert len(verdicts) == 33 and all(parse_description(v["prompt"]).task == v["task"] for v in verdicts)
    assert len(TextToImage.from_pretrained(tmp_path)("a cat left of a tree", num_inference_steps=2).images) == 1
    drawn = load_file(tmp_path / "pictures" / "position_held_out.safetensors")["pictures"]
    assert drawn.shape == (3, 3, 64, 64)
    for name in ("samples.png", "attention.png"):
        assert (tmp_path / name).stat().st_size > 10_000
        (tmp_path / name).unlink()

    def never(*arguments, **options):
        raise AssertionError("what was finished is made again")

    monkeypatch.setattr(harder_scenes, "train", never)
    monkeypatch.setattr(harder_scenes, "draw_for_prompts", never)
    capsys.readouterr()
    harder_scenes.run(settings)
    assert "| two objects |" in capsys.readouterr().out and (tmp_path / "samples.png").exists()
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    with pytest.raises(AssertionError, match="made again"):  # other guidance, other pictures
        harder_scenes.run(settings._replace(guidance_scale=1.0))


def test_networks_that_can_do_something_are_trained_more_gently():
    profile = PROFILES["cpu"]
    gentle = profile.going_on(vae=1 / 3, unet=1, timestep_shift=harder_scenes.TIMESTEP_SHIFT)
    assert gentle.unet_budget == replace(profile.unet_budget, lr=5e-4, muon_lr=0.01) and gentle.timestep_shift > 1
    assert gentle.vae_budget.steps == round(profile.vae_budget.steps / 3)
    assert gentle.vae_budget.batch_size == profile.vae_budget.batch_size
    assert gentle.clip_budget == profile.clip_budget


def test_every_task_is_trained_on():
    assert set(harder_scenes.MIXTURE) == set(TASKS) and min(harder_scenes.MIXTURE.values()) > 0


def test_the_table_goes_between_its_marks(tmp_path):
    folder, docs = tmp_path / "run", tmp_path / "docs"
    folder.mkdir(), docs.mkdir()
    for name in ("samples.png", "attention.png"):
        Image.new("RGB", (20, 10), "red").save(folder / name)
    (folder / "scores.md").write_text("| new |\n")
    (folder / "hearing.md").write_text("| heard |\n")
    page = docs / "harder_scenes.md"
    page.write_text("<!-- scores -->\n| old |\n<!-- /scores -->\nmiddle\n<!-- hearing -->\n<!-- /hearing -->\nafter\n")
    harder_scenes.publish(folder, docs)
    harder_scenes.publish(folder, docs)
    first, _, second = page.read_text().partition("middle\n")
    assert first == "<!-- scores -->\n| new |\n<!-- /scores -->\n"
    assert second == "<!-- hearing -->\n| heard |\n<!-- /hearing -->\nafter\n"
    assert (docs / "harder_samples.png").exists() and (docs / "harder_attention.png").exists()
    page.write_text("no marks")
    with pytest.raises(ValueError, match="needs the lines <!-- scores -->"):
        harder_scenes.publish(folder, docs)
