"""Gain and bias of a merged normalisation: one line per feature."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

# A feature that the normalisation hardly has to pass on could otherwise ask for any value.
SMALLEST = 0.05


class GainMoments:
    """Sums over rows of normalised features and of what each should become.

    Args:
        size: Number of features.
        device: Where the sums are kept; on the CPU where the device lacks float64.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        # Of each feature: rows, its sum, that of what it should be, of its square, of the product.
        self._sums = torch.zeros(5, size, dtype=torch.float64, device=device)

    def update(
        self, normalised: Float[Tensor, "rows size"], wanted: Float[Tensor, "rows size"]
    ) -> None:
        """Adds rows."""
        x, y = (rows.to(self._sums) for rows in (normalised, wanted))
        parts = (torch.ones_like(x), x, y, x * x, x * y)
        self._sums += torch.stack([part.sum(dim=0) for part in parts])

    def state(self) -> dict[str, Tensor]:
        """Returns the sums, all plain: those of several processes add up."""
        return {"sums": self._sums}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the sums by copies of others."""
        self._sums.copy_(state["sums"])

    def fit(self) -> tuple[Float64[Tensor, "size"], Float64[Tensor, "size"]]:
        """Returns gain and bias of each feature by least squares, the gain at least `SMALLEST`."""
        x, y, square, product = self._sums[1:] / self._sums[0]
        spread = (square - x * x).clamp(min=torch.finfo(x.dtype).tiny)
        gain = ((product - x * y) / spread).clamp(min=SMALLEST)
        return gain, y - gain * x


def set_norm(norm: nn.Module, gain: Tensor, bias: Tensor) -> None:
    """Sets a normalisation's gain and bias."""
    norm.get_parameter("weight").copy_(gain)
    norm.get_parameter("bias").copy_(bias)
