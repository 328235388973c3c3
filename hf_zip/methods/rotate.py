"""Rotation matching: features of every model are rotated to fit the first, then averaged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from hf_zip.aligned import Refit, merge_aligned
from hf_zip.canonical import canonical, canonical_entries
from hf_zip.groups import MergeGroup, merge_groups
from hf_zip.match import Covariances, Matching, Plan, match, matched_correlation
from hf_zip.matching.correlation import mean_correlation
from hf_zip.matching.merge_map import MergeMap
from hf_zip.matching.rotation import (
    aligned_covariance,
    centred,
    match_head_rotations,
    match_rotation,
)
from hf_zip.method import Merged, MergeInputs, MergeMethod, Requires, WeightOptions

How = Literal["rotate", "permute", "identity"]


@dataclass(frozen=True)
class RotateOptions:
    """How features are brought to the first model's.

    Args:
        stream: The residual stream; "rotate" is any orthogonal map that keeps the mean over
            features, which LayerNorm commutes with.
        heads: Attention heads; they move as wholes, and "rotate" is any orthogonal map inside each.
        mlp: Hidden units of the MLPs and of the poolers, whose activation functions allow no more
            than a reordering.
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives; "all" fits every layer to the
            mean of the matched features.
    """

    stream: How = "rotate"
    heads: How = "rotate"
    mlp: Literal["permute", "identity"] = "permute"
    refit: Refit = "none"


@torch.no_grad()
def run(inputs: MergeInputs, options: RotateOptions) -> Merged:
    """Returns the weighted mean of the models after their features are rotated to fit each other.

    Every model is first brought to its canonical form, in which the normalisations have neither
    gain nor bias. From there every rotation is exact: each model computes what it computed before,
    and only the mean changes anything.
    """
    runtime, adapter = inputs.runtime, inputs.runtime.adapter
    # They ran on the accelerator's device, which may lack float64; the covariances are on the CPU.
    models = [canonical(model.cpu(), adapter) for model in runtime.models]
    groups = merge_groups(models[0], adapter)
    matching = _match(groups, inputs.covariances, len(models), options)
    states = tuple(dict(model.named_parameters()) for model in models)
    merged = merge_aligned(
        replace(
            inputs,
            states=states,
            groups=groups,
            runtime=replace(runtime, models=tuple(models)),
        ),
        matching,
        inputs.weights,
        options.refit,
    )
    entries = canonical_entries(runtime.models[0], adapter)
    return replace(merged, config={**merged.config, **entries})


def _match(
    groups: Sequence[MergeGroup],
    covariances: Covariances,
    num_models: int,
    options: RotateOptions,
) -> Matching:
    """The maps of all groups, from the covariances of the models as they were.

    Of these the canonical form changes only the stream, whose mean over features it takes out.
    """
    if num_models == 1:
        return Matching({}, {})
    canonical_covariances = {
        group.name: [centred(covariance, num_models) for covariance in covariances[group.name]]
        if group.role == "stream"
        else covariances[group.name]
        for group in groups
    }
    reordered = match(
        groups,
        canonical_covariances,
        num_models,
        Plan(
            stream="identity" if options.stream == "rotate" else options.stream,
            heads="identity" if options.heads == "rotate" else options.heads,
            mlp=options.mlp,
        ),
    )
    rotated: dict[str, MergeMap] = {}
    for group in groups:
        if group.role == "stream" and options.stream == "rotate":
            rotated[group.name] = match_rotation(canonical_covariances[group.name], num_models)
        if group.role == "value" and options.heads == "rotate":
            names = [group.name, *(other.name for other in groups if other.linked == group.name)]
            found = match_head_rotations(
                [canonical_covariances[name] for name in names], num_models, group.num_heads
            )
            rotated |= dict(zip(names, found, strict=True))
    correlations = {
        name: _correlation(canonical_covariances[name], found) for name, found in rotated.items()
    }
    return Matching({**reordered.maps, **rotated}, {**reordered.correlations, **correlations})


def _correlation(covariances: Sequence[torch.Tensor], found: MergeMap) -> float:
    """The mean correlation of the features that share a merged one, once they are rotated."""
    aligned = [aligned_covariance(covariance, found) for covariance in covariances]
    straight = MergeMap.identity(found.num_models, found.size)
    return matched_correlation(mean_correlation(aligned), straight)


ENTRY = MergeMethod(
    name="rotate",
    title="Features matched by rotations that leave every model's function, then averaged",
    reference="https://arxiv.org/abs/2502.00264",
    requires=Requires(calibration=True, covariances=True, canonical=True, rotated=True),
    run=run,
    options=RotateOptions,
    model_options=WeightOptions,
    exact=True,
)
