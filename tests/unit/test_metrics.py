from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from course_utils.data.scenes import COLORS, OBJECTS, VALUES
from course_utils.evaluation.metrics import (
    diversity,
    frechet_distance,
    nearest,
    prompt_accuracy,
    psnr,
    retrieval_accuracy,
    wanted_attributes,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_psnr_of_known_errors():
    x = torch.zeros(3, 3, 8, 8)
    y = x.clone()
    y[0] += 0.2  # mean squared error 0.04, a hundredth of the squared range
    y[1] += 2.0
    assert psnr(x, y)[:2].tolist() == pytest.approx([20.0, 0.0], abs=1e-4)
    assert psnr(x, y)[2] == math.inf
    with pytest.raises(ValueError, match=r"one shape, got \[3, 3, 8, 8\] and \[1"):
        psnr(x, y[:1])


def test_retrieval_counts_both_directions():
    image = torch.eye(4)
    assert retrieval_accuracy(image, image) == (1.0, 1.0)
    assert retrieval_accuracy(image, image.roll(1, 0)) == (0.0, 0.0)
    # Text 1 is told for picture 0 as well: picture 1 is still found by it, picture 0 finds the wrong text.
    text = torch.tensor([[0.6, 0.0, 0.8], [1.0, 0.1, 0.0], [0.0, 0.0, 1.0]])
    image = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    result = retrieval_accuracy(image, text)
    similarity = (image / image.norm(dim=1, keepdim=True)) @ (text / text.norm(dim=1, keepdim=True)).T
    right = torch.arange(3)
    assert result.image_to_text == pytest.approx((similarity.argmax(1) == right).float().mean().item())
    assert result.text_to_image == pytest.approx((similarity.argmax(0) == right).float().mean().item())
    assert result.image_to_text != result.text_to_image


def test_retrieval_ignores_length_and_gives_no_credit_for_ties():
    features = torch.randn(10, 5, generator=generator())
    assert retrieval_accuracy(features, 7 * features) == (1.0, 1.0)
    assert retrieval_accuracy(torch.ones(10, 5), torch.ones(10, 5)) == pytest.approx((0.1, 0.1))


def square_root_of_a_covariance(c: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(c)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def test_frechet_distance_against_the_formula_with_matrix_roots():
    a = torch.randn(300, 6, generator=generator(1)) @ torch.randn(6, 6, generator=generator(2)) + 1
    b = torch.randn(200, 6, generator=generator(3)) @ torch.randn(6, 6, generator=generator(4))
    na, nb = a.double().numpy(), b.double().numpy()
    ca, cb = np.cov(na.T), np.cov(nb.T)
    root = square_root_of_a_covariance(ca)
    # (C_a C_b)^½ has the trace of (C_a^½ C_b C_a^½)^½, whose argument is symmetric.
    cross = np.trace(square_root_of_a_covariance(root @ cb @ root))
    expected = np.sum((na.mean(0) - nb.mean(0)) ** 2) + np.trace(ca) + np.trace(cb) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_gaussians_in_closed_form():
    # Standardised columns that are orthogonal, so that mean and covariance are exactly what is asked for.
    z = torch.linalg.qr(torch.randn(500, 4, generator=generator()).double().sub_(0))[0]
    z = torch.linalg.qr(z - z.mean(0))[0] * 499**0.5
    scale_a, scale_b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 1.0, 0.5])
    shift = torch.tensor([0.0, 3.0, 0.0, 4.0])
    expected = float(shift.square().sum() + (scale_a - scale_b).square().sum())
    assert frechet_distance(z * scale_a, z * scale_b + shift) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_is_safe_with_few_or_degenerate_rows():
    few = torch.randn(5, 64, generator=generator(7))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(torch.zeros(3, 2), torch.ones(3, 2)) == pytest.approx(2)
    constant = torch.cat([few, torch.zeros(5, 3)], dim=1)
    assert frechet_distance(constant, constant + 1) == pytest.approx(67, rel=1e-6)
    with pytest.raises(ValueError, match="at least 2 rows"):
        frechet_distance(few[:1], few)
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(few * math.nan, few)


def test_prompt_accuracy_counts_only_what_is_named():
    predicted = torch.tensor([[0, 1, 0, 2], [5, 2, 1, 0], [7, 3, 1, 1], [9, 0, 0, 0]])
    wanted = torch.tensor([[0, 1, 0, 2], [5, 4, -1, -1], [7, -1, -1, 0], [-1, -1, -1, -1]])
    accuracy = prompt_accuracy(predicted, wanted)
    assert accuracy["object"] == 1 and accuracy["color"] == accuracy["place"] == 0.5 and accuracy["size"] == 1
    assert accuracy["object_and_color"] == 0.5
    assert accuracy["all_named"] == pytest.approx(1 / 3)
    assert set(accuracy) == {"object", "color", "size", "place", "object_and_color", "all_named"}
    assert math.isnan(prompt_accuracy(predicted[3:], wanted[3:])["object"])


def test_prompt_accuracy_reads_names():
    names = [{"object": "dog", "color": "blue"}, {"object": "cat", "color": "red", "place": "top"}]
    indices = wanted_attributes(names)
    assert indices.tolist() == [
        [OBJECTS.index("dog"), list(COLORS).index("blue"), -1, -1],
        [OBJECTS.index("cat"), list(COLORS).index("red"), -1, VALUES["place"].index("top")],
    ]
    predicted = indices.clamp(min=0)
    assert prompt_accuracy(predicted, names) == pytest.approx(prompt_accuracy(predicted, indices), nan_ok=True)
    assert wanted_attributes([]).shape == (0, 4)
    with pytest.raises(ValueError, match=r"unknown attributes \['colour'\]"):
        wanted_attributes([{"colour": "red"}])
    with pytest.raises(ValueError, match="unknown object 'doge'"):
        wanted_attributes([{"object": "doge"}])
    with pytest.raises(ValueError, match="one shape"):
        prompt_accuracy(predicted, names[:1])


def test_diversity_of_known_sets():
    assert diversity(torch.ones(4, 3, 2, 2)) == 0
    x = torch.zeros(3, 3, 4, 4)
    x[1] += 1
    x[2] -= 1
    assert diversity(x) == pytest.approx((1 + 1 + 2) / 3)
    with pytest.raises(ValueError, match="at least 2"):
        diversity(x[:1])


def test_nearest_against_all_pairs():
    among = torch.randint(0, 256, (50, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    x = among[[31, 7]].float() / 127.5 - 1
    x[1] += 0.1
    index, distance = nearest(x, among, chunk=16)
    assert index.tolist() == [31, 7] and distance.tolist() == pytest.approx([0, 0.1], abs=1e-5)
    points, others = torch.randn(6, 4, generator=generator(1)), torch.randn(40, 4, generator=generator(2))
    index, distance = nearest(points, others, chunk=7)
    all_pairs = (points[:, None] - others).square().mean(-1).sqrt()
    assert torch.equal(index, all_pairs.argmin(1)) and torch.allclose(distance, all_pairs.amin(1))
    with pytest.raises(ValueError, match="one shape"):
        nearest(points, among)
