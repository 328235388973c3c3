"""Inner products and signs of the weights of models, every two of them, in one pass over each."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from hf_zip.mapped import release_pages

# Numbers of one model that are multiplied at once, few enough for a processor's cache. Their signs
# are eight to a byte, and eight bytes are counted at once.
_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Pairs:
    """What is known of every two of some vectors.

    Args:
        dots: Their inner products.
        opposite: At how many places they have opposite signs.
        counted: At how many places neither is zero.
    """

    dots: Float64[Tensor, "n n"]
    opposite: Int64[Tensor, "n n"]
    counted: Int64[Tensor, "n n"]

    def __add__(self, other: "Pairs") -> "Pairs":
        return Pairs(
            self.dots + other.dots, self.opposite + other.opposite, self.counted + other.counted
        )

    def first(self, count: int) -> "Pairs":
        """Returns what is known of the first so many vectors."""
        return Pairs(*(x[:count, :count] for x in (self.dots, self.opposite, self.counted)))

    def cosine(self, first: int, second: int) -> float:
        """Returns the cosine between two of the vectors; 0 where one is 0."""
        if not (self.counted[first, first] and self.counted[second, second]):
            return 0.0
        norms = float(self.dots[first, first]) * float(self.dots[second, second])
        return float(self.dots[first, second]) / math.sqrt(norms) if norms > 0 else 0.0

    def conflict(self, first: int, second: int) -> float | None:
        """Returns the share of opposite signs where neither is zero; nothing if there is none."""
        counted = int(self.counted[first, second])
        return int(self.opposite[first, second]) / counted if counted else None


@dataclass(frozen=True)
class Products:
    """What is known of one parameter in every two models.

    Args:
        weights: Of its values; where there is a base model, that comes last.
        changes: Of what the models changed of the base's; nothing without a base.
    """

    weights: Pairs
    changes: Pairs | None = None


def products(
    models: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor], names: Iterable[str]
) -> dict[str, Products]:
    """Returns what is known of parameters in every two models, and of what these changed of a base.

    Products are summed in float64; changes are differences in float32 or better.

    Args:
        models: The parameters of each model by name.
        base: Those of the base model, where it has them.
        names: Which parameters.
    """
    return {name: _products([own[name] for own in models], base.get(name)) for name in names}


def total(found: Iterable[Pairs]) -> Pairs:
    """Returns what is known of vectors that are made of several, at least one."""
    first, *others = found
    for other in others:
        first = first + other
    return first


def _products(tensors: Sequence[Tensor], base: Tensor | None) -> Products:
    flat = [x.detach().flatten() for x in (*tensors, *(() if base is None else (base,)))]
    count, length = len(flat), len(flat[0])
    dtype = torch.promote_types(flat[0].dtype, torch.float32)
    dots = torch.zeros(count, count, dtype=torch.float64)
    changed = torch.zeros(count, count, dtype=torch.float64)
    # All places have a bit each, in whole eights of bytes.
    width = -(-length // _AT_ONCE) * (_AT_ONCE // 8)
    signs, changes = _Signs(count, width), _Signs(count - 1, 0 if base is None else width)
    for start in range(0, length, _AT_ONCE):
        rows = torch.stack([x[start : start + _AT_ONCE].to("cpu", dtype) for x in flat])
        signs.note(rows, start)
        if base is None:
            exact = rows.double()
            dots += exact @ exact.T
        else:
            moved = rows[:-1] - rows[-1]
            changes.note(moved, start)
            exact = torch.cat([moved, rows[-1:]]).double()
            changed += exact @ exact.T
        release_pages()
    if base is None:
        return Products(signs.pairs(dots))
    # Of the sums of base and changes; the other way round, small changes would be lost.
    with_base = torch.cat([changed[:-1, -1], torch.zeros(1, dtype=torch.float64)])
    inner = torch.zeros_like(changed)
    inner[:-1, :-1] = changed[:-1, :-1]
    dots = changed[-1, -1] + with_base[:, None] + with_base[None, :] + inner
    return Products(signs.pairs(dots), changes.pairs(changed[:-1, :-1]))


class _Signs:
    """The signs of some vectors, a bit for each number, and a bit for whether it is not zero."""

    def __init__(self, count: int, width: int) -> None:
        self._negative = np.zeros((count, width), dtype=np.uint8)
        self._present = np.zeros((count, width), dtype=np.uint8)

    def note(self, rows: Float[Tensor, "n values"], start: int) -> None:
        """Notes the signs of numbers that begin at a place."""
        values = rows.numpy()
        place = slice(start // 8, start // 8 + -(-values.shape[1] // 8))
        self._negative[:, place] = np.packbits(values < 0, axis=1)
        self._present[:, place] = np.packbits(values != 0, axis=1)

    def pairs(self, dots: Float64[Tensor, "n n"]) -> Pairs:
        """Returns what is known of every two vectors, their inner products given."""
        negative, present = self._negative.view(np.uint64), self._present.view(np.uint64)
        count = len(negative)
        opposite, counted = torch.zeros(2, count, count, dtype=torch.int64)
        for i in range(count):
            for j in range(i + 1):
                both = present[i] & present[j]
                counted[i, j] = counted[j, i] = int(np.bitwise_count(both).sum(dtype=np.int64))
                apart = (negative[i] ^ negative[j]) & both
                opposite[i, j] = opposite[j, i] = int(np.bitwise_count(apart).sum(dtype=np.int64))
        return Pairs(dots, opposite, counted)
