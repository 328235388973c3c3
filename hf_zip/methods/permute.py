"""Permutation matching: features of every model are reordered to fit the first, then averaged."""

from dataclasses import dataclass
from typing import Literal

from hf_zip.aligned import Refit, merge_aligned
from hf_zip.match import Plan, match
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged


@dataclass(frozen=True)
class PermuteOptions:
    """Which features are reordered.

    Args:
        stream: The residual stream. "auto" reorders it unless features of the same position already
            correlate by at least half as much as the best matched ones, as those of models do that
            share their initialisation.
        heads: Attention heads, as wholes, with the features inside each head.
        mlp: Hidden units of the MLPs and of the poolers.
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives; "all" fits every layer to the
            mean of the matched features.
    """

    stream: Literal["auto", "permute", "identity"] = "auto"
    heads: Literal["permute", "identity"] = "permute"
    mlp: Literal["permute", "identity"] = "permute"
    refit: Refit = "none"


def run(inputs: MergeInputs, options: PermuteOptions) -> Merged:
    """Returns the weighted mean of the models after their features are matched one to one.

    Every reordering is exact: each model computes what it computed before, and only the mean
    changes anything.
    """
    plan = Plan(stream=options.stream, heads=options.heads, mlp=options.mlp)
    matching = match(inputs.groups, inputs.covariances, len(inputs.states), plan)
    return merge_aligned(inputs, matching, inputs.weights, options.refit)


ENTRY = MergeMethod(
    name="permute",
    title="Features matched one to one by correlation, then averaged",
    reference="https://arxiv.org/abs/2209.04836",
    requires=Requires(calibration=True, covariances=True),
    run=run,
    options=PermuteOptions,
    model_options=WeightOptions,
    exact=True,
)
