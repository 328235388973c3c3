"""The largest numbers of tensors that are seen one at a time: exact thresholds without sorting."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import hardshrink

_DIGIT = 16  # bits that one pass decides
_CHUNK = 1 << 19  # numbers of a model that are counted at once


def thresholds(
    passes: Callable[[], Iterable[Float[Tensor, " models *shape"]]], densities: Sequence[float]
) -> tuple[float, ...]:
    """Returns for each model the magnitude from which on a share of its numbers is kept.

    Of n numbers the nearest whole number to `density * n` is kept; those that equal the smallest
    one kept are all kept. A threshold is infinite where nothing is kept. The magnitudes are ordered
    as their bits are, so each pass counts how often each value of the next 16 bits occurs among the
    numbers that are still in question: two passes are exact for float32, four for float64.

    Args:
        passes: Starts a pass over the tensors of all models.
        densities: The share of each model's numbers to keep, in [0, 1].

    Example:
        >>> thresholds(lambda: [torch.tensor([[3.0, -5.0]]), torch.tensor([[1.0, 4.0]])], [0.5])
        (4.0,)
    """
    # Bits decided so far, and how many larger numbers there are among those still in question.
    found = [0] * len(densities)
    counts, bits = _count(passes, 0, found)
    ranks = [
        round(density * int(own.sum())) for density, own in zip(densities, counts, strict=True)
    ]
    left = list(ranks)
    for level in range(bits // _DIGIT):
        if level:
            counts, _ = _count(passes, level, found)
        for model, rank in enumerate(left):
            if rank > 0:
                digit, left[model] = _descend(counts[model], rank)
                found[model] = (found[model] << _DIGIT) | digit
    return tuple(
        _number(value, bits) if rank > 0 else float("inf")
        for value, rank in zip(found, ranks, strict=True)
    )


def trim(
    tensors: Float[Tensor, " models *shape"], magnitudes: Sequence[float]
) -> Float[Tensor, " models *shape"]:
    """Returns tensors with all numbers below a magnitude set to zero.

    Args:
        tensors: One tensor of each model.
        magnitudes: The least magnitude to keep of each.
    """
    limits = tensors.new_tensor(magnitudes)
    # What is shrunk is up to the limit, so the limit is the next smaller number. Comparisons would
    # give masks, which are many times slower to work with.
    below = torch.where(limits.isinf(), limits, limits.nextafter(torch.zeros_like(limits)))
    pairs = zip(tensors, below.tolist(), strict=True)
    return torch.stack([hardshrink(own, limit) for own, limit in pairs])


def middle(
    tensors: Float[Tensor, " models *shape"], low: Sequence[float], high: Sequence[float]
) -> Float[Tensor, " models *shape"]:
    """Returns tensors with their smallest and their largest numbers set to zero.

    Args:
        tensors: One tensor of each model.
        low: The least magnitude to keep of each.
        high: The least magnitude that is too large.

    Source: Model Breadcrumbs (https://arxiv.org/abs/2312.06795).
    """
    return trim(tensors, low) - trim(tensors, high)


def _count(
    passes: Callable[[], Iterable[Float[Tensor, " models *shape"]]],
    level: int,
    found: Sequence[int],
) -> tuple[Int64[Tensor, "models values"], int]:
    """How often each value of 16 bits follows those found, in one pass; and a number's bits."""
    counts, bits = torch.zeros(len(found), 1 << _DIGIT, dtype=torch.int64), 0
    held: list[Tensor] = []  # few numbers at a time would be counted slowly

    def count() -> None:
        joined = torch.cat(held, dim=1)
        for model, own in enumerate(joined):
            counts[model] += _digits(own, bits - _DIGIT * (level + 1), found[model])
        held.clear()

    for part in passes():
        bits = 8 * part.element_size()
        for chunk in part.reshape(len(part), -1).split(_CHUNK, dim=1):
            held.append(chunk)
            if sum(own.shape[1] for own in held) >= _CHUNK:
                count()
    if held:
        count()
    return counts, bits


def _digits(numbers: Float[Tensor, " n"], shift: int, prefix: int) -> Int64[Tensor, " values"]:
    """How often each value of 16 bits occurs in the magnitudes whose higher bits are known."""
    kind = torch.int32 if numbers.element_size() == 4 else torch.int64
    # Those whose higher bits differ are counted at either end, which takes less than leaving out.
    own = (numbers.abs().view(kind) >> shift).sub_((prefix << _DIGIT) - 1)
    own = own.clamp_(0, (1 << _DIGIT) + 1)
    return torch.bincount(own, minlength=(1 << _DIGIT) + 2)[1:-1].cpu()


def _descend(counts: Int64[Tensor, " values"], rank: int) -> tuple[int, int]:
    """The value at which the largest ones reach a rank, and the rank among those of this value."""
    reached = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(reached, rank))
    above = int(reached[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - above


def _number(bits: int, size: int) -> float:
    kinds = (torch.int32, torch.float32) if size == 32 else (torch.int64, torch.float64)
    return float(torch.tensor(bits, dtype=kinds[0]).view(kinds[1]))
