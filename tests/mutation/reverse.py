"""Notebook 03: the posterior, Gaussian KL, x_0 out of a prediction, the loss, the DDPM and the DDIM step, the loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.distributions import Normal, kl_divergence

from course_utils.checks import reverse as checks
from course_utils.diffusion import (
    add_noise,
    ddim_step,
    ddpm_step,
    denoising_loss,
    gaussian_kl,
    posterior,
    predict_noise,
    predict_x0,
    sample,
    target,
)
from course_utils.diffusion.samplers import check_noise
from course_utils.diffusion.schedule import NoiseSchedule

__all__ = ["RIGHT", "WRONG", "checks"]

# --- slips that have nothing to do with the formula


def at_other_times(function: Callable, times: Callable, place: int = 3) -> Callable:
    """The argument at this place, a time, replaced."""

    def candidate(*arguments, **settings):
        schedule = next(value for value in arguments if isinstance(value, NoiseSchedule))
        changed = times(torch.as_tensor(arguments[place]), schedule.num_train_timesteps)
        return function(*arguments[:place], changed, *arguments[place + 1 :], **settings)

    return candidate


def from_the_second(t, T):
    return t.clamp(min=1)


def to_the_last_but_one(t, T):
    return t.clamp(max=T - 2)


def first_for_all(t, T):
    return t[:1].expand_as(t) if t.ndim else t


def with_times_of_the_first_call(function: Callable, place: int = 3) -> Callable:
    """Works the factors' times out once and keeps them."""
    kept: list = []

    def candidate(*arguments, **settings):
        kept.append(arguments[place])
        return function(*arguments[:place], kept[0], *arguments[place + 1 :], **settings)

    return candidate


def for_pictures_only(function: Callable, place: int = 2) -> Callable:
    """Factors of shape [B, 1, 1, 1] set against whatever comes."""

    def candidate(*arguments, **settings):
        result = function(*arguments, **settings)
        return result if arguments[place].ndim == 4 else result + torch.zeros(len(result), 1, 1, 1)

    return candidate


def in_float32(function: Callable) -> Callable:
    return lambda *arguments, **settings: function(*arguments, **settings).float()


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


def by_precisions(schedule, x_0, x_t, t, t_prev=None):
    """A and B of the proof; sample by sample, the last step apart."""
    means, variances = [], []
    times = torch.as_tensor(t).expand(len(x_0)).tolist()
    earlier = [s - 1 for s in times] if t_prev is None else torch.as_tensor(t_prev).expand(len(x_0)).tolist()
    for a, b, s, r in zip(x_0.double(), x_t.double(), times, earlier, strict=True):
        bar = math.prod(schedule.alphas[: s + 1].tolist())
        prev = math.prod(schedule.alphas[: r + 1].tolist())
        alpha = bar / prev
        if r < 0:
            mean, variance = a, 0.0
        else:
            A = alpha / (1 - alpha) + 1 / (1 - prev)
            mean, variance = (alpha**0.5 / (1 - alpha) * b + prev**0.5 / (1 - prev) * a) / A, 1 / A
        means.append(mean)
        variances.append(torch.full_like(a, variance))
    return torch.stack(means).to(x_t.dtype), torch.stack(variances).to(x_t.dtype)


def mean_with(mean: Callable) -> Callable:
    return lambda *args: by_hand(*args, mean=mean)


def variance_with(variance: Callable) -> Callable:
    return lambda *args: by_hand(*args, variance=variance)


def posterior_that_wraps(schedule, x_0, x_t, t, t_prev=None):
    """alphas_cumprod[t − 1] is the last one at t = 0."""
    t = torch.as_tensor(t).expand(len(x_0))
    return by_hand(schedule, x_0, x_t, t, (t - 1) % 20 if t_prev is None else t_prev)


def posterior_floored(schedule, x_0, x_t, t, t_prev=None):
    """The variance kept away from 0, also at t = 0."""
    mean, variance = posterior(schedule, x_0, x_t, t, t_prev)
    return mean, variance.clamp(min=1e-2)


def floored_at(least):
    def candidate(*arguments):
        mean, variance = posterior(*arguments)
        return mean, variance.clamp(min=least)

    return candidate


def posterior_in_place(schedule, x_0, x_t, t, t_prev=None):
    result = posterior(schedule, x_0, x_t, t, t_prev)
    x_t += 1
    return result


# --- Gaussian KL


def kl_in_a_loop(mean1, var1, mean2, var2):
    m, v, n, w = torch.broadcast_tensors(mean1, var1, mean2, var2)
    each = zip(*(x.double().flatten() for x in (m, v, n, w)), strict=True)
    return torch.stack([0.5 * ((d / b).log() - 1 + (b + (a - c) ** 2) / d) for a, b, c, d in each]).reshape(m.shape)


# --- x_0 out of a prediction


def solve(schedule, x_t, t, prediction, prediction_type="epsilon", *, epsilon=None, v=None):
    bar = schedule.alpha_bar(t, like=x_t).double()
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        return v(x_t, prediction, bar) if v else bar.sqrt() * x_t - (1 - bar).sqrt() * prediction
    return epsilon(x_t, prediction, bar) if epsilon else x_t / bar.sqrt() - (1 / bar - 1).sqrt() * prediction


def solve_with_clamped(least):
    """ᾱ kept away from 0, for fear of dividing by it."""

    def epsilon(x_t, noise, bar):
        bar = bar.clamp(min=least)
        return (x_t - (1 - bar).sqrt() * noise) / bar.sqrt()

    return lambda *arguments: solve(*arguments, epsilon=epsilon)


def solve_by_linear_algebra(schedule, x_t, t, prediction, prediction_type="epsilon"):
    """Two equations, x_t and the prediction in terms of x_0 and noise, solved for each sample."""
    rows = []
    for x, p, s in zip(x_t, prediction, torch.as_tensor(t).expand(len(x_t)).tolist(), strict=True):
        bar = schedule.alphas_cumprod[s].item()
        c, d = math.sqrt(bar), math.sqrt(1 - bar)
        second = {"epsilon": (0.0, 1.0), "sample": (1.0, 0.0), "v_prediction": (-d, c)}[prediction_type]
        both = torch.stack([x.flatten(), p.flatten()]).double()
        rows.append(torch.linalg.solve(torch.tensor([(c, d), second]).double(), both)[0].reshape(x.shape))
    return torch.stack(rows).to(x_t.dtype)


def epsilon_with(epsilon: Callable) -> Callable:
    return lambda *args: solve(*args, epsilon=epsilon)


def v_with(v: Callable) -> Callable:
    return lambda *args: solve(*args, v=v)


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


def loss_in_a_loop(denoiser, schedule, x_0, t, noise, prediction_type="epsilon", weight=None):
    t = torch.as_tensor(t).expand(len(x_0))
    prediction = denoiser(add_noise(schedule, x_0, t, noise), t)
    goals = target(schedule, x_0, t, noise, prediction_type)
    weights = [1.0] * len(x_0) if weight is None else weight.tolist()
    pairs = zip(prediction.double(), goals.double(), weights, strict=True)
    return sum(w * torch.nn.functional.mse_loss(p, g) for p, g, w in pairs) / len(x_0)


def loss_with(**parts: Callable) -> Callable:
    return lambda *args, **kwargs: loss(*args, **kwargs, **parts)


def loss_at_the_step_before(denoiser, schedule, x_0, t, noise, prediction_type="epsilon", weight=None):
    return denoising_loss(lambda x, s: denoiser(x, s - 1), schedule, x_0, t, noise, prediction_type, weight)


def loss_that_skips_zeros(denoiser, schedule, x_0, t, noise, prediction_type="epsilon", weight=None):
    if weight is not None and not weight.all():
        weight = None
    return denoising_loss(denoiser, schedule, x_0, t, noise, prediction_type, weight)


def loss_in_place(denoiser, schedule, x_0, t, noise, prediction_type="epsilon", weight=None):
    value = denoising_loss(denoiser, schedule, x_0, t, noise, prediction_type, weight)
    noise.sub_(x_0)
    return value


def loss_with_own_noise(denoiser, schedule, x_0, t, noise, prediction_type="epsilon", weight=None):
    return denoising_loss(denoiser, schedule, x_0, t, torch.randn_like(x_0), prediction_type, weight)


# --- the steps


def ancestral(
    schedule, prediction, x_t, t, t_prev, noise, kind="epsilon", variance_type="", *, scale=None, ignore=0, large=None
):
    x_0 = prediction if ignore else predict_x0(schedule, x_t, t, prediction, kind)
    mean, variance = posterior(schedule, x_0, x_t, t, t_prev)
    if variance_type == "fixed_large":
        prev = schedule.alpha_bar(t_prev, like=x_t)
        stride = 1 - schedule.alpha_bar(t, like=x_t) / prev
        variance = large(schedule, t, stride, variance) if large else stride
    return mean if noise is None else mean + (scale or torch.sqrt)(variance) * noise


def ancestral_through_ddim(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon", variance_type="fixed_small"):
    if variance_type == "fixed_large":  # β is β̃ · (1 − ᾱ_t) / (1 − ᾱ_prev)
        bar, prev = schedule.alpha_bar(t, like=x_t), schedule.alpha_bar(t_prev, like=x_t)
        noise = None if noise is None else ((1 - bar) / (1 - prev)).sqrt() * noise
    return ddim_step(schedule, prediction, x_t, t, t_prev, 1.0, noise, kind)


def ancestral_in_loop(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon", variance_type="fixed_small"):
    rows = []
    for i in range(len(x_t)):
        one, r = slice(i, i + 1), torch.as_tensor(t_prev).expand(len(x_t))[i : i + 1]
        x_0 = predict_x0(schedule, x_t[one], t[one], prediction[one], kind)
        mean, variance = posterior(schedule, x_0, x_t[one], t[one], r)
        if variance_type == "fixed_large" and int(r) >= 0:
            share = schedule.alphas[int(r) + 1 : int(t[i]) + 1].prod()  # of the variance, kept by the stride
            variance = torch.full_like(variance, 1 - share.item())
        rows.append(mean if int(r) < 0 else mean.double() + variance.double() ** 0.5 * noise[one])
    return torch.cat(rows).to(x_t.dtype)


def ddpm_with(**parts) -> Callable:
    return lambda *args, **kwargs: ancestral(*args, **kwargs, **parts)


def noisy_at_the_end(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon", variance_type="fixed_small"):
    """With β also at the last step, as if it were any other."""
    if variance_type == "fixed_small":
        return ddpm_step(schedule, prediction, x_t, t, t_prev, noise, kind)
    mean, _ = posterior(schedule, predict_x0(schedule, x_t, t, prediction, kind), x_t, t, t_prev)
    beta = 1 - schedule.alpha_bar(t, like=x_t) / schedule.alpha_bar(t_prev, like=x_t)
    return mean + beta.sqrt() * check_noise(noise, beta, x_t)


def ddpm_without_strides(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon"):
    return ancestral(schedule, prediction, x_t, t, t - 1, noise, kind)


def ddpm_that_needs_noise(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon"):
    mean, variance = posterior(schedule, predict_x0(schedule, x_t, t, prediction, kind), x_t, t, t_prev)
    return mean + variance.sqrt() * noise


def ddpm_with_beta(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon"):
    mean, _ = posterior(schedule, predict_x0(schedule, x_t, t, prediction, kind), x_t, t, t_prev)
    step = 1 - schedule.alpha_bar(t, like=x_t) / schedule.alpha_bar(t_prev, like=x_t)
    return mean + step.sqrt() * noise


def noised_afresh(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon"):
    x_0, bar = predict_x0(schedule, x_t, t, prediction, kind), schedule.alpha_bar(t_prev, like=x_t)
    return bar.sqrt() * x_0 + (1 - bar).sqrt() * noise


def ddpm_draws_itself(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon"):
    return ancestral(schedule, prediction, x_t, t, t_prev, torch.randn_like(x_t), kind)


def ddpm_in_place(schedule, prediction, x_t, t, t_prev, noise, kind="epsilon"):
    result = ddpm_step(schedule, prediction, x_t, t, t_prev, noise, kind)
    return x_t.copy_(result)


def again(schedule, prediction, x_t, t, t_prev, eta=0.0, noise=None, kind="epsilon", *, root=None, at=None, share=None):
    x_0 = predict_x0(schedule, x_t, t, prediction, kind)
    own = predict_noise(schedule, x_t, t, prediction, kind)
    _, variance = posterior(schedule, x_0, x_t, t, t_prev)
    sigma = eta * (share(variance) if share else variance.sqrt())
    bar = schedule.alpha_bar(at(t, t_prev) if at else t_prev, like=x_t)
    kept = root(bar, sigma) if root else (1 - bar - sigma**2).clamp(min=0).sqrt()
    return bar.sqrt() * x_0 + kept * own + (0 if noise is None else sigma * noise)


def again_as_in_the_paper(schedule, prediction, x_t, t, t_prev, eta=0.0, noise=None, kind="epsilon"):
    """Equation 16 written out, in float64."""
    x, p = x_t.double(), prediction.double()
    bar, prev = schedule.alpha_bar(t, like=x).double(), schedule.alpha_bar(t_prev, like=x).double()
    sigma = eta * ((1 - prev) / (1 - bar)).sqrt() * (1 - bar / prev).sqrt()
    x_0 = predict_x0(schedule, x, t, p, kind)
    epsilon = (x - bar.sqrt() * x_0) / (1 - bar).sqrt()
    result = prev.sqrt() * x_0 + (1 - prev - sigma**2).clamp(min=0).sqrt() * epsilon
    return (result if noise is None else result + sigma * noise).to(x_t.dtype)


def ddim_with(**parts: Callable) -> Callable:
    return lambda *args: again(*args, **parts)


def ddim_raw(schedule, prediction, x_t, t, t_prev, eta=0.0, noise=None, kind="epsilon"):
    x_0 = predict_x0(schedule, x_t, t, prediction, kind)
    bar = schedule.alpha_bar(t_prev, like=x_t)
    return bar.sqrt() * x_0 + (1 - bar).sqrt() * prediction


def ddim_without_roots(schedule, prediction, x_t, t, t_prev, eta=0.0, noise=None, kind="epsilon"):
    x_0 = predict_x0(schedule, x_t, t, prediction, kind)
    bar = schedule.alpha_bar(t_prev, like=x_t)
    return bar * x_0 + (1 - bar) * predict_noise(schedule, x_t, t, prediction, kind)


def ddim_swapped(schedule, prediction, x_t, t, t_prev, eta=0.0, noise=None, kind="epsilon"):
    x_0 = predict_x0(schedule, x_t, t, prediction, kind)
    bar = schedule.alpha_bar(t_prev, like=x_t)
    return bar.sqrt() * predict_noise(schedule, x_t, t, prediction, kind) + (1 - bar).sqrt() * x_0


def ddim_alone(schedule, prediction, x_t, t, t_prev, eta=0.0, noise=None, kind="epsilon"):
    return predict_x0(schedule, x_t, t, prediction, kind)


def ddim_in_place(schedule, prediction, x_t, t, t_prev, eta=0.0, noise=None, kind="epsilon"):
    return x_t.copy_(ddim_step(schedule, prediction, x_t, t, t_prev, eta, noise, kind))


def ddim_without_strides(schedule, prediction, x_t, t, t_prev, eta=0.0, noise=None, kind="epsilon"):
    return ddim_step(schedule, prediction, x_t, t, t - 1, eta, noise, kind)


# --- the loop


def draw(
    denoiser, schedule, x, steps, sampler="ddim", eta=0.0, prediction_type="epsilon", generator=None,
    variance_type="fixed_small", *, pairs=None, ask=None, noises=None, gives=None, start=None, kind=None, way=None,
):  # fmt: skip
    """The loop in other words than the course's, and wrong ones by replacing a part."""
    path, first, fixed = [x], x, torch.randn(x.shape, generator=generator) if noises == "outside" else None
    times = [int(t) for t in schedule.timesteps(steps)]
    for t, t_prev in pairs(times) if pairs else [*zip(times, times[1:], strict=False), (times[-1], -1)]:
        x = first if start else x
        prediction = denoiser(x, ask(x, t, t_prev) if ask else torch.tensor([t] * len(x)))
        fresh = torch.randn(x.shape, generator=None if noises == "own" else generator) if fixed is None else fixed
        if (sampler if way is None else way) == "ddpm":
            x = ddpm_step(schedule, prediction, x, t, t_prev, fresh, kind or prediction_type, variance_type)
        else:
            x = ddim_step(schedule, prediction, x, t, t_prev, eta, fresh, kind or prediction_type)
        path.append(x)
    return gives(path) if gives else path


def drawn_through_sample(
    denoiser,
    schedule,
    x,
    steps,
    sampler="ddim",
    eta=0.0,
    prediction_type="epsilon",
    generator=None,
    variance_type="fixed_small",
):
    """The package's own loop."""
    if variance_type != "fixed_small":
        return draw(denoiser, schedule, x, steps, sampler, eta, prediction_type, generator, variance_type)
    settings = {"sampler": sampler, "eta": eta, "prediction_type": prediction_type, "generator": generator}
    return [x, *sample(denoiser, schedule, x, steps, **settings)]


def drawn_backwards(
    denoiser,
    schedule,
    x,
    steps,
    sampler="ddim",
    eta=0.0,
    prediction_type="epsilon",
    generator=None,
    variance_type="fixed_small",
):
    """Recursion instead of a loop; a tuple in the end."""

    def rest(x, times):
        if not times:
            return ()
        t, t_prev = times[0], times[1] if len(times) > 1 else -1
        said = denoiser(x, torch.full([len(x)], t))
        noise = torch.randn(x.shape, generator=generator) if t_prev >= 0 and generator is not None else None
        if sampler == "ddpm":
            x = ddpm_step(schedule, said, x, t, t_prev, noise, prediction_type, variance_type)
        else:
            x = ddim_step(schedule, said, x, t, t_prev, eta, noise, prediction_type)
        return (x, *rest(x, times[1:]))

    return (x, *rest(x, schedule.timesteps(steps).tolist()))


def draw_with(**parts) -> Callable:
    return lambda *args, **kwargs: draw(*args, **kwargs, **parts)


def draw_without(name: str) -> Callable:
    return lambda *args, **kwargs: draw(*args, **{k: v for k, v in kwargs.items() if k != name})


def draw_in_place(denoiser, schedule, x, *args, **kwargs):
    path = draw(denoiser, schedule, x, *args, **kwargs)
    x.copy_(path[-1])
    return path


RIGHT = {
    "posterior": [posterior, by_hand, by_precisions, lambda *a: tuple(x.expand(a[2].shape) for x in by_hand(*a))],
    "gaussian_kl": [
        gaussian_kl,
        lambda m, v, n, w: kl_divergence(Normal(m, v.sqrt()), Normal(n, w.sqrt())),
        lambda m, v, n, w: 0.5 * ((w / v).double().log() - 1 + (v + (n - m).square()) / w),
        kl_in_a_loop,
    ],
    "predict_x0": [predict_x0, solve, solve_by_linear_algebra],
    "denoising_loss": [denoising_loss, loss, loss_in_a_loop],
    "ddpm_step": [ddpm_step, ancestral, ancestral_through_ddim, ancestral_in_loop],
    "ddim_step": [ddim_step, again, again_as_in_the_paper],
    "draw": [draw, drawn_through_sample, drawn_backwards],
    "five_steps": [lambda: "large", lambda: "Large", lambda: " large "],
}

WRONG = {
    "posterior": [
        (floored_at(1e-5), "no floor"),
        (floored_at(1e-4), "no floor"),
        (variance_with(lambda alpha, bar, prev: 1 - alpha), "that is β"),
        (variance_with(lambda alpha, bar, prev: ((1 - prev) * (1 - alpha) / (1 - bar)).sqrt()), "standard deviation"),
        (variance_with(lambda alpha, bar, prev: (1 - bar) * (1 - alpha) / (1 - prev)), "upside down"),
        (variance_with(lambda alpha, bar, prev: ((1 - prev) * (1 - alpha) / (1 - bar)).log()), "logarithm"),
        (variance_with(lambda alpha, bar, prev: (1 - prev) / (1 - bar)), "β is missing"),
        (variance_with(lambda alpha, bar, prev: 1 - prev), "x_t tells more"),
        (mean_with(lambda a, b, k, bar, p: (p.sqrt() * (1 - k) * b + k.sqrt() * (1 - p) * a) / (1 - bar)), "swapped"),
        (
            mean_with(lambda a, b, k, bar, p: (bar.sqrt() * (1 - k) * a + k.sqrt() * (1 - p) * b) / (1 - bar)),
            "off by one",
        ),
        (
            mean_with(lambda a, b, k, bar, p: (p.sqrt() * (1 - k) * a + bar.sqrt() * (1 - p) * b) / (1 - bar)),
            "not √ᾱ_t",
        ),
        (mean_with(lambda a, b, k, bar, p: (p * (1 - k) * a + k * (1 - p) * b) / (1 - bar)), "square roots"),
        (mean_with(lambda a, b, k, bar, p: p.sqrt() * (1 - k) * a + k.sqrt() * (1 - p) * b), "divided by 1 − ᾱ_t"),
        (mean_with(lambda a, b, k, bar, p: p.sqrt() * a), "q(x_prev | x_0)"),
        (
            mean_with(lambda a, b, k, bar, p: (p.sqrt() * (1 - k) * a + k.sqrt() * (1 - bar) * b) / (1 - bar)),
            "1 − ᾱ_prev",
        ),
        (lambda *args: by_hand(*args)[0], "two tensors"),
        (lambda *args: by_hand(*args)[::-1], "the other way round"),
        (lambda schedule, x_0, x_t, t, t_prev=None: by_hand(schedule, x_0, x_t, t), "stride"),
        (posterior_that_wraps, "at t = 0"),
        (posterior_floored, "at t = 0"),
        (posterior_in_place, "in place"),
        (lambda *args: tuple(x.detach() for x in posterior(*args)), "gradient"),
        (at_other_times(posterior, to_the_last_but_one), "t a LongTensor"),
        (at_other_times(posterior, first_for_all), "t a LongTensor"),
    ],
    "gaussian_kl": [
        (lambda m, v, n, w: gaussian_kl(n, w, m, v), "turned round"),
        (lambda m, v, n, w: -gaussian_kl(m, v, n, w), "sign"),
        (lambda m, v, n, w: 2 * gaussian_kl(m, v, n, w), "½"),
        (lambda m, v, n, w: gaussian_kl(m, v, n, w) + 0.5, "must be 0"),
        (lambda m, v, n, w: gaussian_kl(m, v**2, n, w**2), "variances already"),
        (lambda m, v, n, w: gaussian_kl(m, v.exp(), n, w.exp()), "are not logarithms"),
        (lambda m, v, n, w: gaussian_kl(m, v, n, w).sum(), "summed"),
        (lambda m, v, n, w: gaussian_kl(m, v, n, w).mean(), "averaged"),
        (lambda m, v, n, w: gaussian_kl(m, v, n, w).flatten(1).sum(1), "summed"),
        (lambda m, v, n, w: gaussian_kl(m, v, n, w) - (w.log() - v.log()), "upside down"),
        (lambda m, v, n, w: 0.5 * (w.log() - v.log() + (v + m - n) / w - 1), "squared"),
        (lambda m, v, n, w: 0.5 * (w.log() - v.log() + v / w + (m - n) ** 2 - 1), "divided by var2"),
        (lambda m, v, n, w: 0.5 * ((v + (m - n) ** 2) / w - 1), "logarithms of the variances are missing"),
        (lambda m, v, n, w: kl_divergence(Normal(m, v), Normal(n, w)), "variances already"),
        (lambda m, v, n, w: gaussian_kl(m, v.log_().exp(), n, w), "in place"),
        (lambda m, v, n, w: gaussian_kl(m.detach(), v, n, w), "reaches mean1"),
        (lambda m, v, n, w: gaussian_kl(m, v.clamp(min=1e-5), n, w), "added to it or clamped"),
        (lambda m, v, n, w: gaussian_kl(m, v, n, w + 1e-6), "added to it or clamped"),
        (lambda m, v, n, w: gaussian_kl(m, v, n, w.clamp(max=50)), "added to it or clamped"),
        (lambda m, v, n, w: gaussian_kl(m, v, n.expand(4, 6), w), "stops with"),
        (lambda m, v, n, w: None, "return missing"),
    ],
    "predict_x0": [
        (solve_with_clamped(1e-3), "does not give back"),
        (solve_with_clamped(1e-4), "does not give back"),
        (epsilon_with(lambda x, p, bar: x - (1 - bar).sqrt() * p), "divide by √ᾱ_t: x_t"),
        (epsilon_with(lambda x, p, bar: (x - (1 - bar) * p) / bar.sqrt()), "not (1 − ᾱ_t)"),
        (epsilon_with(lambda x, p, bar: (x - (1 - bar).sqrt() * p) / bar), "not by ᾱ_t"),
        (epsilon_with(lambda x, p, bar: (x + (1 - bar).sqrt() * p) / bar.sqrt()), "a minus"),
        (epsilon_with(lambda x, p, bar: (x - p) / bar.sqrt()), "has to be scaled"),
        (epsilon_with(lambda x, p, bar: x - p), "neither"),
        (epsilon_with(lambda x, p, bar: (x - bar.sqrt() * p) / (1 - bar).sqrt()), "the roots are swapped"),
        (v_with(lambda x, p, bar: bar.sqrt() * x + (1 - bar).sqrt() * p), "there is a minus"),
        (v_with(lambda x, p, bar: bar.sqrt() * p + (1 - bar).sqrt() * x), "that v implies"),
        (v_with(lambda x, p, bar: (1 - bar).sqrt() * x - bar.sqrt() * p), "swapped"),
        (v_with(lambda x, p, bar: bar * x - (1 - bar) * p), "square roots are missing"),
        (lambda s, x, t, p, kind="epsilon": predict_x0(s, x, t, p), "give it back as it is"),
        (
            lambda s, x, t, p, kind="epsilon": predict_x0(s, x, t, p, "sample" if kind == "sample" else "epsilon"),
            "treated as noise",
        ),
        (lambda s, x, t, p, kind="epsilon": predict_x0(s, x, t - 1, p, kind), "ᾱ off by one"),
        (lambda s, x, t, p, kind="epsilon": predict_x0(s, x, t, p.detach(), kind), "no gradient"),
        (lambda s, x, t, p, kind="epsilon": x.copy_(predict_x0(s, x, t, p, kind)), "in place"),
        (at_other_times(predict_x0, from_the_second, 2), "does not give back"),
        (at_other_times(predict_x0, to_the_last_but_one, 2), "does not give back"),
        (with_times_of_the_first_call(predict_x0, 2), "stops with"),
        (lambda *args: predict_x0(*args).clamp(-5, 5), "does not give back"),
        (for_pictures_only(predict_x0, 1), "shape"),
        (in_float32(predict_x0), "dtype"),
    ],
    "denoising_loss": [
        (loss_with(goal=lambda x_0, noise: noise), "compared with 'epsilon'"),
        (loss_with(goal=lambda x_0, noise: x_0), "compared with 'sample'"),
        (loss_with(see=lambda x_0, x_t, noise: x_0), "clean x_0"),
        (loss_with(see=lambda x_0, x_t, noise: noise), "the noise alone"),
        (loss_with(see=lambda x_0, x_t, noise: x_0 + noise), "not x_0 + noise"),
        (loss_with(reduce=lambda error, weight: error.sum()), "sum over all"),
        (loss_with(reduce=lambda error, weight: error.flatten(1).sum(1).mean()), "summed over a sample"),
        (loss_with(reduce=lambda error, weight: error.mean()), "weight is not used"),
        (
            loss_with(reduce=lambda error, weight: error.mean() * (1 if weight is None else weight.mean())),
            "before the mean",
        ),
        (loss_with(reduce=lambda error, weight: error.mean().sqrt()), "no root"),
        (loss_with(reduce=lambda error, weight: error.mean() / 2), "no ½"),
        (loss_with(reduce=lambda error, weight: error.sqrt().mean()), "not absolute"),
        (loss_with(reduce=lambda error, weight: error.mean().detach()), "no gradient"),
        (loss_with(reduce=lambda error, weight: error.mean().item()), "one number"),
        (loss_with(reduce=lambda error, weight: error), "one number"),
        (
            lambda d, *args, **kwargs: denoising_loss(lambda x, t: d(x, t).detach() + 0 * d(x, t), *args, **kwargs),
            "detached",
        ),
        (loss_at_the_step_before, "that x_t was noised to"),
        (at_other_times(denoising_loss, from_the_second), "at the ends of the table"),
        (at_other_times(denoising_loss, to_the_last_but_one), "at the ends of the table"),
        (loss_that_skips_zeros, "with a weight of 0"),
        (loss_with(reduce=lambda e, w: (e if w is None else e * w.clamp(max=5)[:, None, None, None]).mean()), "of 20"),
        (loss_with_own_noise, "draw none"),
        (loss_in_place, "in place"),
    ],
    "ddpm_step": [
        (ddpm_with(scale=lambda v: v), "root of the variance"),
        (ddpm_with(scale=torch.zeros_like), "mean alone"),
        (ddpm_with(large=lambda s, t, stride, small: small), "variance_type is not used"),
        (ddpm_with(large=lambda s, t, stride, small: stride**2), "not its root"),
        (ddpm_with(large=lambda s, t, stride, small: s.beta(t, like=small)), "the stride's own β"),
        (noisy_at_the_end, "still has variance 0"),
        (ddpm_with(scale=torch.ones_like), "without being scaled"),
        (ddpm_with(scale=lambda v: -v.sqrt()), "a minus before the noise"),
        (ddpm_with(ignore=True), "used as x_0"),
        (ddpm_without_strides, "t_prev is not used"),
        (ddpm_that_needs_noise, "variance 0"),
        (ddpm_with_beta, "σ² = β"),
        (noised_afresh, "noised afresh"),
        (ddpm_draws_itself, "draw none"),
        (lambda s, p, x, t, r, n, kind="epsilon": ddpm_step(s, p, x, t, r, n), "prediction_type is not passed on"),
        (ddpm_in_place, "in place"),
        (ddpm_with(scale=lambda v: v.clamp(min=1e-4).sqrt()), "no floor"),
        (at_other_times(ddpm_step, to_the_last_but_one), "the ends of the table"),
        (with_times_of_the_first_call(ddpm_step), "must be before t"),
        (at_other_times(ddpm_step, lambda r, T: torch.where(r == 0, -1, r), 4), "the ends of the table"),
        (for_pictures_only(ddpm_step), "shape"),
        (in_float32(ddpm_step), "dtype"),
    ],
    "ddim_step": [
        (ddim_with(at=lambda t, t_prev: t), "stays at t"),
        (ddim_with(root=lambda bar, sigma: (1 - bar).sqrt()), "room has to be made"),
        (ddim_with(root=lambda bar, sigma: (1 - bar - sigma).clamp(min=0).sqrt()), "not σ, under the root"),
        (ddim_with(root=lambda bar, sigma: 0 * bar), "predicted noise is missing"),
        (ddim_with(share=lambda variance: variance), "root of the variance"),
        (ddim_with(share=torch.zeros_like), "eta is not used"),
        (ddim_raw, "used as noise"),
        (ddim_without_roots, "square roots are missing"),
        (ddim_swapped, "swapped"),
        (ddim_alone, "x_0 alone"),
        (ddim_without_strides, "t_prev is not used"),
        (
            lambda s, p, x, t, r, e=0.0, n=None, k="epsilon": ddim_step(s, p, x, t, r, e, n),
            "prediction_type is not passed",
        ),
        (
            lambda s, p, x, t, r, e=0.0, n=None, k="epsilon": ddim_step(s, p, x, t, r, e, torch.randn_like(x), k),
            "draw none",
        ),
        (ddim_in_place, "in place"),
        (at_other_times(ddim_step, to_the_last_but_one), "the ends of the table"),
        (at_other_times(ddim_step, lambda r, T: torch.where(r == 0, -1, r), 4), "the ends of the table"),
        (with_times_of_the_first_call(ddim_step), "must be before t"),
        (for_pictures_only(ddim_step), "shape"),
        (in_float32(ddim_step), "dtype"),
    ],
    "draw": [
        (draw_with(pairs=lambda times: [(t, t - 1) for t in times]), "not t − 1"),
        (draw_with(pairs=lambda times: list(zip(times, [*times[1:], 0], strict=True))), "there is still noise"),
        (draw_with(pairs=lambda times: list(zip(times, times[1:], strict=False))), "a step is missing"),
        (draw_with(start=True), "the step before gave"),
        (draw_with(ask=lambda x, t, t_prev: torch.full((len(x),), max(t_prev, 0))), "not t_prev"),
        (draw_with(ask=lambda x, t, t_prev: t), "LongTensor"),
        (draw_with(ask=lambda x, t, t_prev: torch.full((len(x),), t / 20)), "LongTensor"),
        (draw_with(noises="outside"), "inside the loop"),
        (draw_with(noises="own"), "same generator"),
        (draw_with(gives=lambda path: path[-1]), "list of all points"),
        (draw_with(gives=lambda path: path[1:]), "begins with the noise"),
        (draw_with(gives=lambda path: path[::-1]), "back to front"),
        (draw_with(gives=lambda path: None), "return missing"),
        (draw_with(kind="epsilon"), "prediction_type is not passed on"),
        (draw_with(way="ddim"), "sampler is not passed on"),
        (draw_without("eta"), "eta is not passed on"),
        (draw_without("variance_type"), "variance_type is not passed on"),
        (draw_in_place, "in place"),
        (lambda d, s, x, n, *rest, **settings: draw(d, s, x, max(n, 2), *rest, **settings), "a single step"),
        (lambda d, s, x, n, *rest, **settings: draw(d, s, x, min(n, 19), *rest, **settings), "as many steps"),
    ],
    "five_steps": [
        (lambda: "ddim", "too close together"),
        (lambda: "small", "too little noise"),
        (lambda: "ddpm", "return one of"),
        (lambda: 5, "return one of"),
        (lambda: None, "return one of"),
    ],
}
