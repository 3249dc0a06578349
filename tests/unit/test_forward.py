"""Noising: the chain against the closed form, in exact moments and by Monte Carlo."""

import pytest
import torch

from course_utils.diffusion import NoiseSchedule, add_noise, forward_step


@pytest.fixture
def schedule():
    return NoiseSchedule.linear(20, 0.01, 0.3)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_step_by_hand():
    schedule = NoiseSchedule([0.36, 0.75])
    x, noise = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    torch.testing.assert_close(forward_step(schedule, x, 0, noise), torch.tensor([[0.8 * 2 + 0.6]]))
    torch.testing.assert_close(forward_step(schedule, x, 1, noise), torch.tensor([[0.5 * 2 + 0.75**0.5]]))
    # alpha_bar_1 = 0.64 * 0.25 = 0.16
    torch.testing.assert_close(add_noise(schedule, x, 1, noise), torch.tensor([[0.4 * 2 + 0.84**0.5]]))


def test_first_step_is_the_closed_form(schedule):
    x, noise = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
    torch.testing.assert_close(forward_step(schedule, x, 0, noise), add_noise(schedule, x, 0, noise))


def test_chain_has_the_moments_of_the_closed_form(schedule):
    """Mean factor and variance of the chain, followed step by step without any randomness."""
    factor, variance = torch.ones(1, 1), 0.0
    for t in range(20):
        step_factor = forward_step(schedule, torch.ones(1, 1), t, torch.zeros(1, 1))
        step_std = forward_step(schedule, torch.zeros(1, 1), t, torch.ones(1, 1))
        factor, variance = factor * step_factor, variance * step_factor**2 + step_std**2
        torch.testing.assert_close(add_noise(schedule, torch.ones(1, 1), t, torch.zeros(1, 1)), factor)
        torch.testing.assert_close(add_noise(schedule, torch.zeros(1, 1), t, torch.ones(1, 1)) ** 2, variance)


def test_chain_by_monte_carlo(schedule):
    n, t_end = 200_000, 7
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.tensor([1.5, -0.5]).expand(n, 2)
    x = x_0
    for t in range(t_end + 1):
        x = forward_step(schedule, x, t, torch.randn(n, 2, generator=generator))
    jump = add_noise(schedule, x_0, t_end, torch.randn(n, 2, generator=generator))
    alpha_bar = schedule.alpha_bar(t_end)
    for sample in (x, jump):  # five standard errors
        torch.testing.assert_close(sample.mean(0), alpha_bar.sqrt() * x_0[0], rtol=0, atol=5 / n**0.5)
        torch.testing.assert_close(sample.var(0), (1 - alpha_bar).expand(2), rtol=5 * (2 / n) ** 0.5, atol=0)


@pytest.mark.parametrize("f", [add_noise, forward_step])
def test_each_sample_has_its_own_t(schedule, f):
    x, noise = randn(4, 3, 2, 2), randn(4, 3, 2, 2, seed=1)
    t = torch.tensor([0, 5, 19, 5])
    together = f(schedule, x, t, noise)
    for i in range(4):
        alone = f(schedule, x[i : i + 1], int(t[i]), noise[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)
    assert not torch.allclose(together, f(schedule, x, 5, noise))


@pytest.mark.parametrize("f", [add_noise, forward_step])
def test_unit_variance_is_kept(schedule, f):
    x, noise = randn(100_000, 1), randn(100_000, 1, seed=1)
    assert f(schedule, x, 10, noise).var().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("f", [add_noise, forward_step])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_follows_x_and_factors_do_not_drown(f, dtype):
    schedule = NoiseSchedule.linear()  # 1 - alpha_bar_0 = 1e-4, which is 0 if alpha_bar is put in bfloat16
    zero, one = torch.zeros(2, 3, dtype=dtype), torch.ones(2, 3, dtype=dtype)
    out = f(schedule, zero, 0, one)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), torch.full((2, 3), 0.01), rtol=1e-2, atol=0)


@pytest.mark.parametrize("f", [add_noise, forward_step])
def test_bad_input(schedule, f):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="noise has shape"):
        f(schedule, x, 0, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="0 … 19"):
        f(schedule, x, -1, x)
    with pytest.raises(ValueError, match="0 … 19"):
        f(schedule, x, torch.tensor([0, 20]), x)
    with pytest.raises(ValueError, match="batch has 2"):
        f(schedule, x, torch.tensor([0, 1, 2]), x)
    with pytest.raises(TypeError, match="float tensor"):
        f(schedule, x.to(torch.uint8), 0, x)


def test_inputs_are_left_alone(schedule):
    x, noise = randn(2, 3), randn(2, 3, seed=1)
    before = x.clone(), noise.clone()
    add_noise(schedule, x, 3, noise)
    forward_step(schedule, x, 3, noise)
    assert torch.equal(x, before[0]) and torch.equal(noise, before[1])
