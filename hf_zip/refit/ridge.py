"""Ridge regression in closed form: moments in, weight and bias out."""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.statistics.covariance import Covariance


def ridge(
    gram: Float[Tensor, "features features"],
    cross: Float[Tensor, "targets features"],
    mean_x: Float[Tensor, " features"],
    mean_y: Float[Tensor, " targets"],
    penalty: float = 1e-3,
) -> tuple[Float[Tensor, "targets features"], Float[Tensor, " targets"]]:
    """Returns weight and bias of a ridge regression with an unpenalised bias, in float64.

    Args:
        gram: Centred second moments of the features, a sum or a mean over rows.
        cross: Centred moments of targets and features, a sum or a mean likewise.
        mean_x: Means of the features.
        mean_y: Means of the targets.
        penalty: The ridge, at least 0, as a share of the mean diagonal entry of `gram`.

    With a penalty too small to make a singular `gram` definite in float64, directions in which the
    features do not vary get no weight.

    Raises:
        HfZipError: The penalty is negative, a moment is not finite, the features do not vary, or
            without a penalty the features are linearly dependent.

    Source: Hoerl and Kennard (1970), https://doi.org/10.1080/00401706.1970.10488634, equation 2.1,
    with centred variables.

    Example:
        >>> one = torch.ones(1, 1)
        >>> weight, bias = ridge(one, 2 * one, one[0], 5 * one[0], penalty=0.0)
        >>> weight.item(), bias.item()
        (2.0, 3.0)
    """
    if not penalty >= 0:
        raise HfZipError(f"the ridge penalty is {penalty}; it should be at least 0")
    gram, cross, mean_x, mean_y = (
        moment.to(torch.float64) for moment in (gram, cross, mean_x, mean_y)
    )
    if not all(torch.isfinite(moment).all() for moment in (gram, cross, mean_x, mean_y)):
        raise HfZipError("a moment of the regression is not finite; check the model's activations")
    scale = gram.diagonal().mean()
    if not scale > 0:
        raise HfZipError(
            "the features are the same in every row, so nothing can be fitted to them; give at "
            "least two different inputs"
        )
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + penalty * scale * eye)
    # Whether rounding leaves the last pivots of a singular matrix above zero is luck.
    singular = bool(failed) or bool(factor.diagonal().min().square() <= _rounding(gram))
    if singular and penalty > 0:
        weight = _by_eigenvectors(gram, cross, penalty * scale)
        return weight, mean_y - weight @ mean_x
    if singular:
        raise HfZipError(
            f"the features are linearly dependent and the ridge penalty is {penalty}; raise the "
            "penalty, or give more inputs than there are features"
        )
    weight = torch.cholesky_solve(cross.T, factor).T
    return weight, mean_y - weight @ mean_x


def regress(
    found: Covariance, features: int, penalty: float = 1e-3
) -> tuple[Float[Tensor, "targets features"], Float[Tensor, " targets"]]:
    """Returns weight and bias of the ridge regression of a joint covariance's rest on its start.

    Args:
        found: Moments of features and targets, side by side.
        features: How many are features; the rest are targets.
        penalty: See `ridge`.

    Raises:
        HfZipError: See `ridge`.
    """
    covariance, mean = found.covariance(), found.mean()
    return ridge(
        covariance[:features, :features],
        covariance[features:, :features],
        mean[:features],
        mean[features:],
        penalty,
    )


def _by_eigenvectors(gram: Tensor, cross: Tensor, ridge: Tensor) -> Tensor:
    """The weight for a Gram matrix that is singular up to rounding."""
    values, vectors = torch.linalg.eigh(gram)
    # A Gram matrix has no negative eigenvalues, and small ones are rounding of its sums: nothing
    # can be said of their directions, which therefore get no weight.
    known = values > _rounding(gram)
    inverse = torch.where(known, 1 / (values + ridge), torch.zeros_like(values))
    return (cross @ vectors) * inverse @ vectors.T


def _rounding(gram: Tensor) -> Tensor:
    """How far rounding may move the eigenvalues and pivots of a Gram matrix."""
    return len(gram) * torch.finfo(gram.dtype).eps * gram.diagonal().max()
