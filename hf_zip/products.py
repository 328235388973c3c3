"""Inner products and signs of the weights of models, every two of them, in one pass over each."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from hf_zip.mapped import release_pages
from hf_zip.parallel import in_order, own_threads

# Numbers of one model that are multiplied at once, few enough for a processor's cache. Their signs
# are eight to a byte, and eight bytes are counted at once.
_AT_ONCE = 1 << 16
_PARTS = 16  # so many times as many signs are held before they are counted

Initialisation = Literal["shared", "different", "unclear"]
SHARED_FROM = 0.5
DIFFERENT_UP_TO = 0.1


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


def verdict(similarity: float) -> Initialisation:
    """Tells what the cosine between the weights of two models says of their initialisation."""
    if similarity >= SHARED_FROM:
        return "shared"
    return "different" if similarity <= DIFFERENT_UP_TO else "unclear"


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
    found = {name: _empty(len(models), name in base) for name in names}
    # Filled once all are there: small tensors made in between would scatter the memory.
    filling = (
        partial(_fill, empty, [own[name] for own in models], base.get(name))
        for name, empty in found.items()
    )
    with own_threads() as threads:
        for _ in in_order(filling, threads):
            pass
    return found


def total(found: Iterable[Pairs]) -> Pairs:
    """Returns what is known of vectors that are made of several, at least one."""
    first, *others = found
    for other in others:
        first = first + other
    return first


def _empty(models: int, has_base: bool) -> Products:
    def pairs(count: int) -> Pairs:
        whole = torch.zeros(2, count, count, dtype=torch.int64)
        return Pairs(torch.zeros(count, count, dtype=torch.float64), whole[0], whole[1])

    return Products(pairs(models + has_base), pairs(models) if has_base else None)


def _fill(found: Products, tensors: Sequence[Tensor], base: Tensor | None) -> None:
    flat = [x.detach().flatten() for x in (*tensors, *(() if base is None else (base,)))]
    length, count = len(flat[0]), len(flat)
    dtype = torch.promote_types(flat[0].dtype, torch.float32)
    window = _AT_ONCE * min(_PARTS, -(-length // _AT_ONCE))
    signs = _Signs(count, window)
    changes = _Signs(len(tensors), 0 if base is None else window)
    rows = torch.empty(count, _AT_ONCE, dtype=dtype)
    exact = torch.empty(count, _AT_ONCE, dtype=torch.float64)
    dots = torch.zeros(count, count, dtype=torch.float64)
    for start in range(0, length, _AT_ONCE):
        size = min(_AT_ONCE, length - start)
        part, wide = rows[:, :size], exact[:, :size]
        for row, own in zip(part, flat, strict=True):
            row.copy_(own[start : start + size])
        signs.note(part, start % window)
        if base is not None:
            part[:-1] -= part[-1]
            changes.note(part[:-1], start % window)
        wide.copy_(part)
        dots += wide @ wide.T
        release_pages()
        if (start + size) % window == 0 or start + size == length:
            signs.count_into(found.weights)
            if found.changes is not None:
                changes.count_into(found.changes)
    if base is not None and found.changes is not None:
        found.changes.dots.copy_(dots[:-1, :-1])
        # Of the sums of base and changes; the other way round, small changes would be lost.
        with_base, square = dots[:, -1].clone(), dots[-1, -1].clone()
        with_base[-1] = 0
        dots[-1], dots[:, -1] = 0, 0
        dots += square + with_base[:, None] + with_base[None, :]
    found.weights.dots.copy_(dots)


class _Signs:
    """The signs of some vectors, a bit for each number, and a bit for whether it is not zero."""

    def __init__(self, count: int, places: int) -> None:
        self._negative = np.zeros((count, places // 8), dtype=np.uint8)
        self._present = np.zeros((count, places // 8), dtype=np.uint8)

    def note(self, rows: Float[Tensor, "n values"], start: int) -> None:
        """Notes the signs of numbers that begin at a place."""
        values = rows.numpy()
        place = slice(start // 8, start // 8 + -(-values.shape[1] // 8))
        self._negative[:, place] = np.packbits(values < 0, axis=1)
        self._present[:, place] = np.packbits(values != 0, axis=1)

    def count_into(self, pairs: Pairs) -> None:
        """Adds at how many places every two vectors have opposite signs, and no zeros."""
        negative, present = self._negative.view(np.uint64), self._present.view(np.uint64)
        both, apart = np.empty_like(present[0]), np.empty_like(present[0])
        alike = [np.array_equal(own, present[0]) for own in present]
        of_first = int(np.bitwise_count(present[0]).sum())
        for i in range(len(negative)):
            for j in range(i + 1):
                np.bitwise_xor(negative[i], negative[j], out=apart)
                if alike[i] and alike[j]:  # most weights are zero nowhere; a zero has no sign
                    counted = of_first
                else:
                    np.bitwise_and(present[i], present[j], out=both)
                    np.bitwise_and(apart, both, out=apart)
                    counted = int(np.bitwise_count(both).sum())
                opposite = int(np.bitwise_count(apart).sum())
                for place in {(i, j), (j, i)}:
                    pairs.counted[place] += counted
                    pairs.opposite[place] += opposite
        self._present.fill(0)  # the next ones may be fewer
        self._negative.fill(0)
