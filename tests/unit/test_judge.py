from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from course_utils.data.batches import CaptionedImages, to_float
from course_utils.data.scenes import ATTRIBUTES, COLORS, OBJECTS, PLACES, draw, is_held_out_color, random_scene
from course_utils.evaluation.judge import NONE, Judge, JudgeConfig, degrade, judge_loss, recombine, spoil
from course_utils.evaluation.metrics import frechet_distance, prompt_accuracy
from course_utils.training.loop import train


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge()


@pytest.fixture(scope="module")
def scenes() -> CaptionedImages:
    return CaptionedImages.scenes(32, seed=9)


def test_shapes_and_size(judge, scenes):
    images, _, attributes = scenes.batch(range(6))
    logits = judge(images)
    assert list(logits) == list(ATTRIBUTES)
    assert [logits[a].shape[1] for a in ATTRIBUTES] == [65, 8, 2, 5]  # one more: none of these
    c = judge.config
    assert judge.features(images).shape == (6, c.what_dim + c.where_dim + 2 * c.channels[1])
    predicted = judge.predict(images, batch_size=4)
    assert predicted.shape == (6, 4) and predicted.dtype == torch.int64 and not predicted.requires_grad
    assert torch.equal(predicted[:, 1], logits["color"].argmax(1))
    assert 3e5 < sum(p.numel() for p in judge.parameters()) < 5e5


def test_config_is_frozen_and_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        JudgeConfig().what_dim = 1
    with pytest.raises(ValueError, match="multiple of 16, not 40"):
        JudgeConfig(image_size=40)
    with pytest.raises(ValueError, match="object, color, size, place"):
        JudgeConfig(classes=(3, 2))
    with pytest.raises(ValueError, match=r"wants pictures \[B, 3, 64, 64\], got \[1, 3, 32, 32\]"):
        Judge()(torch.zeros(1, 3, 32, 32))
    assert Judge(JudgeConfig(image_size=32))(torch.zeros(1, 3, 32, 32))["place"].shape == (1, 5)


def test_a_judge_for_more_objects_and_larger_pictures():
    assert JudgeConfig.for_objects(64) == JudgeConfig()
    config = JudgeConfig.for_objects(200, image_size=96, channels=(8, 16, 24, 32))
    assert config.classes == (201, 8, 2, 5) and config.image_size == 96
    many = CaptionedImages.scenes(16, seed=3, size=96, objects=200)
    assert many.attributes[:, 0].max() >= 64
    torch.manual_seed(0)
    judge = Judge(config)
    images, _, attributes = many.batch(range(16))
    assert judge(images)["object"].shape == (16, 201) and judge.predict(images).shape == (16, 4)
    loss = judge_loss(judge, images, attributes, generator())
    assert loss.item() < 2 * sum(math.log(n) for n in config.classes)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in judge.parameters())
    with pytest.raises(ValueError, match="objects must lie in 1 ... 1000, not 5000"):
        JudgeConfig.for_objects(5000)


@pytest.mark.parametrize("size", [96, 128])
def test_recombining_moves_larger_scenes_to_where_they_should_be(size):
    scenes = CaptionedImages.scenes(48, seed=2, size=size)
    images, attributes = recombine(to_float(scenes.images), scenes.attributes)
    background = torch.tensor(list(COLORS.values()))[attributes[:, 1]].float() / 127.5 - 1
    assert torch.allclose(images[:, :, 0, 0], background, atol=1e-2)
    shown = (images - images[:, :, :1, :1]).abs().amax(dim=1) > 0.1  # [B, H, W]
    for mask, (_, _, _, place) in zip(shown, attributes.tolist(), strict=True):
        rows, columns = (mask.any(dim=d).nonzero().flatten() for d in (1, 0))
        y, x = (float(r.min() + r.max() + 1) / 2 / size - 0.5 for r in (rows, columns))
        off = {"middle": -max(abs(x), abs(y)), "left": -x, "right": x, "top": -y, "bottom": y}[PLACES[place]]
        assert off > (-0.08 if PLACES[place] == "middle" else 0.08), (PLACES[place], x, y)


def test_loss_is_the_sum_of_cross_entropies(judge, scenes):
    images, _, attributes = scenes.batch(range(8))
    logits = judge(images)
    expected = sum(F.cross_entropy(logits[a], attributes[:, i]) for i, a in enumerate(ATTRIBUTES))
    assert judge_loss(judge, images, attributes).item() == pytest.approx(expected.item(), rel=1e-5)
    with torch.no_grad():
        silent = Judge()
        for head in silent.heads:
            head.weight.zero_()
            head.bias.zero_()
    chance = math.log(65) + math.log(8) + math.log(2) + math.log(5)
    assert judge_loss(silent, images, attributes).item() == pytest.approx(chance, rel=1e-5)


def test_loss_skips_what_is_unknown(judge, scenes):
    images, _, attributes = scenes.batch(range(8))
    partly = attributes.clone()
    partly[:4, 0] = partly[:, 1] = -1
    logits = judge(images)
    expected = F.cross_entropy(logits["object"][4:], attributes[4:, 0]) + sum(
        F.cross_entropy(logits[a], attributes[:, i]) for i, a in ((2, "size"), (3, "place"))
    )
    assert judge_loss(judge, images, partly).item() == pytest.approx(expected.item(), rel=1e-5)
    nothing = judge_loss(judge, images, torch.full_like(attributes, -1))
    assert nothing == 0
    nothing.backward()  # no nan, no error
    assert all(p.grad is None or p.grad.isfinite().all() for p in judge.parameters())
    judge.zero_grad()
    with pytest.raises(ValueError, match=r"attributes must be \[8, 4\], got \[8, 3\]"):
        judge_loss(judge, images, attributes[:, :3])


def test_recombined_scenes_show_what_their_attributes_say():
    """Against the truth: the same scenes, drawn afresh with the next one's colour and the one after's place."""
    g = generator(3)
    scenes = [random_scene(g, "all") for _ in range(200)]
    images = torch.stack([to_float(torch.from_numpy(draw(scene)).permute(2, 0, 1)) for scene in scenes])
    attributes = torch.tensor([scene.attributes for scene in scenes])
    before = images.clone()
    made, asked = recombine(images, attributes)
    assert torch.equal(images, before)  # the input stays as it is
    errors = []
    for i, scene in enumerate(scenes):
        color, place = scenes[(i + 1) % 200].color, scenes[(i + 2) % 200].place
        truth = dataclasses.replace(scene, color=color, place=place, dx=0, dy=0)
        assert tuple(asked[i].tolist()) == truth.attributes
        assert torch.allclose(made[i, :, 0, 0], images[(i + 1) % 200, :, 0, 0], atol=1e-6)
        # How far it stands along an edge is the other scene's: the best of all shifts by a cell is the fair comparison.
        drawn = to_float(torch.from_numpy(draw(truth)).permute(2, 0, 1))
        shifts = [drawn.roll((dy, dx), (1, 2)) for dy in range(-8, 9) for dx in range(-8, 9)]
        errors.append(min((made[i] - shifted).abs().mean().item() for shifted in shifts))
    errors = torch.tensor(errors)
    assert errors.median() < 0.01 and errors.quantile(0.9) < 0.06


def test_recombined_batches_hold_held_out_pairs_no_more_often_or_seldom_than_others():
    dataset = CaptionedImages.scenes(2000, seed=6)
    _, attributes = recombine(to_float(dataset.images), dataset.attributes)
    pairs = [(OBJECTS[o], tuple(COLORS)[c]) for o, c, _, _ in attributes.tolist()]
    share = sum(is_held_out_color(*pair) for pair in pairs) / len(pairs)
    assert 51 / 512 * 0.75 < share < 51 / 512 * 1.25


def test_degrading_is_mild_and_reproducible(scenes):
    images = to_float(scenes.images)
    before = images.clone()
    worse = degrade(images, generator(1))
    assert torch.equal(images, before) and worse.shape == images.shape and worse.dtype == images.dtype
    assert torch.equal(worse, degrade(images, generator(1)))
    assert not torch.equal(worse, degrade(images, generator(2)))
    error = (worse - images).square().mean(dim=(1, 2, 3)).sqrt()
    assert 0.02 < error.min() and error.max() < 0.35 and error.std() > 0.01


def test_spoiled_pictures_show_no_object(scenes):
    images = to_float(scenes.images)
    before = images.clone()
    spoiled = spoil(images, generator(1))
    assert torch.equal(images, before) and torch.equal(spoiled, spoil(images, generator(1)))
    assert spoiled.shape == images.shape and spoiled.abs().max() <= 1
    corners = (spoiled - images)[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.abs().quantile(0.9) < 0.1  # the background stays
    off = (spoiled - images).square().mean(dim=(1, 2, 3))
    assert (off > 0.005).float().mean() > 0.9


def test_none_of_these_counts_as_wrong():
    torch.manual_seed(0)
    judge = Judge()
    with torch.no_grad():
        judge.heads[0].weight.zero_()
        judge.heads[0].bias.copy_(torch.eye(65)[-1])  # says "none" to everything
    predicted = judge.predict(torch.zeros(3, 3, 64, 64))
    assert predicted[:, 0].tolist() == [NONE] * 3
    accuracy = prompt_accuracy(predicted, [{"object": OBJECTS[-1], "color": "red"}] * 3)
    assert accuracy["object"] == 0 and accuracy["object_and_color"] == 0


def test_features_see_sharpness():
    torch.manual_seed(0)
    judge = Judge()
    real, other = (to_float(CaptionedImages.scenes(256, seed=seed).images) for seed in (1, 2))
    blurred = F.avg_pool2d(real, 3, stride=1, padding=1, count_include_pad=False)
    with torch.no_grad():
        r, o, b = (judge.features(x) for x in (real, other, blurred))
    fine = slice(-2 * judge.config.channels[1], None)
    assert frechet_distance(b[:, fine], o[:, fine]) > 2 * frechet_distance(r[:, fine], o[:, fine])


def test_a_few_steps_of_training_lower_the_loss(scenes):
    torch.manual_seed(1)
    judge = Judge(JudgeConfig(channels=(8, 16, 24, 32), what_dim=32))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    images, attributes, g = to_float(scenes.images), scenes.attributes, generator()
    losses = []
    for _ in range(40):
        loss = judge_loss(judge, images, attributes, g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


@pytest.mark.slow
def test_a_trained_judge_reads_pairs_it_never_saw():
    torch.manual_seed(0)
    judge, dataset = Judge(), CaptionedImages.scenes(16000, seed=1)

    def loss(g: torch.Generator) -> torch.Tensor:
        images, _, attributes = dataset.batch(torch.randint(len(dataset), (128,), generator=g))
        return judge_loss(judge, images, attributes, g)

    train(judge, loss, steps=400, lr=2e-3, muon_lr=0.02, ema=None)
    for split in ("train", "held_out"):
        unseen = CaptionedImages.scenes(2000, seed=99, split=split)
        right = judge.predict(to_float(unseen.images)) == unseen.attributes
        assert right.float().mean(dim=0).min() >= 0.995, (split, right.float().mean(dim=0))
        spoiled = judge.predict(spoil(to_float(unseen.images), torch.Generator().manual_seed(2)))
        assert (spoiled[:, 0] == NONE).float().mean() > 0.9, split
