"""Our VAE and U-Net beside diffusers', on the same weights and inputs."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from course_utils.interop.diffusers import (
    unet_config_to_diffusers,
    unet_to_diffusers,
    vae_config_to_diffusers,
    vae_to_diffusers,
)
from course_utils.models.unet import UNet, UNetConfig
from course_utils.models.vae import VAE, VAEConfig

WHOLE = 1e-4  # float32 rounding adds up over a whole network of large random weights


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def shuffle_weights(module: torch.nn.Module, seed: int) -> None:
    """Random numbers everywhere, so that no zero start hides a layer that is never reached."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 / max(1, p[0].numel()) ** 0.5))
            if p.ndim == 1:
                p.add_(0.5)


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
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = ours.encode(x), theirs.encode(x).latent_dist
        assert relative_error(a.mean, b.mean) <= WHOLE
        assert relative_error(a.log_variance, b.logvar) <= WHOLE
        assert relative_error(a.kl(), b.kl()) <= WHOLE
        z = torch.randn(a.mean.shape, generator=torch.Generator().manual_seed(2))
        assert relative_error(ours.decode(z), theirs.decode(z).sample) <= WHOLE


UNETS = [
    UNetConfig((8, 16), (False, True), heads=2, context_width=12, norm_groups=4),
    UNetConfig((8, 16), (True, True), layers_per_block=2, heads=4, context_width=12, norm_groups=8),
    UNetConfig((8, 8, 16), (True, True, False), layers_per_block=2, heads=1, context_width=20, norm_groups=2),
]


@pytest.mark.parametrize("config", UNETS)
@pytest.mark.parametrize("length", [1, 7])
def test_unet_computes_what_diffusers_computes(config, length):
    ours = UNet(config)
    shuffle_weights(ours, 3)
    theirs = UNet2DConditionModel(**unet_config_to_diffusers(config)).eval()
    theirs.load_state_dict(unet_to_diffusers(ours.state_dict()))
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    t = torch.tensor([3, 900])
    context = torch.randn(2, length, config.context_width, generator=generator)
    with torch.no_grad():
        assert relative_error(ours(x, t, context), theirs(x, t, context).sample) <= WHOLE


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
