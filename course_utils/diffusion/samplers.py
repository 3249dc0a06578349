"""Samplers: from noise to a picture, by DDPM's random steps, DDIM's straight ones, or DPM-Solver++'s curved ones.

One step each as a pure function (the third in `dpm_solver.py`), and one loop for all. The loop knows nothing of
conditions or guidance: those are wrappers that make a denoiser (x_t, t) -> prediction out of another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from course_utils.diffusion.dpm_solver import dpmpp_2m_step
from course_utils.diffusion.reverse import (
    Denoiser,
    check_prediction_type,
    check_variance_type,
    posterior,
    predict_noise,
    predict_x0,
)
from course_utils.diffusion.schedule import NoiseSchedule, check_inputs, check_number

SAMPLERS = ("ddim", "ddpm", "dpmpp_2m")


def ddpm_step(
    schedule: NoiseSchedule,
    prediction: Tensor,
    x_t: Tensor,
    t: int | Tensor,
    t_prev: int | Tensor,
    noise: Tensor | None,
    prediction_type: str = "epsilon",
    variance_type: str = "fixed_small",
) -> Tensor:
    """One random step from t back to t_prev: the posterior's mean, with x_0 as predicted, plus σ · noise.

    Ho et al. 2020, algorithm 2, for any stride. "fixed_small" has σ² = β̃, the posterior's own variance;
    "fixed_large" σ² = β = 1 − ᾱ_t / ᾱ_prev (their section 3.2). At t_prev = −1 both are 0 and the result is
    the predicted x_0, so noise may be None there.

    Returns x at t_prev [B, …]. Raises ValueError for bad times or shapes, another variance_type, or noise that
    is missing.
    """
    check_variance_type(variance_type)
    x_0 = predict_x0(schedule, x_t, t, prediction, prediction_type)
    mean, variance = posterior(schedule, x_0, x_t, t, t_prev)
    if variance_type == "fixed_large":
        beta = 1 - schedule.alpha_bar(t, like=x_t) / schedule.alpha_bar(t_prev, like=x_t)
        variance = torch.where(variance > 0, beta, variance)  # still 0 at the last step
    x_prev = mean + variance.sqrt() * check_noise(noise, variance, x_t)
    return x_prev.to(x_t.dtype)


def ddim_step(
    schedule: NoiseSchedule,
    prediction: Tensor,
    x_t: Tensor,
    t: int | Tensor,
    t_prev: int | Tensor,
    eta: float = 0.0,
    noise: Tensor | None = None,
    prediction_type: str = "epsilon",
) -> Tensor:
    """One step from t back to t_prev: the predicted x_0, noised again to t_prev's level with its own noise.

    Song et al. 2021 (DDIM), equation 12, with σ from equation 16. With eta = 0 nothing is drawn; eta = 1
    has DDPM's variance, and is the same step.

    Returns x at t_prev [B, …]. Raises ValueError for bad times or shapes, eta outside 0 … 1, or noise
    that is missing.
    """
    check_eta(eta)
    x_0 = predict_x0(schedule, x_t, t, prediction, prediction_type)
    predicted_noise = predict_noise(schedule, x_t, t, prediction, prediction_type)
    _, variance = posterior(schedule, x_0, x_t, t, t_prev)  # equation 16 is eta · √β̃
    sigma = eta * variance.sqrt()  # [B, 1, 1, 1]
    alpha_bar_prev = schedule.alpha_bar(t_prev, like=x_t)
    kept = (1 - alpha_bar_prev - sigma**2).clamp(min=0).sqrt()  # rounding can take it just below 0
    x_prev = alpha_bar_prev.sqrt() * x_0 + kept * predicted_noise + sigma * check_noise(noise, sigma, x_t)
    return x_prev.to(x_t.dtype)


def sampling_loop(
    denoiser: Denoiser, x: Tensor, timesteps: list[int], step: Callable[[Tensor, Tensor, int, int], Tensor]
) -> Iterator[Tensor]:
    """Predict, step, yield: from timesteps[0] down to the last one, and from there to x_0 (t = −1).

    `step` is (prediction, x_t, t, t_prev) -> x at t_prev.
    """
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
        t_batch = torch.full((x.shape[0],), t, device=x.device)  # [B]
        x = step(denoiser(x, t_batch), x, t, t_prev)
        yield x


def sample(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x_T: Tensor,
    num_inference_steps: int | None,
    *,
    sampler: str = "ddim",
    eta: float = 0.0,
    prediction_type: str = "epsilon",
    generator: torch.Generator | None = None,
    timesteps: Tensor | list[int] | None = None,
    clip_x0: float | None = None,
    spacing: str = "trailing",
) -> Iterator[Tensor]:
    """Run a sampler; gives x after every step, the last one being x_0: ``*xs, x_0 = sample(...)``.

    Args:
        denoiser: (x_t, t: LongTensor [B]) -> prediction. Call under ``torch.no_grad()`` unless you want
            gradients.
        x_T: where to start [B, …]: standard normal noise, or for given timesteps x at timesteps[0].
        num_inference_steps: how many steps to take, see `NoiseSchedule.timesteps`. Not used if timesteps
            are given.
        sampler: "ddim", "ddpm", or "dpmpp_2m" for DPM-Solver++ (2M).
        eta: DDIM's share of fresh noise, 0 … 1.
        generator: source of the fresh noise, needed for "ddpm" and for eta > 0. One on the CPU gives the
            same noise on every device.
        timesteps: falling times, each in 0 … T−1, to visit instead: image-to-image starts midway.
        clip_x0: keep each predicted x_0 within ±clip_x0 (1 for pictures; None for latents, which have no
            such bound).

    Raises TypeError or ValueError at the call, before the denoiser has run.
    """
    check_sampler(sampler, eta)
    check_prediction_type(prediction_type)
    if (sampler == "ddpm" or eta > 0) and not isinstance(generator, torch.Generator):
        raise ValueError(f"'ddpm', and 'ddim' with eta > 0, want a torch.Generator, got {generator!r}")
    if timesteps is None:
        if num_inference_steps is None:
            raise ValueError("num_inference_steps or timesteps is wanted, got neither")
        timesteps = schedule.timesteps(num_inference_steps, spacing)
    steps = check_timesteps(schedule, timesteps)
    check_inputs(schedule, steps[0], x_T=x_T)
    if prediction_type == "epsilon":
        schedule.check_signal(steps[0])
    if clip_x0 is not None:
        denoiser, prediction_type = clipped(denoiser, schedule, clip_x0, prediction_type), "sample"

    last: tuple[Tensor, int] | None = None  # "dpmpp_2m": the x_0 guessed one step before, and its time

    def step(prediction: Tensor, x_t: Tensor, t: int, t_prev: int) -> Tensor:
        nonlocal last
        if sampler == "dpmpp_2m":
            x_0, before = predict_x0(schedule, x_t, t, prediction, prediction_type), last
            last = (x_0, t)
            return dpmpp_2m_step(schedule, x_0, x_t, t, t_prev, before, "sample")
        draws = t_prev >= 0 and (sampler == "ddpm" or eta > 0)
        noise = noise_like(x_t, generator) if draws else None
        if sampler == "ddpm":
            return ddpm_step(schedule, prediction, x_t, t, t_prev, noise, prediction_type)
        return ddim_step(schedule, prediction, x_t, t, t_prev, eta, noise, prediction_type)

    return sampling_loop(denoiser, x_T, steps, step)


def clipped(denoiser: Denoiser, schedule: NoiseSchedule, clip_x0: float, prediction_type: str = "epsilon") -> Denoiser:
    """A denoiser that predicts x_0 ("sample") within ±clip_x0, out of one of any prediction type.

    DDIM's noise then follows from the clipped x_0 (diffusers: ``use_clipped_model_output=True``).
    """
    if not clip_x0 > 0:
        raise ValueError(f"clip_x0 must be above 0, or None for no bound, got {clip_x0}")
    check_prediction_type(prediction_type)

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        return predict_x0(schedule, x_t, t, denoiser(x_t, t), prediction_type).clamp(-clip_x0, clip_x0)

    return denoise


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of x's shape, device and dtype, drawn in float32 on the generator's device."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    return torch.randn(x.shape, generator=generator, device=generator.device).to(x)


def as_generator(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or for None torch's own. TypeError for something else, such as a seed."""
    generator = torch.default_generator if generator is None else generator
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator, got {generator!r:.60}; of a seed make one with "
            "torch.Generator().manual_seed(seed)"
        )
    return generator


def check_latents(x_T: Tensor, channels: int) -> None:
    """TypeError or ValueError unless x_T is finite latents [B, channels, h, w]."""
    if not isinstance(x_T, Tensor) or not x_T.is_floating_point():
        given = x_T.dtype if isinstance(x_T, Tensor) else type(x_T).__name__
        raise TypeError(f"x_T must be a floating-point tensor [B, {channels}, h, w], got {given}")
    if x_T.ndim != 4 or 0 in x_T.shape or x_T.shape[1] != channels:
        raise ValueError(f"x_T must be [B, {channels}, h, w], got {list(x_T.shape)}")
    if not bool(x_T.isfinite().all()):
        raise ValueError("x_T must be noise, standard normal, but it holds NaN or infinite numbers")


def check_noise(noise: Tensor | None, scale: Tensor, x_t: Tensor) -> Tensor | float:
    """The noise, or 0.0 for None where its factor is 0. ValueError if missing or of another shape."""
    if noise is None:
        if bool((scale > 0).any()):
            raise ValueError("noise is wanted for this step (standard normal, x_t's shape), got None")
        return 0.0
    if noise.shape != x_t.shape:
        raise ValueError(f"noise has shape {list(noise.shape)}, wanted x_t's, {list(x_t.shape)}")
    return noise


def check_sampler(sampler: str, eta: float) -> None:
    """ValueError unless there is such a sampler, and it has such an eta."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {SAMPLERS}, got {sampler!r}")
    check_eta(eta)
    if sampler != "ddim" and eta != 0:
        raise ValueError(f"eta belongs to the sampler 'ddim', got eta = {eta} with {sampler!r}")


def check_eta(eta: float) -> None:
    """ValueError unless 0 ≤ eta ≤ 1."""
    check_number("eta", eta, 0, 1, " (0 draws no noise, 1 as much as DDPM)")


def check_timesteps(schedule: NoiseSchedule, timesteps: Tensor | list[int]) -> list[int]:
    """timesteps as a list; ValueError unless there is one at least and they fall from step to step."""
    times = torch.as_tensor(timesteps)
    if times.ndim != 1 or len(times) == 0 or bool((times[1:] >= times[:-1]).any()):
        raise ValueError(f"timesteps must be a list of one step or more, falling, got {times.tolist()}")
    return schedule.check_t(times).tolist()
