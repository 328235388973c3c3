"""The covariances by which the merge groups of models are matched."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hf_zip.collect import collect, group_observations
from hf_zip.groups import MergeGroup
from hf_zip.statistics.covariance import Covariance


def group_covariances(
    groups: Sequence[MergeGroup], models: Sequence[nn.Module], inputs: Any, **running: Any
) -> dict[str, tuple[Tensor, ...]]:
    """Returns for every merge group one covariance per tap, on the CPU.

    Args:
        groups: The merge groups, the same in all models.
        models: The models; each covariance is of the features of all of them, side by side.
        inputs: A map-style data set of keyword arguments for the models.
        **running: See `hf_zip.collect.collect`.
    """
    observations = [
        (group.name, observation)
        for group in groups
        for observation in group_observations(group, len(models))
    ]
    found = collect(models, inputs, [seen for _, seen in observations], Covariance, **running)
    by_group: dict[str, tuple[Tensor, ...]] = {}
    for (name, _), statistic in zip(observations, found, strict=True):
        by_group[name] = (*by_group.get(name, ()), statistic.covariance().cpu())
    return by_group
