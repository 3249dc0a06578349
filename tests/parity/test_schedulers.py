"""The same numbers as diffusers' DDPMScheduler and DDIMScheduler: tables, timesteps, whole trajectories."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from course_utils.diffusion import (
    PREDICTION_TYPES,
    NoiseSchedule,
    add_noise,
    ddim_step,
    ddpm_step,
    noise_like,
    sample,
    target,
)

diffusers = pytest.importorskip("diffusers")

SCHEDULES = {
    "linear": (NoiseSchedule.linear, {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": (
        NoiseSchedule.scaled_linear,
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "cosine": (NoiseSchedule.cosine, {"beta_schedule": "squaredcos_cap_v2"}),
}
SPACINGS = ("trailing", "leading", "linspace")
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_type = pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)


def both(name, kind, T=1000, **kwargs):
    ours, theirs = SCHEDULES[name]
    scheduler = getattr(diffusers, kind)(num_train_timesteps=T, clip_sample=False, **theirs, **kwargs)
    return ours(T), scheduler


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Greatest difference over greatest value: no cancelling, no element let off."""
    assert ours.shape == theirs.shape and theirs.isfinite().all()
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert error <= tolerance, f"relative error {error:.2e}"


class Dummy(nn.Module):
    """A small seeded network in the place of a denoiser: it looks at x, t, other channels and neighbours."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    @torch.no_grad()
    def forward(self, x_t, t):
        return self.second(torch.tanh(self.first(x_t) + (t / 1000)[:, None, None, None]))


def randn(seed):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@every_schedule
@pytest.mark.parametrize("T", [1, 50, 1000])
def test_tables(name, T):
    schedule, scheduler = both(name, "DDPMScheduler", T)
    torch.testing.assert_close(schedule.betas, scheduler.betas, rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps(kind, spacing):
    for T in (50, 1000):
        schedule, scheduler = both("linear", kind, T, timestep_spacing=spacing)
        for n in [*range(1, 51), 100, 250, 333, 500, 999, 1000]:
            if n <= T:
                scheduler.set_timesteps(n)
                wanted = scheduler.timesteps.tolist()
                if len(wanted) > n:  # "trailing", for a few n: rounding makes diffusers go on to t = −1
                    assert spacing == "trailing" and wanted.pop() == -1
                assert schedule.timesteps(n, spacing).tolist() == wanted, (T, n)


def test_timesteps_with_offset():
    schedule, scheduler = both("linear", "DDIMScheduler", timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(50)
    assert schedule.timesteps(50, "leading", steps_offset=1).tolist() == scheduler.timesteps.tolist()


@every_schedule
def test_add_noise_and_velocity(name):
    schedule, scheduler = both(name, "DDPMScheduler")
    x_0, noise, t = randn(0), randn(1), torch.tensor([3, 870])
    assert_same(add_noise(schedule, x_0, t, noise), scheduler.add_noise(x_0, noise, t), 1e-6)
    velocity = target(schedule, x_0, t, noise, "v_prediction")
    assert_same(velocity, scheduler.get_velocity(x_0, noise, t), 1e-6)


def their_ddim(scheduler, model, x, eta, noises):
    trajectory = []
    for t, noise in zip(scheduler.timesteps, noises, strict=True):
        out = scheduler.step(
            model(x, t.expand(len(x))), t, x, eta=eta, variance_noise=noise if eta > 0 else None
        )
        x = out.prev_sample
        trajectory.append(x)
    return trajectory


def their_ddpm(scheduler, model, x, generator):
    trajectory = []
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(len(x))), t, x, generator=generator).prev_sample
        trajectory.append(x)
    return trajectory


@every_schedule
@every_type
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_steps(name, prediction_type, eta):
    schedule, scheduler = both(
        name, "DDIMScheduler", prediction_type=prediction_type, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    noises = [randn(seed) for seed in range(1, 11)]
    x, model = randn(0), Dummy()
    theirs = their_ddim(scheduler, model, x, eta, noises)
    times = [*schedule.timesteps(10).tolist(), -1]
    for i, wanted in enumerate(theirs):
        t = torch.full((2,), times[i])
        x = ddim_step(schedule, model(x, t), x, t, times[i + 1], eta, noises[i], prediction_type)
        assert_same(x, wanted)


@every_schedule
@every_type
@pytest.mark.parametrize("sampler", ["ddim", "ddim eta 1", "ddpm"])
def test_whole_trajectories_of_sample(name, prediction_type, sampler):
    """`sample` draws its noise in diffusers' order: the same generator gives the same pictures."""
    kind = "DDPMScheduler" if sampler == "ddpm" else "DDIMScheduler"
    schedule, scheduler = both(name, kind, prediction_type=prediction_type, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    x_T, model = randn(0), Dummy()
    eta = 1.0 if sampler == "ddim eta 1" else 0.0
    generator = torch.Generator().manual_seed(7)
    if sampler == "ddpm":
        theirs = their_ddpm(scheduler, model, x_T, generator)
    else:
        theirs = their_ddim(scheduler, model, x_T, eta, [noise_like(x_T, generator) for _ in range(20)])
    ours = sample(
        model,
        schedule,
        x_T,
        20,
        sampler=sampler.split()[0],
        eta=eta,
        prediction_type=prediction_type,
        generator=torch.Generator().manual_seed(7),
    )
    for got, wanted in zip(ours, theirs, strict=True):
        assert_same(got, wanted)


@pytest.mark.parametrize("spacing", SPACINGS)
@every_type
def test_ddpm_steps_with_uneven_strides(spacing, prediction_type):
    schedule, scheduler = both(
        "cosine", "DDPMScheduler", prediction_type=prediction_type, timestep_spacing=spacing
    )
    scheduler.set_timesteps(7)
    x, model = randn(0), Dummy()
    theirs = their_ddpm(scheduler, model, x, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    times = [*schedule.timesteps(7, spacing).tolist(), -1]
    for i, wanted in enumerate(theirs):
        t = torch.full((2,), times[i])
        x = ddpm_step(schedule, model(x, t), x, t, times[i + 1], noise_like(x, generator), prediction_type)
        assert_same(x, wanted)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])  # they end at t = 0, where diffusers adds no noise either
def test_ddpm_steps_with_the_larger_variance(spacing):
    schedule, scheduler = both(
        "cosine", "DDPMScheduler", prediction_type="epsilon", timestep_spacing=spacing, variance_type="fixed_large"
    )
    scheduler.set_timesteps(7)
    x, model = randn(0), Dummy()
    theirs = their_ddpm(scheduler, model, x, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    times = [*schedule.timesteps(7, spacing).tolist(), -1]
    for i, wanted in enumerate(theirs):
        t, fresh = torch.full((2,), times[i]), noise_like(x, generator)
        x = ddpm_step(schedule, model(x, t), x, t, times[i + 1], fresh, variance_type="fixed_large")
        assert_same(x, wanted)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_all_thousand_steps(sampler):
    """Small errors have a thousand steps to grow in."""
    kind = "DDPMScheduler" if sampler == "ddpm" else "DDIMScheduler"
    schedule, scheduler = both("linear", kind, prediction_type="v_prediction", timestep_spacing="trailing")
    scheduler.set_timesteps(1000)
    x, model, generator = randn(0)[:1, :, :4, :4], Dummy(), torch.Generator().manual_seed(7)
    ours = sample(
        model, schedule, x, 1000, sampler=sampler, prediction_type="v_prediction", generator=generator
    )
    *_, got = ours
    if sampler == "ddpm":
        wanted = their_ddpm(scheduler, model, x, torch.Generator().manual_seed(7))[-1]
    else:
        wanted = their_ddim(scheduler, model, x, 0.0, [None] * 1000)[-1]
    assert_same(got, wanted)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_clipping(sampler):
    kind = "DDPMScheduler" if sampler == "ddpm" else "DDIMScheduler"
    schedule, scheduler = (
        SCHEDULES["linear"][0](),
        getattr(diffusers, kind)(
            clip_sample=True, clip_sample_range=1.0, timestep_spacing="trailing", **SCHEDULES["linear"][1]
        ),
    )
    scheduler.set_timesteps(10)
    x, model, generator = randn(0), Dummy(), torch.Generator().manual_seed(7)
    ours = sample(
        model, schedule, x, 10, sampler=sampler, clip_x0=1.0, generator=torch.Generator().manual_seed(7)
    )
    extra = {} if sampler == "ddpm" else {"use_clipped_model_output": True}
    for got, t in zip(ours, scheduler.timesteps, strict=True):
        x = scheduler.step(model(x, t.expand(2)), t, x, generator=generator, **extra).prev_sample
        assert_same(got, x)
