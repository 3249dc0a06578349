"""How far apart two pictures look: a distance in a network's features, and how steep a copy's edges are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.evaluation.judge import Judge


def feature_maps(judge: Judge, x: Tensor) -> list[Tensor]:
    """What five layers of the judge answer at each place of x [B, 3, H, W]: maps [B, C, h, w], fine to coarse."""
    layers = [layer for layer in [*judge.near, *judge.what] if isinstance(layer, nn.Sequential)]  # its blocks
    maps = [layers[0](judge.near[0](x))]  # near[0] only folds 2 × 2 pixels into channels
    for layer in layers[1:]:
        maps.append(layer(maps[-1]))
    return maps


def perceptual_distance(judge: Judge, x: Tensor, y: Tensor) -> Tensor:
    """How far each picture of y is from its partner in x, measured in the judge's features; gradients reach both.

    At each place of each layer the features are scaled to length 1; then the squared differences are summed over
    channels, averaged over places and summed over layers.

    Args:
        x, y: [B, 3, H, W] in [-1, 1].

    Returns:
        [B], 0 where the features agree, at most 4 a layer.

    Raises:
        ValueError: x and y differ in shape.

    Source: Zhang et al. 2018 (arXiv 1801.03924), section 3, with all channels weighted alike and the judge's features.
    """
    if x.shape != y.shape:
        raise ValueError(f"perceptual_distance compares pictures of one shape, got {list(x.shape)} and {list(y.shape)}")
    total = x.new_zeros(len(x))
    for a, b in zip(feature_maps(judge, x), feature_maps(judge, y), strict=True):
        difference = F.normalize(a, dim=1, eps=1e-6) - F.normalize(b, dim=1, eps=1e-6)
        total = total + difference.square().sum(dim=1).mean(dim=(1, 2))
    return total


def edge_sharpness(x: Tensor, y: Tensor, steep: float = 1.0) -> Tensor:
    """How steep each copy y is where its original x has edges: 1 is as steep as the original, less is blurred.

    The steepness of a place is the length of the difference to its right and its lower neighbour, over all channels.
    Only places count where the original's is above `steep`, so noise on plain ground does not pass for sharpness.

    Args:
        x, y: [B, 3, H, W] in [-1, 1].

    Returns:
        [B]; nan for a picture without edges.

    Raises:
        ValueError: x and y differ in shape.
    """
    if x.shape != y.shape:
        raise ValueError(f"edge_sharpness compares pictures of one shape, got {list(x.shape)} and {list(y.shape)}")
    original, copy = _steepness(x), _steepness(y)  # [B, H - 1, W - 1]
    edges = (original > steep).to(x)
    return (copy * edges).sum(dim=(1, 2)) / (original * edges).sum(dim=(1, 2))


def _steepness(x: Tensor) -> Tensor:
    here = x[..., :-1, :-1]
    right, down = x[..., :-1, 1:] - here, x[..., 1:, :-1] - here
    return (right.square() + down.square()).sum(dim=1).sqrt()
