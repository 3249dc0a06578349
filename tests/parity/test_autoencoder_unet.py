"""Our VAE and U-Net beside diffusers', on the same weights and inputs."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from course_utils.models.unet import UNet, UNetConfig
from course_utils.models.vae import VAE, VAEConfig
from course_utils.weights.diffusers import (
    unet_config_to_diffusers,
    unet_key_to_diffusers,
    unet_to_diffusers,
    vae_config_to_diffusers,
    vae_key_to_diffusers,
    vae_to_diffusers,
)
from tests.parity.same import WHOLE, assert_same, assert_same_network, randn, shuffle_weights

VAES = [
    VAEConfig((8, 16), layers_per_block=1, norm_groups=4),
    VAEConfig((8, 16, 24, 24), layers_per_block=2, latent_channels=3, norm_groups=8),
]


@pytest.mark.parametrize("config", VAES)
def test_vae_computes_what_diffusers_computes(config):
    ours = VAE(config)
    shuffle_weights(ours, 0)
    theirs = AutoencoderKL(**vae_config_to_diffusers(config)).eval()
    theirs.load_state_dict(vae_to_diffusers(ours.state_dict()))
    x = randn(2, 3, 32, 48, seed=1)
    assert_same_network(
        ours, theirs, lambda m: m.encode(x).mean, vae_key_to_diffusers, WHOLE, lambda m: m.encode(x).latent_dist.mean
    )
    with torch.no_grad():
        a, b = ours.encode(x), theirs.encode(x).latent_dist
        assert_same(a.log_variance, b.logvar, WHOLE)
        assert_same(a.kl(), b.kl(), WHOLE)
        seed = torch.Generator().manual_seed
        assert_same(a.sample(seed(5)), b.sample(seed(5)), WHOLE)
    z = randn(*a.mean.shape, seed=2)
    assert_same_network(ours, theirs, lambda m: m.decode(z), vae_key_to_diffusers, WHOLE, lambda m: m.decode(z).sample)


UNETS = [
    UNetConfig((8, 16), (False, True), heads=2, context_width=12, norm_groups=4),
    UNetConfig((8, 16), (True, False), heads=8, context_width=9, norm_groups=4, latent_channels=3),
    UNetConfig((16, 8), (False, False), layers_per_block=2, heads=4, context_width=12, norm_groups=8),
    UNetConfig((8, 16), (True, True), layers_per_block=2, heads=4, context_width=12, norm_groups=8),
    UNetConfig((8, 8, 16), (True, True, False), layers_per_block=2, heads=1, context_width=20, norm_groups=2),
    UNetConfig((16, 16, 32, 32), (True, True, True, False), 2, heads=8, context_width=24, norm_groups=16),
]


@pytest.mark.parametrize("config", UNETS)
@pytest.mark.parametrize("length", [1, 7, 77])
def test_unet_computes_what_diffusers_computes(config, length):
    ours = UNet(config)
    shuffle_weights(ours, 3)
    theirs = UNet2DConditionModel(**unet_config_to_diffusers(config)).eval()
    theirs.load_state_dict(unet_to_diffusers(ours.state_dict()))
    x = randn(2, config.latent_channels, 8, 16, seed=4)
    t, context = torch.tensor([3, 900]), randn(2, length, config.context_width, seed=5)
    assert_same_network(
        ours, theirs, lambda m: m(x, t, context), unet_key_to_diffusers, WHOLE, lambda m: m(x, t, context).sample
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "rename", "parameters", "tensors"),
    [
        (
            lambda: VAE(VAEConfig.sd15()),
            lambda: AutoencoderKL(**vae_config_to_diffusers(VAEConfig.sd15())),
            vae_to_diffusers, 83_653_863, 248,
        ),
        (
            lambda: UNet(UNetConfig.sd15()),
            lambda: UNet2DConditionModel(**unet_config_to_diffusers(UNetConfig.sd15(), sample_size=64)),
            unet_to_diffusers, 859_520_964, 686,
        ),
    ],
)  # fmt: skip
def test_stable_diffusion_15_maps_one_to_one(ours, theirs, rename, parameters, tensors):
    with torch.device("meta"):
        ours, theirs = ours(), theirs()
    assert sum(p.numel() for p in ours.parameters()) == parameters
    renamed = {k: v.shape for k, v in rename(ours.state_dict()).items()}
    assert len(renamed) == tensors
    assert renamed == {k: v.shape for k, v in theirs.state_dict().items()}
