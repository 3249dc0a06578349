"""Measures of quality; none of them holds weights. Pictures are [B, 3, H, W] float in [-1, 1], features [N, F]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.data.batches import to_float
from course_utils.data.scenes import ATTRIBUTES, value_index


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, in dB: 10 log10(2² / mean squared error). Higher is closer.

    x, y [B, ...] in [-1, 1], a range of 2 -> [B]; infinite where they are equal.
    """
    _same_shape(x, y, "psnr")
    error = (x.float() - y.float()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error)


class Retrieval(NamedTuple):
    """Share of right answers, each in 0 ... 1: the text found for a picture, and the picture found for a text."""

    image_to_text: float
    text_to_image: float


def retrieval_accuracy(image_features: Tensor, text_features: Tensor) -> Retrieval:
    """How often a picture's nearest text is its own, and the other way round, by cosine similarity.

    image_features, text_features [N, F]: row i of one belongs to row i of the other. By chance: 1 / N. A tie for the
    first place counts in part (two equal best scores: one half), so that constant features score what chance does.
    """
    _same_shape(image_features, text_features, "retrieval_accuracy")
    similarity = F.normalize(image_features.float(), dim=1) @ F.normalize(text_features.float(), dim=1).T  # [N, N]

    def share(scores: Tensor) -> float:
        best = scores >= scores.amax(dim=1, keepdim=True) - 1e-6
        return float((best.diagonal() / best.sum(dim=1)).mean())

    return Retrieval(share(similarity), share(similarity.T))


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features; 0 when mean and covariance agree.

        |m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½)            Heusel et al. 2017, eq. 6

    features_a [N, F], features_b [M, F], two rows or more each. Computed on the CPU in float64. Estimates from few rows
    are too large: compare only sets of equal size, with the distance between two real sets as the floor.
    """
    for features in (features_a, features_b):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != features_a.shape[1]:
            raise ValueError(
                "frechet_distance wants features [N, F] and [M, F] of at least 2 rows, "
                f"got {list(features_a.shape)} and {list(features_b.shape)}"
            )
    a, b = (features.detach().cpu().to(torch.float64) for features in (features_a, features_b))
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("frechet_distance wants finite features, some are nan or infinite")
    # tr (C_a C_b)^½ is the sum of the singular values of A Bᵀ, where C_a = Aᵀ A and C_b = Bᵀ B. So neither a matrix
    # square root nor a covariance of full rank is needed.
    root_a, root_b = (_covariance_root(features) for features in (a, b))
    overlap = torch.linalg.svdvals(root_a @ root_b.T).sum()
    shift = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    distance = shift + root_a.square().sum() + root_b.square().sum() - 2 * overlap
    return max(0.0, float(distance))  # rounding may leave it a little below zero


def _covariance_root(features: Tensor) -> Tensor:
    """R [min(N, F), F] with Rᵀ R = the covariance (over N - 1) of features [N, F]."""
    centred = (features - features.mean(dim=0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R


def wanted_attributes(wanted: Tensor | Sequence[Mapping[str, str]]) -> Tensor:
    """Named attributes, e.g. [{"object": "dog", "color": "red"}] -> int64 [N, 4] of indices, -1 where not named."""
    if isinstance(wanted, Tensor):
        return wanted
    rows = []
    for named in wanted:
        unknown = set(named) - set(ATTRIBUTES)
        if unknown:
            raise ValueError(f"unknown attributes {sorted(unknown)}; there are {', '.join(ATTRIBUTES)}")
        rows.append([value_index(a, named[a]) if a in named else -1 for a in ATTRIBUTES])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, len(ATTRIBUTES))


def prompt_accuracy(predicted: Tensor, wanted: Tensor | Sequence[Mapping[str, str]]) -> dict[str, float]:
    """How often pictures show what their prompts name.

    predicted: int64 [N, 4], what the judge sees. wanted: the same with -1 where a prompt does not say, or what
    `parse_caption` returns for each prompt.
    Returns the share of right ones, 0 ... 1, for "object", "color", "size" and "place" (of the prompts that name it),
    "object_and_color" (of those that name both), and "all_named" (everything named is right; of those that name
    anything). nan where no prompt counts.
    """
    wanted = wanted_attributes(wanted).to(predicted.device)
    _same_shape(predicted, wanted, "prompt_accuracy")
    if predicted.ndim != 2 or predicted.shape[1] != len(ATTRIBUTES):
        raise ValueError(f"prompt_accuracy wants [N, {len(ATTRIBUTES)}], got {list(predicted.shape)}")
    named, right = wanted >= 0, predicted == wanted

    def share(right: Tensor, counted: Tensor) -> float:
        return float(right[counted].float().mean())

    accuracy = {name: share(right[:, i], named[:, i]) for i, name in enumerate(ATTRIBUTES)}
    accuracy["object_and_color"] = share(right[:, :2].all(dim=1), named[:, :2].all(dim=1))
    accuracy["all_named"] = share((right | ~named).all(dim=1), named.any(dim=1))
    return accuracy


def diversity(x: Tensor) -> float:
    """Mean distance between two different rows of x [N, ...], pictures or features: 0 if all are the same.

    The distance is the root of the mean squared difference, so that it does not depend on the number of values.
    """
    if len(x) < 2:
        raise ValueError(f"diversity needs at least 2 pictures or feature vectors, got {len(x)}")
    rows = x.flatten(1).float()
    return float(torch.pdist(rows.cpu()).mean() / rows.shape[1] ** 0.5)


def nearest(x: Tensor, among: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """For each row of x [B, ...] the most similar row of `among` [N, ...]: (index [B], distance [B]).

    Pictures in [-1, 1] or features; uint8 pictures are taken as `CaptionedImages.images` keeps them. The distance is
    the root of the mean squared difference. `among` is gone through in chunks, so it may be large.
    """
    if x.shape[1:] != among.shape[1:] or not len(among):
        raise ValueError(f"nearest compares rows of one shape, got {list(x.shape)} and {list(among.shape)}")
    rows = _as_float_rows(x)
    best = torch.full((len(x),), torch.inf, device=x.device)
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for start in range(0, len(among), chunk):
        distances = torch.cdist(rows, _as_float_rows(among[start : start + chunk]).to(x.device))  # [B, chunk]
        distance, at = distances.min(dim=1)
        closer = distance < best
        best, index = torch.where(closer, distance, best), torch.where(closer, at + start, index)
    # cdist rounds generously, to be quick: good enough to choose by, not to report.
    exact = (rows - _as_float_rows(among[index.to(among.device)]).to(x.device)).square().mean(dim=1).sqrt()
    return index, exact


def _as_float_rows(x: Tensor) -> Tensor:
    return (to_float(x) if x.dtype == torch.uint8 else x.float()).flatten(1)


def _same_shape(x: Tensor, y: Tensor, what: str) -> None:
    if x.shape != y.shape:
        raise ValueError(f"{what} compares two tensors of one shape, got {list(x.shape)} and {list(y.shape)}")
