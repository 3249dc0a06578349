"""The perfect denoiser, against autograd, Monte Carlo and the loss it must minimise."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from course_utils.diffusion import (
    PREDICTION_TYPES,
    NoiseSchedule,
    add_noise,
    denoising_loss,
    gaussian_mixture_denoiser,
    gaussian_mixture_sample,
    predict_noise,
    predict_x0,
    target,
)

MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.0, -2.0]])
STD = torch.tensor([0.3, 0.1, 0.5])
WEIGHTS = torch.tensor([0.5, 0.2, 0.3])
SCHEDULE = NoiseSchedule.linear(20, 0.01, 0.3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noised_density(t, std=STD, weights=WEIGHTS):
    """q(x_t) by torch.distributions."""
    alpha_bar = SCHEDULE.alphas_cumprod[t]
    spread = (alpha_bar * std**2 + 1 - alpha_bar).sqrt()[:, None].expand(3, 2)
    return MixtureSameFamily(Categorical(weights), Independent(Normal(alpha_bar.sqrt() * MEANS, spread), 1))


@pytest.mark.parametrize("t", [0, 5, 12, 19])
def test_noise_is_the_score(t):
    x = (torch.randn(50, 2, generator=generator()) * 2).requires_grad_()
    (score,) = torch.autograd.grad(noised_density(t).log_prob(x).sum(), x)
    predicted = gaussian_mixture_denoiser(SCHEDULE, MEANS, STD, WEIGHTS)(x.detach(), torch.full((50,), t))
    wanted = -(1 - SCHEDULE.alphas_cumprod[t]).sqrt() * score
    torch.testing.assert_close(predicted, wanted, rtol=1e-3, atol=1e-4)


def test_it_is_the_conditional_mean():
    """Mean of x_0 over the draws whose x_t falls into a small box, against the formula at its middle."""
    n, t, middle, half = 1_000_000, 8, torch.tensor([0.1, 0.4]), 0.15
    x_0 = gaussian_mixture_sample(MEANS, STD, n, generator(), WEIGHTS)
    x_t = add_noise(SCHEDULE, x_0, t, torch.randn(n, 2, generator=generator(1)))
    near = ((x_t - middle).abs() < half).all(dim=1)
    assert near.sum() > 3000
    predicted = gaussian_mixture_denoiser(SCHEDULE, MEANS, STD, WEIGHTS, "sample")(middle[None], t)
    torch.testing.assert_close(x_0[near].mean(0, keepdim=True), predicted, rtol=0, atol=0.06)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_types_agree(prediction_type):
    x, t = torch.randn(20, 2, generator=generator()), torch.arange(20)
    predict = {
        kind: gaussian_mixture_denoiser(SCHEDULE, MEANS, STD, WEIGHTS, kind)(x, t)
        for kind in PREDICTION_TYPES
    }
    prediction = predict[prediction_type]
    got_x0 = predict_x0(SCHEDULE, x, t, prediction, prediction_type)
    got_noise = predict_noise(SCHEDULE, x, t, prediction, prediction_type)
    torch.testing.assert_close(got_x0, predict["sample"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_noise, predict["epsilon"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_nothing_has_a_lower_loss(prediction_type):
    n = 20_000
    x_0 = gaussian_mixture_sample(MEANS, STD, n, generator(), WEIGHTS)
    noise, t = torch.randn(n, 2, generator=generator(1)), torch.randint(0, 20, (n,), generator=generator(2))
    perfect = gaussian_mixture_denoiser(SCHEDULE, MEANS, STD, WEIGHTS, prediction_type)

    def loss(denoiser):
        return denoising_loss(denoiser, SCHEDULE, x_0, t, noise, prediction_type).item()

    best = loss(perfect)
    for worse in (
        lambda x, t: perfect(x, t) + 0.1,
        lambda x, t: 0.9 * perfect(x, t),
        lambda x, t: 1.1 * perfect(x, t),
        lambda x, t: perfect(x, (t + 1).clamp(max=19)),
        gaussian_mixture_denoiser(SCHEDULE, MEANS, STD, None, prediction_type),
    ):
        assert loss(worse) > best


def test_one_number_for_std_equal_weights_and_scale_of_weights():
    x, t = torch.randn(20, 2, generator=generator()), torch.arange(20)
    one = gaussian_mixture_denoiser(SCHEDULE, MEANS, 0.3)(x, t)
    all_given = gaussian_mixture_denoiser(SCHEDULE, MEANS, torch.full((3,), 0.3), torch.tensor([2.0, 2, 2]))(
        x, t
    )
    torch.testing.assert_close(one, all_given)


def test_points_learnt_by_heart():
    predict = gaussian_mixture_denoiser(SCHEDULE, MEANS, 0.0, prediction_type="sample")
    x_t = add_noise(SCHEDULE, MEANS, 0, torch.full((3, 2), 0.5))
    torch.testing.assert_close(predict(x_t, 0), MEANS)


def test_pictures_keep_their_shape():
    means = torch.randn(4, 12, generator=generator())
    x = torch.randn(5, 3, 2, 2, generator=generator(1))
    denoise = gaussian_mixture_denoiser(SCHEDULE, means, 0.2, prediction_type="v_prediction")
    t = torch.tensor([0, 5, 10, 15, 19])
    assert denoise(x, t).shape == x.shape
    torch.testing.assert_close(denoise(x, t).flatten(1), denoise(x.flatten(1), t))


def test_single_gaussian_by_hand():
    """v = 0.64 · 4 + 0.36 and E[x_0 | x_t] = 0.8 · 4 / v · x_t for mean 0, std 2."""
    schedule = NoiseSchedule([0.36])
    x = torch.tensor([[1.0]])
    predicted = gaussian_mixture_denoiser(schedule, torch.zeros(1, 1), 2.0, prediction_type="sample")(x, 0)
    assert predicted.item() == pytest.approx(0.8 * 4 / (0.64 * 4 + 0.36))
    noise = gaussian_mixture_denoiser(schedule, torch.zeros(1, 1), 2.0)(x, 0)
    assert noise.item() == pytest.approx(0.6 / (0.64 * 4 + 0.36))
    torch.testing.assert_close(target(schedule, predicted, 0, noise, "epsilon"), noise)


def test_sample_moments_and_reproducibility():
    n = 100_000
    x = gaussian_mixture_sample(MEANS, STD, n, generator(), WEIGHTS)
    assert x.shape == (n, 2)
    mean = (WEIGHTS[:, None] * MEANS).sum(0)
    second = (WEIGHTS[:, None] * (MEANS**2 + STD[:, None] ** 2)).sum(0)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close((x**2).mean(0), second, rtol=0, atol=0.06)
    assert torch.equal(x, gaussian_mixture_sample(MEANS, STD, n, generator(), WEIGHTS))
    assert torch.equal(gaussian_mixture_sample(MEANS[:1], 0.0, 2, generator()), MEANS[:1].expand(2, 2))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"means": torch.zeros(2)}, r"means must have shape \[K, D\]"),
        ({"std": -0.1}, "std must be 0 or above"),
        ({"std": torch.ones(2)}, "each of the 3 means"),
        ({"weights": torch.ones(2)}, "weights must be 3 numbers"),
        ({"weights": torch.tensor([1.0, -1.0, 1.0])}, "0 or above"),
        ({"weights": torch.zeros(3)}, "not all 0"),
    ],
)
def test_bad_mixtures(kwargs, message):
    arguments = {"means": MEANS, "std": 0.1, "weights": None} | kwargs
    with pytest.raises(ValueError, match=message):
        gaussian_mixture_denoiser(SCHEDULE, **arguments)
    with pytest.raises(ValueError, match=message):
        gaussian_mixture_sample(**arguments, n=3, generator=generator())


def test_bad_calls():
    with pytest.raises(ValueError, match="prediction_type"):
        gaussian_mixture_denoiser(SCHEDULE, MEANS, 0.1, prediction_type="noise")
    denoise = gaussian_mixture_denoiser(SCHEDULE, MEANS, 0.1)
    with pytest.raises(ValueError, match="3 elements a sample.*D = 2"):
        denoise(torch.zeros(4, 3), 0)
    with pytest.raises(ValueError, match="0 … 19"):
        denoise(torch.zeros(4, 2), 20)
