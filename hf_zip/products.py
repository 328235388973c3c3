"""Inner products and signs of the weights of models, every two of them, in one look at each."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from hf_zip.mapped import note_read
from hf_zip.parallel import in_order, own_threads

# Numbers of one model that are multiplied at once, few enough for a processor's cache. Their signs
# are eight to a byte, and eight bytes are counted at once.
_AT_ONCE = 1 << 15
_PARTS = 32  # so many times as many signs are held before they are counted
# Of tensors of more numbers than the first, runs of neighbours are compared that begin so far
# apart: a prime, as at a row's length, or a share of it, they would show the same columns always.
_WHOLE = 1 << 19
_RUN = 1 << 6
_APART = 521

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

    Of a large one they are estimates, from numbers that are spread evenly over it.

    Args:
        weights: Of its values; where there is a base model, that comes last.
        changes: Of what the models changed of the base's; nothing without a base.
        numbers: How many numbers it has.
        compared: How many of them were looked at.
    """

    weights: Pairs
    changes: Pairs | None = None
    numbers: int = 0
    compared: int = 0


def verdict(similarity: float) -> Initialisation:
    """Tells what the cosine between the weights of two models says of their initialisation."""
    if similarity >= SHARED_FROM:
        return "shared"
    return "different" if similarity <= DIFFERENT_UP_TO else "unclear"


def products(
    models: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor], names: Iterable[str]
) -> dict[str, Products]:
    """Returns what is known of parameters in every two models, and of what these changed of a base.

    Products are summed in float64; changes are differences in float32 or better. Of a parameter of
    more than 2^19 numbers an eighth is looked at, always the same: runs of 64 neighbours, spread
    evenly. What is counted or summed there is multiplied to stand for all of it.

    Args:
        models: The parameters of each model by name.
        base: Those of the base model, where it has them.
        names: Which parameters.
    """
    found = {name: _empty(len(models), name in base, models[0][name].numel()) for name in names}
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


def compared_share(found: Iterable[Products]) -> float:
    """Returns the share of the numbers of parameters that was looked at; 1 if there are none."""
    counts = [(own.compared, own.numbers) for own in found]
    numbers = sum(count for _, count in counts)
    return sum(count for count, _ in counts) / numbers if numbers else 1.0


def _empty(models: int, has_base: bool, numbers: int) -> Products:
    def pairs(count: int) -> Pairs:
        whole = torch.zeros(2, count, count, dtype=torch.int64)
        return Pairs(torch.zeros(count, count, dtype=torch.float64), whole[0], whole[1])

    changes = pairs(models) if has_base else None
    return Products(pairs(models + has_base), changes, numbers, _runs(numbers) * _run(numbers))


def _runs(numbers: int) -> int:
    """How many runs of neighbours are looked at of so many numbers: of few ones all are one."""
    return 1 if numbers <= _WHOLE else (numbers - _RUN) // _APART + 1


def _run(numbers: int) -> int:
    """How many numbers one of these runs has."""
    return numbers if numbers <= _WHOLE else _RUN


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The numbers of a tensor that are looked at, some at a time."""
    flat = tensor.detach().flatten()
    if len(flat) <= _WHOLE:
        yield from flat.split(_AT_ONCE)
        return
    runs = flat.as_strided((_runs(len(flat)), _RUN), (_APART, 1), flat.storage_offset())
    yield from runs.split(_AT_ONCE // _RUN)


def _fill(found: Products, tensors: Sequence[Tensor], base: Tensor | None) -> None:
    given = [*tensors, *(() if base is None else (base,))]
    length, count = found.compared, len(given)
    if not length:
        return
    dtype = torch.promote_types(given[0].dtype, torch.float32)
    window = _AT_ONCE * min(_PARTS, -(-length // _AT_ONCE))
    signs = _Signs(count, window)
    changes = _Signs(len(tensors), 0 if base is None else window)
    rows = torch.empty(count, _AT_ONCE, dtype=dtype)
    exact = torch.empty(count, _AT_ONCE, dtype=torch.float64)
    dots = torch.zeros(count, count, dtype=torch.float64)
    start = 0
    for parts in zip(*map(_parts, given), strict=True):
        size = parts[0].numel()
        part, wide = rows[:, :size], exact[:, :size]
        for row, own in zip(part, parts, strict=True):
            row.view(own.shape).copy_(own)
        note_read(count * size * parts[0].element_size() * found.numbers // length)
        signs.note(part, start % window)
        if base is not None:
            part[:-1] -= part[-1]
            changes.note(part[:-1], start % window)
        wide.copy_(part)
        dots += wide @ wide.T
        start += size
        if start % window == 0 or start == length:
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
    for pairs in (found.weights, found.changes):
        if pairs is not None and found.compared < found.numbers:
            _multiply(pairs, found.numbers / found.compared)


def _multiply(pairs: Pairs, factor: float) -> None:
    """Makes what was found of a part stand for the whole."""
    pairs.dots.mul_(factor)
    for counts in (pairs.opposite, pairs.counted):
        counts.copy_((counts * factor).round())


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
        counted, opposite = np.zeros((2, len(negative), len(negative)), dtype=np.int64)
        for i in range(len(negative)):
            for j in range(i + 1):
                np.bitwise_xor(negative[i], negative[j], out=apart)
                if alike[i] and alike[j]:  # most weights are zero nowhere; a zero has no sign
                    counted[i, j] = counted[j, i] = of_first
                else:
                    np.bitwise_and(present[i], present[j], out=both)
                    np.bitwise_and(apart, both, out=apart)
                    counted[i, j] = counted[j, i] = np.bitwise_count(both).sum()
                opposite[i, j] = opposite[j, i] = np.bitwise_count(apart).sum()
        pairs.counted.add_(torch.from_numpy(counted))
        pairs.opposite.add_(torch.from_numpy(opposite))
        self._present.fill(0)  # the next ones may be fewer
        self._negative.fill(0)
