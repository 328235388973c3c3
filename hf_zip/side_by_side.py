"""Data sets of several models as one, so that a batch has inputs of each."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from hf_zip.collect import check_inputs, collation
from hf_zip.weighing.feed import Feed


class SideBySide(Dataset[tuple[Any, ...]]):
    """Rows of several data sets: row i is the i-th of each, shorter ones beginning anew.

    Args:
        sets: Map-style data sets with at least one row each.
    """

    def __init__(self, sets: Sequence[Any]) -> None:
        self._sets = tuple(sets)
        self._collates = [collation(own) for own in self._sets]

    def __len__(self) -> int:
        return max(map(len, self._sets))

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        return tuple(own[position % len(own)] for own in self._sets)

    def collate(self, rows: list[tuple[Any, ...]]) -> dict[str, Any]:
        """Returns a batch of every data set, by its position as text."""
        columns = zip(*rows, strict=True)
        return {
            str(position): collate(list(own))
            for position, (own, collate) in enumerate(zip(columns, self._collates, strict=True))
        }


def distinct_sets(feeds: Sequence[Feed]) -> tuple[list[Any], list[int]]:
    """Returns the data sets of models, each once, and which of them each model runs on."""
    sets: list[Any] = []
    for feed in feeds:
        check_inputs(feed.inputs)
        if not any(feed.inputs is known for known in sets):
            sets.append(feed.inputs)
    known = [id(own) for own in sets]
    return sets, [known.index(id(feed.inputs)) for feed in feeds]
