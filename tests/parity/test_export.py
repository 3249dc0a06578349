"""Our trained pipeline in diffusers: the same pictures, and every tensor back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

from course_utils.pipeline import TextToImage
from course_utils.weights.export import model_card

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
PROMPTS = ["a dog on a red background", "a small cat on a blue background"]


@pytest.fixture(scope="module")
def ours() -> TextToImage:
    return TextToImage.from_pretrained(CHECKPOINTS)


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory) -> Path:
    return ours.save_diffusers(tmp_path_factory.mktemp("export") / "mine")


@pytest.fixture(scope="module")
def theirs(folder) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def difference(ours: list, theirs: list) -> float:
    """Mean absolute difference of two lists of PIL pictures, in 1/255."""
    a, b = (np.stack([np.asarray(p) for p in pictures]).astype(float) for pictures in (ours, theirs))
    assert a.shape == b.shape == (len(ours), 64, 64, 3) and a.std() > 10
    return np.abs(a - b).mean()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("negative", [None, "a green background"])
@pytest.mark.parametrize(("steps", "scale"), [(5, 3.0), (4, 1.0), (10, 7.0)])
def test_the_same_seed_and_prompt_draw_the_same_picture(ours, theirs, sampler, negative, steps, scale):
    theirs.scheduler = ours.to_diffusers(sampler).scheduler
    drawn = ours(PROMPTS, negative, steps, scale, generator(), sampler=sampler).images
    negatives = None if negative is None else [negative] * 2
    pictures = theirs(
        PROMPTS, negative_prompt=negatives, num_inference_steps=steps, guidance_scale=scale, generator=generator()
    ).images
    assert difference(drawn, pictures) <= 1


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_number_of_steps_that_does_not_divide_a_thousand(ours, theirs, sampler):
    """DDIMScheduler strides by T // n there; the pictures still agree to 1/255."""
    drawn = ours(PROMPTS[0], None, 7, 3.0, generator(), sampler=sampler).images
    theirs.scheduler = ours.to_diffusers(sampler).scheduler
    pictures = theirs(PROMPTS[0], num_inference_steps=7, guidance_scale=3.0, generator=generator()).images
    assert difference(drawn, pictures) <= 1


def test_the_folder_says_how_to_sample(ours, theirs, folder):
    scheduler = StableDiffusionPipeline.from_pretrained(folder).scheduler
    assert type(scheduler).__name__ == "DDIMScheduler"
    assert torch.equal(scheduler.betas, ours.schedule.betas)
    assert (scheduler.config.prediction_type, scheduler.config.timestep_spacing) == ("v_prediction", "trailing")
    assert theirs.vae.config.scaling_factor == ours.vae.latent_scale.item()
    assert theirs.safety_checker is None and theirs.feature_extractor is None
    assert theirs.unet.config.sample_size * theirs.vae_scale_factor == 64
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"README.md", "model_index.json", "tokenizer/vocab.json", "tokenizer/merges.txt"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".ckpt"))]
    assert not [path for path in folder.parent.iterdir() if path != folder]  # no scratch left
    assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1  # all can be read by all


def test_out_and_back_in_is_bit_identical(ours, folder):
    back = TextToImage.from_diffusers(folder)
    for part in ("vae", "unet", "text_encoder"):
        expected, got = getattr(ours, part).state_dict(), getattr(back, part).state_dict()
        assert expected.keys() == got.keys()
        for name in expected:
            assert expected[name].dtype == got[name].dtype and torch.equal(expected[name], got[name]), name
        assert getattr(ours, part).config == getattr(back, part).config
    assert torch.equal(ours.schedule.betas, back.schedule.betas)
    for name in ("prediction_type", "size", "spacing", "last_t"):
        assert getattr(ours, name) == getattr(back, name)
    assert (ours.tokenizer.vocabulary, ours.tokenizer.merges) == (back.tokenizer.vocabulary, back.tokenizer.merges)
    assert ours.tokenizer.max_length == back.tokenizer.max_length
    again, first = (pipe(PROMPTS[0], num_inference_steps=5, generator=generator()).latents for pipe in (back, ours))
    assert torch.equal(again, first)


def test_other_schedulers_and_pipelines_of_diffusers_work_on_it(ours, theirs):
    """Close to what DDIM draws from the same noise in many steps, in few."""
    wanted = ours(PROMPTS[0], num_inference_steps=25, generator=generator()).pictures
    config = theirs.scheduler.config
    for kind in (DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler):
        theirs.scheduler = kind.from_config(config)
        drawn = theirs(
            PROMPTS[0], num_inference_steps=10, guidance_scale=3.0, generator=generator(), output_type="pt"
        ).images
        assert drawn.isfinite().all() and drawn.std() > 0.05
        if kind is not DDPMScheduler:  # which draws fresh noise
            assert ((drawn * 2 - 1) - wanted.clamp(-1, 1)).abs().mean() < 0.1
    theirs.scheduler = ours.to_diffusers().scheduler
    change = StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    change.set_progress_bar_config(disable=True)
    redrawn = change(
        "a dog on a blue background", image=(wanted.clamp(-1, 1) + 1) / 2, strength=0.7, num_inference_steps=5,
        guidance_scale=3.0, generator=generator(), output_type="pt",
    ).images  # fmt: skip
    assert redrawn.shape == wanted.shape and redrawn.isfinite().all()


def test_nothing_is_overwritten_silently(ours, folder, tmp_path):
    before = (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds files already: give another folder, or overwrite=True"):
        ours.save_diffusers(folder)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/todo.txt").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError):
            ours.save_diffusers(tmp_path / "notes", overwrite=overwrite)
    with pytest.raises(FileExistsError, match="is a file"):
        ours.save_diffusers(tmp_path / "notes/todo.txt", overwrite=True)
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["todo.txt"]
    (tmp_path / "empty").mkdir()
    ours.save_diffusers(tmp_path / "empty", card="first")
    (tmp_path / "empty/extra.txt").write_text("old")
    ours.save_diffusers(tmp_path / "empty", overwrite=True, sampler="ddpm", card="second")
    assert (tmp_path / "empty/README.md").read_text() == "second" and not (tmp_path / "empty/extra.txt").exists()
    assert (tmp_path / "empty/unet/diffusion_pytorch_model.safetensors").read_bytes() == before
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "empty").scheduler.__class__ is DDPMScheduler
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "notes"]


@pytest.mark.parametrize("where", [".", "./", "~", "link"])
def test_the_folder_one_stands_in_can_be_written_to(ours, tmp_path, monkeypatch, where):
    home = tmp_path / "mine"
    home.mkdir()
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(home if where != "link" else tmp_path)
    for overwrite in (False, True):
        assert ours.save_diffusers(where, overwrite=overwrite) == home.resolve()
        assert (Path(where).expanduser() / "model_index.json").is_file()  # still the same folder
        assert not [path for path in home.iterdir() if path.name.startswith(".")]
    assert "# mine" in (home / "README.md").read_text(encoding="utf-8")
    with pytest.raises(FileExistsError, match="holds files already"):
        ours.save_diffusers(where)


def test_a_failed_write_leaves_nothing(ours, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(type(ours.tokenizer), "save", full)
    with pytest.raises(OSError, match="no space left"):
        ours.save_diffusers(tmp_path / "mine")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("held_file", ["old/unet", "new/README.md", "new/vae"])
def test_a_folder_that_cannot_be_replaced_stays(ours, tmp_path, monkeypatch, held_file):
    folder = ours.save_diffusers(tmp_path / "mine", card="the first")
    before = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    rename = Path.rename

    def held(self, target):
        place = "new" if self.parent.name == "new" else Path(target).parent.name
        if f"{place}/{self.name}" == held_file:
            raise PermissionError("a file in it is open elsewhere")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", held)
    with pytest.raises(PermissionError, match="open elsewhere"):
        ours.save_diffusers(folder, overwrite=True, card="the second")
    assert (folder / "README.md").read_text() == "the first"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_unknown_sampler_is_refused(ours, tmp_path):
    with pytest.raises(ValueError, match="sampler must be one of .*got 'euler'"):
        ours.to_diffusers("euler")
    with pytest.raises(ValueError, match="got 'euler'"):
        ours.save_diffusers(tmp_path / "mine", sampler="euler")
    assert not list(tmp_path.iterdir())


def test_the_weights_are_copies(ours):
    exported = ours.to_diffusers()
    before = ours.unet.conv_in.weight.clone()
    with torch.no_grad():
        exported.unet.conv_in.weight.zero_()
    assert torch.equal(ours.unet.conv_in.weight, before)


def test_the_card_names_the_artists_and_the_licence(ours, folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: cc-by-sa-4.0\n")
    for word in ("OpenMoji", "CC BY-SA 4.0", "# mine", "5,699,204", "v_prediction"):
        assert word in card
    back = TextToImage.from_diffusers(folder)
    other = model_card(back, "copy")
    assert "license:" not in other and "OpenMoji" not in other and str(folder) in other
