"""Sums over the rows of a stream of batches, kept in float64."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hf_zip.errors import HfZipError

# Rows that one product sums before the float64 sums take over.
CHUNK_ROWS = 4096


class NamedSums:
    """Named sums over rows: batches may come in any order, from any number of processes.

    Args:
        size: Number of features.
        device: Where the sums are kept. Those of `mps`, which has no float64, are kept on the CPU.
        **shapes: The shape of every sum.

    Raises:
        HfZipError: The size is below 1.
    """

    def __init__(
        self, size: int, device: torch.device | str = "cpu", **shapes: tuple[int, ...]
    ) -> None:
        if size < 1:
            name = type(self).__name__.lower()
            raise HfZipError(f"a {name} of {size} features is asked for; it needs at least 1")
        device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self.size = size
        self._state = {
            name: torch.zeros(shape, dtype=torch.float64, device=device)
            for name, shape in shapes.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Returns the sums, all plain: those of several processes add up. They are no copies."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the sums by copies of others.

        Args:
            state: What `state()` returned, possibly summed over processes.

        Raises:
            HfZipError: The state is that of another number of features.
        """
        self._check(state)
        for name, value in self._state.items():
            value.copy_(state[name])

    def _check(self, state: Mapping[str, Tensor]) -> None:
        given = {name: tuple(value.shape) for name, value in state.items()}
        expected = {name: tuple(value.shape) for name, value in self._state.items()}
        if given != expected:
            raise HfZipError(
                f"the state has shapes {given}; that of {self.size} features has {expected}"
            )


class FeatureSums(NamedSums, ABC):
    """Sums of features, and of products of them that a subclass adds.

    Args:
        size: Number of features.
        device: As for `NamedSums`.
        **shapes: The shapes of the sums beside the number of rows and the sum of the features.
    """

    def __init__(
        self, size: int, device: torch.device | str = "cpu", **shapes: tuple[int, ...]
    ) -> None:
        super().__init__(size, device, count=(), sum=(size,), **shapes)

    @torch.no_grad()
    def update(self, x: Float[Tensor, "rows size"]) -> None:
        """Adds rows of features.

        Args:
            x: The features; half precision is converted to float32.

        Raises:
            HfZipError: The number of features is another one, or a value is not finite or too
                large to be squared.
        """
        if x.ndim != 2 or x.shape[1] != self.size:
            raise HfZipError(
                f"features of shape {tuple(x.shape)} were given; it should be (rows, {self.size})"
            )
        if x.dtype != torch.float64:
            x = x.float()
        # The norm is finite only if every value is: one light pass instead of a mask.
        if not torch.linalg.vector_norm(x).isfinite():
            raise HfZipError(
                f"a batch of {self.size} features holds values that are not finite, or too large "
                f"to be squared in {x.dtype}; check the inputs and the model's precision"
            )
        # Under autocast products would be computed in half precision.
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, len(x), CHUNK_ROWS):
                self._add(x[start : start + CHUNK_ROWS])

    @abstractmethod
    def _add(self, x: Float[Tensor, "rows size"]) -> None:
        """Adds one chunk of rows."""

    @property
    def count(self) -> int:
        """Number of rows so far."""
        return int(self._state["count"])

    def mean(self) -> Float64[Tensor, " size"]:
        """Returns the mean of each feature.

        Raises:
            HfZipError: There are no rows yet.
        """
        return self._state["sum"] / self._rows()

    def _rows(self) -> int:
        if not self.count:
            name = type(self).__name__.lower()
            raise HfZipError(f"there are no rows yet; update the {name} with some features")
        return self.count
