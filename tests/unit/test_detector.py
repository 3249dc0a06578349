from __future__ import annotations

import dataclasses

import pytest
import torch

from course_utils.data.compositions import compositions
from course_utils.data.vocabulary import COLORS, OBJECTS
from course_utils.evaluation.detector import (
    STRIDE,
    Detection,
    Detector,
    DetectorConfig,
    decode,
    detect,
    detector_loss,
    encode,
    things_of,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SMALL = DetectorConfig(channels=(16, 24, 32))


@pytest.fixture(scope="module")
def pictures():
    dataset, made = compositions(48, seed=2, split="all")
    return dataset.batch(range(48))[0], things_of(made), dataset.attributes[:, 1], made


def test_shapes_and_size(pictures):
    detector = Detector()
    heat, boxes, color = detector(pictures[0][:3])
    assert heat.shape == (3, 64, 16, 16) and boxes.shape == (3, 3, 16, 16) and color.shape == (3, 8)
    assert 3e5 < sum(p.numel() for p in detector.parameters()) < 6e5
    assert heat.sigmoid().mean().item() == pytest.approx(0.01, abs=0.01)
    with pytest.raises(ValueError, match=r"wants pictures \[B, 3, 64, 64\], got \[1, 3, 32, 32\]"):
        detector(torch.zeros(1, 3, 32, 32))


def test_config_is_frozen_and_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.image_size = 1
    with pytest.raises(ValueError, match="multiple of 8"):
        DetectorConfig(image_size=60)
    config = DetectorConfig(**{**dataclasses.asdict(SMALL), "channels": [16, 24, 32]})  # as JSON gives it back
    assert config == SMALL


def test_what_is_encoded_is_found_again(pictures):
    """A perfect heat map, decoded: the objects of each picture, where they are and as large as they are."""
    _, things, _, made = pictures
    heat, boxes, mask = encode(things, len(OBJECTS), 16)
    assert mask.sum().item() == sum(len(c.things) for c in made) and torch.equal(mask, (heat == 1).any(dim=1))
    for found, c in zip(decode(heat, boxes), made, strict=True):
        there = sorted((t.object, t.x, t.y, t.pixels) for t in c.things)
        assert sorted((d.object, d.x, d.y, d.size) for d in found) == there
        assert all(d.score == 1 for d in found)


def test_other_sizes_of_picture():
    """Places and sizes stay those of the 64 × 64 canvas, however many pixels a picture has."""
    dataset, made = compositions(6, seed=3, size=128)
    detector = Detector(DetectorConfig(image_size=128, channels=(8, 8, 16)))
    assert detector(dataset.batch(range(6))[0])[0].shape == (6, 64, 32, 32)
    heat, boxes, _ = encode(things_of(made), len(OBJECTS), 32)
    for found, c in zip(decode(heat, boxes), made, strict=True):
        assert sorted((d.x, d.y, d.size) for d in found) == sorted((t.x, t.y, t.pixels) for t in c.things)


def test_heat_falls_off_around_a_centre():
    things = torch.tensor([[[5.0, 34.0, 21.0, 24.0], [-1.0, -1, -1, -1]]])
    heat, boxes, mask = encode(things, 8, 16)
    assert heat.shape == (1, 8, 16, 16) and heat[:, [i for i in range(8) if i != 5]].sum() == 0
    assert heat[0, 5, 5, 8] == 1 and heat[0, 5, 5, 9] == heat[0, 5, 4, 8] == pytest.approx(torch.e**-0.5, abs=1e-5)
    assert boxes[0, :, 5, 8].tolist() == [34 / STRIDE - 8, 21 / STRIDE - 5, 24 / STRIDE]
    assert mask.nonzero().tolist() == [[0, 5, 8]]


def test_decoding_keeps_one_object_a_place():
    heat, boxes = torch.zeros(1, 64, 16, 16), torch.zeros(1, 3, 16, 16)
    boxes[:, 2] = 24 / STRIDE
    heat[0, 3, 4, 4], heat[0, 9, 4, 4] = 0.9, 0.8  # two classes on one spot
    heat[0, 9, 4, 6] = 0.7  # within the first
    heat[0, 9, 12, 12], heat[0, 1, 2, 13] = 0.6, 0.19  # another place; too unsure
    found = decode(heat, boxes)[0]
    assert [(d.object, d.x, d.y) for d in found] == [(OBJECTS[3], 16, 16), (OBJECTS[9], 48, 48)]
    assert [d.object for d in decode(heat, boxes, threshold=0.1)[0]] == [OBJECTS[3], OBJECTS[9], OBJECTS[1]]
    assert decode(torch.zeros(2, 64, 16, 16), boxes.expand(2, -1, -1, -1)) == [[], []]
    assert isinstance(found[0], Detection)


def test_loss_is_least_for_the_perfect_answer(pictures):
    images, things, colors, _ = pictures
    heat, boxes, _ = encode(things, len(OBJECTS), 16)

    class Perfect(torch.nn.Module):
        def __init__(self, shift: float = 0.0, doubt: float = 0.0) -> None:
            super().__init__()
            self.shift, self.doubt = shift, doubt

        def forward(self, x):
            sure = torch.nn.functional.one_hot(colors, len(COLORS)) * 40.0
            return torch.logit(heat.clamp(1e-6, 1 - 1e-6)) * (1 - self.doubt), boxes + self.shift, sure

    best = detector_loss(Perfect(), images, things, colors).item()
    assert best < 0.2
    assert detector_loss(Perfect(shift=1.0), images, things, colors).item() == pytest.approx(best + 2.1, abs=1e-3)
    assert detector_loss(Perfect(doubt=0.9), images, things, colors).item() > best + 1
    empty = torch.full_like(things, -1)
    assert detector_loss(Perfect(), images, empty, colors).isfinite()
    with pytest.raises(ValueError, match=r"48 pictures want things \[48, n, 4\]"):
        detector_loss(Perfect(), images, things[:3], colors)


def test_every_weight_gets_a_gradient(pictures):
    torch.manual_seed(0)
    detector = Detector(SMALL)
    images, things, colors, _ = pictures
    detector_loss(detector, images, things, colors, generator()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in detector.parameters())


def test_a_few_steps_of_training_lower_the_loss(pictures):
    torch.manual_seed(1)
    detector = Detector(SMALL)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=5e-3)
    images, things, colors, _ = pictures
    g, losses = generator(), []
    for _ in range(20):
        loss = detector_loss(detector, images[:24], things[:24], colors[:24], g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_detecting(pictures):
    torch.manual_seed(0)
    seen = detect(Detector(SMALL), pictures[0], threshold=0.0, batch_size=20)
    assert len(seen) == 48 and all(s.color in COLORS for s in seen)
    for s in seen:
        assert 1 <= len(s.objects) <= 16 and [d.score for d in s.objects] == sorted(
            (d.score for d in s.objects), reverse=True
        )
    assert all(not s.objects for s in detect(Detector(SMALL), pictures[0][:2], threshold=0.9))
