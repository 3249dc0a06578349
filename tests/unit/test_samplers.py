"""Steps and the loop: known limits, invariances, and whether the right distribution comes out."""

import pytest
import torch

from course_utils.diffusion import (
    PREDICTION_TYPES,
    NoiseSchedule,
    add_noise,
    ddim_step,
    ddpm_step,
    gaussian_mixture_denoiser,
    gaussian_mixture_sample,
    posterior,
    sample,
    target,
)
from course_utils.diffusion.samplers import clipped

SCHEDULE = NoiseSchedule.linear(20, 0.01, 0.3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def zeros(x_t, t):
    return torch.zeros_like(x_t)


# --- one step ---


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_steps_with_the_true_answer(prediction_type):
    """DDIM then stays on the line through x_0 and the noise; DDPM draws from the true posterior."""
    x_0, noise, fresh = randn(4, 3), randn(4, 3, seed=1), randn(4, 3, seed=2)
    for t, t_prev in [(19, 18), (19, 4), (7, 6), (1, 0), (12, -1), (0, -1)]:
        x_t = add_noise(SCHEDULE, x_0, t, noise)
        prediction = target(SCHEDULE, x_0, t, noise, prediction_type)
        before = x_0 if t_prev < 0 else add_noise(SCHEDULE, x_0, t_prev, noise)
        out = ddim_step(SCHEDULE, prediction, x_t, t, t_prev, prediction_type=prediction_type)
        torch.testing.assert_close(out, before, rtol=1e-4, atol=1e-5)
        mean, variance = posterior(SCHEDULE, x_0, x_t, t, t_prev)
        out = ddpm_step(SCHEDULE, prediction, x_t, t, t_prev, fresh, prediction_type)
        torch.testing.assert_close(out, mean + variance.sqrt() * fresh, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(("t", "t_prev"), [(19, 18), (19, 4), (7, 6), (1, 0), (12, -1)])
def test_ddim_with_eta_one_is_ddpm(prediction_type, t, t_prev):
    prediction, x_t, noise = randn(4, 3), randn(4, 3, seed=1), randn(4, 3, seed=2)
    one = ddim_step(SCHEDULE, prediction, x_t, t, t_prev, 1.0, noise, prediction_type)
    two = ddpm_step(SCHEDULE, prediction, x_t, t, t_prev, noise, prediction_type)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    if t_prev >= 0:
        assert not torch.allclose(
            one, ddim_step(SCHEDULE, prediction, x_t, t, t_prev, 0.0, None, prediction_type)
        )


def test_the_larger_variance_is_the_beta_of_the_stride():
    prediction, x_t, noise = randn(4, 3), randn(4, 3, seed=1), randn(4, 3, seed=2)
    for t, t_prev in [(19, 18), (19, 4), (7, 6), (1, 0)]:
        out, mean = (
            ddpm_step(SCHEDULE, prediction, x_t, t, t_prev, z, variance_type="fixed_large")
            for z in (noise, torch.zeros_like(noise))
        )
        beta = 1 - SCHEDULE.alphas[t_prev + 1 : t + 1].prod()
        torch.testing.assert_close(out - mean, beta.sqrt() * noise, rtol=1e-4, atol=1e-5)
    last = ddpm_step(SCHEDULE, prediction, x_t, 12, -1, None, variance_type="fixed_large")
    torch.testing.assert_close(last, ddpm_step(SCHEDULE, prediction, x_t, 12, -1, None))
    with pytest.raises(ValueError, match="variance_type must be one of"):
        ddpm_step(SCHEDULE, prediction, x_t, 12, 3, noise, variance_type="large")


def test_ddim_noise_level_is_right_for_every_eta():
    """From the true noise, x_prev has variance 1 − ᾱ_prev around √ᾱ_prev x_0, whatever eta is."""
    n, t, t_prev = 100_000, 15, 6
    noise = randn(n, 1)
    for eta in (0.0, 0.3, 1.0):
        x_prev = ddim_step(
            SCHEDULE,
            noise,
            add_noise(SCHEDULE, torch.zeros(n, 1), t, noise),
            t,
            t_prev,
            eta,
            randn(n, 1, seed=1),
        )
        wanted = 1 - SCHEDULE.alphas_cumprod[t_prev].item()
        assert x_prev.var().item() == pytest.approx(wanted, rel=5 * (2 / n) ** 0.5)


@pytest.mark.parametrize("step", [ddpm_step, ddim_step])
def test_each_sample_has_its_own_times(step):
    prediction, x_t, noise = randn(3, 2, 2), randn(3, 2, 2, seed=1), randn(3, 2, 2, seed=2)
    extra = {"eta": 0.5} if step is ddim_step else {}
    t, t_prev = torch.tensor([19, 7, 3]), torch.tensor([10, -1, 2])
    together = step(SCHEDULE, prediction, x_t, t, t_prev, noise=noise, **extra)
    for i in range(3):
        one = slice(i, i + 1)
        alone = step(
            SCHEDULE, prediction[one], x_t[one], int(t[i]), int(t_prev[i]), noise=noise[one], **extra
        )
        torch.testing.assert_close(together[one], alone)


@pytest.mark.parametrize("step", [ddpm_step, ddim_step])
def test_step_errors(step):
    x = torch.ones(2, 3)
    extra = {"eta": 1.0} if step is ddim_step else {}
    with pytest.raises(ValueError, match="noise is wanted"):
        step(SCHEDULE, x, x, 5, 4, noise=None, **extra)
    step(SCHEDULE, x, x, 5, -1, noise=None, **extra)  # the last step draws none
    with pytest.raises(ValueError, match="noise has shape"):
        step(SCHEDULE, x, x, 5, 4, noise=x[:1], **extra)
    with pytest.raises(ValueError, match="t_prev must be before t"):
        step(SCHEDULE, x, x, 4, 5, noise=x, **extra)
    with pytest.raises(ValueError, match="prediction has shape"):
        step(SCHEDULE, x[:1], x, 5, 4, noise=x, **extra)
    with pytest.raises(ValueError, match="prediction_type"):
        step(SCHEDULE, x, x, 5, 4, noise=x, prediction_type="v", **extra)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_eta_range(eta):
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="eta must lie in 0 … 1"):
        ddim_step(SCHEDULE, x, x, 5, 4, eta, x)
    with pytest.raises(ValueError, match="eta must lie in 0 … 1"):
        sample(zeros, SCHEDULE, x, 5, eta=eta, generator=generator())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_follows_x(dtype):
    seen = []

    def denoiser(x_t, t):
        seen.append((x_t.dtype, t.dtype, tuple(t.shape)))
        return x_t * 0.1

    for kwargs in ({}, {"sampler": "ddpm"}, {"eta": 0.5}, {"clip_x0": 1.0}):
        for x in sample(denoiser, SCHEDULE, randn(2, 3).to(dtype), 4, generator=generator(), **kwargs):
            assert x.dtype == dtype and x.isfinite().all()
    assert set(seen) == {(dtype, torch.int64, (2,))}


# --- the loop ---


@pytest.mark.parametrize("kwargs", [{}, {"sampler": "ddpm"}, {"eta": 1.0}])
def test_loop_visits_the_timesteps_and_yields_every_x(kwargs):
    seen = []

    def denoiser(x_t, t):
        seen.append((x_t.clone(), t))
        return 0.2 * x_t

    x_T = randn(3, 2)
    before = x_T.clone()
    xs = list(sample(denoiser, SCHEDULE, x_T, 5, generator=generator(), **kwargs))
    assert len(xs) == 5
    assert [t.tolist() for _, t in seen] == [[t] * 3 for t in (19, 15, 11, 7, 3)]
    assert torch.equal(seen[0][0], x_T) and torch.equal(x_T, before)
    for x, (fed, _) in zip(xs[:-1], seen[1:], strict=True):
        assert torch.equal(x, fed)


def test_loop_by_hand():
    """The loop is the step, over and over."""
    x = randn(3, 2)
    xs = list(sample(lambda x, t: 0.2 * x, SCHEDULE, x, 3, timesteps=[12, 5, 0]))
    for got, (t, t_prev) in zip(xs, [(12, 5), (5, 0), (0, -1)], strict=True):
        x = ddim_step(SCHEDULE, 0.2 * x, x, t, t_prev)
        assert torch.equal(got, x)
    again = list(
        sample(lambda x, t: 0.2 * x, SCHEDULE, randn(3, 2), None, timesteps=torch.tensor([12, 5, 0]))
    )
    assert torch.equal(again[-1], xs[-1])


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_loop_spacing(spacing):
    seen = []
    list(sample(lambda x, t: seen.append(t[0].item()) or x, SCHEDULE, randn(2, 2), 4, spacing=spacing))
    assert seen == SCHEDULE.timesteps(4, spacing).tolist()


def test_reproducible_and_no_global_randomness():
    state = torch.get_rng_state()

    def run(seed, **kwargs):
        *_, x_0 = sample(lambda x, t: 0.2 * x, SCHEDULE, randn(3, 2), 5, generator=generator(seed), **kwargs)
        return x_0

    for kwargs in ({"sampler": "ddpm"}, {"eta": 1.0}):
        assert torch.equal(run(1, **kwargs), run(1, **kwargs))
        assert not torch.equal(run(1, **kwargs), run(2, **kwargs))
    assert torch.equal(run(1), run(2))  # DDIM with eta 0 draws nothing
    assert torch.equal(torch.get_rng_state(), state)


def test_generator_is_left_alone_when_nothing_is_drawn():
    g = generator(5)
    list(sample(zeros, SCHEDULE, randn(3, 2), 5, generator=g))
    list(sample(zeros, SCHEDULE, randn(3, 2), 1, sampler="ddpm", generator=g))  # one step is the last
    assert torch.equal(g.get_state(), generator(5).get_state())


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ddim_with_the_true_answer_lands_on_x_0_in_any_number_of_steps(prediction_type):
    x_0 = gaussian_mixture_sample(torch.zeros(1, 2), 1.0, 4, generator())
    denoiser = gaussian_mixture_denoiser(SCHEDULE, x_0[:1], 0.0, prediction_type=prediction_type)
    for n in (1, 2, 7, 20):
        *_, out = sample(denoiser, SCHEDULE, randn(5, 2, seed=2), n, prediction_type=prediction_type)
        torch.testing.assert_close(out, x_0[:1].expand(5, 2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kwargs", [{"sampler": "ddpm"}, {"sampler": "ddim"}, {"eta": 0.5}], ids=str)
def test_the_right_distribution_comes_out(kwargs):
    """Perfect denoiser of a mixture, many steps: shares, centres and widths of the two parts."""
    n, schedule = 4000, NoiseSchedule.cosine(200)
    means, std, weights = torch.tensor([[1.5, 0.0], [-1.0, 0.5]]), 0.2, torch.tensor([0.3, 0.7])
    denoiser = gaussian_mixture_denoiser(schedule, means, std, weights)
    *_, x = sample(denoiser, schedule, randn(n, 2), 100, generator=generator(1), **kwargs)
    right = x[:, 0] > 0.25
    assert right.float().mean().item() == pytest.approx(0.3, abs=0.04)
    for part, mean in ((x[right], means[0]), (x[~right], means[1])):
        torch.testing.assert_close(part.mean(0), mean, rtol=0, atol=0.03)
        torch.testing.assert_close(part.std(0), torch.full((2,), std), rtol=0, atol=0.03)


def test_clip_keeps_x_0_in_bounds():
    for kwargs in ({}, {"sampler": "ddpm"}):
        *_, free = sample(zeros, SCHEDULE, randn(50, 2), 5, generator=generator(), **kwargs)
        *_, kept = sample(zeros, SCHEDULE, randn(50, 2), 5, generator=generator(), clip_x0=1.0, **kwargs)
        assert free.abs().max() > 1.5 and kept.abs().max() <= 1
        *_, wide = sample(zeros, SCHEDULE, randn(50, 2), 5, generator=generator(), clip_x0=1e6, **kwargs)
        torch.testing.assert_close(wide, free, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="clip_x0 must be above 0"):
        clipped(zeros, SCHEDULE, 0.0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sampler": "euler"}, "sampler must be one of.*'euler'"),
        ({"sampler": "ddpm"}, "want a torch.Generator, got None"),
        ({"eta": 0.5}, "want a torch.Generator, got None"),
        ({"eta": 0.5, "generator": 0}, "want a torch.Generator, got 0"),
        ({"sampler": "ddpm", "eta": 0.5, "generator": generator()}, "eta belongs to the sampler 'ddim'"),
        ({"prediction_type": "noise"}, "prediction_type must be one of"),
        ({"num_inference_steps": 0}, "1 … 20"),
        ({"num_inference_steps": 21}, "1 … 20"),
        ({"num_inference_steps": None}, "got neither"),
        ({"spacing": "even"}, "spacing must be one of"),
        ({"timesteps": []}, "one step or more"),
        ({"timesteps": [3, 5]}, "falling"),
        ({"timesteps": [5, 5]}, "falling"),
        ({"timesteps": [20, 5]}, "0 … 19"),
        ({"timesteps": [5, -1]}, "0 … 19"),
        ({"clip_x0": -1.0}, "clip_x0 must be above 0"),
    ],
)
def test_sample_refuses_at_the_call(kwargs, message):
    def untouched(x_t, t):
        raise AssertionError("the denoiser ran")

    arguments = {"num_inference_steps": 5} | kwargs
    with pytest.raises(ValueError, match=message):
        sample(untouched, SCHEDULE, torch.zeros(2, 3), **arguments)  # not iterated


def test_sample_refuses_bad_x_and_pure_noise():
    with pytest.raises(TypeError, match="x_T must be a float tensor"):
        sample(zeros, SCHEDULE, torch.zeros(2, 3, dtype=torch.long), 5)
    schedule = NoiseSchedule([0.5, 0.5, 1.0])
    with pytest.raises(ValueError, match="alpha_bar is 0"):
        sample(zeros, schedule, torch.zeros(2, 3), 3)
    *_, x = sample(zeros, schedule, torch.ones(2, 3), 3, prediction_type="v_prediction")
    assert x.isfinite().all()
