"""How far models are from one another in a tensor, and which tensors are the nearest."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor


def distance(own: Float[Tensor, "models ..."]) -> float:
    """Returns one minus the mean inner product of two models' numbers, relative to their squares.

    The mean is over all pairs, and what it is relative to is the mean over all models of the sum of
    squares: for models of one length it is one minus the mean cosine. It is 0 where all are the
    same, and for a single model; 1 for as long ones that are orthogonal.

    The cosine of task vectors would not do: what hardly moved may have moved anywhere, and costs
    nothing to merge. Differences are taken from the first model before they are squared, in
    float64, as those of fine-tunes are lost in the rounding of cosines.

    Args:
        own: One tensor of each model.

    Example:
        >>> distance(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
        0.0
        >>> distance(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        1.0
    """
    count = len(own)
    moved = own.double() - own[0].double()
    spread = (moved - moved.mean(dim=0)).square().sum()
    if spread == 0:
        return 0.0
    return float(count / (count - 1) * spread / own.double().square().sum())


def nearest(
    distances: Mapping[str, float], sizes: Mapping[str, int], share: float
) -> frozenset[str]:
    """Returns the tensors that are the same everywhere, and the nearest until they are a share.

    Of tensors as near the first comes first.

    Args:
        distances: The distance of each tensor by name.
        sizes: How many numbers each has.
        share: Which part of all numbers there should be at least, in [0, 1].

    Example:
        >>> sorted(nearest({"a": 0.2, "b": 0.1, "c": 0.3}, {"a": 2, "b": 1, "c": 1}, 0.5))
        ['a', 'b']
    """
    wanted, found, taken = share * sum(sizes.values()), set[str](), 0
    for name in sorted(distances, key=lambda name: distances[name]):
        if distances[name] > 0 and taken >= wanted:
            break
        found.add(name)
        taken += sizes[name]
    return frozenset(found)
