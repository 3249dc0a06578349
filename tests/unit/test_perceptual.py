"""The perceptual distance, the sharpness of edges, and the critic with its losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.evaluation.judge import Judge
from course_utils.evaluation.perceptual import edge_sharpness, feature_maps, perceptual_distance
from course_utils.models.critic import PatchCritic, adaptive_weight, hinge_loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 64, 64, generator=generator()) * 2 - 1


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge().requires_grad_(False).eval()


def test_feature_maps_are_the_judges_own_blocks_from_fine_to_coarse(judge):
    x = pictures()
    maps = feature_maps(judge, x)
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 32, 32), (64, 16, 16), (96, 8, 8), (128, 8, 8), (128, 4, 4)]
    assert torch.equal(maps[1], judge.near(x))
    assert torch.equal(maps[-1].amax(dim=(2, 3)), judge.what_and_where(x)[0])


def test_perceptual_distance_is_the_formula_one_number_a_picture(judge):
    x, y = pictures(), pictures().flip(0)
    expected = [0.0] * 3
    for a, b in zip(feature_maps(judge, x), feature_maps(judge, y), strict=True):
        for i in range(3):
            unit = [m[i].flatten(1) / m[i].flatten(1).norm(dim=0) for m in (a, b)]  # [C, h·w], columns of length 1
            expected[i] += ((unit[0] - unit[1]) ** 2).sum().item() / unit[0].shape[1]
    distance = perceptual_distance(judge, x, y)
    assert distance.tolist() == pytest.approx(expected, rel=1e-4)
    assert distance[1] < 1e-6 < distance[0]  # the middle picture is compared with itself
    assert torch.allclose(perceptual_distance(judge, y, x), distance)


def test_perceptual_distance_has_gradients_in_the_pictures_only(judge):
    x, y = pictures(), pictures().flip(0).requires_grad_()
    perceptual_distance(judge, x, y).sum().backward()
    assert y.grad is not None and y.grad[0].abs().sum() > 0 and y.grad.isfinite().all()
    assert all(p.grad is None for p in judge.parameters())
    flat = torch.zeros(1, 3, 64, 64, requires_grad=True)
    perceptual_distance(judge, flat.detach(), flat).sum().backward()
    assert flat.grad is not None and flat.grad.isfinite().all()  # no 0 / 0 where the features agree


def test_edge_sharpness_of_known_edges():
    x = -torch.ones(1, 3, 16, 16)
    x[..., 8:] = 1  # one edge, a step of 2 in three channels
    half = 0.5 * x
    ramp = x.clone()
    ramp[..., 8] = 0  # the step spread over two pixels, of which one lies where the original's edge is
    assert edge_sharpness(x, x).item() == pytest.approx(1)
    assert edge_sharpness(x, half).item() == pytest.approx(0.5)
    assert edge_sharpness(x, ramp).item() == pytest.approx(0.5)
    ground = x + 0.1 * (torch.arange(16) % 2) * (torch.arange(16) < 7)  # ripples away from the edge
    assert edge_sharpness(x, ground).item() == pytest.approx(1)
    assert edge_sharpness(torch.cat([x, x.mT]), torch.cat([half, x.mT])).tolist() == pytest.approx([0.5, 1])
    assert edge_sharpness(0 * x, x).isnan().all()


def test_shapes_must_agree(judge):
    with pytest.raises(ValueError, match=r"perceptual_distance compares pictures of one shape, got \[3.* and \[2"):
        perceptual_distance(judge, pictures(), pictures(2))
    with pytest.raises(ValueError, match=r"edge_sharpness compares pictures of one shape, got \[3.* and \[2"):
        edge_sharpness(pictures(), pictures(2))


def test_a_score_of_the_critic_sees_26_pixels_and_no_more():
    torch.manual_seed(0)
    critic = PatchCritic(8)
    x = pictures(1).requires_grad_()
    scores = critic(x)
    assert scores.shape == (1, 1, 16, 16)
    scores[0, 0, 8, 8].backward()
    assert x.grad is not None
    seen = x.grad.abs().sum(dim=(0, 1)) > 0
    assert seen.any(dim=0).sum() == 26 and seen.any(dim=1).sum() == 26


def test_hinge_loss_by_hand():
    # 1 - 2 is below 0 and counts nothing; 1 - 0.5 = 0.5; copies: 1 - 3 counts nothing, 1 + 1 = 2
    assert hinge_loss(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])).item() == pytest.approx(0.5 * (0.25 + 1))
    assert hinge_loss(torch.ones(4), -torch.ones(4)) == 0
    assert hinge_loss(torch.zeros(4), torch.zeros(4)) == 1


def test_adaptive_weight_makes_both_losses_pull_alike():
    last = torch.randn(5, generator=generator()).requires_grad_()
    similar, fool = (last**2).sum(), 7 * last.sum()
    weight = adaptive_weight(similar, fool, last)
    pull = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (similar, weight * fool)]
    assert pull[0].item() == pytest.approx(pull[1].item(), rel=1e-5)
    assert not weight.requires_grad
    (similar + weight * fool).backward()  # the graphs are still there
    assert adaptive_weight(last.sum(), 0 * last.sum(), last) == 1e4


def test_a_critic_learns_to_tell_blurred_pictures():
    torch.manual_seed(0)
    critic = PatchCritic(8)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=3e-3)
    real = F.interpolate(pictures(8)[..., :16, :16], scale_factor=4.0)  # squares with sharp edges
    copy = F.avg_pool2d(real, 5, stride=1, padding=2, count_include_pad=False)
    for _ in range(60):
        loss = hinge_loss(critic(real), critic(copy))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3 and critic(real).mean() > 0.3 > -0.3 > critic(copy).mean()
