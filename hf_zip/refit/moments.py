"""What a least-squares fit needs of its data: streaming sums of products."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.refit.ridge import ridge


class RegressionMoments:
    """Sums over rows of features and targets that decide a least-squares fit.

    Products are formed in the rows' precision after each batch is centred by its own mean, and
    summed as raw moments in float64, so batches may come from any number of processes.

    Args:
        num_features: Number of features.
        num_targets: Number of targets.
        device: Where the sums are kept; on the CPU where the device lacks float64.

    Example:
        >>> moments = RegressionMoments(1, 1)
        >>> moments.update(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]]))
        >>> weight, bias = moments.fit(penalty=0.0)
        >>> round(weight.item(), 6), round(bias.item(), 6)
        (2.0, 1.0)
    """

    def __init__(
        self, num_features: int, num_targets: int, device: torch.device | str = "cpu"
    ) -> None:
        def zeros(*shape: int) -> Tensor:
            at = "cpu" if torch.device(device).type == "mps" else device
            return torch.zeros(shape, dtype=torch.float64, device=at)

        self._state = {
            "count": zeros(),
            "features": zeros(num_features),
            "targets": zeros(num_targets),
            "gram": zeros(num_features, num_features),
            "cross": zeros(num_targets, num_features),
        }

    @torch.no_grad()
    def update(self, x: Float[Tensor, "rows features"], y: Float[Tensor, "rows targets"]) -> None:
        """Adds rows."""
        sums = self._state
        gram = sums["gram"]
        x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
        x_left, y_left = x - x_mean, y - y_mean
        a, b = x_mean.to(gram), y_mean.to(gram)
        x_sum, y_sum = x_left.sum(dim=0).to(gram), y_left.sum(dim=0).to(gram)
        count = len(x)
        gram += (x_left.T @ x_left).to(gram)
        gram += torch.outer(x_sum, a) + torch.outer(a, x_sum + count * a)
        sums["cross"] += (y_left.T @ x_left).to(gram)
        sums["cross"] += torch.outer(y_sum, a) + torch.outer(b, x_sum + count * a)
        sums["features"] += x_sum + count * a
        sums["targets"] += y_sum + count * b
        sums["count"] += count

    def state(self) -> dict[str, Tensor]:
        """Returns the sums, all plain: those of several processes add up."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the sums by copies of others."""
        for name, value in self._state.items():
            value.copy_(state[name])

    @property
    def count(self) -> int:
        """Number of rows so far."""
        return int(self._state["count"])

    def mapped(self, matrix: Float[Tensor, "new features"]) -> "RegressionMoments":
        """Returns the moments of the same targets with features `matrix @ x`."""
        m = matrix.to(self._state["gram"])
        other = RegressionMoments(len(m), len(self._state["targets"]), m.device)
        other.load_state(
            {
                "count": self._state["count"],
                "features": m @ self._state["features"],
                "targets": self._state["targets"],
                "gram": m @ self._state["gram"] @ m.T,
                "cross": self._state["cross"] @ m.T,
            }
        )
        return other

    def second_moment(self) -> Float64[Tensor, "features features"]:
        """Returns the mean of `x xᵀ`.

        Raises:
            HfZipError: There are no rows.
        """
        return self._state["gram"] / self._rows()

    def mean(self) -> Float64[Tensor, "features"]:
        """Returns the mean of the features.

        Raises:
            HfZipError: There are no rows.
        """
        return self._state["features"] / self._rows()

    def fit(
        self, penalty: float = 1e-3
    ) -> tuple[Float64[Tensor, "targets features"], Float64[Tensor, "targets"]]:
        """Returns weight and bias of the ridge regression of the targets on the features.

        Args:
            penalty: See `ridge`.

        Raises:
            HfZipError: There are no rows, or `ridge` refuses them.
        """
        rows = self._rows()
        x, y = self._state["features"], self._state["targets"]
        gram = self._state["gram"] / rows - torch.outer(x / rows, x / rows)
        cross = self._state["cross"] / rows - torch.outer(y / rows, x / rows)
        return ridge(gram, cross, x / rows, y / rows, penalty)

    def _rows(self) -> Tensor:
        if self._state["count"] == 0:
            raise HfZipError("there are no rows to fit; give at least one input")
        return self._state["count"]
