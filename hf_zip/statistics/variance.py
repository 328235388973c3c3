"""The mean and variance of every feature for itself, from a stream of batches."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.statistics import Statistic
from hf_zip.statistics.covariance import CHUNK_ROWS


class Variance:
    """Sums of features and of their squares over a stream of batches.

    What `Covariance` holds of each feature for itself, summed as it does: batches may come in any
    order, from any number of processes.

    Args:
        size: Number of features.
        device: Where the sums are kept. Those of `mps`, which has no float64, are kept on the CPU.

    Example:
        >>> statistic = Variance(2)
        >>> statistic.update(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> statistic.mean().tolist(), statistic.variance().tolist()
        ([2.0, 5.0], [1.0, 0.0])
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self._state = {
            "count": torch.zeros((), dtype=torch.float64, device=device),
            "sum": torch.zeros(size, dtype=torch.float64, device=device),
            "squares": torch.zeros(size, dtype=torch.float64, device=device),
        }

    @torch.no_grad()
    def update(self, x: Float[Tensor, "rows size"]) -> None:
        """Adds rows of features.

        Args:
            x: The features; half precision is converted to float32.

        Raises:
            HfZipError: The number of features is another one, or a value is not finite or too
                large to be squared.
        """
        total = self._state["sum"]
        if x.ndim != 2 or x.shape[1] != len(total):
            raise HfZipError(
                f"features of shape {tuple(x.shape)} were given; it should be (rows, {len(total)})"
            )
        if x.dtype != torch.float64:
            x = x.float()
        if not torch.linalg.vector_norm(x).isfinite():
            raise HfZipError(
                f"a batch of {len(total)} features holds values that are not finite, or too large "
                f"to be squared in {x.dtype}; check the inputs and the model's precision"
            )
        for start in range(0, len(x), CHUNK_ROWS):
            self._add(x[start : start + CHUNK_ROWS])

    def _add(self, x: Float[Tensor, "rows size"]) -> None:
        """Adds Σx² = Σy² + 2 c Σy + n c², with y = x - c and c near the mean."""
        total = self._state["sum"]
        centre = x.mean(dim=0)
        y = x - centre
        c, y_sum, y_squares = (part.to(total) for part in (centre, y.sum(0), y.square().sum(0)))
        self._state["squares"].add_(y_squares + c * (2 * y_sum + len(x) * c))
        total.add_(y_sum + len(x) * c)
        self._state["count"].add_(len(x))

    def state(self) -> dict[str, Tensor]:
        """Returns the sums, all plain: those of several processes add up. They are no copies."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the sums by copies of others.

        Args:
            state: What `state()` returned, possibly summed over processes.
        """
        for name, value in self._state.items():
            value.copy_(state[name])

    def mean(self) -> Float64[Tensor, "size"]:
        """Returns the mean of each feature.

        Raises:
            HfZipError: There are no rows yet.
        """
        if not self._state["count"]:
            raise HfZipError("there are no rows yet; update the variance with some features")
        return self._state["sum"] / self._state["count"]

    def variance(self) -> Float64[Tensor, "size"]:
        """Returns the variance of each feature, divided by the number of rows, in float64.

        A feature whose variance is below the rounding of the sums it is the difference of, such as
        a constant, has variance 0.

        Raises:
            HfZipError: There are no rows yet.
        """
        mean, rows = self.mean(), self._state["count"]
        squares = self._state["squares"] / rows
        variance = squares - mean.square()
        # A sum of n terms has a relative error of up to n times the precision.
        rounding = rows * torch.finfo(mean.dtype).eps * squares
        return torch.where(variance > rounding, variance, torch.zeros_like(variance))


ENTRY = Statistic(
    name="variance",
    title="Mean and variance of every feature for itself",
    create=Variance,
)
