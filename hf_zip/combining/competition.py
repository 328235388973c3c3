"""Numbers of task vectors that compete: by their own size, and by how they go with the others."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hf_zip.combining.combination import per_model
from hf_zip.combining.magnitude import thresholds

_OUTLIERS = 1e-4  # share of the magnitudes at either end that are taken for the next ones

Passes = Callable[[], Iterable[Float[Tensor, " models *shape"]]]


@dataclass(frozen=True)
class Bounds:
    """What is to be known of whole task vectors, a number for each model.

    Args:
        least: The smallest magnitude that is no outlier.
        most: The largest one.
        scores: The smallest score that is kept.
        best: The largest score.
    """

    least: tuple[float, ...]
    most: tuple[float, ...]
    scores: tuple[float, ...] = ()
    best: tuple[float, ...] = ()


def competition_bounds(passes: Passes, ratio: float) -> Bounds:
    """Returns what is to be known of whole task vectors, found in passes over their tensors.

    Args:
        passes: Starts a pass over the tensors of all models.
        ratio: Share of each task vector's numbers to keep, in (0, 1].
    """
    count = sizes = 0
    for part in passes():
        count, sizes = len(part), sizes + part[0].numel()
    few = max(_OUTLIERS, 1 / sizes)
    ends = Bounds(
        thresholds(passes, [1 - _OUTLIERS] * count),
        thresholds(passes, [few] * count),
    )

    def scored() -> Iterable[Tensor]:
        # Numbers that go against the others have scores below zero, and never take part.
        return (_scores(part, ends).clamp(min=0) for part in passes())

    best = [0.0] * count
    for part in scored():
        own = part.reshape(count, -1).amax(dim=1).tolist()
        best = [max(pair) for pair in zip(best, own, strict=True)]
    return Bounds(ends.least, ends.most, thresholds(scored, [ratio] * count), tuple(best))


def compete(
    vectors: Float[Tensor, " models *shape"], bounds: Bounds, weights: Float[Tensor, "models ..."]
) -> Float[Tensor, " *shape"]:
    """Returns the mean of task vectors, each number weighted by its score among those kept.

    A score grows with a number's share of the largest magnitude of its task vector, squared, and
    with its product with the sum of all. It is 0 at the smallest that is kept, and 1 at the best.

    Args:
        vectors: Task vectors.
        bounds: What is known of them as wholes.
        weights: The weights of the models.

    Source: PCB-Merging (https://arxiv.org/abs/2410.02396), as in the authors' code. Deviation:
    numbers whose score is below zero never take part, whatever share is kept.
    """
    low, high = (per_model(ends, vectors) for ends in (bounds.scores, bounds.best))
    spread = high - low
    scores = (_scores(vectors, bounds) - low).clamp(min=0) / torch.where(spread > 0, spread, 1)
    total = (weights * scores).sum(dim=0)
    summed = (weights * scores * _clamped(vectors, bounds)).sum(dim=0)
    return torch.where(total > 0, summed / torch.where(total > 0, total, 1), 0)


def _scores(
    vectors: Float[Tensor, " models *shape"], bounds: Bounds
) -> Float[Tensor, " models *shape"]:
    low, high = (per_model(ends, vectors) for ends in (bounds.least, bounds.most))
    spread = high - low
    share = (_clamped(vectors, bounds).abs() - low) / torch.where(spread > 0, spread, 1)
    return (len(vectors) * share.square()).exp() * (vectors * vectors.sum(dim=0)).tanh()


def _clamped(
    vectors: Float[Tensor, " models *shape"], bounds: Bounds
) -> Float[Tensor, " models *shape"]:
    """Task vectors without outliers of magnitude."""
    low, high = (per_model(ends, vectors) for ends in (bounds.least, bounds.most))
    return vectors.sign() * vectors.abs().clamp(low, high)
