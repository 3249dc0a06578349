"""DPM-Solver++ (2M): its order on an ODE whose solution is known, its limits, its errors."""

import pytest
import torch

from course_utils.diffusion import (
    PREDICTION_TYPES,
    NoiseSchedule,
    add_noise,
    ddim_step,
    dpmpp_2m_step,
    gaussian_mixture_denoiser,
    half_log_snr,
    log_snr_timesteps,
    predict_x0,
    sample,
    target,
)

SCHEDULE = NoiseSchedule.cosine(100)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def even_in_log_snr(T=1025, first=3.0, last=-3.0):
    """A schedule whose λ falls evenly from `first` to `last`: every stride of k steps is as long as any other."""
    alpha_bar = torch.sigmoid(2 * torch.linspace(first, last, T, dtype=torch.float64))
    return NoiseSchedule(1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]]))


def errors_on_a_gaussian(sampler, counts, mean=0.7, std=0.5, prediction_type="epsilon"):
    """Greatest distance to the exact end of the ODE for data N(mean, std² I), for each number of steps.

    There x_t is N(√ᾱ mean, v_t I) with v_t = ᾱ std² + 1 − ᾱ, and the ODE only shifts and scales:
    x_s = √ᾱ_s mean + √(v_s / v_t) (x_t − √ᾱ_t mean).
    """
    schedule, T = even_in_log_snr(), 1025
    means = torch.full((1, 2), mean, dtype=torch.float64)
    denoiser = gaussian_mixture_denoiser(schedule, means, std, prediction_type=prediction_type)
    x_T = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, last = schedule.alpha_bar(T - 1).double(), schedule.alpha_bar(0).double()
    spread = ((last * std**2 + 1 - last) / (first * std**2 + 1 - first)).sqrt()
    exact = last.sqrt() * mean + spread * (x_T - first.sqrt() * mean)
    found = []
    for n in counts:
        times = list(range(T - 1, -1, -(T - 1) // n))
        *_, at_0, _ = sample(
            denoiser, schedule, x_T, None, timesteps=times, sampler=sampler, prediction_type=prediction_type
        )
        found.append((at_0 - exact).abs().max().item())
    return found


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_order_of_convergence(prediction_type):
    """Twice the steps: half of DDIM's error is left, and a quarter of the solver's."""
    counts = (16, 32, 64, 128, 256)
    ddim = errors_on_a_gaussian("ddim", counts, prediction_type=prediction_type)
    solver = errors_on_a_gaussian("dpmpp_2m", counts, prediction_type=prediction_type)
    for before, after in zip(ddim, ddim[1:], strict=False):
        assert 1.9 < before / after < 2.1, ddim
    for before, after in zip(solver, solver[1:], strict=False):
        assert 3.5 < before / after < 4.3, solver
    assert solver[-1] < ddim[-1] / 100


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize(("t", "t_prev"), [(98, 97), (90, 40), (7, 0), (7, -1), (0, -1)])
def test_first_order_is_ddim(prediction_type, t, t_prev):
    x_t, prediction = randn(3, 2), randn(3, 2, seed=1)
    wanted = ddim_step(SCHEDULE, prediction, x_t, t, t_prev, prediction_type=prediction_type)
    got = dpmpp_2m_step(SCHEDULE, prediction, x_t, t, t_prev, prediction_type=prediction_type)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    same = (predict_x0(SCHEDULE, x_t, t, prediction, prediction_type), t + 1)  # a guess that has not changed: no slope
    torch.testing.assert_close(
        dpmpp_2m_step(SCHEDULE, prediction, x_t, t, t_prev, same, prediction_type), got, rtol=1e-4, atol=1e-4
    )


def test_algorithm_2_by_hand():
    """The update written out as in the paper, one number, with its own letters."""
    t_2, t_1, t_0 = 80, 60, 30  # t_{i-2}, t_{i-1}, t_i
    alpha, sigma = SCHEDULE._alpha_bar.double().sqrt(), (1 - SCHEDULE._alpha_bar.double()).sqrt()
    lam = (alpha / sigma).log()
    a, s, (l_2, l_1, l_0) = alpha[t_0 + 1], sigma, lam[[t_2 + 1, t_1 + 1, t_0 + 1]]
    x, guess, guess_before = 0.4, 1.5, -0.3
    h, r = l_0 - l_1, (l_1 - l_2) / (l_0 - l_1)
    D = (1 + 1 / (2 * r)) * guess - 1 / (2 * r) * guess_before
    wanted = s[t_0 + 1] / s[t_1 + 1] * x - a * (torch.exp(-h) - 1) * D
    tensors = [torch.tensor([[value]]) for value in (guess, x, guess_before)]
    got = dpmpp_2m_step(SCHEDULE, tensors[0], tensors[1], t_1, t_0, (tensors[2], t_2), "sample")
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_a_constant_guess_is_exact(sampler):
    """Where the denoiser knows x_0, any steps end in it, and pass through its noised versions."""
    x_0, noise = randn(4, 3), randn(4, 3, seed=1)

    def denoiser(x_t, t):
        return target(SCHEDULE, x_0, t, noise, "v_prediction")

    x_T = add_noise(SCHEDULE, x_0, 99, noise)
    times = [99, 61, 60, 20, 3]
    xs = list(sample(denoiser, SCHEDULE, x_T, None, timesteps=times, sampler=sampler, prediction_type="v_prediction"))
    for x, t in zip(xs, times[1:], strict=False):
        torch.testing.assert_close(x, add_noise(SCHEDULE, x_0, t, noise), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(xs[-1], x_0, rtol=1e-4, atol=1e-4)


def test_one_call_a_step_and_no_memory_between_runs():
    calls = []

    def denoiser(x_t, t):
        calls.append(int(t[0]))
        return torch.tanh(x_t)

    options = {"sampler": "dpmpp_2m", "prediction_type": "v_prediction"}
    first = list(sample(denoiser, SCHEDULE, randn(2, 3), 10, **options))
    assert calls == SCHEDULE.timesteps(10).tolist()
    second = list(sample(denoiser, SCHEDULE, randn(2, 3), 10, **options))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_times_by_sample_and_half_precision():
    t, t_prev, t_last = torch.tensor([90, 20]), torch.tensor([50, -1]), torch.tensor([99, 30])
    x_t, x_0, before = randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1), randn(2, 4, 8, 8, seed=2)
    both = dpmpp_2m_step(SCHEDULE, x_0, x_t, t, t_prev, (before, t_last), "sample")
    for i in range(2):
        one = slice(i, i + 1)
        alone = dpmpp_2m_step(
            SCHEDULE, x_0[one], x_t[one], int(t[i]), int(t_prev[i]), (before[one], int(t_last[i])), "sample"
        )
        torch.testing.assert_close(both[one], alone)
    half = dpmpp_2m_step(SCHEDULE, x_0.half(), x_t.half(), t, t_prev, (before.half(), t_last), "sample")
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), both, rtol=2e-3, atol=2e-3)


def test_a_schedule_that_ends_in_pure_noise():
    """λ is −∞ at T−1; the second step then has an infinitely long one behind it, and is of first order."""
    schedule = NoiseSchedule(torch.tensor([0.1, 0.3, 0.5, 1.0]))
    *_, x_0 = sample(
        lambda x, t: torch.tanh(x), schedule, randn(2, 3), 4, sampler="dpmpp_2m", prediction_type="v_prediction"
    )
    assert x_0.isfinite().all()


def test_half_log_snr():
    assert half_log_snr(SCHEDULE, -1).item() == float("inf")
    alpha_bar = SCHEDULE.alphas_cumprod[40]
    assert half_log_snr(SCHEDULE, 40).item() == pytest.approx(0.5 * (alpha_bar / (1 - alpha_bar)).log().item())
    assert half_log_snr(SCHEDULE, 40, like=randn(2, 4, 8, 8)).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), NoiseSchedule.scaled_linear(), NoiseSchedule.cosine()])
@pytest.mark.parametrize("n", [2, 5, 10, 25])
def test_log_snr_timesteps(schedule, n):
    times = log_snr_timesteps(schedule, n)
    assert len(times) == n and times[0] == 999 and bool((times[1:] < times[:-1]).all())
    lengths = half_log_snr(schedule, times).diff()[1:]  # the first may start below the range
    if n > 2:
        assert lengths.max() < 1.8 * lengths.min()  # as even as whole times allow


def test_log_snr_timesteps_refuses():
    assert len(log_snr_timesteps(SCHEDULE, 100)) < 100  # two on one time: fewer
    for n in (0, 1, 101, 2.5):
        with pytest.raises(ValueError, match="must be a whole number|2 steps or more"):
            log_snr_timesteps(SCHEDULE, n)
    with pytest.raises(ValueError, match="lowest below highest"):
        log_snr_timesteps(SCHEDULE, 10, 2.0, -2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t_prev": 60}, "t_prev must be before t"),
        ({"t_prev": -2}, "t must lie in -1"),
        ({"last": (randn(2, 3), 50)}, "last must be of a time above t"),
        ({"last": (randn(2, 4), 80)}, "last_x_0 has shape"),
        ({"prediction": randn(3, 3)}, "prediction has shape"),
        ({"prediction_type": "score"}, "prediction_type must be one of"),
    ],
)
def test_bad_input(change, message):
    good = {"prediction": randn(2, 3), "x_t": randn(2, 3), "t": 50, "t_prev": 20}
    with pytest.raises(ValueError, match=message):
        dpmpp_2m_step(SCHEDULE, **{**good, **change})


def test_eta_is_not_for_this_sampler():
    with pytest.raises(ValueError, match="eta belongs to the sampler 'ddim', got eta = 0.5 with 'dpmpp_2m'"):
        sample(lambda x, t: x, SCHEDULE, randn(2, 3), 5, sampler="dpmpp_2m", eta=0.5)
