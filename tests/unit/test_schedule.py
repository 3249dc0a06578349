"""The noise schedules: known values, what must hold for any of them, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.diffusion import (
    NoiseSchedule,
    check_inputs,
    cosine_betas,
    extract,
    linear_betas,
    logit_normal_timesteps,
    scaled_linear_betas,
    shift_timesteps,
    snr,
)

SCHEDULES = {
    "linear": NoiseSchedule.linear,
    "scaled_linear": NoiseSchedule.scaled_linear,
    "cosine": NoiseSchedule.cosine,
}


def test_linear_betas_by_hand():
    torch.testing.assert_close(linear_betas(3, 0.1, 0.3), torch.tensor([0.1, 0.2, 0.3]))
    betas = linear_betas()
    assert betas.shape == (1000,) and betas[0] == pytest.approx(1e-4) and betas[-1] == pytest.approx(0.02)


def test_scaled_linear_betas_by_hand():
    torch.testing.assert_close(scaled_linear_betas(3, 0.01, 0.09), torch.tensor([0.01, 0.04, 0.09]))


def test_cosine_alpha_bar_is_the_formula():
    T, s = 200, 0.008
    u = torch.arange(1, T + 1, dtype=torch.float64) / T
    f = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2 / math.cos(s / (1 + s) * math.pi / 2) ** 2
    alpha_bar = NoiseSchedule.cosine(T).alphas_cumprod
    torch.testing.assert_close(alpha_bar[:-1], f[:-1].float(), rtol=1e-4, atol=1e-7)
    assert cosine_betas(T).max() == pytest.approx(0.999)  # the last one is cut


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [1, 2, 50, 1000])
def test_what_every_schedule_has(name, T):
    schedule = SCHEDULES[name](T)
    assert schedule.num_train_timesteps == T
    for table in (schedule.betas, schedule.alphas, schedule.alphas_cumprod):
        assert table.shape == (T,) and table.dtype == torch.float32
    assert (schedule.betas > 0).all() and (schedule.betas <= 1).all()
    assert (schedule.betas[1:] >= schedule.betas[:-1]).all()
    alpha_bar = torch.tensor([schedule.alpha_bar(t) for t in range(-1, T)])
    assert alpha_bar[0] == 1
    assert (alpha_bar[1:] < alpha_bar[:-1]).all() and (alpha_bar > 0).all()
    # and it is the product of the alphas, formed here one by one
    product = 1.0
    for t in range(T):
        product *= 1 - schedule.betas[t].item()
        assert schedule.alpha_bar(t).item() == pytest.approx(product, rel=2e-4)


def test_snr():
    torch.testing.assert_close(snr(torch.tensor([0.5, 0.8, 0.0])), torch.tensor([1.0, 4.0, 0.0]))
    schedule = NoiseSchedule.cosine()
    t = torch.tensor([0, 500, 999])
    torch.testing.assert_close(schedule.snr(t), schedule.alphas_cumprod[t] / (1 - schedule.alphas_cumprod[t]))
    assert schedule.snr(500).item() == pytest.approx(1, abs=0.1)  # cosine: as much signal as noise halfway
    assert schedule.snr(-1) == math.inf


def test_lookup_shapes_and_kinds_of_t():
    schedule = NoiseSchedule.linear(10)
    x = torch.zeros(4, 3, 2, 2)
    t = torch.tensor([0, 3, 3, 9])
    assert schedule.alpha_bar(t).shape == (4,)
    assert schedule.alpha_bar(t, like=x).shape == (4, 1, 1, 1)
    assert schedule.alpha_bar(3).shape == ()
    assert schedule.alpha_bar(3, like=x).shape == (1, 1, 1, 1)
    assert schedule.beta(t, like=torch.zeros(4, 2)).shape == (4, 1)
    for same in (3, torch.tensor(3), np.int64(3), torch.tensor([3])):
        assert schedule.beta(same).item() == schedule.betas[3].item()
    assert schedule.alpha_bar(t, like=x.half()).dtype == torch.float32
    torch.testing.assert_close(
        extract(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([2, 0]), torch.zeros(2, 1)),
        torch.tensor([[7.0], [5.0]]),
    )


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_timesteps_fall_and_stay_in_range(spacing, data):
    T = data.draw(st.integers(1, 1000))
    n = data.draw(st.integers(1, T))
    times = NoiseSchedule([0.01] * T).timesteps(n, spacing)
    assert times.shape == (n,) and times.dtype == torch.int64
    assert (times[1:] < times[:-1]).all() and times.min() >= 0 and times.max() <= T - 1
    if spacing == "trailing":
        assert times[0] == T - 1
    if spacing == "leading":
        assert times[-1] == 0


def test_timesteps_by_hand():
    schedule = NoiseSchedule.linear(10)
    assert schedule.timesteps(5).tolist() == [9, 7, 5, 3, 1]
    assert schedule.timesteps(5, "leading").tolist() == [8, 6, 4, 2, 0]
    assert schedule.timesteps(5, "leading", steps_offset=1).tolist() == [9, 7, 5, 3, 1]
    assert schedule.timesteps(4, "linspace").tolist() == [9, 6, 3, 0]
    for spacing in ("trailing", "leading", "linspace"):
        assert schedule.timesteps(10, spacing).tolist() == list(range(9, -1, -1))
    assert len(NoiseSchedule.linear().timesteps(61)) == 61  # where rounding alone would make it 62


@pytest.mark.parametrize("n", [0, -1, 11, 2.5, True, None])
def test_timesteps_refuses_n(n):
    with pytest.raises(ValueError, match=r"inference steps.*1 … 10"):
        NoiseSchedule.linear(10).timesteps(n)


def test_timesteps_refuses_spacing_and_offset():
    with pytest.raises(ValueError, match="spacing must be one of.*'trailling'"):
        NoiseSchedule.linear(10).timesteps(5, "trailling")
    with pytest.raises(ValueError, match="0 … 9"):
        NoiseSchedule.linear(10).timesteps(10, "leading", steps_offset=1)


@pytest.mark.parametrize("T", [0, -3, 1.5, "10"])
def test_constructors_refuse_t(T):
    for make in SCHEDULES.values():
        with pytest.raises(ValueError, match="T must be a whole number"):
            make(T)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([[0.1, 0.2]], "1-D"),
        ([], "1-D"),
        ([0.1, 0.0], r"\(0, 1\]"),
        ([0.1, -0.1], r"\(0, 1\]"),
        ([0.1, 1.1], r"\(0, 1\]"),
        ([0.1, float("nan")], r"\(0, 1\]"),
        ([1e-9, 0.1], "too small"),
        ([1.0, 0.5], "before the last step"),
    ],
)
def test_bad_betas(betas, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(betas)


def test_last_beta_may_be_one():
    schedule = NoiseSchedule([0.1, 1.0])
    assert schedule.alpha_bar(1) == 0 and schedule.snr(1) == 0


@pytest.mark.parametrize("t", [-1, 10, torch.tensor([0, 10]), torch.tensor([-1, 0])])
def test_t_out_of_range(t):
    schedule = NoiseSchedule.linear(10)
    with pytest.raises(ValueError, match=r"0 … 9 \(T = 10 steps\), got (-1|10)"):
        schedule.beta(t)
    with pytest.raises(ValueError, match="0 … 9"):
        check_inputs(schedule, t, x=torch.zeros(2, 1))
    with pytest.raises(ValueError, match="-1 … 9.*got -2"):
        schedule.alpha_bar(-2)


def test_bad_t():
    schedule = NoiseSchedule.linear(10)
    x = torch.zeros(2, 3)
    for t, error in [
        (torch.zeros(2, 1, dtype=torch.long), ValueError),
        (torch.zeros(3, dtype=torch.long), ValueError),
        (torch.zeros(1, dtype=torch.long), ValueError),
        (torch.zeros(2), TypeError),
        (torch.zeros(2, dtype=torch.bool), TypeError),
        (1.0, TypeError),
        (True, TypeError),
        (None, TypeError),
    ]:
        with pytest.raises(error, match="t (must|has)"):
            check_inputs(schedule, t, x=x)


def test_check_inputs_names_the_tensor_at_fault():
    schedule = NoiseSchedule.linear(10)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"noise has shape \[2, 4\], wanted x_0's, \[2, 3\]"):
        check_inputs(schedule, 0, x_0=x, noise=torch.zeros(2, 4))
    with pytest.raises(TypeError, match="x_0 must be a float tensor.*uint8"):
        check_inputs(schedule, 0, x_0=x.to(torch.uint8))
    with pytest.raises(TypeError, match="noise must be a tensor, got float"):
        check_inputs(schedule, 0, x_0=x, noise=0.5)
    with pytest.raises(ValueError, match="x_0 has shape"):
        check_inputs(schedule, 0, x_0=torch.tensor(0.5))
    assert check_inputs(schedule, 4, x_0=x).tolist() == [4, 4]


def test_to_and_repr():
    schedule = NoiseSchedule.linear(10)
    moved = schedule.to("meta")
    assert moved.betas.device.type == "meta" and moved.alphas_cumprod.device.type == "meta"
    assert schedule.betas.device.type == "cpu" and moved.num_train_timesteps == 10
    assert "T=10" in repr(schedule) and "0.02" in repr(schedule)


def test_logit_normal_timesteps_have_the_quantiles_of_the_logistic_of_a_normal():
    t = logit_normal_timesteps(200_000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.int64 and t.min() >= 0 and t.max() <= 999
    for share, quantile in ((0.01, 89.0), (0.1, 217.3), (0.25, 337.5), (0.5, 500.0), (0.75, 662.5)):  # 1,000 σ(z)
        assert (t < quantile).float().mean().item() == pytest.approx(share, abs=0.004)
    assert set(logit_normal_timesteps(1000, torch.Generator().manual_seed(0), 4).tolist()) == {0, 1, 2, 3}


def test_a_shift_moves_timesteps_towards_noise():
    t = torch.arange(1000)
    assert torch.equal(shift_timesteps(t, 1.0), t)
    for shift in (0.5, 1.5, 3.0):
        moved = shift_timesteps(t, shift)
        assert moved.min() <= 1 and moved.max() >= 998 and moved.max() <= 999 and (moved[1:] >= moved[:-1]).all()
        assert (moved >= 500).float().mean().item() == pytest.approx(shift / (1 + shift), abs=0.002)
    # by hand: the middle of step 1 of 4 is 3/8, and 3 · 3/8 / (1 + 2 · 3/8) = 9/14, in the third quarter
    assert shift_timesteps(torch.tensor([1]), 3.0, 4).tolist() == [2]
    assert shift_timesteps(torch.tensor([999]), 1e6).tolist() == [999]
    with pytest.raises(ValueError, match="shift must be greater than 0"):
        shift_timesteps(t, 0.0)
