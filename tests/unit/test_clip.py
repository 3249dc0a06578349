"""CLIP: masks, pooling, sizes, starting weights, the contrastive loss by hand, learning, and errors."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from course_utils.models.clip import (
    CLIP,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    TextEncoder,
    VisionEncoder,
    contrastive_loss,
    pool_end,
    position_grid,
    zero_shot,
)
from course_utils.models.clip_transformer import causal_mask, quick_gelu, transformer_blocks
from course_utils.weights import transformers as interop

TEXT = CLIPTextConfig(vocab_size=50, max_length=8, width=32, layers=2, heads=4)
VISION = CLIPVisionConfig(image_size=16, patch_size=4, width=48, layers=3, heads=3)
CONFIG = CLIPConfig(TEXT, VISION, embed_dim=24)


def random_batch(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 3, 16, 16, generator=generator) * 2 - 1
    ids = torch.randint(0, 48, (size, 8), generator=generator)
    ids[:, 0], ids[:, -1] = 48, 49
    return images, ids


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(CONFIG)


def test_config_survives_json():
    assert CLIPConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    with pytest.raises(TypeError, match="depth"):
        CLIPConfig.from_dict({**CONFIG.to_dict(), "depth": 3})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CLIPTextConfig(width=30, heads=4), "multiple of heads"),
        (lambda: CLIPTextConfig(layers=0), "layers"),
        (lambda: CLIPVisionConfig(width=64.0), "width"),
        (lambda: CLIPVisionConfig(image_size=64, patch_size=7), "multiple of patch_size"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_stable_diffusion_sizes_give_its_parameter_count():
    with torch.device("meta"):
        encoder = TextEncoder(CLIPTextConfig())
    assert sum(p.numel() for p in encoder.parameters()) == 123_060_480
    assert len(encoder.state_dict()) == 196


def test_causal_mask():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]


def test_quick_gelu_is_near_gelu():
    x = torch.linspace(-4, 4, 81)
    assert quick_gelu(torch.tensor(0.0)) == 0
    assert (quick_gelu(x) - F.gelu(x)).abs().max() < 0.03


def test_pool_end_takes_the_first_end_token():
    states = torch.arange(12.0).reshape(2, 6, 1)
    ids = torch.tensor([[8, 3, 9, 9, 9, 9], [8, 3, 1, 2, 4, 9]])
    assert pool_end(states, ids).flatten().tolist() == [2, 11]


def test_a_token_knows_only_what_came_before_it(clip):
    _, ids = random_batch(1)
    states = clip.text(ids)
    ids[0, 5] = (ids[0, 5] + 1) % 48
    changed = (clip.text(ids) - states).abs().amax(dim=-1)[0]
    assert torch.all(changed[:5] == 0) and torch.all(changed[5:] > 0)


def test_shapes_and_unit_vectors(clip):
    images, ids = random_batch(5)
    assert clip.text(ids).shape == (5, 8, 32)
    assert clip.text(ids[:, :3].int()).shape == (5, 3, 32)
    assert clip.vision(images).shape == (5, 48) and clip.vision.states(images).shape == (5, 17, 48)
    for features in (clip.encode_text(ids), clip.encode_image(images)):
        assert features.shape == (5, 24)
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(5))


def test_similarity_has_a_row_for_each_picture(clip):
    images, ids = random_batch(3)
    logits = clip.similarity(images, ids[:2])
    assert logits.shape == (3, 2)
    cosine = F.cosine_similarity(clip.encode_image(images[2:]), clip.encode_text(ids[:1]))
    torch.testing.assert_close(logits[2, 0], cosine[0] / 0.07)
    torch.testing.assert_close(clip(images, ids[:2]), logits)


def test_starting_weights_follow_clips_scheme():
    torch.manual_seed(0)
    block = transformer_blocks(width=256, layers=8, heads=4)[3]
    expected = {
        block.attention.query: 1 / 16,
        block.attention.out: 1 / 16 / 4,
        block.mlp.expand: 512**-0.5,
        block.mlp.contract: 1 / 16 / 4,
    }
    for linear, std in expected.items():
        assert linear.weight.std().item() == pytest.approx(std, rel=0.02)
        assert torch.all(linear.bias == 0)


def test_logit_scale_starts_at_clips_temperature(clip):
    assert math.exp(-clip.logit_scale.item()) == pytest.approx(0.07)


def test_contrastive_loss_by_hand():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # Cosines: [[1, 0.6], [0, 0.8]]; the scale is e^0 = 1.
    rows = math.log(1 + math.exp(0.6 - 1)) + math.log(1 + math.exp(0 - 0.8))
    columns = math.log(1 + math.exp(0 - 1)) + math.log(1 + math.exp(0.6 - 0.8))
    loss = contrastive_loss(image, text, torch.tensor(0.0))
    assert loss.item() == pytest.approx((rows + columns) / 4, rel=1e-6)


def test_contrastive_loss_of_features_that_say_nothing_is_log_batch():
    same = F.normalize(torch.ones(6, 4), dim=-1)
    assert contrastive_loss(same, same, torch.tensor(1.0)).item() == pytest.approx(math.log(6), rel=1e-6)


def test_contrastive_loss_treats_pictures_and_texts_alike():
    generator = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(2, 5, 7, generator=generator), dim=-1)
    scale = torch.tensor(2.0)
    torch.testing.assert_close(contrastive_loss(image, text, scale), contrastive_loss(text, image, scale))


def test_the_scale_is_held_at_100():
    generator = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(2, 5, 7, generator=generator), dim=-1)
    at_100 = contrastive_loss(image, text, torch.tensor(math.log(100)))
    torch.testing.assert_close(contrastive_loss(image, text, torch.tensor(9.0)), at_100)


def test_zero_shot_gives_probabilities():
    image, text = torch.eye(3), torch.eye(3)[:2]
    probabilities = zero_shot(image, text)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(3))
    assert probabilities[0, 0] > 0.99 and probabilities[1, 1] > 0.99
    torch.testing.assert_close(probabilities[2], torch.tensor([0.5, 0.5]))
    expected = math.e / (math.e + 1)
    assert zero_shot(image, text, scale=1.0)[0, 0].item() == pytest.approx(expected, rel=1e-6)


def test_clip_learns_pairs_by_heart():
    torch.manual_seed(0)
    clip = CLIP(CONFIG)
    images, ids = random_batch(16)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        loss = contrastive_loss(clip.encode_image(images), clip.encode_text(ids), clip.logit_scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.8 * math.log(16)
    assert losses[-1] < 0.1
    assert all(p.grad is not None for p in clip.parameters())


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(2, 8), TypeError, "float32"),
        ([[1, 2]], TypeError, "list"),
        (torch.zeros(8, dtype=torch.long), ValueError, r"\[8\]"),
        (torch.zeros(0, 8, dtype=torch.long), ValueError, r"\[0, 8\]"),
        (torch.zeros(2, 9, dtype=torch.long), ValueError, "9 tokens long, but max_length is 8"),
        (torch.full((2, 8), 50), ValueError, "vocabulary has 50"),
        (torch.full((2, 8), -1), ValueError, "-1"),
    ],
)
def test_bad_ids_are_refused(clip, ids, error, message):
    with pytest.raises(error, match=message):
        clip.text(ids)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(3, 16, 16), ValueError, r"\[B, 3, 16, 16\], got \[3, 16, 16\]"),
        (torch.zeros(2, 3, 32, 32), ValueError, r"got \[2, 3, 32, 32\]"),
        (torch.zeros(2, 1, 16, 16), ValueError, r"got \[2, 1, 16, 16\]"),
    ],
)
def test_bad_images_are_refused(clip, images, error, message):
    with pytest.raises(error, match=message):
        clip.encode_image(images)


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[2, 4\]"):
        contrastive_loss(torch.zeros(3, 4), torch.zeros(2, 4), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[2, 5\]"):
        zero_shot(torch.zeros(3, 4), torch.zeros(2, 5))


def test_renaming_there_and_back_changes_nothing(clip):
    state = clip.state_dict()
    back = interop.clip_from_transformers(interop.clip_to_transformers(state))
    assert back.keys() == state.keys() and all(back[name] is state[name] for name in state)
    text = clip.text.state_dict()
    for prefix in (False, True):
        back = interop.text_encoder_from_transformers(interop.text_encoder_to_transformers(text, prefix))
        assert back.keys() == text.keys() and all(back[name] is text[name] for name in text)


def test_renaming_names_the_tensor_that_is_missing_or_unknown(clip):
    text = clip.text.state_dict()
    without = {name: tensor for name, tensor in text.items() if name != "blocks.0.mlp.expand.bias"}
    with pytest.raises(ValueError, match=r"missing: blocks\.0\.mlp\.expand\.bias; unknown: none"):
        interop.text_encoder_to_transformers(without)
    with pytest.raises(ValueError, match="unknown: adapter.weight"):
        interop.text_encoder_to_transformers({**text, "adapter.weight": torch.zeros(1)})
    theirs = interop.text_encoder_to_transformers(text)
    with pytest.raises(ValueError, match=r"missing: encoder\.layers\.1\.layer_norm1\.bias"):
        interop.text_encoder_from_transformers(
            {name: tensor for name, tensor in theirs.items() if name != "encoder.layers.1.layer_norm1.bias"}
        )
    with pytest.raises(ValueError, match="logit_scale"):
        interop.text_encoder_from_transformers(
            {**interop.text_encoder_to_transformers(text, prefix=True), "logit_scale": torch.zeros(())}
        )
    with pytest.raises(ValueError, match="missing: .*and 15 more"):
        interop.text_encoder_to_transformers({})


def test_position_ids_of_older_checkpoints_are_left_out(clip):
    theirs = interop.text_encoder_to_transformers(clip.text.state_dict(), prefix=True)
    theirs["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    assert interop.text_encoder_from_transformers(theirs).keys() == clip.text.state_dict().keys()


def test_text_config_there_and_back():
    values = interop.text_config_to_transformers(TEXT)
    assert interop.text_config_from_transformers(values) == TEXT
    with pytest.raises(ValueError, match="gelu"):
        interop.text_config_from_transformers({**values, "hidden_act": "gelu"})
    with pytest.raises(ValueError, match="multiple"):
        interop.text_config_from_transformers({**values, "intermediate_size": 100})


def test_vision_encoder_alone_reads_its_own_size():
    encoder = VisionEncoder(CLIPVisionConfig(image_size=24, patch_size=8, width=16, layers=1, heads=2))
    assert encoder.states(torch.zeros(1, 3, 24, 24)).shape == (1, 10, 16)


def test_a_state_says_what_its_own_word_is_before_any_training():
    torch.manual_seed(0)
    encoder = TextEncoder(CLIPTextConfig())
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, encoder.config.vocab_size, (2, 256, 12), generator=generator)
    second[:, 6] = first[:, 6]  # the same word among other words
    with torch.no_grad():
        states = torch.stack([encoder(ids)[:, 6] for ids in (first, second)])
    kept = F.cosine_similarity(*(states - states.mean(dim=1, keepdim=True)), dim=-1).mean()
    assert kept > 0.8  # 0.91; with CLIP's own spread of 0.02 it is 0.09


def test_the_position_grid_is_waves_of_column_and_row():
    grid = position_grid(8, 128).reshape(8, 8, 128)
    assert torch.equal(grid[:, 3, :64], grid[:1, 3, :64].expand(8, -1)), "the first half depends on the column only"
    assert torch.equal(grid[5, :, 64:], grid[5, :1, 64:].expand(8, -1)), "the second half on the row only"
    torch.testing.assert_close(grid[0, 2, 0], torch.tensor(2.0).sin())
    torch.testing.assert_close(grid[4, 0, 127], torch.tensor(4 / 100).cos())
    likeness = (grid[0] @ grid[0].T)[0]
    assert (likeness[:3].diff() < 0).all(), "the further apart, the less alike"


@pytest.mark.parametrize("width", [1, 2, 3, 6, 10, 36])
def test_the_position_grid_fits_any_width(width):
    assert position_grid(3, width).shape == (9, width)
