"""The checks of notebook 03: they take right answers, however written, and name wrong ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from course_utils.checks import reverse as check
from course_utils.diffusion import (
    add_noise,
    ddim_step,
    ddpm_step,
    denoising_loss,
    gaussian_kl,
    posterior,
    predict_noise,
    predict_x0,
    target,
)
from tests.unit.grading import grading, rejected  # noqa: F401 (the fixture works by being here)


@pytest.mark.parametrize(
    "right", [posterior, gaussian_kl, predict_x0, denoising_loss, ddpm_step, ddim_step], ids=lambda f: f.__name__
)
def test_references_pass(right: Callable) -> None:
    run_check = getattr(check, right.__name__)
    for _ in range(3):  # other random numbers each time
        assert run_check(right) is right


# --- the posterior


def by_hand(schedule, x_0, x_t, t, t_prev=None, *, variance=None, mean=None):
    """A right posterior in other words, and wrong ones by replacing a part."""
    t = torch.as_tensor(t).expand(len(x_0))
    t_prev = t - 1 if t_prev is None else torch.as_tensor(t_prev)
    bar, prev = schedule.alpha_bar(t, like=x_t).double(), schedule.alpha_bar(t_prev, like=x_t).double()
    alpha = bar / prev
    v = (1 - prev) * (1 - alpha) / (1 - bar)
    right = (prev.sqrt() * (1 - alpha) * x_0 + alpha.sqrt() * (1 - prev) * x_t) / (1 - bar)
    return (
        mean(x_0, x_t, alpha, bar, prev) if mean else right,
        variance(alpha, bar, prev) if variance else v,
    )


def test_posterior_takes_float64_and_full_shapes() -> None:
    assert check.posterior(by_hand) is by_hand

    def expanded(*args):
        mean, variance = by_hand(*args)
        return mean, variance.expand(mean.shape)

    assert check.posterior(expanded) is expanded


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"variance": lambda alpha, bar, prev: 1 - alpha}, "that is β"),
        (
            {"variance": lambda alpha, bar, prev: ((1 - prev) * (1 - alpha) / (1 - bar)).sqrt()},
            "standard deviation",
        ),
        ({"variance": lambda alpha, bar, prev: (1 - bar) * (1 - alpha) / (1 - prev)}, "upside down"),
        (
            {
                "mean": lambda a, b, alpha, bar, prev: (
                    (prev.sqrt() * (1 - alpha) * b + alpha.sqrt() * (1 - prev) * a) / (1 - bar)
                )
            },
            "swapped",
        ),
        (
            {
                "mean": lambda a, b, alpha, bar, prev: (
                    (bar.sqrt() * (1 - alpha) * a + alpha.sqrt() * (1 - prev) * b) / (1 - bar)
                )
            },
            "off by one",
        ),
        (
            {"mean": lambda a, b, alpha, bar, prev: (prev * (1 - alpha) * a + alpha * (1 - prev) * b) / (1 - bar)},
            "square roots",
        ),
    ],
)
def test_posterior_names_the_mistake(parts: dict, words: str) -> None:
    rejected(check.posterior, lambda *args: by_hand(*args, **parts), words)


def test_posterior_more_mistakes() -> None:
    rejected(check.posterior, lambda *args: by_hand(*args)[0], "two tensors")
    rejected(check.posterior, lambda schedule, x_0, x_t, t, t_prev=None: by_hand(schedule, x_0, x_t, t), "stride")

    def wraps(schedule, x_0, x_t, t, t_prev=None):  # alphas_cumprod[t − 1] is the last one at t = 0
        t = torch.as_tensor(t).expand(len(x_0))
        return by_hand(schedule, x_0, x_t, t, (t - 1) % 20 if t_prev is None else t_prev)

    rejected(check.posterior, wraps, "at t = 0")

    def in_place(schedule, x_0, x_t, t, t_prev=None):
        result = posterior(schedule, x_0, x_t, t, t_prev)
        x_t += 1
        return result

    rejected(check.posterior, in_place, "in place")


# --- Gaussian KL


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda m, v, n, w: gaussian_kl(n, w, m, v), "turned round"),
        (lambda m, v, n, w: -gaussian_kl(m, v, n, w), "sign"),
        (lambda m, v, n, w: 2 * gaussian_kl(m, v, n, w), "½"),
        (lambda m, v, n, w: gaussian_kl(m, v, n, w) + 0.5, "must be 0"),
        (lambda m, v, n, w: gaussian_kl(m, v**2, n, w**2), "variances already"),
        (lambda m, v, n, w: gaussian_kl(m, v, n, w).sum(), "summed"),
        (lambda m, v, n, w: gaussian_kl(m, v, n, w).mean(), "averaged"),
        (lambda m, v, n, w: None, "return missing"),
    ],
)
def test_gaussian_kl_names_the_mistake(wrong: Callable, words: str) -> None:
    rejected(check.gaussian_kl, wrong, words)


# --- x_0 out of a prediction


def solve(schedule, x_t, t, prediction, prediction_type="epsilon", *, epsilon=None, v=None):
    bar = schedule.alpha_bar(t, like=x_t).double()
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        return v(x_t, prediction, bar) if v else bar.sqrt() * x_t - (1 - bar).sqrt() * prediction
    return epsilon(x_t, prediction, bar) if epsilon else x_t / bar.sqrt() - (1 / bar - 1).sqrt() * prediction


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"epsilon": lambda x, p, bar: x - (1 - bar).sqrt() * p}, "divide by √ᾱ_t: x_t"),
        ({"epsilon": lambda x, p, bar: (x - (1 - bar) * p) / bar.sqrt()}, "not \\(1 − ᾱ_t\\)"),
        ({"epsilon": lambda x, p, bar: (x - (1 - bar).sqrt() * p) / bar}, "not by ᾱ_t"),
        ({"epsilon": lambda x, p, bar: (x + (1 - bar).sqrt() * p) / bar.sqrt()}, "a minus"),
        ({"v": lambda x, p, bar: bar.sqrt() * x + (1 - bar).sqrt() * p}, "there is a minus"),
        ({"v": lambda x, p, bar: bar.sqrt() * p + (1 - bar).sqrt() * x}, "that v implies"),
    ],
)
def test_predict_x0_names_the_mistake(parts: dict, words: str) -> None:
    assert check.predict_x0(solve) is solve
    rejected(check.predict_x0, lambda *args: solve(*args, **parts), words)


def test_predict_x0_must_know_all_types() -> None:
    rejected(check.predict_x0, lambda s, x, t, p, kind="epsilon": predict_x0(s, x, t, p), "give it back as it is")


# --- the loss


def loss(
    denoiser, schedule, x_0, t, noise, prediction_type="epsilon", weight=None, *, goal=None, see=None, reduce=None
):
    t = torch.as_tensor(t).expand(len(x_0))
    x_t = add_noise(schedule, x_0, t, noise)
    right = target(schedule, x_0, t, noise, prediction_type)
    error = (denoiser(see(x_0, x_t, noise) if see else x_t, t) - (goal(x_0, noise) if goal else right)) ** 2
    if reduce:
        return reduce(error, weight)
    if weight is not None:
        error = torch.einsum("bchw,b->bchw", error, weight)
    return error.mean()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"goal": lambda x_0, noise: noise}, "compared with 'epsilon'"),
        ({"goal": lambda x_0, noise: x_0}, "compared with 'sample'"),
        ({"see": lambda x_0, x_t, noise: x_0}, "clean x_0"),
        ({"see": lambda x_0, x_t, noise: x_0 + noise}, "not x_0 \\+ noise"),
        ({"reduce": lambda error, weight: error.sum()}, "sum over all"),
        ({"reduce": lambda error, weight: error.flatten(1).sum(1).mean()}, "summed over a sample"),
        ({"reduce": lambda error, weight: error.mean()}, "weight is not used"),
        ({"reduce": lambda error, weight: error.mean() * (1 if weight is None else weight.mean())}, "before the mean"),
        ({"reduce": lambda error, weight: error.mean().detach()}, "no gradient"),
        ({"reduce": lambda error, weight: error}, "one number"),
    ],
)
def test_denoising_loss_names_the_mistake(parts: dict, words: str) -> None:
    assert check.denoising_loss(loss) is loss
    rejected(check.denoising_loss, lambda *args, **kwargs: loss(*args, **kwargs, **parts), words)


# --- the steps


def ancestral(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon", *, scale=torch.sqrt, ignore=False):
    x_0 = prediction if ignore else predict_x0(schedule, x_t, t, prediction, kind)
    mean, variance = posterior(schedule, x_0, x_t, t, t_prev)
    return mean if noise is None else mean + scale(variance) * noise


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"scale": lambda v: v}, "root of the variance"),
        ({"scale": torch.zeros_like}, "mean alone"),
        ({"scale": torch.ones_like}, "without being scaled"),
        ({"ignore": True}, "used as x_0"),
    ],
)
def test_ddpm_step_names_the_mistake(parts: dict, words: str) -> None:
    assert check.ddpm_step(ancestral) is ancestral
    rejected(check.ddpm_step, lambda *args: ancestral(*args, **parts), words)


def test_ddpm_step_more_mistakes() -> None:
    def no_stride(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon"):
        return ancestral(schedule, prediction, x_t, t, t - 1, noise, kind)

    def needs_noise(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon"):
        mean, variance = posterior(schedule, predict_x0(schedule, x_t, t, prediction, kind), x_t, t, t_prev)
        return mean + variance.sqrt() * noise

    def beta(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon"):
        mean, _ = posterior(schedule, predict_x0(schedule, x_t, t, prediction, kind), x_t, t, t_prev)
        step = 1 - schedule.alpha_bar(t, like=x_t) / schedule.alpha_bar(t_prev, like=x_t)
        return mean + step.sqrt() * noise

    rejected(check.ddpm_step, no_stride, "t_prev is not used")
    rejected(check.ddpm_step, needs_noise, "variance 0")
    rejected(check.ddpm_step, beta, "σ² = β")


def again(schedule, prediction, x_t, t, t_prev, eta=0.0, noise=None, kind="epsilon", *, root=None, at=None, share=None):
    x_0 = predict_x0(schedule, x_t, t, prediction, kind)
    own = predict_noise(schedule, x_t, t, prediction, kind)
    _, variance = posterior(schedule, x_0, x_t, t, t_prev)
    sigma = eta * (share(variance) if share else variance.sqrt())
    bar = schedule.alpha_bar(at(t, t_prev) if at else t_prev, like=x_t)
    kept = root(bar, sigma) if root else (1 - bar - sigma**2).clamp(min=0).sqrt()
    return bar.sqrt() * x_0 + kept * own + (0 if noise is None else sigma * noise)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"at": lambda t, t_prev: t}, "stays at t"),
        ({"root": lambda bar, sigma: (1 - bar).sqrt()}, "room has to be made"),
        ({"root": lambda bar, sigma: (1 - bar - sigma).clamp(min=0).sqrt()}, "not σ, under the root"),
        ({"root": lambda bar, sigma: 0 * bar}, "predicted noise is missing"),
        ({"share": lambda variance: variance}, "root of the variance"),
        ({"share": torch.zeros_like}, "eta is not used"),
    ],
)
def test_ddim_step_names_the_mistake(parts: dict, words: str) -> None:
    assert check.ddim_step(again) is again
    rejected(check.ddim_step, lambda *args: again(*args, **parts), words)


def test_ddim_step_must_turn_the_prediction_into_noise() -> None:
    def raw(schedule, prediction, x_t, t, t_prev, eta=0.0, noise=None, kind="epsilon"):
        x_0 = predict_x0(schedule, x_t, t, prediction, kind)
        bar = schedule.alpha_bar(t_prev, like=x_t)
        return bar.sqrt() * x_0 + (1 - bar).sqrt() * prediction

    rejected(check.ddim_step, raw, "used as noise")


# --- the prediction


def test_five_steps() -> None:
    assert check.five_steps(lambda: "ddim")() == "ddim"
    rejected(check.five_steps, lambda: "ddpm", "fresh noise")
    rejected(check.five_steps, lambda: "same", "mean of x_0 only")
    rejected(check.five_steps, lambda: 5, "return")
