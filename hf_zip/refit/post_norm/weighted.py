"""Least squares whose rows count by how strongly a normalisation will scale them."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hf_zip.refit.moments import Moments, RegressionMoments


class ScaledMoments:
    """Sums over rows that will be divided by scales of their own, and whose errors with them.

    Weighted least squares with the weights `1 / scale²`, as sums of plain rows: the scaled features
    with the inverse scale as one feature more.

    Args:
        num_features: Number of features.
        num_targets: Number of targets.
        device: Where the sums are kept.
    """

    def __init__(
        self, num_features: int, num_targets: int, device: torch.device | str = "cpu"
    ) -> None:
        self._sums = RegressionMoments(num_features + 1, num_targets, device)

    def update(
        self,
        x: Float[Tensor, "rows features"],
        y: Float[Tensor, "rows targets"],
        scale: Float[Tensor, " rows"],
    ) -> None:
        """Adds rows."""
        inverse = 1 / scale[:, None]
        self._sums.update(torch.cat([x * inverse, inverse], dim=1), y * inverse)

    def state(self) -> dict[str, Any]:
        """Returns the sums, all plain: those of several processes add up."""
        return self._sums.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Replaces the sums by copies of others."""
        self._sums.load_state(state)

    def moments(self) -> Moments:
        """Returns the weighted moments of all rows.

        Raises:
            HfZipError: There are no rows.
        """
        plain = self._sums.moments()
        gram = plain.second_moment()
        products = plain.cross + torch.outer(plain.mean_y, plain.mean_x)
        total = gram[-1, -1]
        mean_x, mean_y = gram[:-1, -1] / total, products[:, -1] / total
        return Moments(
            rows=plain.rows,
            mean_x=mean_x,
            mean_y=mean_y,
            covariance=gram[:-1, :-1] / total - torch.outer(mean_x, mean_x),
            cross=products[:, :-1] / total - torch.outer(mean_y, mean_x),
        )
