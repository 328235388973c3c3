"""The mean and variance of every feature for itself, from a stream of batches."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hf_zip.statistics import Statistic
from hf_zip.statistics.sums import FeatureSums


class Variance(FeatureSums):
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
        super().__init__(size, device, squares=(size,))

    def _add(self, x: Float[Tensor, "rows size"]) -> None:
        """Adds Σx² = Σy² + 2 c Σy + n c², with y = x - c and c near the mean."""
        total = self._state["sum"]
        centre = x.mean(dim=0)
        y = x - centre
        c, y_sum, y_squares = (part.to(total) for part in (centre, y.sum(0), y.square().sum(0)))
        self._state["squares"].add_(y_squares + c * (2 * y_sum + len(x) * c))
        total.add_(y_sum + len(x) * c)
        self._state["count"].add_(len(x))

    def variance(self) -> Float64[Tensor, " size"]:
        """Returns the variance of each feature, divided by the number of rows, in float64.

        A feature whose variance is below the rounding of the sums it is the difference of, such as
        a constant, has variance 0.

        Raises:
            HfZipError: There are no rows yet.
        """
        mean, rows = self.mean(), self.count
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
