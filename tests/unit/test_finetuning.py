"""Training on with another picture set: the vocabulary, the loss, and what lies in the folder afterwards."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from course_utils.data.batches import CaptionedImages
from course_utils.pipeline import TextToImage
from course_utils.training import finetuning
from course_utils.training.finetuning import ReadingUNet, finetune_parts, reading_recipe, with_vocabulary
from course_utils.training.parts import Parts, latent_scale, train_parts
from course_utils.training.recipes import caption_states, encode_latents, train_tokenizer, unet_recipe
from course_utils.weights.artifacts import read_card
from tests.unit import tiny
from tests.unit.tiny import scenes

PROFILE = replace(tiny.PROFILE, vocab_size=1024)  # each word is one token
EXACT = {"precision": "float32", "report": lambda line: None}


@pytest.fixture(scope="module")
def start() -> Parts:
    return train_parts(PROFILE, scenes(), **EXACT)


@pytest.fixture(scope="module")
def other() -> CaptionedImages:
    """The same pictures, and captions half of whose words the first tokenizer has never met."""
    data = scenes()
    captions = [f"behold, {caption}, painted yesterday" for caption in data.captions]
    return CaptionedImages(data.images, captions, data.attributes)


def test_known_words_keep_their_vectors(start, other):
    new = train_tokenizer(PROFILE, other)
    grown = with_vocabulary(start.clip, start.tokenizer, new)
    assert grown.config.text.vocab_size == len(new) != len(start.tokenizer)
    text = scenes().captions[0]
    assert new.tokenize(text) == start.tokenizer.tokenize(text)
    assert not torch.equal(new.encode(text), start.tokenizer.encode(text)), "the ids should differ, the vectors not"
    assert torch.equal(grown.encode_text(new.encode(text)), start.clip.encode_text(start.tokenizer.encode(text)))
    fresh = grown.text.token_embedding.weight[new.vocabulary["yesterday</w>"]]
    assert "yesterday</w>" not in start.tokenizer.vocabulary and 0.3 < fresh.std() < 3
    with pytest.raises(ValueError, match="too long for a text encoder that reads 32"):
        with_vocabulary(start.clip, start.tokenizer, train_tokenizer(_longer(PROFILE), other))


def _longer(profile):
    text = replace(profile.clip.text, max_length=40)
    return replace(profile, clip=replace(profile.clip, text=text))


def test_the_loss_is_that_of_the_unet_recipe_and_reaches_the_words(start):
    data = scenes()
    latents = encode_latents(start.vae, data, "float32")
    ids, empty = start.tokenizer.encode(data.captions), start.tokenizer.encode("")
    both = ReadingUNet(start.unet, start.clip.text)
    ours = reading_recipe(PROFILE, latents, ids, empty, both)
    frozen = unet_recipe(PROFILE, latents, *caption_states(start.clip.text, start.tokenizer, data.captions))
    batches = [recipe.draw(torch.Generator().manual_seed(5)) for recipe in (ours, frozen)]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    loss = ours.loss(both, *batches[0])
    assert loss.item() == pytest.approx(frozen.loss(start.unet, *batches[1]).item(), rel=1e-3)  # states are in float16
    (gradient,) = torch.autograd.grad(loss, start.clip.text.token_embedding.weight)
    used = set(ids[batches[0][0]].unique().tolist()) | set(empty.unique().tolist())
    assert {int(i) for i in gradient.abs().sum(dim=1).nonzero()} <= used and gradient.abs().sum() > 0
    with pytest.raises(ValueError, match=r"need ids \[128, L\]"):
        reading_recipe(PROFILE, latents, ids[:5], empty, both)


def test_what_does_not_fit_is_refused_before_anything_is_trained(start, other, tmp_path):
    long = CaptionedImages(other.images, [" ".join(["behold"] * 40)] * len(other), other.attributes)
    odd = CaptionedImages(other.images[:, :, :12, :12], other.captions, other.attributes)
    for profile, data, message in (
        (PROFILE, long, "tokens"),
        (_longer(PROFILE), other, "too long for a text encoder that reads 32"),
        (PROFILE, odd, r"sides of the pictures must be multiples of .*got \[12, 12\]"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune_parts(profile, data, start, tmp_path, **EXACT)
    assert not list(tmp_path.iterdir())


def test_trained_on_saved_and_taken_up_again(start, other, tmp_path, monkeypatch):
    before = copy.deepcopy((start.vae.state_dict(), start.clip.state_dict(), start.unet.state_dict()))
    parts = finetune_parts(PROFILE, other, start, tmp_path, license="mine", **EXACT)
    assert {read_card(name, tmp_path)["license"] for name in ("vae", "clip", "unet")} == {"mine"}
    for name, old in zip(("vae", "clip", "unet"), before, strict=True):
        now, new = getattr(start, name).state_dict(), getattr(parts, name).state_dict()
        assert all(torch.equal(now[key], old[key]) for key in old), f"the {name} that it started from has changed"
        assert any(new[key].shape != old[key].shape or not torch.equal(new[key], old[key]) for key in old)
    assert torch.equal(parts.clip.vision.patch_embedding.weight, start.clip.vision.patch_embedding.weight)
    inner = {key: value for key, value in start.clip.text.state_dict().items() if "blocks.0" in key}
    assert any(not torch.equal(value, parts.clip.text.state_dict()[key]) for key, value in inner.items())
    assert len(parts.losses["unet"]) == PROFILE.unet_budget.steps and set(parts.seconds) == {"vae", "unet"}
    assert parts.vae.latent_scale != start.vae.latent_scale, "the latent scale should be measured anew"
    assert parts.vae.latent_scale.item() == pytest.approx(latent_scale(parts.vae, other, 0))

    pipe = TextToImage.from_pretrained(tmp_path)
    assert torch.equal(pipe.text_encoder.token_embedding.weight, parts.clip.text.token_embedding.weight)

    monkeypatch.setattr(finetuning, "train_recipe", lambda *a, **o: pytest.fail("what was finished is trained again"))
    again = finetune_parts(PROFILE, other, start, tmp_path, **EXACT)
    assert torch.equal(again.unet.conv_in.weight, parts.unet.conv_in.weight) and again.seconds == parts.seconds
    with pytest.raises(pytest.fail.Exception, match="trained again"):  # other pictures
        finetune_parts(PROFILE, scenes(), start, tmp_path, **EXACT)
