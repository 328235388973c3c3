"""Statistics → merge maps, group by group, by the way of matching that each role is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.groups import MergeGroup
from hf_zip.matching.correlation import mean_correlation
from hf_zip.matching.merge_map import MergeMap
from hf_zip.matching.partial_permutation import partial_permutation
from hf_zip.matching.permutation import match_heads
from hf_zip.matching.zip import zip_features, zip_heads, zip_map

How = Literal["zip", "permute", "identity"]
Stream = Literal["auto", "zip", "permute", "identity"]
# Unrelated features correlate by next to nothing, those of one initialisation by nearly as much as
# the best matched ones.
_ENOUGH = 0.5
Covariances = Mapping[str, Sequence[Tensor]]


@dataclass(frozen=True)
class Plan:
    """How each kind of group is matched.

    Args:
        stream: The residual stream, and the embeddings where they have features of their own.
            "auto" permutes them, but leaves them in place where features of the same position
            correlate by at least half as much as the best matched ones.
        heads: Attention heads, as wholes, with their inner features permuted.
        mlp: Hidden units of the MLPs and of the poolers.
        alpha: See `hf_zip.matching.zip.zip_features`.
        beta: See `hf_zip.matching.zip.zip_features`.
        shared: Share of the features or heads that are merged, the best matched ones, in [0, 1];
            those of every model that are left are kept side by side. Below 1 all are permuted.
    """

    stream: Stream = "permute"
    heads: How = "permute"
    mlp: How = "permute"
    alpha: float = 1.0
    beta: float = 1.0
    shared: float = 1.0

    def __post_init__(self) -> None:
        """Checks that parts are matched one to one."""
        if not 0 <= self.shared <= 1:
            raise HfZipError(f"the share of merged features is {self.shared}; give one in [0, 1]")
        ways = {self.stream, self.heads, self.mlp}
        if self.shared < 1 and ways != {"permute"}:
            raise HfZipError(
                f"only features that are permuted can be merged in part, but they are matched by "
                f"{', '.join(sorted(ways))}; permute all, or share all"
            )


@dataclass(frozen=True)
class Matching:
    """The maps of all matched groups, and how well their features correlate.

    Args:
        maps: Merge maps by group name; groups left as they are have none.
        correlations: Mean correlation between features of one cluster, by group name.
    """

    maps: Mapping[str, MergeMap]
    correlations: Mapping[str, float]


def match(
    groups: Sequence[MergeGroup], covariances: Covariances, num_models: int, plan: Plan
) -> Matching:
    """Returns the merge maps of all groups.

    Args:
        groups: The merge groups.
        covariances: For every group name, one `[models * d, models * d]` covariance per tap.
        num_models: Number of models.
        plan: How each role is matched.
    """
    if num_models == 1:  # every feature has but itself
        return Matching({}, {})
    maps: dict[str, MergeMap] = {}
    correlations: dict[str, float] = {}
    for circuit in _circuits(groups):
        how = _how(circuit[0], plan)
        if how == "identity":
            continue
        similarities = [mean_correlation(covariances[group.name]) for group in circuit]
        permuting: How = "permute" if how == "auto" else how
        matched = _match_circuit(circuit, similarities, num_models, permuting, plan)
        for group, similarity, found in zip(circuit, similarities, matched, strict=True):
            own = matched_correlation(similarity, MergeMap.identity(num_models, group.size))
            best = matched_correlation(similarity, found)
            kept = how == "auto" and own >= _ENOUGH * best
            correlations[group.name] = own if kept else best
            if not kept:
                maps[group.name] = found
    return Matching(maps, correlations)


def matched_correlation(similarity: Float[Tensor, "n n"], merge_map: MergeMap) -> float:
    """Returns the mean correlation between different features that share a merged one.

    Args:
        similarity: Correlation of the features of all models, side by side.
        merge_map: A map that assigns every feature to one shared feature.
    """
    members = merge_map.unmerge.reshape(-1, merge_map.merged_size).to(similarity.dtype)
    pairs = members.sum(dim=0) * (members.sum(dim=0) - 1)
    off_diagonal = similarity - torch.diag(similarity.diagonal())
    within = (members * (off_diagonal @ members)).sum(dim=0)
    shared = pairs > 0
    return float((within[shared] / pairs[shared]).mean()) if shared.any() else 0.0


def _circuits(groups: Sequence[MergeGroup]) -> list[list[MergeGroup]]:
    """Groups whose heads move together, in order; every other group is alone."""
    circuits = {group.name: [group] for group in groups if group.linked is None}
    for group in groups:
        if group.linked is not None:
            circuits[group.linked].append(group)
    return list(circuits.values())


def _how(group: MergeGroup, plan: Plan) -> Stream:
    return {
        "stream": plan.stream,
        "embeddings": plan.stream,
        "value": plan.heads,
        "query_key": plan.heads,
        "mlp": plan.mlp,
        "pooler": plan.mlp,
        "pool_value": plan.heads,
        "pool_query_key": plan.heads,
        "joint": plan.stream,
    }[group.role]


def _match_circuit(
    circuit: list[MergeGroup],
    similarities: list[Tensor],
    num_models: int,
    how: How,
    plan: Plan,
) -> list[MergeMap]:
    first = circuit[0]
    if how == "permute":
        found = match_heads(similarities, num_models, first.num_heads)
        if plan.shared == 1:
            return found
        parts = first.num_heads if first.num_heads > 1 else first.size
        return partial_permutation(found, similarities, parts, round(plan.shared * parts))
    if first.num_heads > 1:
        return zip_heads(
            similarities, num_models, first.num_heads, first.num_heads, plan.alpha, plan.beta
        )
    return [
        zip_map(zip_features(similarity, num_models, group.size, plan.alpha, plan.beta), num_models)
        for group, similarity in zip(circuit, similarities, strict=True)
    ]
