"""Layers, VAE and U-Net by themselves: shapes, closed forms, gradients, messages."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from course_utils.models.denoisers import LatentDenoiser, NoiseReader, ToyDenoiser
from course_utils.models.layers import Upsample, attention, merge_heads, split_heads, to_picture, to_tokens
from course_utils.models.unet import UNet, UNetConfig, timestep_embedding
from course_utils.models.vae import (
    VAE,
    DiagonalGaussian,
    VAEConfig,
    kl_to_standard_normal,
    measure_latent_scale,
    reparameterise,
    vae_loss,
)

SMALL_VAE = VAEConfig((8, 8, 16, 16), norm_groups=4)
SMALL_UNET = UNetConfig((8, 16), (False, True), heads=2, context_width=12, norm_groups=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_attention_is_pytorchs():
    q, k, v = (torch.randn(2, 3, n, 4, generator=generator(i)) for i, n in enumerate((5, 7, 7)))
    mask = torch.rand(5, 7, generator=generator(9)) > 0.3
    mask[:, 0] = True
    torch.testing.assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_heads_and_tokens_come_back():
    x = torch.randn(2, 6, 8, generator=generator())
    assert torch.equal(merge_heads(split_heads(x, 4)), x)
    picture = torch.randn(2, 3, 4, 5, generator=generator())
    assert torch.equal(to_picture(to_tokens(picture), 4, 5), picture)


def test_upsampling_is_repeating_and_then_convolving():
    block = Upsample(3).double()
    x = torch.randn(2, 3, 5, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    ours, plain = block(x), block.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    pull = torch.randn(ours.shape, generator=generator(1), dtype=torch.float64)
    wanted = [x, *block.conv.parameters()]
    found = [torch.autograd.grad((y * pull).sum(), wanted) for y in (ours, plain)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_reparameterised_samples_have_the_moments_they_should():
    noise = torch.randn(200_000, generator=generator())
    samples = reparameterise(torch.full_like(noise, 2.0), torch.full_like(noise, -1.0), noise)
    assert samples.mean().item() == pytest.approx(2.0, abs=0.01)
    assert samples.var().item() == pytest.approx(torch.tensor(-1.0).exp().item(), rel=0.02)


def test_kl_is_torch_distributions():
    mean, log_variance = torch.randn(3, 4, 2, 2, generator=generator()), torch.randn(3, 4, 2, 2, generator=generator(1))
    oracle = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), oracle.flatten(1).sum(1))


def test_vae_loss_is_the_elbo_scaled():
    """2σ²/D · (−ELBO) without its constant, for β = 2σ²."""
    x, y = torch.rand(2, 3, 4, 4, generator=generator()), torch.rand(2, 3, 4, 4, generator=generator(1))
    kl, sigma = torch.tensor([3.0, 5.0]), 0.3
    nll = -torch.distributions.Normal(y, sigma).log_prob(x).flatten(1).sum(1)
    constant = 48 * (torch.tensor(sigma).log() + 0.5 * torch.log(torch.tensor(2 * torch.pi)))
    elbo = (nll - constant + kl).mean() * 2 * sigma**2 / 48
    torch.testing.assert_close(vae_loss(x, y, kl, 2 * sigma**2), elbo)


def test_vae_shapes_scale_and_gradients():
    vae = VAE(SMALL_VAE)
    x = torch.rand(2, 3, 32, 16, generator=generator()) * 2 - 1
    posterior = vae.encode(x)
    assert isinstance(posterior, DiagonalGaussian)
    assert posterior.mean.shape == (2, 4, 4, 2)
    z = posterior.sample(generator())
    vae_loss(x, vae.decode(z), posterior.kl(), 1e-3).backward()
    assert all(p.grad is not None for p in vae.parameters())
    vae.latent_scale.fill_(0.25)
    torch.testing.assert_close(vae.to_latents(x), posterior.mode() * 0.25)
    torch.testing.assert_close(vae.from_latents(vae.to_latents(x)), vae.decode(posterior.mode()))
    assert measure_latent_scale(torch.randn(100_000, generator=generator()) * 4) == pytest.approx(0.25, rel=0.02)


def test_timestep_embedding_is_waves():
    waves = timestep_embedding(torch.tensor([0, 7]), 8)
    assert torch.equal(waves[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    frequencies = torch.tensor([1.0, 10000**-0.25, 10000**-0.5, 10000**-0.75])
    torch.testing.assert_close(waves[1], torch.cat([(7 * frequencies).cos(), (7 * frequencies).sin()]))


def test_unet_reads_the_words_and_the_time():
    unet = UNet(SMALL_UNET)
    for p in unet.parameters():  # the zero start of each block would hide both
        torch.nn.init.normal_(p, std=0.1, generator=generator())
    x, context = torch.randn(2, 4, 8, 8, generator=generator()), torch.randn(2, 5, 12, generator=generator())
    out = unet(x, torch.tensor([1, 5]), context)
    assert out.shape == x.shape
    assert not torch.allclose(out, unet(x, torch.tensor([1, 6]), context))
    assert not torch.allclose(out, unet(x, torch.tensor([1, 5]), context.flip(0)))
    torch.testing.assert_close(unet(x, 5, context), unet(x, torch.tensor([5, 5]), context))


def test_small_denoisers_have_the_shapes_they_promise():
    x, t = torch.randn(3, 4, 8, 8, generator=generator()), torch.tensor([0, 5, 9])
    assert NoiseReader(4, 16)(x).shape == (3,)
    assert LatentDenoiser(10, width=16)(x, t).shape == x.shape
    assert ToyDenoiser(10, 16)(torch.zeros(3, 2), t).shape == (3, 2)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: VAEConfig((8, 12), norm_groups=8), "multiple of norm_groups"),
        (lambda: VAE(SMALL_VAE).encode(torch.zeros(1, 3, 30, 32)), r"multiples of 8, got \[1, 3, 30, 32\]"),
        (lambda: VAE(SMALL_VAE).decode(torch.zeros(1, 3, 4, 4)), r"\[B, 4, h, w\]"),
        (lambda: UNetConfig((8, 16), (True,)), "one entry a level"),
        (lambda: VAEConfig((8, 12), norm_groups=0), "must be 1 or more"),
        (lambda: UNetConfig(layers_per_block=0), "must be 1 or more"),
        (lambda: UNetConfig(heads=0), "must be 1 or more"),
        (lambda: UNet(SMALL_UNET)(torch.zeros(1, 4, 8, 8), 0, torch.zeros(2, 3, 12)), "context must be"),
        (lambda: UNet(SMALL_UNET)(torch.zeros(1, 4, 7, 8), 0, torch.zeros(1, 3, 12)), "multiples of 2"),
        (lambda: UNet(SMALL_UNET)(torch.zeros(2, 4, 8, 8), torch.zeros(3), torch.zeros(2, 3, 12)), "one timestep"),
        (lambda: measure_latent_scale(torch.zeros(1)), "two numbers"),
    ],
)
def test_bad_input_says_what_is_wanted(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_pictures_in_whole_numbers_are_refused():
    with pytest.raises(TypeError, match=r"x.float\(\)"):
        VAE(SMALL_VAE).encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
