"""Notebook 01: the training loop, compression, reparameterisation, KL, best variance, the VAE's loss, latent scale."""

from __future__ import annotations

import statistics

import numpy as np
import torch
from torch.distributions import Independent, Normal, kl_divergence

from course_utils.checks import vae as checks
from course_utils.models import vae as package
from course_utils.training import plain

__all__ = ["RIGHT", "WRONG", "checks"]


def one_dimension(mean, log_variance):
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)


def per_picture(every):
    return every.flatten(1).sum(1)


def counted(side, factor, channels):
    picture = np.zeros((3, side, side))
    return picture.size / np.zeros((channels, side // factor, side // factor)).size


def by_distribution(mean, log_variance):
    q = Independent(Normal(mean, log_variance.exp().sqrt()), mean.ndim - 1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), mean.ndim - 1)
    return kl_divergence(q, prior)


def by_bisection(slope, beta):
    low, high = 1e-9, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        rising = slope**2 + beta / 2 * (1 - 1 / middle) > 0
        low, high = (low, middle) if rising else (middle, high)
    return middle


def elementwise(mean, log_variance, noise):
    flat = zip(mean.double().flatten(), log_variance.double().flatten(), noise.double().flatten(), strict=True)
    return torch.stack([m + (v / 2).exp() * e for m, v, e in flat]).reshape(mean.shape)


def loss_in_a_loop(x, y, kl, beta):
    return sum(((p - q) ** 2).sum() + beta * k for p, q, k in zip(x, y, kl, strict=True)) / x.numel()


def loss_by_einsum(x, y, kl, beta):
    d = (x - y).double().flatten(1)
    return torch.einsum("bd,bd->b", d, d).add(beta * kl).mean() / d.shape[1]


def loop_with(*order, keep=torch.Tensor.item):
    """A training loop whose step does these things, in this order; `keep` makes an entry of the list."""

    def loop(draw_batch, loss, optimizer, steps):
        losses = []
        for _ in range(steps):
            value = loss(draw_batch())
            for what in order:
                value.backward() if what == "backward" else getattr(optimizer, what)()
            losses.append(keep(value))
        return losses

    return loop


def loop_by_hand(draw_batch, loss, optimizer, steps):
    """Counts down, and takes the gradients by torch.autograd.grad."""
    weights, losses = [w for group in optimizer.param_groups for w in group["params"]], []
    while len(losses) < steps:
        value = loss(draw_batch())
        for w, gradient in zip(weights, torch.autograd.grad(value, weights), strict=True):
            w.grad = gradient
        optimizer.step()
        losses += [float(value.detach())]
    return losses


def loop_with_one_list():
    """As a list in the place of a default: the second call goes on with the first one's."""
    losses = []

    def loop(draw_batch, loss, optimizer, steps):
        losses.extend(plain.training_loop(draw_batch, loss, optimizer, steps))
        return losses

    return loop


def loop_with_one_batch(draw_batch, loss, optimizer, steps):
    batch = draw_batch()
    return plain.training_loop(lambda: batch, loss, optimizer, steps)


def loop_that_measures_again(draw_batch, loss, optimizer, steps):
    losses = []
    for _ in range(steps):
        batch = draw_batch()
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
        losses.append(loss(batch).item())
    return losses


def loop_that_asks_twice(draw_batch, loss, optimizer, steps):
    losses = []
    for _ in range(steps):
        batch = draw_batch()
        losses.append(loss(batch).item())
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
    return losses


STEP = ("zero_grad", "backward", "step")

RIGHT = {
    "training_loop": [plain.training_loop, loop_with("backward", "step", "zero_grad"), loop_by_hand],
    "compression": [lambda s, f, c: 3 * s * s / (c * (s // f) ** 2), lambda s, f, c: 3 * f**2 / c, counted],
    "reparameterise": [
        package.reparameterise,
        lambda m, v, n: torch.addcmul(m, v.exp().sqrt(), n),
        lambda m, v, n: (n.double() * v.double().exp() ** 0.5 + m.double()).to(m.dtype),
        elementwise,
    ],
    "kl_to_standard_normal": [
        package.kl_to_standard_normal,
        by_distribution,
        lambda m, v: torch.stack([one_dimension(a.double(), b.double()).sum() for a, b in zip(m, v, strict=True)]),
    ],
    "best_variance": [
        lambda a, b: b / (2 * a**2 + b),
        lambda a, b: torch.tensor(1 / (1 + 2 * a * a / b)),
        by_bisection,
    ],
    "vae_loss": [package.vae_loss, loss_in_a_loop, loss_by_einsum],
    "bears_noise": [lambda: "c", lambda: "C", lambda: " c"],
    "measure_latent_scale": [
        package.measure_latent_scale,
        lambda z: z.var(correction=0) ** -0.5,
        lambda z: 1 / statistics.pstdev(z.double().flatten().tolist()),
        lambda z: 1 / np.std(z.numpy()),
    ],
}

WRONG = {
    "training_loop": [
        (loop_with("backward", "step"), "never cleared"),
        (loop_with("step", "zero_grad", "backward"), "step() comes before backward()"),
        (loop_with(*STEP, keep=lambda value: value), "keeps the whole graph"),
        (lambda d, f, o, n: plain.training_loop(d, f, o, n + 1), "draw_batch was called 7 times"),
        (lambda d, f, o, n: plain.training_loop(d, f, o, n - 1), "draw_batch was called 5 times"),
        (lambda d, f, o, n: plain.training_loop(d, f, o, 1), "draw_batch was called 1 times"),
        (loop_with("zero_grad", "backward"), "optimizer.step() follows them"),
        (loop_with("backward", "zero_grad", "step"), "zero_grad() must come before backward()"),
        (loop_with_one_batch, "the same batch is used all the time"),
        (lambda *given: plain.training_loop(*given)[-1:], "the list holds 1"),
        (lambda *given: plain.training_loop(*given)[-1], "return the list of losses"),
        (lambda *given: plain.training_loop(*given) and None, "is a return missing"),
        (lambda *given: plain.training_loop(*given)[::-1], "in order"),
        (lambda d, f, o, n: [], "no batch was drawn"),
        (loop_that_measures_again, "before the weights moved"),
        (loop_that_asks_twice, "keep the value and use it twice"),
        (loop_with_one_list(), "the list"),
        (lambda d, f, o, n: plain.training_loop(d, f, o, max(n, 1)), "with steps = 0"),
    ],
    "compression": [
        (lambda s, f, c: round(3 * f * f / c), "need not be a whole number"),
        (lambda s, f, c: 3 * s * s // (c * (s // f) ** 2), "count 3"),
        (lambda s, f, c: 3 * f / c, "both the width and the height"),
        (lambda s, f, c: f * f / c, "three colours"),
        (lambda s, f, c: None, "return missing"),
        (lambda s, f, c: c * (s // f) ** 2 / (3 * s * s), "latent over picture"),
        (lambda s, f, c: 3 * f * f, "latent_channels numbers at each place"),
        (lambda s, f, c: 3 * s * s, "count 3 · side · side"),
        (lambda s, f, c: s * s / (s // f) ** 2, "places, not numbers"),
    ],
    "reparameterise": [
        (lambda m, v, n: m + v.exp() * n, "exp(log_variance) is the variance"),
        (lambda m, v, n: m + v * n, "is a logarithm"),
        (lambda m, v, n: m + v.sqrt() * n, "take no root of it"),
        (lambda m, v, n: m + (2 * v).exp() * n, "halved, not doubled"),
        (lambda m, v, n: m + 0.5 * v.exp() * n, "half of the variance"),
        (lambda m, v, n: m + (v / 2).exp() * torch.randn_like(m), "draw none inside"),
        (lambda m, v, n: torch.normal(m, (v / 2).exp()), "draw none inside"),
        (lambda m, v, n: (m + (v / 2).exp() * n).detach(), "no gradient"),
        (lambda m, v, n: n.mul_((v / 2).exp()).add_(m), "in place"),
        (lambda m, v, n: m + (v.detach() / 2).exp() * n, "no gradient reaches log_variance"),
        (lambda m, v, n: m.detach() + (v / 2).exp() * n, "no gradient reaches mean"),
        (lambda m, v, n: m - (v / 2).exp() * n, "with a minus"),
        (lambda m, v, n: m + n, "without being scaled"),
        (lambda m, v, n: m, "the mean alone"),
        (lambda m, v, n: n + (v / 2).exp() * m, "swapped"),
        (lambda m, v, n: (m + (v / 2).exp() * n).float(), "dtype"),
        (lambda m, v, n: m + (v / 2).exp() * n[0], "numbers of the first sample"),
        (lambda m, v, n: m + (v.clamp(min=-10) / 2).exp() * n, "nothing is clamped"),
        (lambda m, v, n: m + (v.clamp(max=6) / 2).exp() * n, "nothing is clamped"),
        (lambda m, v, n: m + (v.exp() + 1e-5).sqrt() * n, "nothing is clamped or added"),
    ],
    "kl_to_standard_normal": [
        (lambda m, v: one_dimension(m, v).flatten(1).mean(1), "add up"),
        (lambda m, v: one_dimension(m, v), "each dimension"),
        (lambda m, v: one_dimension(m, v).sum(), "whole batch"),
        (lambda m, v: one_dimension(m, v).sum(1), "all dimensions but the first"),
        (lambda m, v: per_picture(0.5 * (m**2 + v - 1 - v.clamp(min=1e-3).log())), "log_variance"),
        (lambda m, v: per_picture(0.5 * (m**2 + v - 1 - v.log())), "already the logarithm"),
        (lambda m, v: -per_picture(one_dimension(m, v)), "never negative"),
        (lambda m, v: 2 * per_picture(one_dimension(m, v)), "½ is missing"),
        (lambda m, v: per_picture(0.5 * (m + v.exp() - 1 - v)), "squared"),
        (lambda m, v: per_picture(0.5 * (m**2 + (v / 2).exp() - 1 - v)), "is the standard deviation"),
        (lambda m, v: per_picture(0.5 * (m**2 + v.exp() - v)), "− 1 is missing"),
        (lambda m, v: per_picture(0.5 * (m**2 + v.exp() - 1 + v)), "with a minus"),
        (lambda m, v: per_picture(0.5 * (m**2 + v.exp() - 1)), "− log_variance is missing"),
        (lambda m, v: per_picture(one_dimension(m.detach(), v)), "no gradient reaches mean"),
        (lambda m, v: per_picture(one_dimension(m, v.exp_())), "in place"),
        (lambda m, v: per_picture(by_distribution_reversed(m, v)), "other way round"),
        (lambda m, v: per_picture(one_dimension(m, v)).float(), "dtype"),
        (lambda m, v: per_picture(one_dimension(m, v.clamp(min=-10))), "nothing is clamped"),
        (lambda m, v: per_picture(0.5 * (m**2 + v.exp() - 1 - (v.exp() + 1e-6).log())), "clamped or added"),
        (lambda m, v: per_picture(one_dimension(m, v)).clamp(min=0.05), "at divergence 0"),
    ],
    "best_variance": [
        (lambda a, b: b / (a**2 + b), "mind the ½"),
        (lambda a, b: (b / (2 * a**2 + b)) ** 0.5, "standard deviation"),
        (lambda a, b: (2 * a**2 + b) / b, "inverse"),
        (lambda a, b: b / (2 * a + b), "slope², not slope"),
        (lambda a, b: b / (2 * max(a, 1e-5) ** 2), "the prior pulls too"),
        (lambda a, b: b / 2, "depends on the slope"),
        (lambda a, b: 2 * a**2 / (2 * a**2 + b), "exchanged"),
        (lambda a, b: b / (2 * a * abs(a) + b), "smallest at"),
        (lambda a, b: max(b / (2 * a**2 + b), 1e-3), "smallest at"),
        (lambda a, b: b / (2 * a**2 + b) if a else 0.0, "smallest at"),
        (lambda a, b: None, "return missing"),
    ],
    "vae_loss": [
        (
            lambda x, y, kl, b: (x - y).pow(2).mean() + b * kl.mean() / (x.shape[1] * x.shape[2] * x.shape[3]),
            "stops with",
        ),
        (lambda x, y, kl, b: package.vae_loss(x, y, kl, b or 1.0), "β is missing"),
        (lambda x, y, kl, b: package.vae_loss(x, y, kl, b).half(), "half precision"),
        (lambda x, y, kl, b: package.vae_loss(x, y, kl, min(b, 1)), "β is missing"),
        (lambda x, y, kl, b: (x - y).pow(2).mean() + b * kl.mean(), "divided by the numbers"),
        (lambda x, y, kl, b: (x - y).abs().mean() + b * kl.mean() / x[0].numel(), "not absolute"),
        (lambda x, y, kl, b: (x - y).pow(2).mean() + b * kl.mean().item() / x[0].numel(), "reaches kl"),
        (lambda x, y, kl, b: (x - y).pow(2).mean() + b * kl / x[0].numel(), "one number"),
        (lambda x, y, kl, b: (x - y).pow(2).mean() + b * kl.sum() / x[0].numel(), "summed over the batch"),
        (lambda x, y, kl, b: (x - y).pow(2).mean() + b * kl.mean() / x.numel(), "over the batch twice"),
        (lambda x, y, kl, b: (x - y).pow(2).sum() + b * kl.mean() / x[0].numel(), "should be the mean"),
        (lambda x, y, kl, b: (x - y).pow(2).flatten(1).sum(1).mean() + b * kl.mean(), "must both be divided"),
        (lambda x, y, kl, b: (x - y).pow(2).mean() - b * kl.mean() / x[0].numel(), "it is a cost"),
        (lambda x, y, kl, b: b * (x - y).pow(2).mean() + kl.mean() / x[0].numel(), "β stands on the divergence"),
        (lambda x, y, kl, b: (x - y).pow(2).mean() + kl.mean() / x[0].numel(), "β is missing"),
        (lambda x, y, kl, b: (x - y).pow(2).mean().sqrt() + b * kl.mean() / x[0].numel(), "square root of the error"),
        (lambda x, y, kl, b: (x - y.detach()).pow(2).mean() + b * kl.mean() / x[0].numel(), "reconstruction"),
        (lambda x, y, kl, b: y.sub_(x).pow(2).mean() + b * kl.mean() / x[0].numel(), "in place"),
    ],
    "bears_noise": [
        (lambda: "a", "single points"),
        (lambda: "b", "wider"),
        (lambda: "d", "disturbed latents"),
        (lambda: 0.1, "return one of"),
        (lambda: None, "return one of"),
    ],
    "measure_latent_scale": [
        (lambda z: z.std().item(), "one over it"),
        (lambda z: 1 / z.var().item(), "one over the variance"),
        (lambda z: 0.18215, "Stable Diffusion's"),
        (lambda z: 1 / z.pow(2).mean().sqrt(), "about the mean"),
        (lambda z: 1 / z.std(dim=(0, 2, 3)).mean(), "mean of the channels"),
        (lambda z: 1 / z.std(dim=(0, 2, 3)), "one number for all"),
        (lambda z: 1.0, "should be 1"),
        (lambda z: 1 / z.abs().max(), "largest"),
        (lambda z: (z.pow(2).mean() - z.mean() ** 2).clamp(min=1e-12) ** -0.5, "deviation"),
        (lambda z: min(1 / z.std().item(), 20.0), "should be 1"),
        (lambda z: 1 / (z.std() + 1e-2), "should be 1"),
        (lambda z: z.sub_(z.mean()).pow(2).mean() ** -0.5, "in place"),
    ],
}


def by_distribution_reversed(mean, log_variance):
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return kl_divergence(prior, Normal(mean, (log_variance / 2).exp()))
