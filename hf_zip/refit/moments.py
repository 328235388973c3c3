"""What a least-squares fit needs of its data: streaming sums of products."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.refit.ridge import ridge
from hf_zip.statistics.covariance import Covariance
from hf_zip.statistics.sums import CHUNK_ROWS


@dataclass(frozen=True)
class Moments:
    """The moments of features and targets that decide a least-squares fit.

    Args:
        rows: Number of rows behind them.
        mean_x: Means of the features.
        mean_y: Means of the targets.
        covariance: Covariance of the features.
        cross: Covariances of targets and features.
    """

    rows: int
    mean_x: Float64[Tensor, " features"]
    mean_y: Float64[Tensor, " targets"]
    covariance: Float64[Tensor, "features features"]
    cross: Float64[Tensor, "targets features"]

    def mapped(self, matrix: Float[Tensor, "new features"]) -> "Moments":
        """Returns the moments of the same targets with features `matrix @ x`."""
        m = matrix.to(self.covariance)
        return Moments(
            self.rows, m @ self.mean_x, self.mean_y, m @ self.covariance @ m.T, self.cross @ m.T
        )

    def second_moment(self) -> Float64[Tensor, "features features"]:
        """Returns the mean of `x xᵀ`."""
        return self.covariance + torch.outer(self.mean_x, self.mean_x)

    def fit(
        self, penalty: float = 1e-3
    ) -> tuple[Float64[Tensor, "targets features"], Float64[Tensor, " targets"]]:
        """Returns weight and bias of the ridge regression of the targets on the features.

        Args:
            penalty: See `ridge`. With fewer rows than features it is multiplied by features / rows:
                the fewer the rows, the more of what they seem to say is chance.

        Raises:
            HfZipError: `ridge` refuses the moments.
        """
        scarce = max(1.0, len(self.mean_x) / self.rows)
        return ridge(self.covariance, self.cross, self.mean_x, self.mean_y, penalty * scarce)


class RegressionMoments:
    """Sums over rows of features and targets, from which their moments follow.

    Products are formed in the rows' precision, float32 or float64, after each chunk is centred by
    its own mean, and summed as raw moments in float64; so batches may come in any order, from any
    number of processes.

    Args:
        num_features: Number of features.
        num_targets: Number of targets.
        device: Where the sums are kept; on the CPU where the device lacks float64.

    Example:
        >>> sums = RegressionMoments(1, 1)
        >>> sums.update(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]]))
        >>> weight, bias = sums.moments().fit(penalty=0.0)
        >>> round(weight.item(), 6), round(bias.item(), 6)
        (2.0, 1.0)
    """

    def __init__(
        self, num_features: int, num_targets: int, device: torch.device | str = "cpu"
    ) -> None:
        self._features = Covariance(num_features, device)
        place = self._features.state()["sum"]
        self._targets = place.new_zeros(num_targets)
        self._cross = place.new_zeros(num_targets, num_features)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "rows features"], y: Float[Tensor, "rows targets"]) -> None:
        """Adds rows.

        Raises:
            HfZipError: A feature is not finite, or too large to be squared.
        """
        x, y = (rows if rows.dtype == torch.float64 else rows.float() for rows in (x, y))
        self._features.update(x)
        # Under autocast the products would be computed in half precision.
        with torch.autocast(x.device.type, enabled=False):
            for x_rows, y_rows in zip(x.split(CHUNK_ROWS), y.split(CHUNK_ROWS), strict=True):
                self._add(x_rows, y_rows)

    def _add(self, x: Tensor, y: Tensor) -> None:
        """Adds Σyxᵀ = Σ(y - b)(x - a)ᵀ + Σ(y - b) aᵀ + b Σxᵀ, with a and b near the means."""
        a, b = x.mean(dim=0), y.mean(dim=0)
        x_left, y_left = x - a, y - b
        self._cross += (y_left.T @ x_left).to(self._cross)
        a, b, x_left, y_left = (
            part.to(self._cross) for part in (a, b, x_left.sum(0), y_left.sum(0))
        )
        self._cross += torch.outer(y_left, a) + torch.outer(b, x_left + len(x) * a)
        self._targets += y_left + len(x) * b

    def state(self) -> dict[str, Any]:
        """Returns the sums, all plain: those of several processes add up."""
        return {
            "features": self._features.state(),
            "targets": self._targets,
            "cross": self._cross,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Replaces the sums by copies of others."""
        self._features.load_state(state["features"])
        self._targets.copy_(state["targets"])
        self._cross.copy_(state["cross"])

    @property
    def count(self) -> int:
        """Number of rows so far."""
        return self._features.count

    def moments(self) -> Moments:
        """Returns the moments of all rows.

        A feature whose variance is only the rounding of its sums varies with nothing.

        Raises:
            HfZipError: There are no rows.
        """
        if not self.count:
            raise HfZipError("there are no rows to fit; give at least one input")
        mean_x, mean_y = self._features.mean(), self._targets / self.count
        covariance = self._features.covariance()
        cross = self._cross / self.count - torch.outer(mean_y, mean_x)
        cross[:, covariance.diagonal() == 0] = 0
        return Moments(self.count, mean_x, mean_y, covariance, cross)
