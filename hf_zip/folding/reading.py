"""What each model's features are, told from those of the folded model, and how far that is off."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from hf_zip.folding.correction import Correction
from hf_zip.rooting.streams import StreamMap, unexplained


class Reading(nn.Module):
    """For each model and block a map to the model's features, whose correction is learnt.

    Args:
        maps: For each model the maps after every block, from features of the folded model at the
            start; they are held as they are given.
        rank: Of the corrections, see `Correction`.
        generator: Draws where corrections begin.
    """

    def __init__(
        self, maps: Sequence[Sequence[StreamMap]], rank: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self._maps = [tuple(own) for own in maps]
        self._corrections = [
            Correction(len(maps), known.weight.shape[1], 1, rank, generator) for known in maps[0]
        ]
        self.maps = nn.ModuleList(self._corrections)

    def errors(
        self,
        model: int,
        features: Sequence[Float[Tensor, "inputs tokens features"]],
        wanted: Sequence[Float[Tensor, "inputs tokens features"]],
        mask: Tensor | None,
    ) -> Float[Tensor, " inputs"]:
        """Returns what is left unexplained of a model's features, on average over blocks.

        Args:
            model: Position of the model.
            features: Features of the folded model after each block.
            wanted: Features of the model.
            mask: Zero at tokens that count nowhere.
        """
        maps = self._maps[model]
        told = [
            linear(own, known.weight, known.bias) + correction.times(model, own)
            for own, known, correction in zip(features, maps, self._corrections, strict=True)
        ]
        return unexplained(told, wanted, [known.spread for known in maps], mask)
