"""What is learnt of the maps between features: a diagonal and thin matrices, head by head."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Correction(nn.Module):
    """For each model a square matrix that is learnt and begins as zero.

    It is a diagonal plus a product of two thin matrices, or a whole matrix where that has no more
    numbers. With several heads it is so inside each head, and zero between them.

    Args:
        models: Number of models.
        size: Number of features.
        num_heads: Equal parts of the features that do not mix.
        rank: Rank of the product; 0 for a whole matrix.
        generator: Draws one of the thin matrices; the other begins as zero.
    """

    def __init__(
        self, models: int, size: int, num_heads: int, rank: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        width = size // num_heads
        self.is_whole = rank == 0 or 2 * rank + 1 >= width
        if self.is_whole:
            self.matrix = nn.Parameter(torch.zeros(models, num_heads, width, width))
            return
        drawn = torch.randn(models, num_heads, rank, width, generator=generator)
        self.diagonal = nn.Parameter(torch.zeros(models, num_heads, 1, width))
        self.rows = nn.Parameter(torch.zeros(models, num_heads, width, rank))
        self.columns = nn.Parameter(drawn * width**-0.5)

    def times(
        self, model: int, x: Float[Tensor, "*others features"]
    ) -> Float[Tensor, "*others features"]:
        """Returns a model's matrix times each vector, without forming the matrix.

        Args:
            model: Position of the model.
            x: Vectors, in the last dimension.
        """
        return self._product(x, model, transposed=False)

    def transposed_times(
        self, model: int, x: Float[Tensor, "*others features"]
    ) -> Float[Tensor, "*others features"]:
        """Returns the transpose of a model's matrix times each vector, as `times` does."""
        return self._product(x, model, transposed=True)

    def _product(self, x: Tensor, model: int, transposed: bool) -> Tensor:
        heads = (self.matrix if self.is_whole else self.rows).shape[1]
        parts = x.reshape(-1, heads, x.shape[-1] // heads).transpose(0, 1)  # one product per head
        if self.is_whole:
            own = self.matrix[model]
            found = parts @ (own if transposed else own.mT)
        else:
            rows, columns = self.rows[model], self.columns[model]
            left, right = (rows, columns) if transposed else (columns.mT, rows.mT)
            found = parts @ left @ right + parts * self.diagonal[model]
        return found.transpose(0, 1).reshape(x.shape)
