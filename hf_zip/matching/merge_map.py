"""The linear maps between the features of the sources and those of the merged model."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hf_zip.errors import HfZipError


@dataclass(frozen=True)
class MergeMap:
    """How the features of one merge group come together and come apart again.

    With `x_k` the features of model `k`, `shared = mean_k merge[k] @ x_k` are the features of the
    merged model and `x_k ≈ unmerge[k] @ shared`. Everything is a mean over models: there is no
    factor K anywhere else.

    Args:
        merge: Maps each model's features to shared ones.
        unmerge: Maps the shared features back to each model's, `[models, d, merged]`.

    Raises:
        HfZipError: The shapes do not belong together, or a value is not finite.
    """

    merge: Float[Tensor, "models merged d"]
    unmerge: Float[Tensor, "_ _ _"]

    def __post_init__(self) -> None:
        """Checks shapes and values."""
        models, merged, size = self.merge.shape
        if tuple(self.unmerge.shape) != (models, size, merged):
            raise HfZipError(
                f"merge has shape {(models, merged, size)}, so unmerge should have shape "
                f"{(models, size, merged)}, not {tuple(self.unmerge.shape)}"
            )
        if not (torch.isfinite(self.merge).all() and torch.isfinite(self.unmerge).all()):
            raise HfZipError("a merge map holds values that are not finite; check the statistics")

    @property
    def num_models(self) -> int:
        """Number of models."""
        return self.merge.shape[0]

    @property
    def size(self) -> int:
        """Number of features of one model."""
        return self.merge.shape[2]

    @property
    def merged_size(self) -> int:
        """Number of shared features."""
        return self.merge.shape[1]

    def of_heads(self, num_heads: int) -> "MergeMap":
        """Returns the map of whole heads: a merged one is the mean of those it has features of.

        Args:
            num_heads: Number of heads that the features of one model divide into.
        """
        width = self.size // num_heads
        blocks = self.merge.unflatten(2, (num_heads, width)).unflatten(1, (-1, width))
        member = (blocks != 0).any(dim=4).any(dim=2).to(self.merge.dtype)
        counts = member.sum(dim=(0, 2))[:, None]
        return MergeMap(member * self.num_models / counts, member.transpose(1, 2))

    @classmethod
    def identity(cls, num_models: int, size: int) -> "MergeMap":
        """Returns the map that leaves every feature where it is."""
        eye = torch.eye(size).expand(num_models, size, size)
        return cls(eye, eye)
