"""Checks of notebook 01: compression, reparameterisation, KL, the best variance, the VAE's loss, the latent scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from course_utils.checks.base import (
    Mistake,
    check_for,
    choice,
    close,
    expect_dtype,
    expect_shape,
    expect_untouched,
    gradients_of,
    name_it,
    one_number,
    random_tensor,
)
from course_utils.checks.training import training_loop
from course_utils.models import vae as package

__all__ = [
    "bears_noise",
    "best_variance",
    "compression",
    "kl_to_standard_normal",
    "measure_latent_scale",
    "reparameterise",
    "training_loop",
    "vae_loss",
]


def _same(a: float, b: float, tolerance: float = 1e-4) -> bool:
    return abs(a - b) <= tolerance * max(abs(a), abs(b), 1e-6)


def _compression(side: int, factor: int, latent_channels: int) -> float:
    """Reference: numbers in an RGB picture over numbers in its latent; the side cancels."""
    return 3 * side * side / (latent_channels * (side // factor) ** 2)


_compression.__name__ = "compression"


@check_for(_compression)
def compression(candidate: Callable[..., Any]) -> None:
    """3 · side² numbers in the picture, latent_channels · (side / factor)² in the latent."""
    for side, factor, channels in [(32, 4, 4), (64, 8, 4), (256, 16, 8), (30, 3, 4), (64, 2, 16)]:
        got = one_number(candidate(side, factor, channels), "compression(side, factor, latent_channels)")
        right = _compression(side, factor, channels)
        call = f"compression({side}, {factor}, {channels})"
        for message, wrong in {
            "that is latent over picture; picture over latent is asked for": 1 / right,
            "a picture has three colours, so 3 · side · side numbers": right / 3,
            "both the width and the height shrink by the factor": right / factor,
            "a latent has latent_channels numbers at each place": right * channels,
            "that counts places, not numbers: a picture has three at each, a latent latent_channels": right
            * channels
            / 3,
        }.items():
            if _same(got, wrong):
                raise Mistake(f"{call} gives {got:g}: {message}")
        if got == round(right) and not _same(got, right):
            raise Mistake(f"{call} gives {got:g}: the ratio need not be a whole number, here it is {right:g}")
        if not _same(got, right):
            raise Mistake(
                f"{call} gives {got:g}; count 3 · side · side numbers in the picture, and in the latent "
                "latent_channels at each of (side / factor)² places"
            )


@check_for(package.reparameterise)
def reparameterise(candidate: Callable[..., Any]) -> None:
    """mean + exp(log_variance / 2) · noise, with the noise given, and with gradients."""
    for shape in [(3, 4, 2, 2), (5, 7)]:
        mean, log_variance, noise = random_tensor(*shape), random_tensor(*shape), random_tensor(*shape)
        before = [mean.clone(), log_variance.clone(), noise.clone()]
        result = candidate(mean, log_variance, noise)
        expect_shape(result, shape)
        expect_untouched("mean, log_variance, noise", before, [mean, log_variance, noise])
        if bool(result.isnan().any()):
            raise Mistake("it gives nan: log_variance is a logarithm and may be negative, so take no root of it")
        if not close(result.float(), candidate(mean, log_variance, noise).float()):
            raise Mistake("two calls with the same noise differ: use the noise that is given, draw none inside")
        sigma = torch.exp(log_variance / 2)
        if not close(result.float(), mean + sigma * noise):
            raise name_it(
                result.float(),
                {
                    "exp(log_variance) is the variance; the noise is multiplied by the standard deviation, "
                    "exp(log_variance / 2)": mean + log_variance.exp() * noise,
                    "log_variance is a logarithm: the standard deviation is exp(log_variance / 2)": mean
                    + log_variance * noise,
                    "log_variance / 2 is the logarithm of the standard deviation: the exponential is missing": mean
                    + 0.5 * log_variance * noise,
                    "σ² is exp(log_variance), so log_variance has to be halved, not doubled, for σ": mean
                    + (2 * log_variance).exp() * noise,
                    "that has half of the variance where its root belongs: halve log_variance, then exp": mean
                    + 0.5 * log_variance.exp() * noise,
                    "every sample gets the noise numbers of the first sample": mean + sigma * noise[:1],
                    "that is the mean alone: the noise is missing": mean,
                    "the mean is missing": sigma * noise,
                    "the noise is added without being scaled by the standard deviation": mean + noise,
                    "add σ · noise (with a minus it is another sample than the noise asks for)": mean - sigma * noise,
                    "swapped: the mean stays as it is, the noise is multiplied by σ": noise + sigma * mean,
                },
                "wrong values: with mean 1, log_variance log 4 and noise 1 it must give 3, since σ is then 2",
            )
        mean.requires_grad_()
        log_variance.requires_grad_()
        gradients = gradients_of(
            candidate(mean, log_variance, noise).sum(), {"mean": mean, "log_variance": log_variance}
        )
        right = [torch.ones(shape), 0.5 * sigma * noise]
        if not all(close(g, r) for g, r in zip(gradients, right, strict=True)):
            raise Mistake("the values are right but the gradients are not: σ must be computed from log_variance")
        wide = candidate(*(x.detach().double() for x in (mean, log_variance, noise)))
        expect_dtype(wide, torch.float64, "mean")
    log_variance = torch.tensor([[-14.0, -9.0], [0.0, 3.0], [8.0, -14.0]])
    mean, noise = torch.zeros(3, 2), torch.ones(3, 2)
    if not torch.allclose(candidate(mean, log_variance, noise).float(), (log_variance / 2).exp(), rtol=1e-3, atol=1e-6):
        raise Mistake("for log-variances of −14 and 8 the numbers are off: any may come, nothing is clamped or added")


@check_for(package.kl_to_standard_normal)
def kl_to_standard_normal(candidate: Callable[..., Any]) -> None:
    """Against torch.distributions, one number a picture."""
    for shape in [(4, 2, 3, 3), (3, 6)]:
        mean, log_variance = random_tensor(*shape) + 0.5, random_tensor(*shape) - 0.5
        before = [mean.clone(), log_variance.clone()]
        result = candidate(mean, log_variance)
        expect_untouched("mean, log_variance", before, [mean, log_variance])
        variance = log_variance.exp()
        every = kl_divergence(Normal(mean, variance.sqrt()), Normal(torch.zeros(()), torch.ones(())))
        right = every.flatten(1).sum(1)
        if isinstance(result, Tensor) and tuple(result.shape) == shape:
            raise Mistake("that is one number for each dimension: add them up, so that each picture has one")
        if isinstance(result, Tensor) and result.ndim > 1:
            raise Mistake(f"add up over all dimensions but the first; the result has shape {list(result.shape)}")
        if isinstance(result, Tensor) and result.numel() == 1:
            raise Mistake(f"that is one number for the whole batch: one for each picture is asked for, [{shape[0]}]")
        expect_shape(result, shape[:1], "the divergence")
        result = result.float()
        if bool(result.isnan().any()):
            raise Mistake("it gives NaN: log_variance is already the logarithm, take no log of it")
        if not close(result, right):

            def total(x: Tensor) -> Tensor:
                return x.flatten(1).sum(1)

            square, one = mean**2, torch.ones_like(mean)
            raise name_it(
                result,
                {
                    "it is averaged over the dimensions: divergences of independent dimensions add up, so sum": right
                    / mean[0].numel(),
                    "that is the divergence the other way round, of N(0, 1) from the cloud": total(
                        0.5 * ((1 + square) / variance - 1 + log_variance)
                    ),
                    "the factor ½ is missing": 2 * right,
                    "the sign is wrong: a divergence is never negative": -right,
                    "the mean enters squared": total(0.5 * (mean + variance - 1 - log_variance)),
                    "the term mean² is missing": total(0.5 * (variance - 1 - log_variance)),
                    "the − 1 is missing: N(0, 1) must be at divergence 0 from itself": total(
                        0.5 * (square + variance - log_variance)
                    ),
                    "log_variance is taken for the variance: the variance is exp(log_variance)": total(
                        0.5 * (square + log_variance - 1 - log_variance)
                    ),
                    "exp(log_variance / 2) is the standard deviation; the variance is exp(log_variance)": total(
                        0.5 * (square + variance.sqrt() - 1 - log_variance)
                    ),
                    "the term − log_variance is missing": total(0.5 * (square + variance - one)),
                    "log_variance enters with a minus: a narrow Gaussian is far from N(0, 1)": total(
                        0.5 * (square + variance - 1 + log_variance)
                    ),
                    "the logarithm of σ² is log_variance, not half of it": total(
                        0.5 * (square + variance - 1 - 0.5 * log_variance)
                    ),
                },
                f"wrong values: torch.distributions has {right[0].item():.4f} where it gives {result[0].item():.4f}; "
                "with mean 1 and log_variance 0 one dimension must give 0.5",
            )
        mean.requires_grad_()
        log_variance.requires_grad_()
        gradients = gradients_of(candidate(mean, log_variance).sum(), {"mean": mean, "log_variance": log_variance})
        wanted = [mean.detach(), 0.5 * (variance - 1)]
        if not all(close(g, w) for g, w in zip(gradients, wanted, strict=True)):
            raise Mistake("the values are right but the gradients are not: is a part detached?")
        wide = candidate(mean.detach().double(), log_variance.detach().double())
        expect_dtype(wide, torch.float64, "mean")
    log_variance = torch.tensor([[-14.0, -9.0], [0.0, 0.0], [6.0, -1.0]])
    right = 0.5 * (log_variance.exp() - 1 - log_variance).sum(1)
    if not torch.allclose(candidate(torch.zeros(3, 2), log_variance).float(), right, rtol=1e-3, atol=1e-5):
        raise Mistake(
            "for log-variances of −14, 0 and 6 the numbers are off: any may come, nothing is clamped or added, and a "
            "standard Gaussian is at divergence 0"
        )


def _best_variance(slope: float, beta: float) -> float:
    """Reference: where slope² s² + β/2 · (s² − ln s²) is smallest."""
    return beta / (2 * slope**2 + beta)


_best_variance.__name__ = "best_variance"


@check_for(_best_variance)
def best_variance(candidate: Callable[..., Any]) -> None:
    """Against the smallest value on a fine grid of variances."""
    grid = torch.logspace(-6, 1, 40_001, dtype=torch.float64)
    for slope, beta in [(1.5, 0.5), (1.0, 2.0), (0.3, 1.0), (0.0, 0.1), (-0.8, 0.5), (30.0, 0.01)]:
        loss = slope**2 * grid + beta / 2 * (grid - grid.log())
        right = grid[loss.argmin()].item()
        got = one_number(candidate(slope, beta), "best_variance(slope, beta)")
        if _same(got, right, 2e-3):
            continue
        call = f"best_variance({slope:g}, {beta:g}) gives {got:.4g}"
        sigma2 = beta / 2
        for message, wrong in {
            "that is the standard deviation, its square is asked for": math.sqrt(right),
            "mind the ½ in the divergence: its derivative is β/2 · (1 − 1/s²)": beta / (slope**2 + beta),
            "the prior pulls too: the divergence has a term s²/2 beside −ln s": sigma2 / max(slope**2, 1e-9),
            "the error's derivative is slope², not slope": beta / (2 * slope + beta),
            "that is its inverse": 1 / right,
            "it depends on the slope, too: slope² · s² is a part of the loss": beta / 2,
            "the two parts are exchanged: a number that the decoder ignores (slope 0) must keep variance 1": 1 - right,
        }.items():
            if _same(got, wrong, 2e-3):
                raise Mistake(f"{call}: {message}")
        raise Mistake(f"{call}, the loss is smallest at {right:.4g}: set its derivative by s² to zero")


@check_for(package.vae_loss)
def vae_loss(candidate: Callable[..., Any]) -> None:
    """Mean squared error + β · mean KL / numbers in a picture."""
    for shape, beta in [((3, 3, 4, 4), 0.7), ((5, 3, 2, 6), 3.0), ((4, 7), 1.5), ((2, 3, 5), 0.0)]:
        batch, size = shape[0], math.prod(shape[1:])
        # Sizes at which no wrong value below comes near another, whatever is drawn.
        x, reconstruction = 2 * random_tensor(*shape), 2 * random_tensor(*shape)
        kl = size * (60 + random_tensor(batch).abs())
        before = [x.clone(), reconstruction.clone(), kl.clone()]
        result = candidate(x, reconstruction, kl, beta)
        expect_untouched("x, reconstruction, kl", before, [x, reconstruction, kl])
        if isinstance(result, Tensor) and result.numel() > 1:
            raise Mistake(f"the loss must be one number, the mean over the batch; it has shape {list(result.shape)}")
        expect_shape(result, (), "the loss")
        result = result.float()
        difference = x - reconstruction
        error, penalty = difference.pow(2).mean(), kl.mean() / size
        if not close(result, error + beta * penalty):
            raise name_it(
                result,
                {
                    "the divergence is missing": error,
                    "the error of the reconstruction is missing": beta * penalty,
                    "β is missing": error + penalty,
                    "the divergence must be divided by the numbers in one picture, as the error is": error
                    + beta * kl.mean(),
                    "the divergence is summed over the batch, it should be averaged": error + beta * kl.sum() / size,
                    "the divergence is averaged over the batch twice": error + beta * penalty / batch,
                    "the error is summed, it should be the mean": difference.pow(2).sum() + beta * penalty,
                    "error and divergence must both be divided by the numbers in a picture": size
                    * (error + beta * penalty),
                    "the error is squared, not absolute": difference.abs().mean() + beta * penalty,
                    "the square root of the error is taken: the bound has the squared error itself": error.sqrt()
                    + beta * penalty,
                    "the divergence is added: it is a cost": error - beta * penalty,
                    "β stands on the divergence, not on the error": beta * error + penalty,
                    "the error has no ½ here: β = 2σ² has taken it in": 0.5 * error + beta * penalty,
                },
                f"wrong value: {result.item():.4f}, should be {(error + beta * penalty).item():.4f}: the mean "
                "squared error plus β times the batch's mean divergence over the numbers in one picture",
            )
        if beta == 0:
            continue
        reconstruction.requires_grad_()
        kl.requires_grad_()
        wanted = [-2 * difference / x.numel(), torch.full((batch,), beta / size / batch)]
        gradients = gradients_of(candidate(x, reconstruction, kl, beta), {"reconstruction": reconstruction, "kl": kl})
        if not all(close(g, w, 1e-5) for g, w in zip(gradients, wanted, strict=True)):
            raise Mistake("the value is right but the gradients are not: is a part detached?")


def _bears_noise() -> str:
    """Reference: the larger β, the gentler the decoder; the notebook measures it right after the question."""
    return "c"


_bears_noise.__name__ = "bears_noise"


@check_for(_bears_noise)
def bears_noise(candidate: Callable[[], Any]) -> None:
    """Which of the three models loses least when its latents are disturbed."""
    replies = {
        "a": "without a cloud the decoder was only ever shown single points: nothing tells it what lies beside them",
        "b": "it was trained on clouds, but on narrow ones: what makes clouds wider?",
        "d": "the pushes are the same share of each model's spread, but only some decoders have met disturbed latents",
    }
    choice(candidate(), "c", replies)


@check_for(package.measure_latent_scale)
def measure_latent_scale(candidate: Callable[..., Any]) -> None:
    """1 / standard deviation, about the mean, of all numbers together."""
    # The largest is far from the variance; and squares of numbers about 500 leave float32 no digits for it.
    for spread, shift in [(2.0, 1.5), (0.25, -0.5), (0.02, 500.0)]:
        latents = spread * random_tensor(64, 4, 4, 4) * torch.tensor([0.5, 1.0, 1.5, 2.0]).view(1, 4, 1, 1) + shift
        before = latents.clone()
        result = candidate(latents)
        expect_untouched("latents", [before], [latents])
        if isinstance(result, Tensor) and result.numel() > 1:
            raise Mistake(f"one number for all latents is asked for, got {list(result.shape)}")
        got, deviation = one_number(result, "the scale"), latents.std().item()
        if _same(got, 1 / deviation, 2e-3):
            continue
        for message, wrong in {
            "that is the standard deviation; the scale is one over it": deviation,
            "that is one over the variance; take one over the standard deviation": deviation**-2,
            "that is the variance": deviation**2,
            "that is one over the root mean square: the standard deviation is measured about the mean": 1
            / latents.pow(2).mean().sqrt().item(),
            "that is one over the mean of the channels' deviations: take all numbers together": 1
            / latents.transpose(0, 1).flatten(1).std(1).mean().item(),
            "that brings the largest number to 1; it is the standard deviation that should be 1": 1
            / latents.abs().max().item(),
            "that is Stable Diffusion's number: ours must be measured on the latents given": 0.18215,
        }.items():
            if _same(got, wrong, 2e-3):
                raise Mistake(message)
        raise Mistake(f"scaled by it the latents have standard deviation {abs(got) * deviation:.4g}, should be 1")
