"""The checks of notebook 01: the course's version passes, versions that people write are caught by name."""

import pytest
import torch

from course_utils.checks import vae as check
from course_utils.models import vae as package


def passes(name, candidate, capsys):
    returned = getattr(check, name)(candidate)
    return returned is candidate and "correct" in capsys.readouterr().out


def message(name, candidate, capsys):
    assert getattr(check, name)(candidate) is not candidate
    return capsys.readouterr().out


def one_dimension(mean, log_variance):
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)


RIGHT = {
    "compression": [lambda s, f, c: 3 * s * s / (c * (s // f) ** 2), lambda s, f, c: 3 * f**2 / c],
    "reparameterise": [package.reparameterise, lambda m, v, n: torch.addcmul(m, v.exp().sqrt(), n)],
    "kl_to_standard_normal": [
        package.kl_to_standard_normal,
        lambda m, v: torch.stack([one_dimension(a.double(), b.double()).sum() for a, b in zip(m, v, strict=True)]),
    ],
    "best_variance": [lambda a, b: b / (2 * a**2 + b), lambda a, b: torch.tensor(1 / (1 + 2 * a * a / b))],
    "vae_loss": [
        package.vae_loss,
        lambda x, y, kl, b: sum(((p - q) ** 2).sum() + b * k for p, q, k in zip(x, y, kl, strict=True)) / x.numel(),
    ],
    "measure_latent_scale": [package.measure_latent_scale, lambda z: z.var(correction=0) ** -0.5],
}


@pytest.mark.parametrize("name", RIGHT)
def test_correct_versions_pass(name, capsys):
    for candidate in RIGHT[name]:
        assert passes(name, candidate, capsys)


WRONG = [
    ("compression", lambda s, f, c: 3 * f / c, "both the width and the height"),
    ("compression", lambda s, f, c: f * f / c, "three colours"),
    ("compression", lambda s, f, c: None, "return missing"),
    ("reparameterise", lambda m, v, n: m + v.exp() * n, "exp(log_variance) is the variance"),
    ("reparameterise", lambda m, v, n: m + v * n, "is a logarithm"),
    ("reparameterise", lambda m, v, n: m + (v / 2).exp() * torch.randn_like(m), "draw none inside"),
    ("reparameterise", lambda m, v, n: (m + (v / 2).exp() * n).detach(), "no gradient"),
    ("reparameterise", lambda m, v, n: n.mul_((v / 2).exp()).add_(m), "in place"),
    ("reparameterise", lambda m, v, n: m + (v.detach() / 2).exp() * n, "no gradient reaches log_variance"),
    ("kl_to_standard_normal", lambda m, v: one_dimension(m, v).flatten(1).mean(1), "add up"),
    ("kl_to_standard_normal", lambda m, v: one_dimension(m, v), "each dimension"),
    ("kl_to_standard_normal", lambda m, v: one_dimension(m, v).sum(), "whole batch"),
    ("kl_to_standard_normal", lambda m, v: one_dimension(m, v.clamp(min=1e-3).log()).flatten(1).sum(1), "wrong values"),
    ("kl_to_standard_normal", lambda m, v: -one_dimension(m, v).flatten(1).sum(1), "never negative"),
    ("best_variance", lambda a, b: b / (a**2 + b), "mind the ½"),
    ("best_variance", lambda a, b: (b / (2 * a**2 + b)) ** 0.5, "standard deviation"),
    ("vae_loss", lambda x, y, kl, b: (x - y).pow(2).mean() + b * kl.mean(), "divided by the numbers"),
    ("vae_loss", lambda x, y, kl, b: (x - y).abs().mean() + b * kl.mean() / x[0].numel(), "not absolute"),
    ("vae_loss", lambda x, y, kl, b: (x - y).pow(2).mean() + b * kl.mean().item() / x[0].numel(), "reaches kl"),
    ("vae_loss", lambda x, y, kl, b: (x - y).pow(2).mean() + b * kl / x[0].numel(), "one number"),
    ("measure_latent_scale", lambda z: z.std().item(), "one over it"),
    ("measure_latent_scale", lambda z: 1 / z.var().item(), "one over the variance"),
    ("measure_latent_scale", lambda z: 0.18215, "Stable Diffusion's"),
]


@pytest.mark.parametrize(("name", "candidate", "words"), WRONG, ids=[f"{n}-{w}" for n, _, w in WRONG])
def test_wrong_versions_are_named(name, candidate, words, capsys):
    assert words in message(name, candidate, capsys)


def test_grading_raises(monkeypatch):
    monkeypatch.setenv("COURSE_GRADING", "1")
    with pytest.raises(AssertionError, match="is the variance"):
        check.reparameterise(lambda m, v, n: m + v.exp() * n)
