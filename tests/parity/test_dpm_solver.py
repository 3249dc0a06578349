"""The same numbers as diffusers' DPMSolverMultistepScheduler, on whole trajectories."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from course_utils.diffusion import PREDICTION_TYPES, log_snr_timesteps, sample
from course_utils.pipeline import TextToImage
from tests.parity.test_schedulers import SCHEDULES, Dummy, assert_same, both, every_schedule, every_type, randn

diffusers = pytest.importorskip("diffusers")


def their_path(scheduler, model, x):
    path = []
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(len(x))), t, x).prev_sample
        path.append(x)
    return path


def assert_same_path(ours, theirs):
    for x, wanted in zip(ours, theirs, strict=True):
        assert_same(x, wanted)


def both_solvers(name, prediction_type):
    schedule, _ = both(name, "DDIMScheduler")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type=prediction_type, timestep_spacing="trailing", **SCHEDULES[name][1]
    )
    return schedule, scheduler


@every_schedule
@every_type
@pytest.mark.parametrize("n", [1, 2, 10, 14, 15, 50])  # diffusers treats fewer than 15 apart
def test_whole_trajectories(name, prediction_type, n):
    schedule, scheduler = both_solvers(name, prediction_type)
    scheduler.set_timesteps(n)
    model, x_T = Dummy(), randn(0)
    ours = sample(model, schedule, x_T, n, sampler="dpmpp_2m", prediction_type=prediction_type)
    assert_same_path(ours, their_path(scheduler, model, x_T))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_many_steps(prediction_type):
    schedule, scheduler = both_solvers("scaled_linear", prediction_type)
    scheduler.set_timesteps(250)
    model, x_T = Dummy(), randn(0)
    *_, ours = sample(model, schedule, x_T, 250, sampler="dpmpp_2m", prediction_type=prediction_type)
    assert_same(ours, their_path(scheduler, model, x_T)[-1])


@every_schedule
def test_uneven_steps(name):
    """Step lengths that differ by a lot: h / h_last then matters, and not only the factor of a half."""
    schedule, scheduler = both_solvers(name, "v_prediction")
    for times in ([999, 900, 750, 550, 400, 100, 10], log_snr_timesteps(schedule, 12).tolist()):
        scheduler.set_timesteps(timesteps=times)
        model, x_T = Dummy(), randn(0)
        ours = sample(model, schedule, x_T, None, timesteps=times, sampler="dpmpp_2m", prediction_type="v_prediction")
        assert_same_path(ours, their_path(scheduler, model, x_T))


def test_these_tests_can_fail():
    """Without the memory of the step before, the solver is DDIM, and that is another path."""
    schedule, scheduler = both_solvers("linear", "epsilon")
    scheduler.set_timesteps(10)
    *_, ddim = sample(Dummy(), schedule, randn(0), 10, sampler="ddim")
    wanted = their_path(scheduler, Dummy(), randn(0))[-1]
    assert ((ddim - wanted).abs().max() / wanted.abs().max()).item() > 1e-3


def test_the_pipelines_draw_the_same_picture():
    ours = TextToImage.from_pretrained(Path(__file__).resolve().parents[2] / "checkpoints")
    theirs = ours.to_diffusers()
    theirs.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    options = {"negative_prompt": "a cat", "num_inference_steps": 8, "guidance_scale": 3.0}
    drawn = ours("a dog on a red background", generator=torch.Generator().manual_seed(3), sampler="dpmpp_2m", **options)
    latents = theirs(
        "a dog on a red background", generator=torch.Generator().manual_seed(3), output_type="latent", **options
    ).images
    assert_same(drawn.latents, latents, 1e-4)
