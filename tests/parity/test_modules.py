"""Each building block beside diffusers', on the same random weights and inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.models.activations import GEGLU as TheirGEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder as TheirDecoder
from diffusers.models.autoencoders.vae import Encoder as TheirEncoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from course_utils.models.layers import Downsample, ResidualBlock, Upsample
from course_utils.models.transformer import GEGLU, CrossAttention, SpatialTransformer, TransformerBlock
from course_utils.models.unet import TimeMLP, timestep_embedding
from course_utils.models.vae import Decoder, Encoder, Middle, SelfAttention2d, VAEConfig
from course_utils.weights.diffusers import unet_key_to_diffusers, vae_key_to_diffusers
from tests.parity.same import MODULE, assert_same, assert_same_network, randn, shuffle_weights


def names_at(place: str, key: Callable[[str], str]) -> Callable[[str], str]:
    """The renaming of a module by itself: that of the whole network, where the module stands in it at `place`."""
    theirs = key(f"{place}.weight").removesuffix("weight")
    return lambda name: key(f"{place}.{name}").removeprefix(theirs)


def check(ours: nn.Module, theirs: nn.Module, names: Callable[[str], str], run, run_theirs=None) -> None:
    shuffle_weights(ours, 0)
    theirs.load_state_dict({names(k): v for k, v in ours.state_dict().items()})
    assert_same_network(ours.eval(), theirs.eval(), run, names, MODULE, run_theirs)


@pytest.mark.parametrize(("width", "out"), [(8, 8), (8, 24), (24, 16)])
def test_residual_block_with_a_timestep(width, out):
    ours = ResidualBlock(width, out, 4, time_channels=20, eps=1e-5)
    theirs = ResnetBlock2D(in_channels=width, out_channels=out, temb_channels=20, groups=4, eps=1e-5)
    x, time = randn(2, width, 6, 10, seed=1), randn(2, 20, seed=2)
    check(ours, theirs, names_at("down.0.blocks.0", unet_key_to_diffusers), lambda m: m(x, time))


@pytest.mark.parametrize(("width", "out"), [(8, 8), (8, 24)])
def test_residual_block_of_the_vae(width, out):
    ours = ResidualBlock(width, out, 8)
    theirs = ResnetBlock2D(in_channels=width, out_channels=out, temb_channels=None, groups=8, eps=1e-6)
    x = randn(2, width, 7, 5, seed=1)
    names = names_at("encoder.levels.0.blocks.0", vae_key_to_diffusers)
    check(ours, theirs, names, lambda m: m(x), lambda m: m(x, None))


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_self_attention(heads):
    ours = CrossAttention(24, 24, heads)
    theirs = Attention(query_dim=24, heads=heads, dim_head=24 // heads)
    x = randn(2, 15, 24, seed=1)
    names = names_at("down.0.transformers.0.block.self_attention", unet_key_to_diffusers)
    check(ours, theirs, names, lambda m: m(x))


@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 7, 77])
def test_cross_attention(heads, length):
    ours = CrossAttention(24, 20, heads)
    theirs = Attention(query_dim=24, cross_attention_dim=20, heads=heads, dim_head=24 // heads)
    x, context = randn(2, 16, 24, seed=1), randn(2, length, 20, seed=2)
    names = names_at("down.0.transformers.0.block.cross_attention", unet_key_to_diffusers)
    check(ours, theirs, names, lambda m: m(x, context))


def test_attention_of_the_vae():
    ours = SelfAttention2d(16, 4)
    theirs = Attention(
        16, heads=1, dim_head=16, eps=1e-6, norm_num_groups=4, residual_connection=True, bias=True,
        upcast_softmax=True, _from_deprecated_attn_block=True,
    )  # fmt: skip
    x = randn(2, 16, 5, 6, seed=1)
    check(ours, theirs, names_at("encoder.middle.attention", vae_key_to_diffusers), lambda m: m(x))


def test_middle_of_the_vae():
    ours = Middle(16, 4)
    theirs = UNetMidBlock2D(in_channels=16, temb_channels=None, resnet_eps=1e-6, resnet_groups=4, attention_head_dim=16)
    x = randn(2, 16, 4, 4, seed=1)

    def names(name: str) -> str:
        return vae_key_to_diffusers(f"encoder.middle.{name}").removeprefix("encoder.mid_block.")

    check(ours, theirs, names, lambda m: m(x))


def test_geglu():
    ours, theirs = GEGLU(12, 40), TheirGEGLU(12, 40)
    x = randn(2, 9, 12, seed=1)
    check(ours, theirs, lambda name: name.replace("linear.", "proj."), lambda m: m(x))


@pytest.mark.parametrize("heads", [1, 3])
def test_transformer_block(heads):
    ours = TransformerBlock(24, heads, 20)
    theirs = BasicTransformerBlock(24, heads, 24 // heads, cross_attention_dim=20, activation_fn="geglu")
    x, context = randn(2, 16, 24, seed=1), randn(2, 5, 20, seed=2)
    names = names_at("down.0.transformers.0.block", unet_key_to_diffusers)
    check(ours, theirs, names, lambda m: m(x, context), lambda m: m(x, encoder_hidden_states=context))


@pytest.mark.parametrize("heads", [2, 4])
def test_spatial_transformer(heads):
    ours = SpatialTransformer(24, heads, 20, 8)
    theirs = Transformer2DModel(
        heads, 24 // heads, in_channels=24, num_layers=1, cross_attention_dim=20, norm_num_groups=8
    )
    x, context = randn(2, 24, 6, 4, seed=1), randn(2, 5, 20, seed=2)
    names = names_at("down.0.transformers.0", unet_key_to_diffusers)
    check(ours, theirs, names, lambda m: m(x, context), lambda m: m(x, encoder_hidden_states=context).sample)


@pytest.mark.parametrize("size", [(8, 8), (7, 6)])
def test_downsampling(size):
    x = randn(2, 8, *size, seed=1)
    names = names_at("down.0.resample", unet_key_to_diffusers)
    check(Downsample(8), Downsample2D(8, use_conv=True, padding=1, name="op"), names, lambda m: m(x))
    names = names_at("encoder.levels.0.resample", vae_key_to_diffusers)
    ours = Downsample(8, asymmetric=True)
    check(ours, Downsample2D(8, use_conv=True, padding=0, name="op"), names, lambda m: m(x))


def test_upsampling():
    x = randn(2, 8, 5, 4, seed=1)
    check(Upsample(8), Upsample2D(8, use_conv=True), names_at("up.0.resample", unet_key_to_diffusers), lambda m: m(x))


def test_timesteps():
    t = torch.tensor([0, 1, 17, 500, 999])
    assert_same(timestep_embedding(t, 32), Timesteps(32, flip_sin_to_cos=True, downscale_freq_shift=0)(t), MODULE)
    waves = timestep_embedding(t, 16)

    def names(name: str) -> str:
        return unet_key_to_diffusers(f"time_mlp.{name}").removeprefix("time_embedding.")

    check(TimeMLP(16), TimestepEmbedding(16, 64), names, lambda m: m(t), lambda m: m(waves))


VAES = [
    VAEConfig((8, 16), layers_per_block=1, norm_groups=4),
    VAEConfig((8, 16, 24), layers_per_block=2, latent_channels=3, norm_groups=8),
]


@pytest.mark.parametrize("config", VAES)
def test_encoder_and_decoder(config):
    levels, latents = len(config.channels), config.latent_channels
    shared = {
        "block_out_channels": config.channels, "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
    }  # fmt: skip
    x, z = randn(2, 3, 24, 16, seed=1), randn(2, latents, 6, 4, seed=2)

    def names(part: str) -> Callable[[str], str]:
        return lambda name: vae_key_to_diffusers(f"{part}.{name}").removeprefix(f"{part}.")

    down = ("DownEncoderBlock2D",) * levels
    theirs = TheirEncoder(out_channels=latents, down_block_types=down, double_z=True, **shared)
    check(Encoder(config), theirs, names("encoder"), lambda m: m(x))
    theirs = TheirDecoder(in_channels=latents, up_block_types=("UpDecoderBlock2D",) * levels, **shared)
    check(Decoder(config), theirs, names("decoder"), lambda m: m(z))
