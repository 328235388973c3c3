"""How alike features are: the correlation of a covariance, and what a similarity must be."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hf_zip.errors import HfZipError

logger = logging.getLogger(__name__)

# Networks compute in float32, so a feature that varies by less than this share of the most varying
# one is a constant with rounding errors.
DEAD_DEVIATION = torch.finfo(torch.float32).eps


def correlation(covariance: Float[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """Returns the Pearson correlation of all features.

    A dead feature, whose standard deviation is zero or within float32 rounding of zero beside the
    largest one, correlates with nothing: its row and column are 0, the diagonal included. All other
    diagonal entries are 1.

    Args:
        covariance: Covariance of the features, of any scale.

    Raises:
        HfZipError: The covariance is not square, or a value is not finite.

    Example:
        >>> correlation(torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).tolist()
        [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    _check(covariance, "covariance")
    deviation = covariance.diagonal().double().clamp(min=0).sqrt()
    alive = deviation > DEAD_DEVIATION * deviation.max()
    if not alive.all():
        logger.info(
            "%d of %d features are dead: they correlate with nothing",
            int((~alive).sum()),
            len(alive),
        )
    scale = torch.where(alive, deviation, 1).reciprocal() * alive
    # Rounding carries perfectly correlated features slightly beyond 1.
    result = torch.outer(scale, scale).mul_(covariance).clamp_(-1, 1)
    result.diagonal().copy_(alive)
    return result


def mean_correlation(covariances: Sequence[Float[Tensor, "n n"]]) -> Float64[Tensor, "n n"]:
    """Returns the mean correlation of features that are observed at several places.

    Every place counts the same, however strong its features are there. A place where a feature is
    dead counts as correlation 0.

    Args:
        covariances: One covariance per place.

    Raises:
        HfZipError: There is none, or they are of different sizes.
    """
    if not covariances:
        raise HfZipError("there are no covariances to average; a group needs at least one tap")
    sizes = [tuple(covariance.shape) for covariance in covariances]
    if len(set(sizes)) > 1:
        raise HfZipError(f"covariances of one group have different shapes: {sizes}")
    total = correlation(covariances[0])
    for covariance in covariances[1:]:
        total += correlation(covariance)
    return total.div_(len(covariances))


def checked_similarity(
    similarity: Float[Tensor, "n n"], num_models: int, num_heads: int = 1
) -> np.ndarray:
    """Returns a similarity of the features of all models as an array, in float32 or float64.

    Args:
        similarity: Similarity of the features of all models, side by side.
        num_models: Number of models.
        num_heads: Number of heads of each model.

    Raises:
        HfZipError: It is not square or not finite, there are fewer than 2 models, or the features
            do not divide into models and heads.
    """
    _check(similarity, "similarity")
    if num_models < 2:
        raise HfZipError(f"features of {num_models} model are to be matched; it takes at least 2")
    if num_heads < 1 or len(similarity) % (num_models * num_heads) or not len(similarity):
        raise HfZipError(
            f"a similarity of {len(similarity)} features does not divide into {num_models} models "
            f"with {num_heads} heads each"
        )
    similarity = similarity.detach().cpu()
    return (similarity if similarity.dtype == torch.float64 else similarity.float()).numpy()


def _check(matrix: Tensor, name: str) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise HfZipError(f"a {name} has shape {tuple(matrix.shape)}; it should be square")
    # The extremes are finite only if every value is: one light pass instead of a mask.
    if matrix.numel() and not torch.stack(matrix.aminmax()).isfinite().all():
        raise HfZipError(f"a {name} holds values that are not finite; check the statistics")
