"""Gain and bias of a merged normalisation: one line per feature."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from hf_zip.statistics.sums import NamedSums

# A feature that the normalisation hardly has to pass on could otherwise ask for any value.
SMALLEST = 0.05


class GainMoments(NamedSums):
    """Sums over rows of normalised features and of what each should become.

    Args:
        size: Number of features.
        device: Where the sums are kept; on the CPU where the device lacks float64.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        # Of each feature: rows, its sum, that of what it should be, of its square, of the product.
        super().__init__(size, device, sums=(5, size))

    def update(
        self, normalised: Float[Tensor, "rows size"], wanted: Float[Tensor, "rows size"]
    ) -> None:
        """Adds rows."""
        sums = self._state["sums"]
        x, y = (rows.to(sums) for rows in (normalised, wanted))
        parts = (torch.ones_like(x), x, y, x * x, x * y)
        sums += torch.stack([part.sum(dim=0) for part in parts])

    def fit(self) -> tuple[Float64[Tensor, " size"], Float64[Tensor, " size"]]:
        """Returns gain and bias of each feature by least squares, the gain at least `SMALLEST`."""
        x, y, square, product = self._state["sums"][1:] / self._state["sums"][0]
        spread = (square - x * x).clamp(min=torch.finfo(x.dtype).tiny)
        gain = ((product - x * y) / spread).clamp(min=SMALLEST)
        return gain, y - gain * x


def set_norm(norm: nn.Module, gain: Tensor, bias: Tensor) -> None:
    """Sets a normalisation's gain and bias."""
    norm.get_parameter("weight").copy_(gain)
    norm.get_parameter("bias").copy_(bias)
