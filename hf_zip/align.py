"""Maps → parameters: one generic function that knows no architecture, and the mean that follows."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.groups import MergeGroup
from hf_zip.matching.merge_map import MergeMap

State = Mapping[str, Tensor]


def align(
    state: State, groups: Sequence[MergeGroup], maps: Mapping[str, MergeMap], model: int
) -> dict[str, Tensor]:
    """Returns the parameters of one model, rewritten in the features of the merged model.

    Writers of a group receive the merge map and readers the unmerge map, along the axis that
    carries the group: `W' = merge @ W @ unmerge` for a linear layer between two groups. Groups
    without a map are left as they are.

    Args:
        state: Parameters by name.
        groups: The merge groups.
        maps: Merge maps by group name.
        model: Position of the model in the maps.

    Raises:
        HfZipError: A map's size is not its group's.

    Source: ZipIt! (https://arxiv.org/abs/2305.03053), section 4.2, equation 6.
    """
    aligned = dict(state)
    for group in groups:
        if group.name not in maps:
            continue
        group_map = maps[group.name]
        if group_map.size != group.size:
            raise HfZipError(
                f"the map of {group.name!r} is for {group_map.size} features, but the group has "
                f"{group.size}"
            )
        for axis in group.writers:
            aligned[axis.parameter] = along(
                aligned[axis.parameter], axis.dim, group_map.merge[model]
            )
        for axis in group.readers:
            aligned[axis.parameter] = along(
                aligned[axis.parameter], axis.dim, group_map.unmerge[model].T
            )
    return aligned


def along(tensor: Tensor, dim: int, matrix: Float[Tensor, "new old"]) -> Tensor:
    """Returns a tensor with one dimension mapped by a matrix, in the tensor's precision."""
    moved = tensor.movedim(dim, -1)
    return (moved @ matrix.T.to(tensor.dtype)).movedim(-1, dim)


def mean(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Returns the weighted mean of state dicts, summed in float64 and cast back once.

    Args:
        states: Parameters by name, the same names and shapes in all.
        weights: One weight per state, not all zero; they are divided by their sum. Left out,
            all are equal.

    Raises:
        HfZipError: The weights do not fit the states or sum to zero.
    """
    weights = [1.0] * len(states) if weights is None else list(weights)
    if len(weights) != len(states):
        raise HfZipError(f"there are {len(states)} models but {len(weights)} weights")
    total = sum(weights)
    if not total > 0:
        raise HfZipError(f"the weights {weights} sum to {total}; their sum should be positive")
    averaged = {}
    for name, first in states[0].items():
        summed = torch.zeros_like(first, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            summed += state[name].to(torch.float64) * (weight / total)
        averaged[name] = summed.to(first.dtype)
    return averaged
