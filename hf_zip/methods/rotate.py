"""Rotation matching: features of every model are rotated to fit the first, then averaged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from hf_zip.aligned import Refit, merge_aligned
from hf_zip.canonical import canonical, canonical_entries
from hf_zip.groups import MergeGroup, merge_groups
from hf_zip.match import Covariances, Matching
from hf_zip.matching.rotation import centred
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.rotated import How, match_rotated


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
    canonical_covariances = {
        group.name: [centred(covariance, num_models) for covariance in covariances[group.name]]
        if group.role == "stream"
        else covariances[group.name]
        for group in groups
    }
    return match_rotated(
        groups, canonical_covariances, num_models, options.stream, options.heads, options.mlp
    )


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
