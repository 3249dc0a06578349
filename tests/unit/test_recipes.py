"""The recipes: what the notebooks train, and from pictures to a pipeline."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from course_utils.data.batches import CaptionedImages
from course_utils.diffusion.guidance import conditional_loss
from course_utils.diffusion.schedule import NoiseSchedule
from course_utils.models.clip import CLIP, contrastive_loss
from course_utils.models.unet import UNet
from course_utils.models.vae import VAE, vae_loss
from course_utils.pipeline import TextToImage
from course_utils.training.loop import train
from course_utils.training.parts import Parts, train_parts
from course_utils.training.recipes import (
    Recipe,
    background_groups,
    caption_states,
    clip_recipe,
    encode_latents,
    resized,
    train_recipe,
    train_tokenizer,
    unet_recipe,
    vae_recipe,
)
from course_utils.weights.artifacts import read_card
from tests.unit.tiny import BATCH, PROFILE, SIZE, scenes

EXACT = {"precision": "float32"}


@pytest.fixture(scope="module")
def data() -> CaptionedImages:
    return scenes()


@pytest.fixture(params=["float32", "bf16"])
def precision(request) -> str:
    return request.param


def as_in_a_notebook(model, loss, budget, precision):
    options = {"lr": budget.lr, "muon_lr": budget.muon_lr, "seed": 3, "precision": precision}
    return train(model, loss, steps=budget.steps, **options).losses


def same_training(recipe: Recipe, model, losses, precision) -> None:
    """The recipe's curve and its network are the notebook's, bit for bit."""
    before = torch.get_rng_state()
    assert train_recipe(recipe, seed=3, precision=precision).losses == losses
    assert torch.equal(torch.get_rng_state(), before)
    ours, theirs = recipe.network.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_vae_recipe_is_notebook_01(data, precision):
    torch.manual_seed(3)
    vae, budget = VAE(PROFILE.vae), PROFILE.vae_budget

    def loss(generator):
        chosen = torch.randint(len(data), (budget.batch_size,), generator=generator)
        x = data.batch(chosen)[0]
        cloud = vae.encode(x)
        return vae_loss(x, vae.decode(cloud.sample(generator)).float(), cloud.kl(), PROFILE.vae_beta)

    losses = as_in_a_notebook(vae, loss, budget, precision)
    same_training(vae_recipe(PROFILE, data, seed=3), vae, losses, precision)


def test_without_a_prior_the_vae_recipe_is_the_plain_autoencoder(data):
    torch.manual_seed(3)
    vae, budget = VAE(PROFILE.vae), PROFILE.vae_budget

    def loss(generator):
        x = data.batch(torch.randint(len(data), (budget.batch_size,), generator=generator))[0]
        cloud = vae.encode(x)
        return vae_loss(x, vae.decode(cloud.mode()).float(), cloud.kl(), 0.0)

    losses = as_in_a_notebook(vae, loss, budget, "float32")
    assert train_recipe(vae_recipe(replace(PROFILE, vae_beta=0.0), data, seed=3), seed=3, **EXACT).losses == losses


def test_clip_recipe_is_notebook_04(data, precision):
    tokenizer, budget = train_tokenizer(PROFILE, data), PROFILE.clip_budget
    config = replace(PROFILE.clip, text=replace(PROFILE.clip.text, vocab_size=len(tokenizer)))
    torch.manual_seed(3)
    clip = CLIP(config)
    by_color = [(data.attributes[:, 1] == color).nonzero()[:, 0] for color in range(8)]
    assert min(len(group) for group in by_color) >= BATCH
    ids = tokenizer.encode(data.captions)
    ids = ids[:, : (ids != tokenizer.end_id).sum(dim=1).max().item() + 1]

    def loss(generator):
        among = torch.arange(len(data))
        if torch.rand(1, generator=generator) < 0.5:
            among = by_color[torch.randint(8, (1,), generator=generator)]
        picks = among[torch.randperm(len(among), generator=generator)[: budget.batch_size]]
        image_features, text_features = clip.encode_image(data.batch(picks)[0]), clip.encode_text(ids[picks])
        return contrastive_loss(image_features.float(), text_features.float(), clip.logit_scale)

    losses = as_in_a_notebook(clip, loss, budget, precision)
    same_training(clip_recipe(PROFILE, data, tokenizer, seed=3), clip, losses, precision)


@pytest.fixture(scope="module")
def encoded(data):
    tokenizer = train_tokenizer(PROFILE, data)
    vae, clip = vae_recipe(PROFILE, data).network.eval(), clip_recipe(PROFILE, data, tokenizer).network.eval()
    return encode_latents(vae, data, "float32"), *caption_states(clip.text, tokenizer, data.captions)


def test_unet_recipe_is_notebook_05(encoded, precision):
    latents, states, caption_of, empty = encoded
    torch.manual_seed(3)
    unet, budget, schedule = UNet(PROFILE.unet), PROFILE.unet_budget, NoiseSchedule.cosine(1000)

    def loss(generator):
        chosen = torch.randint(len(latents), (budget.batch_size,), generator=generator)
        words = states[caption_of[chosen]].float()
        return conditional_loss(unet, schedule, latents[chosen], words, empty, PROFILE.condition_dropout, generator)

    losses = as_in_a_notebook(unet, loss, budget, precision)
    same_training(unet_recipe(PROFILE, *encoded, seed=3), unet, losses, precision)


def test_a_shift_changes_the_timesteps_and_nothing_else(encoded):
    plain, noisier = (
        unet_recipe(replace(PROFILE, timestep_shift=shift), *encoded).draw(torch.Generator().manual_seed(2))
        for shift in (1.0, 3.0)
    )
    assert (noisier[1] >= plain[1]).all() and (noisier[1] > plain[1]).any()
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(plain, noisier, strict=True)) if i != 1)


def test_what_is_encoded_once_is_what_the_networks_say(data, encoded):
    latents, states, caption_of, empty = encoded
    tokenizer = train_tokenizer(PROFILE, data)
    vae, clip = vae_recipe(PROFILE, data).network, clip_recipe(PROFILE, data, tokenizer).network
    with torch.no_grad():
        torch.testing.assert_close(latents[5:7], vae.to_latents(data.batch([5, 6])[0]))
        said = clip.text(tokenizer.encode([data.captions[9], ""]))
    torch.testing.assert_close(states[caption_of[9]].float(), said[0], atol=2e-3, rtol=2e-3)  # half precision
    torch.testing.assert_close(empty[0], said[1])
    assert len(states) == len(set(data.captions))


def test_all_randomness_of_a_step_is_drawn_at_once_with_the_batch_first(data, encoded):
    tokenizer = train_tokenizer(PROFILE, data)
    for recipe in (vae_recipe(PROFILE, data), clip_recipe(PROFILE, data, tokenizer), unet_recipe(PROFILE, *encoded)):
        batch = recipe.draw(torch.Generator().manual_seed(1))
        assert {len(tensor) for tensor in batch} == {BATCH}
        assert recipe.loss(recipe.network, *batch) == recipe.loss(recipe.network, *batch)


def test_hard_batches_need_known_colours_and_enough_pictures(data):
    assert background_groups(CaptionedImages(data.images, data.captions)) == []
    plain = CaptionedImages(data.images, data.captions)
    tokenizer = train_tokenizer(PROFILE, plain)
    drawn = torch.cat(
        [clip_recipe(PROFILE, plain, tokenizer).draw(torch.Generator().manual_seed(i))[0] for i in range(9)]
    )
    assert len(drawn) == 9 * BATCH
    mine = clip_recipe(PROFILE, plain, tokenizer, groups=[torch.arange(4), torch.arange(20, 30)])
    batches = [mine.draw(torch.Generator().manual_seed(i))[0] for i in range(30)]
    hard = [set(batch.tolist()) <= set(range(20, 30)) for batch in batches]  # the group of four is too small
    assert 8 < sum(hard) < 22 and {len(batch) for batch in batches} == {BATCH}


def test_other_sizes_need_one_number(data):
    large = scenes(32, size=24)
    with pytest.raises(ValueError, match=r"24×24.*image_size is 16.*resized\(profile, 24\)"):
        train_parts(PROFILE, large)
    fine = replace(PROFILE, clip=replace(PROFILE.clip, vision=replace(PROFILE.clip.vision, patch_size=4)))
    with pytest.raises(ValueError, match="multiple of 8"):
        train_parts(resized(fine, 20), scenes(4, size=20))
    pipe = train_parts(resized(PROFILE, 24), large, report=str, **EXACT).pipeline(24)
    assert pipe(large.captions[0], num_inference_steps=1).pictures.shape == (1, 3, 24, 24)


def test_what_does_not_fit_is_named(data, encoded):
    latents, states, caption_of, empty = encoded
    short = replace(PROFILE, clip=replace(PROFILE.clip, text=replace(PROFILE.clip.text, max_length=5)))
    with pytest.raises(ValueError, match=r"longer than max_length = 5.*clip.text.max_length to \d+"):
        train_parts(short, data)
    with pytest.raises(ValueError, match="a batch of 8 different pairs"):
        clip_recipe(PROFILE, scenes(4), train_tokenizer(PROFILE, data))
    with pytest.raises(ValueError, match="multiples of 4"):
        vae_recipe(PROFILE, scenes(4, size=18))
    with pytest.raises(ValueError, match="16 wide, the U-Net reads 32"):
        unet_recipe(replace(PROFILE, unet=replace(PROFILE.unet, context_width=32)), latents, states, caption_of, empty)
    with pytest.raises(ValueError, match=r"need caption_of \[128\]"):
        unet_recipe(PROFILE, latents, states, caption_of[:5], empty)
    with pytest.raises(ValueError, match="sides that are multiples of 2"):
        unet_recipe(PROFILE, latents[..., :3], states, caption_of, empty)
    with pytest.raises(ValueError, match="the parts are vae, clip, unet"):
        train_parts(PROFILE, data, which=("vae", "judge"))
    with pytest.raises(FileNotFoundError, match="the U-Net needs a vae"):
        train_parts(PROFILE, data, which=("unet",))
    with pytest.raises(ValueError, match="there is no vae, clip, unet, tokenizer"):
        Parts().pipeline()


def test_from_pictures_to_a_pipeline_and_on_from_where_it_stopped(tmp_path, data, capsys):
    measured, lines = [], []

    def measure(name, parts):
        measured.append(name)
        return {"parameters": float(sum(p.numel() for p in getattr(parts, name).parameters()))}

    options = {"folder": tmp_path, "measure": measure, "report": lines.append, "save_seconds": 0, **EXACT}
    options["license"] = "mine"
    first = train_parts(PROFILE, data, which=("vae", "clip"), **options)
    assert first.unet is None and measured == ["vae", "clip"]
    assert {json.loads((tmp_path / f"{name}.json").read_text())["license"] for name in measured} == {"mine"}
    parts = train_parts(PROFILE, data, **options)  # the two are there, the third is new
    assert measured == ["vae", "clip", "unet"] and list(parts.losses) == ["unet"]
    assert set(parts.metrics) == set(parts.seconds) == {"vae", "clip", "unet"}
    assert [line.split(":")[0] for line in lines] == measured and "6 steps" in lines[0]
    with torch.no_grad():  # latent_scale was measured on such samples
        spread = parts.vae.to_latents(data.batch(range(len(data)))[0], torch.Generator().manual_seed(7)).std()
    assert spread.item() == pytest.approx(1, abs=1e-4)

    card = read_card("unet", tmp_path)
    assert card["profile"] == "tiny" and card["steps"] == 6 and card["metrics"]["parameters"] > 0
    prompt = "a on a background"
    drawn = TextToImage.from_pretrained(tmp_path)(prompt, num_inference_steps=2, size=SIZE)
    assert drawn.pictures.shape == parts.pipeline(SIZE)(prompt, num_inference_steps=2).pictures.shape
    assert not list((tmp_path / "training").iterdir())

    train_parts(PROFILE, scenes(64), which=("vae",), **options)  # other pictures: trained again
    train_parts(PROFILE, scenes(64), which=("vae",), **options)
    assert measured == ["vae", "clip", "unet", "vae"]
    train_parts(PROFILE, scenes(64), which=("vae",), restart=True, **options)
    assert measured == ["vae", "clip", "unet", "vae", "vae"]


def test_given_parts_are_used_and_kept_beside_the_unet(tmp_path, data):
    given = train_parts(PROFILE, data, which=("vae", "clip"), report=str, **EXACT)
    with_given = train_parts(PROFILE, data, which=("unet",), given=given, folder=tmp_path, report=str, **EXACT)
    assert with_given.vae is given.vae and (tmp_path / "tokenizer" / "vocab.json").exists()
    TextToImage.from_pretrained(tmp_path)
    other = train_parts(PROFILE, data, which=("vae",), seed=1, report=str, **EXACT)
    other.clip, other.tokenizer = given.clip, given.tokenizer
    with pytest.raises(ValueError, match="another vae than the one given"):
        train_parts(PROFILE, data, which=("unet",), given=other, folder=tmp_path, report=str, **EXACT)
