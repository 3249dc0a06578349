"""Our CLIP against transformers': same weights, same input, same output; and SD 1.5's whole key list."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from course_utils.models.clip import (
    CLIP,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    TextEncoder,
    contrastive_loss,
    pool_end,
)
from course_utils.models.clip_transformer import causal_mask
from course_utils.weights import transformers as interop
from course_utils.weights.compare import relative_error

transformers = pytest.importorskip("transformers")

CONFIGS = [
    CLIPConfig(CLIPTextConfig(60, 12, 32, 2, 4), CLIPVisionConfig(16, 4, 48, 3, 3), embed_dim=24),
    CLIPConfig(CLIPTextConfig(99, 9, 40, 3, 2), CLIPVisionConfig(64, 8, 32, 2, 8, mlp_ratio=2), embed_dim=40),
]


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights, biases and norms all random, so that no tensor can hide behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name != "logit_scale":
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.data = around + 0.2 * torch.randn(parameter.shape, generator=generator)


def random_batch(config: CLIPConfig) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    size, vocab = config.vision.image_size, config.text.vocab_size
    images = torch.rand(5, 3, size, size, generator=generator) * 2 - 1
    ids = torch.randint(0, vocab - 2, (5, config.text.max_length), generator=generator)
    ids[:, 0] = vocab - 2
    for row in range(5):
        ids[row, 3 + row :] = vocab - 1  # texts of several lengths
    return images, ids


def record_outputs(modules) -> list[Tensor]:
    outputs: list[Tensor] = []
    for module in modules:
        module.register_forward_hook(
            lambda _module, _inputs, output: outputs.append(output[0] if isinstance(output, tuple) else output)
        )
    return outputs


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_text_encoder_every_state(config):
    ours = TextEncoder(config.text)
    randomise(ours, seed=1)
    theirs = interop.clip_text_model(ours)
    _, ids = random_batch(config)
    our_layers = record_outputs(ours.blocks)
    their_layers = record_outputs(getattr(theirs, "text_model", theirs).encoder.layers)
    states, expected = ours(ids), theirs(ids)
    assert len(our_layers) == len(their_layers) == config.text.layers
    for our_layer, their_layer in zip(our_layers, their_layers, strict=True):
        assert relative_error(our_layer, their_layer) <= 1e-5
    assert relative_error(states, expected.last_hidden_state) <= 1e-5
    assert relative_error(pool_end(states, ids), expected.pooler_output) <= 1e-5


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_every_hidden_state_under_a_causal_and_a_padding_mask(config):
    """Stable Diffusion gives CLIP no padding mask; our blocks take one all the same, with the causal one."""
    ours = TextEncoder(config.text)
    randomise(ours, seed=3)
    theirs = interop.clip_text_model(ours)
    _, ids = random_batch(config)
    length = ids.shape[1]
    lengths = torch.tensor([length, 1, 2, length - 1, 5])
    real = torch.arange(length) < lengths[:, None]  # [B, L]: True where a token is no padding
    expected = theirs(ids, attention_mask=real.long(), output_hidden_states=True)
    mask = causal_mask(length) & real[:, None, None, :]  # [B, 1, L, L]
    x = ours.token_embedding(ids) + ours.position_embedding.weight[:length]
    states = [x]
    for block in ours.blocks:
        x = block(x, mask)
        states.append(x)
    assert len(states) == len(expected.hidden_states)
    for our_state, their_state in zip(states, expected.hidden_states, strict=True):
        assert relative_error(our_state, their_state) <= 1e-5
    assert relative_error(ours.final_norm(x), expected.last_hidden_state) <= 1e-5
    without_mask = ours(ids)
    assert relative_error(without_mask[real], expected.last_hidden_state[real]) <= 1e-5  # it could not look there
    assert relative_error(without_mask[~real], expected.last_hidden_state[~real]) > 1e-2


@pytest.mark.parametrize("config", CONFIGS)
@torch.no_grad()
def test_clip_both_towers_logits_and_loss(config):
    ours = CLIP(config)
    randomise(ours, seed=2)
    values = interop.clip_config_to_transformers(config)
    theirs = transformers.CLIPModel(transformers.CLIPConfig(**values)).eval()
    theirs.load_state_dict(interop.clip_to_transformers(ours.state_dict()))
    images, ids = random_batch(config)
    expected = theirs(input_ids=ids, pixel_values=images, return_loss=True)
    assert relative_error(ours.vision.states(images), expected.vision_model_output.last_hidden_state) <= 1e-5
    image_features, text_features = ours.encode_image(images), ours.encode_text(ids)
    assert relative_error(image_features, expected.image_embeds) <= 1e-5
    assert relative_error(text_features, expected.text_embeds) <= 1e-5
    assert relative_error(ours.similarity(images, ids), expected.logits_per_image) <= 1e-5
    loss = contrastive_loss(image_features, text_features, ours.logit_scale)
    assert relative_error(loss, expected.loss) <= 1e-5


@torch.no_grad()
def test_pooling_agrees_when_the_vocabulary_has_spare_rows():
    config = CONFIGS[0].text
    ours = TextEncoder(config)
    values = interop.text_config_to_transformers(config, end_id=40)
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**values)).eval()
    ours.load_state_dict(interop.text_encoder_from_transformers(theirs.state_dict()))
    ids = torch.tensor([[39, 3, 5, 40, 40], [39, 40, 40, 40, 40]])
    assert relative_error(pool_end(ours(ids), ids), theirs(ids).pooler_output) <= 1e-5


@torch.no_grad()
def test_their_weights_give_the_same_states_in_our_encoder(tmp_path):
    config = CONFIGS[0].text
    theirs = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**interop.text_config_to_transformers(config))
    ).eval()
    ours = TextEncoder(interop.text_config_from_transformers(theirs.config.to_dict()))
    ours.load_state_dict(interop.text_encoder_from_transformers(theirs.state_dict()))
    _, ids = random_batch(CONFIGS[0])
    assert relative_error(ours(ids), theirs(ids).last_hidden_state) <= 1e-5


def test_files_that_transformers_writes_can_be_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    config = CONFIGS[0].text
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**interop.text_config_to_transformers(config)))
    theirs.save_pretrained(tmp_path)
    state = safetensors.load_file(tmp_path / "model.safetensors")
    ours = TextEncoder(config)
    ours.load_state_dict(interop.text_encoder_from_transformers(state))
    torch.testing.assert_close(ours.token_embedding.weight.data, next(theirs.parameters()).data)


def test_stable_diffusion_text_encoder_maps_one_to_one():
    with torch.device("meta"):
        ours = TextEncoder(CLIPTextConfig())
        theirs = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**interop.text_config_to_transformers(CLIPTextConfig()))
        )
    expected = {name.removeprefix("text_model."): tensor.shape for name, tensor in theirs.state_dict().items()}
    renamed = interop.text_encoder_to_transformers(ours.state_dict())
    assert {name: tensor.shape for name, tensor in renamed.items()} == expected
    assert len(renamed) == 196
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 123_060_480


def test_whole_clip_vit_l_14_maps_one_to_one():
    with torch.device("meta"):
        ours = CLIP(CLIPConfig())
        theirs = transformers.CLIPModel(transformers.CLIPConfig(**interop.clip_config_to_transformers(CLIPConfig())))
    renamed = interop.clip_to_transformers(ours.state_dict())
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in renamed.items()} == expected
