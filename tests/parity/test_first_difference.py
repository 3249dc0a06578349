"""The helper for broken parity, on the libraries' own networks: break one layer of theirs, and it is named."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from course_utils.models.clip import CLIPTextConfig, TextEncoder
from course_utils.models.unet import UNet, UNetConfig
from course_utils.models.vae import VAE, VAEConfig
from course_utils.weights.compare import first_difference
from course_utils.weights.diffusers import (
    unet_config_to_diffusers,
    unet_key_to_diffusers,
    unet_to_diffusers,
    vae_config_to_diffusers,
    vae_key_to_diffusers,
    vae_to_diffusers,
)
from course_utils.weights.transformers import clip_text_model, text_names
from tests.parity.same import WHOLE, assert_same_network, randn, shuffle_weights

X, T, CONTEXT = randn(2, 4, 8, 8, seed=1), torch.tensor([3, 900]), randn(2, 7, 12, seed=2)
IDS = torch.tensor([[38, 3, 5, 7, 39, 39]])


def unets():
    ours = UNet(UNetConfig((8, 16), (False, True), heads=2, context_width=12, norm_groups=4))
    theirs = UNet2DConditionModel(**unet_config_to_diffusers(ours.config))
    shuffle_weights(ours, 0)
    theirs.load_state_dict(unet_to_diffusers(ours.state_dict()))
    return ours, theirs, lambda m: m(X, T, CONTEXT), unet_key_to_diffusers, lambda m: m(X, T, CONTEXT).sample


def vaes():
    ours = VAE(VAEConfig((8, 16), norm_groups=4))
    theirs = AutoencoderKL(**vae_config_to_diffusers(ours.config))
    shuffle_weights(ours, 0)
    theirs.load_state_dict(vae_to_diffusers(ours.state_dict()))
    return ours, theirs, lambda m: m.decode(X), vae_key_to_diffusers, lambda m: m.decode(X).sample


def text_encoders():
    ours = TextEncoder(CLIPTextConfig(40, 6, 16, 2, 2))
    shuffle_weights(ours, 0)
    return ours, clip_text_model(ours), lambda m: m(IDS), text_names(2), lambda m: m(IDS).last_hidden_state


@pytest.mark.parametrize(
    ("pair", "layer"),
    [
        (unets, "conv_in"),
        (unets, "down.0.resample.conv"),
        (unets, "middle_transformer.block.self_attention.out"),
        (unets, "up.0.transformers.1.block.feed_forward.0.linear"),
        (unets, "up.1.blocks.0.shortcut"),
        (vaes, "post_quant_conv"),
        (vaes, "decoder.middle.attention.value"),
        (vaes, "decoder.levels.0.resample.conv"),
        (text_encoders, "token_embedding"),
        (text_encoders, "blocks.1.attention.query"),
        (text_encoders, "final_norm"),
    ],
)
def test_the_broken_layer_is_named(pair, layer):
    ours, theirs, run, names, run_theirs = pair()
    ours, theirs = ours.eval(), theirs.eval()
    assert first_difference(ours, theirs, run, names, run_theirs) is None
    name = names(f"{layer}.weight") if callable(names) else names[f"{layer}.weight"]
    weight = next(p for key, p in theirs.named_parameters() if key.removeprefix("text_model.") == name)
    with torch.no_grad():
        weight.add_(0.1 * randn(*weight.shape, seed=3))
    found = first_difference(ours, theirs, run, names, run_theirs)
    if layer == "decoder.levels.0.resample.conv":  # upsampling takes its convolution's weights without calling it
        layer, name = layer.removesuffix(".conv"), name.replace(".conv.weight", ".weight")
    assert found is not None and found.ours == layer
    assert found.theirs.removeprefix("text_model.") == name.removesuffix(".weight")
    with pytest.raises(AssertionError, match=f"first difference: {layer} .*its input agrees"):
        assert_same_network(ours, theirs, run, names, WHOLE, run_theirs)
