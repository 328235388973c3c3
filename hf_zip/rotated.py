"""Merge maps that rotate: streams and heads turned to fit each other, hidden units reordered."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from hf_zip.groups import MergeGroup
from hf_zip.match import Covariances, Matching, Plan, match, matched_correlation
from hf_zip.matching.correlation import mean_correlation
from hf_zip.matching.merge_map import MergeMap
from hf_zip.matching.rotation import aligned_covariance, match_head_rotations, match_rotation

How = Literal["rotate", "permute", "identity"]


def match_rotated(
    groups: Sequence[MergeGroup],
    covariances: Covariances,
    num_models: int,
    stream: How = "rotate",
    heads: How = "rotate",
    mlp: Literal["permute", "identity"] = "permute",
) -> Matching:
    """Returns the merge maps of all groups, of those that can be rotated as orthogonal maps.

    Args:
        groups: The merge groups.
        covariances: For every group name, one covariance per tap; where the stream is rotated,
            those of models in their canonical form.
        num_models: Number of models.
        stream: The residual stream; "rotate" is any orthogonal map that keeps the mean over
            features.
        heads: Attention heads; they move as wholes, and "rotate" is any orthogonal map in each.
        mlp: Hidden units.
    """
    if num_models == 1:
        return Matching({}, {})
    reordered = match(
        groups,
        covariances,
        num_models,
        Plan(
            stream="identity" if stream == "rotate" else stream,
            heads="identity" if heads == "rotate" else heads,
            mlp=mlp,
        ),
    )
    rotated: dict[str, MergeMap] = {}
    for group in groups:
        if group.role == "stream" and stream == "rotate":
            rotated[group.name] = match_rotation(covariances[group.name], num_models)
        if group.role in ("value", "pool_value") and heads == "rotate":
            names = [group.name, *(other.name for other in groups if other.linked == group.name)]
            found = match_head_rotations(
                [covariances[name] for name in names], num_models, group.num_heads
            )
            rotated |= dict(zip(names, found, strict=True))
    correlations = {name: _correlation(covariances[name], found) for name, found in rotated.items()}
    return Matching({**reordered.maps, **rotated}, {**reordered.correlations, **correlations})


def _correlation(covariances: Sequence[Tensor], found: MergeMap) -> float:
    """The mean correlation of the features that share a merged one, once they are rotated."""
    aligned = [aligned_covariance(covariance, found) for covariance in covariances]
    straight = MergeMap.identity(found.num_models, found.size)
    return matched_correlation(mean_correlation(aligned), straight)
