"""What is predicted, the posterior, and the bound, each against an independent way to get it."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from course_utils.diffusion import (
    PREDICTION_TYPES,
    NoiseSchedule,
    add_noise,
    decoder_nll,
    denoising_loss,
    elbo_terms,
    elbo_weight,
    forward_step,
    gaussian_kl,
    gaussian_mixture_denoiser,
    posterior,
    predict_noise,
    predict_x0,
    prior_kl,
    target,
)

SCHEDULES = [NoiseSchedule.linear(20, 0.01, 0.3), NoiseSchedule.cosine(), NoiseSchedule.linear()]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def schedule():
    return SCHEDULES[0]


# --- what a network predicts ---


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_prediction_undoes_target(schedule, prediction_type):
    x_0, noise = randn(6, 2, 3, 3), randn(6, 2, 3, 3, seed=1)
    top = schedule.num_train_timesteps - 1
    t = torch.tensor([0, 1, top // 3, top // 2, top * 3 // 4, top * 7 // 8])
    x_t = add_noise(schedule, x_0, t, noise)
    prediction = target(schedule, x_0, t, noise, prediction_type)
    # rounding grows with the noise where x_0 is wanted, and with 1 / noise where the noise is
    got_x0 = predict_x0(schedule, x_t, t, prediction, prediction_type)
    got_noise = predict_noise(schedule, x_t, t, prediction, prediction_type)
    torch.testing.assert_close(got_x0, x_0, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_noise, noise, rtol=1e-4, atol=1e-4)


def test_targets_by_hand():
    schedule = NoiseSchedule([0.36])  # sqrt(alpha_bar) = 0.8, sqrt(1 - alpha_bar) = 0.6
    x_0, noise = torch.tensor([[10.0]]), torch.tensor([[1.0]])
    assert target(schedule, x_0, 0, noise, "epsilon").item() == 1
    assert target(schedule, x_0, 0, noise, "sample").item() == 10
    assert target(schedule, x_0, 0, noise, "v_prediction").item() == pytest.approx(0.8 * 1 - 0.6 * 10)


def test_v_is_a_rotation(schedule):
    """(x_t, v) is (x_0, noise) turned by an angle, so lengths are kept."""
    x_0, noise, t = randn(5, 7), randn(5, 7, seed=1), torch.tensor([0, 4, 9, 15, 19])
    x_t, v = add_noise(schedule, x_0, t, noise), target(schedule, x_0, t, noise, "v_prediction")
    torch.testing.assert_close(x_t**2 + v**2, x_0**2 + noise**2)


@pytest.mark.parametrize("f", [predict_x0, predict_noise, target])
def test_prediction_errors(schedule, f):
    x = torch.zeros(2, 3)
    args = (schedule, x, 0, x)
    with pytest.raises(ValueError, match="prediction_type must be one of.*'eps'"):
        f(*args, "eps")
    with pytest.raises(ValueError, match=r"has shape \[2, 1\]"):
        f(schedule, x, 0, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="0 … 19"):
        f(schedule, x, 20, x)


def test_pure_noise_needs_another_prediction_type():
    schedule = NoiseSchedule([0.5, 1.0])
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="alpha_bar is 0.*v_prediction"):
        predict_x0(schedule, x, torch.tensor([0, 1]), x, "epsilon")
    assert predict_x0(schedule, x, 0, x, "epsilon").isfinite().all()
    torch.testing.assert_close(predict_x0(schedule, x, 1, x, "v_prediction"), -x)
    torch.testing.assert_close(predict_noise(schedule, x, 1, x * 5, "sample"), x)


# --- the loss ---


def test_loss_by_hand(schedule):
    x_0, noise = torch.zeros(2, 3), torch.tensor([[1.0, 1, 1], [2, 2, 2]])
    loss = denoising_loss(lambda x, t: torch.zeros_like(x), schedule, x_0, 5, noise)
    assert loss.shape == () and loss.item() == pytest.approx((1 + 4) / 2)
    weighted = denoising_loss(
        lambda x, t: torch.zeros_like(x), schedule, x_0, 5, noise, weight=torch.tensor([3.0, 0.5])
    )
    assert weighted.item() == pytest.approx((3 * 1 + 0.5 * 4) / 2)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_feeds_x_t_and_t_and_is_zero_for_the_right_answer(schedule, prediction_type):
    x_0, noise, t = randn(3, 2, 2, 2), randn(3, 2, 2, 2, seed=1), torch.tensor([0, 9, 19])

    def oracle(x_t, t_given):
        assert torch.equal(t_given, t) and torch.equal(x_t, add_noise(schedule, x_0, t, noise))
        return target(schedule, x_0, t, noise, prediction_type)

    assert denoising_loss(oracle, schedule, x_0, t, noise, prediction_type).item() == 0
    wrong = next(other for other in PREDICTION_TYPES if other != prediction_type)
    assert denoising_loss(oracle, schedule, x_0, t, noise, wrong).item() > 0.1


def test_loss_gives_the_denoiser_a_batch_of_t_for_one_int(schedule):
    seen = []
    denoising_loss(lambda x, t: seen.append(t) or x, schedule, torch.zeros(4, 2), 7, torch.zeros(4, 2))
    assert seen[0].tolist() == [7, 7, 7, 7] and seen[0].dtype == torch.int64


def test_loss_gradient(schedule):
    a = torch.tensor(0.0, requires_grad=True)
    denoising_loss(lambda x, t: a * torch.ones_like(x), schedule, randn(2, 3), 5, torch.ones(2, 3)).backward()
    assert a.grad.item() == pytest.approx(-2)


def test_loss_errors(schedule):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"weight must have shape \[2\]"):
        denoising_loss(lambda x, t: x, schedule, x, 5, x, weight=torch.ones(2, 1))
    with pytest.raises(TypeError, match="weight must be a tensor"):
        denoising_loss(lambda x, t: x, schedule, x, 5, x, weight=2.0)
    with pytest.raises(ValueError, match=r"prediction has shape \[2, 1\]"):
        denoising_loss(lambda x, t: x[:, :1], schedule, x, 5, x)
    with pytest.raises(ValueError, match="noise has shape"):
        denoising_loss(lambda x, t: x, schedule, x, 5, x[:1])


# --- the posterior ---


def bayes(schedule, x_0, x_t, t, t_prev):
    """Product of the Gaussians q(x_prev | x_0) and q(x_t | x_prev), in float64, from the betas alone."""
    alphas = 1 - schedule.betas.double()
    alpha_bar_prev, stride = alphas[: t_prev + 1].prod(), alphas[t_prev + 1 : t + 1].prod()
    precision = 1 / (1 - alpha_bar_prev) + stride / (1 - stride)
    mean = alpha_bar_prev.sqrt() * x_0 / (1 - alpha_bar_prev) + stride.sqrt() * x_t / (1 - stride)
    return mean / precision, 1 / precision


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_posterior_is_bayes_rule(schedule):
    x_0, x_t = randn(2, 3), randn(2, 3, seed=1)
    top = schedule.num_train_timesteps - 1
    for t, t_prev in [
        (1, 0),
        (2, 1),
        (top // 2, top // 2 - 1),
        (top, top - 1),
        (top, top // 2),
        (10, 3),
        (5, 0),
    ]:
        mean, variance = posterior(schedule, x_0, x_t, t, t_prev)
        wanted_mean, wanted_variance = bayes(schedule, x_0.double(), x_t.double(), t, t_prev)
        # 1 - alpha_bar has few digits in float32 where alpha_bar is nearly 1
        torch.testing.assert_close(mean.double(), wanted_mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(variance.double(), wanted_variance.expand(2, 1), rtol=3e-3, atol=0)


def test_posterior_tightly_where_float32_is_fine(schedule):
    x_0, x_t = randn(2, 3), randn(2, 3, seed=1)
    for t in range(1, 20):
        mean, variance = posterior(schedule, x_0, x_t, t)
        wanted_mean, wanted_variance = bayes(schedule, x_0.double(), x_t.double(), t, t - 1)
        torch.testing.assert_close(mean.double(), wanted_mean, rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(variance.double(), wanted_variance.expand(2, 1), rtol=1e-4, atol=0)


def test_posterior_on_a_grid(schedule):
    """Nothing but densities multiplied on a grid: no algebra to get wrong."""
    t, x_0, x_t = 6, 0.7, -0.4
    grid = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    beta = schedule.betas[t].item()
    before = Normal(
        schedule.alpha_bar(t - 1).sqrt().item() * x_0, (1 - schedule.alpha_bar(t - 1)).sqrt().item()
    )
    after = Normal(math.sqrt(1 - beta) * grid, math.sqrt(beta))
    share = (before.log_prob(grid) + after.log_prob(torch.tensor(x_t, dtype=torch.float64))).softmax(0)
    wanted_mean = (share * grid).sum()
    wanted_variance = (share * (grid - wanted_mean) ** 2).sum()
    mean, variance = posterior(schedule, torch.tensor([[x_0]]), torch.tensor([[x_t]]), t)
    assert mean.item() == pytest.approx(wanted_mean.item(), abs=1e-5)
    assert variance.item() == pytest.approx(wanted_variance.item(), rel=1e-4)


def test_posterior_by_monte_carlo(schedule):
    """By the chain: what the mean leaves of x_{t-1} is centred, has variance β̃, is uncorrelated with x_t."""
    n, t = 200_000, 8
    x_0 = torch.full((n, 1), 0.9)
    x_prev = add_noise(schedule, x_0, t - 1, randn(n, 1, seed=1))
    x_t = forward_step(schedule, x_prev, t, randn(n, 1, seed=2))
    mean, variance = posterior(schedule, x_0, x_t, t)
    residual = x_prev - mean
    assert residual.mean().item() == pytest.approx(0, abs=5 * (variance[0].item() / n) ** 0.5)
    assert residual.var().item() == pytest.approx(variance[0].item(), rel=5 * (2 / n) ** 0.5)
    assert torch.corrcoef(torch.cat([residual, x_t], dim=1).T)[0, 1].item() == pytest.approx(
        0, abs=5 / n**0.5
    )


def test_posterior_ends_at_x_0_and_takes_a_t_for_each_sample(schedule):
    x_0, x_t = randn(3, 2, 2, 2), randn(3, 2, 2, 2, seed=1)
    mean, variance = posterior(schedule, x_0, x_t, 0)
    torch.testing.assert_close(mean, x_0)
    assert variance.shape == (3, 1, 1, 1) and (variance == 0).all()
    mean, _ = posterior(schedule, x_0, x_t, 19, -1)
    torch.testing.assert_close(mean, x_0)
    t = torch.tensor([1, 9, 19])
    mean, variance = posterior(schedule, x_0, x_t, t, torch.tensor([0, -1, 11]))
    for i, (now, before) in enumerate([(1, 0), (9, -1), (19, 11)]):
        one_mean, one_variance = posterior(schedule, x_0[i : i + 1], x_t[i : i + 1], now, before)
        torch.testing.assert_close(mean[i : i + 1], one_mean)
        torch.testing.assert_close(variance[i : i + 1], one_variance)


def test_posterior_errors(schedule):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="t_prev must be before t"):
        posterior(schedule, x, x, 5, 5)
    with pytest.raises(ValueError, match="-1 … 19"):
        posterior(schedule, x, x, 5, -2)
    with pytest.raises(ValueError, match="x_t has shape"):
        posterior(schedule, x, x[:1], 5)
    with pytest.raises(ValueError, match="0 … 19"):
        posterior(schedule, x, x, -1)


# --- the bound ---


def test_kl_against_torch_distributions():
    mean1, mean2 = randn(4, 5), randn(4, 5, seed=1)
    var1, var2 = randn(4, 5, seed=2).exp(), randn(4, 1, seed=3).exp()
    wanted = kl_divergence(Normal(mean1, var1.sqrt()), Normal(mean2, var2.sqrt()))
    torch.testing.assert_close(gaussian_kl(mean1, var1, mean2, var2), wanted, rtol=1e-5, atol=1e-6)
    assert (gaussian_kl(mean1, var1, mean2, var2) >= 0).all()
    assert not torch.allclose(gaussian_kl(mean2, var2, mean1, var1), wanted)
    torch.testing.assert_close(gaussian_kl(mean1, var1, mean1, var1), torch.zeros(4, 5), rtol=0, atol=1e-6)


def test_kl_errors():
    one, zero = torch.ones(2), torch.zeros(2)
    with pytest.raises(ValueError, match="var1 must be above 0"):
        gaussian_kl(zero, zero, zero, one)
    with pytest.raises(ValueError, match="var2 must be above 0.*-1"):
        gaussian_kl(zero, one, zero, -one)
    with pytest.raises(TypeError, match="var2 must be a tensor, got float"):
        gaussian_kl(zero, one, zero, 1.0)


def test_prior_kl(schedule):
    x_0 = randn(3, 2, 2)
    alpha_bar = schedule.alphas_cumprod[-1]
    wanted = kl_divergence(Normal(alpha_bar.sqrt() * x_0, (1 - alpha_bar).sqrt()), Normal(0.0, 1.0))
    torch.testing.assert_close(prior_kl(schedule, x_0), wanted.sum(dim=(1, 2)), rtol=1e-4, atol=1e-6)
    assert prior_kl(schedule, x_0).shape == (3,)
    assert (prior_kl(NoiseSchedule.linear(), x_0) < 1e-3).all()


def half_right(x_t, t):
    return 0.5 * x_t


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_elbo_terms_are_kl_between_posteriors_and_weighted_noise_error(schedule):
    x_0, noise = randn(6, 2, 3), randn(6, 2, 3, seed=1)
    top = schedule.num_train_timesteps - 1
    t = torch.tensor([1, 2, 5, top // 2, top * 3 // 4, top * 7 // 8])
    terms = elbo_terms(half_right, schedule, x_0, t, noise)
    x_t = add_noise(schedule, x_0, t, noise)
    error = ((noise - half_right(x_t, t)) ** 2).sum(dim=(1, 2))
    torch.testing.assert_close(terms, elbo_weight(schedule, t) * error, rtol=5e-3, atol=1e-5)
    # the definition, one sample at a time, in float64 and by Bayes' rule
    for i, step in enumerate(t.tolist()):
        guess = predict_x0(schedule, x_t[i : i + 1], step, half_right(x_t[i : i + 1], t))
        mean, variance = bayes(schedule, x_0[i].double(), x_t[i].double(), step, step - 1)
        guessed, _ = bayes(schedule, guess[0].double(), x_t[i].double(), step, step - 1)
        wanted = kl_divergence(Normal(mean, variance.sqrt()), Normal(guessed, variance.sqrt())).sum()
        assert terms[i].item() == pytest.approx(wanted.item(), rel=5e-3)


def test_elbo_weight_is_equation_12_and_snr(schedule):
    t = torch.arange(1, 20)
    beta, alpha, alpha_bar = schedule.betas[t], schedule.alphas[t], schedule.alphas_cumprod[t]
    variance = (1 - schedule.alphas_cumprod[t - 1]) / (1 - alpha_bar) * beta
    wanted = beta**2 / (2 * variance * alpha * (1 - alpha_bar))
    torch.testing.assert_close(elbo_weight(schedule, t), wanted, rtol=1e-4, atol=0)
    by_snr = 0.5 * (schedule.snr(t - 1) / schedule.snr(t) - 1)
    torch.testing.assert_close(elbo_weight(schedule, t), by_snr, rtol=1e-4, atol=0)
    assert elbo_weight(schedule, 3).shape == ()


def test_elbo_first_term_is_the_likelihood(schedule):
    x_0, noise = randn(3, 4), randn(3, 4, seed=1)
    terms = elbo_terms(half_right, schedule, x_0, 0, noise)
    x_t = add_noise(schedule, x_0, 0, noise)
    guess = predict_x0(schedule, x_t, 0, half_right(x_t, None))
    std = schedule.betas[0].sqrt()
    torch.testing.assert_close(terms, -Normal(guess, std).log_prob(x_0).sum(dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms, decoder_nll(schedule, x_0, guess).sum(dim=1), rtol=1e-4, atol=1e-4)
    constant = 4 * 0.5 * math.log(2 * math.pi * schedule.betas[0].item())
    by_weight = elbo_weight(schedule, 0) * ((noise - half_right(x_t, None)) ** 2).sum(dim=1) + constant
    torch.testing.assert_close(terms, by_weight, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_elbo_does_not_depend_on_what_is_predicted(schedule, prediction_type):
    x_0, noise, t = randn(5, 4), randn(5, 4, seed=1), torch.tensor([0, 1, 7, 12, 19])

    def denoiser(x_t, t):  # the same wrong guess in three guises
        return target(
            schedule, x_0 + 0.3, t, predict_noise(schedule, x_t, t, x_0 + 0.3, "sample"), prediction_type
        )

    terms = elbo_terms(denoiser, schedule, x_0, t, noise, prediction_type)
    wanted = elbo_terms(lambda x_t, t: x_0 + 0.3, schedule, x_0, t, noise, "sample")
    torch.testing.assert_close(terms, wanted, rtol=2e-3, atol=1e-4)


def quantiles(n, std):
    """n values that stand for N(0, std²) without a draw's luck, [n, 1]."""
    return std * Normal(0.0, 1.0).icdf((torch.arange(n) + 0.5) / n)[:, None]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_elbo_terms_of_gaussian_data_in_closed_form(schedule):
    """L_{t−1} = ½ (SNR(t−1) − SNR(t)) · mmse, where mmse = s² / (1 + s² SNR(t)) for x_0 ~ N(0, s²)."""
    std, n = 0.7, 20_000
    denoiser = gaussian_mixture_denoiser(schedule, torch.zeros(1, 1), std)
    for t in (1, 3, 10, schedule.num_train_timesteps // 2, schedule.num_train_timesteps - 2):
        terms = elbo_terms(denoiser, schedule, quantiles(n, std), t, randn(n, 1, seed=t))
        least = std**2 / (1 + std**2 * schedule.snr(t).item())
        wanted = 0.5 * (schedule.snr(t - 1) - schedule.snr(t)).item() * least
        assert terms.mean().item() == pytest.approx(wanted, rel=5 * (2 / n) ** 0.5 + 3e-3)


def test_elbo_is_a_bound_and_tight_for_the_perfect_denoiser_with_fine_steps():
    """Gaussian data, of known entropy. Steps are fine where SNR(t−1) / SNR(t) is near 1: here, all are."""
    std, n = 0.7, 4000
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    x_0 = quantiles(n, std)

    def gap(T, wrong=1.0):
        snr = torch.logspace(3, -3, T, dtype=torch.float64)
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), snr / (1 + snr)])
        schedule = NoiseSchedule(1 - alpha_bar[1:] / alpha_bar[:-1])
        perfect = gaussian_mixture_denoiser(schedule, torch.zeros(1, 1), std)
        total = prior_kl(schedule, x_0)
        for t in range(T):
            noise = randn(n, 1, seed=t + 1)
            total = total + elbo_terms(lambda x, t: wrong * perfect(x, t), schedule, x_0, t, noise)
        return total.mean().item() - entropy

    coarse, fine = gap(20), gap(200)
    assert 0.5 < coarse < 1.5
    assert 0 < fine < 0.15
    assert gap(200, wrong=0.8) > fine + 0.02


def test_the_bound_is_exact_with_the_larger_variance_for_data_of_variance_one():
    """There β is the variance of the true step back (Ho et al. 2020, section 3.2), and the bound the entropy itself."""
    schedule, n = NoiseSchedule.linear(10, 0.05, 0.6), 20_000
    perfect, x_0 = gaussian_mixture_denoiser(schedule, torch.zeros(1, 1), 1.0), quantiles(n, 1.0)

    def bound(variance_type):
        noises = [randn(n, 1, seed=t + 1) for t in range(10)]
        terms = [
            elbo_terms(perfect, schedule, x_0, t, noise, variance_type=variance_type) for t, noise in enumerate(noises)
        ]
        return (prior_kl(schedule, x_0) + torch.stack(terms).sum(0)).mean().item()

    entropy = 0.5 * math.log(2 * math.pi * math.e)
    assert bound("fixed_large") == pytest.approx(entropy, abs=0.05)
    assert bound("fixed_small") > entropy + 0.1


def test_elbo_errors(schedule):
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="noise has shape"):
        elbo_terms(half_right, schedule, x, 1, x[:1])
    with pytest.raises(ValueError, match="0 … 19"):
        elbo_terms(half_right, schedule, x, 20, x)
    with pytest.raises(ValueError, match="prediction has shape"):
        elbo_terms(lambda x, t: x[:1], schedule, x, 1, x)
    with pytest.raises(ValueError, match="prediction_type"):
        elbo_terms(half_right, schedule, x, 1, x, "noise")
    with pytest.raises(ValueError, match="variance_type"):
        elbo_terms(half_right, schedule, x, 1, x, variance_type="β")
