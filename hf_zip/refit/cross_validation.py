"""How strong a ridge should be, from the moments of the rows that are fitted."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.statistics.covariance import Covariance


def choose_penalty(found: Covariance, features: int, penalties: Sequence[float]) -> float:
    """Returns the ridge whose fit predicts rows best that it has not seen.

    That is estimated without leaving any out: what the fit misses of the rows it has seen, divided
    by the square of the share of them that it could not have met by chance. Of equal ones the
    strongest is taken.

    Args:
        found: Moments of features and targets, side by side; rows are independent.
        features: How many are features; the rest are targets.
        penalties: What to choose from, see `ridge`, each above 0.

    Raises:
        HfZipError: There is nothing to choose from, or a penalty is not above 0.

    Source: Golub, Heath and Wahba (1979), https://doi.org/10.1080/00401706.1979.10489751,
    generalised cross-validation, summed over the targets.
    """
    if not penalties or not min(penalties) > 0:
        raise HfZipError(
            f"the ridge is to be chosen from {list(penalties)}; give at least one, all above 0"
        )
    covariance, rows = found.covariance(), found.count
    gram, cross = covariance[:features, :features], covariance[features:, :features]
    values, vectors = torch.linalg.eigh(gram)
    values, energy = values.clamp(min=0), covariance[features:, features:].diagonal().sum()
    along = (cross @ vectors).square().sum(dim=0)
    scored = [
        (_score(values, along, energy, rows, penalty * float(gram.diagonal().mean())), penalty)
        for penalty in sorted(penalties, reverse=True)
    ]
    return min(scored, key=lambda pair: pair[0])[1]


def _score(
    values: Float64[Tensor, " n"],
    along: Float64[Tensor, " n"],
    energy: Tensor,
    rows: int,
    ridge: float,
) -> float:
    """What a ridge is expected to miss of rows that it has not seen.

    Args:
        values: Eigenvalues of the features' covariance.
        along: Squared covariances of all targets with the features along its eigenvectors.
        energy: Variance of all targets.
        rows: Number of rows.
        ridge: The ridge.
    """
    inverse = 1 / (values + ridge)
    missed = energy - (along * inverse * (2 - values * inverse)).sum()
    # One more for the mean.
    left = 1 - (float((values * inverse).sum()) + 1) / rows
    return float(missed) / left**2 if left > 0 else float("inf")
