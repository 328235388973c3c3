"""A merge method run by itself or by another one: what it needs is gathered first."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from hf_zip.collect import collect, group_observations
from hf_zip.method import Merged, MergeInputs, MergeMethod
from hf_zip.statistics.covariance import Covariance


def run_gathered(method: MergeMethod, inputs: MergeInputs, options: Any) -> Merged:
    """Returns what a method makes of models, after gathering the statistics it needs.

    Args:
        method: The method.
        inputs: What it works on, but for the statistics.
        options: Its options.
    """
    if method.requires.covariances:
        inputs = replace(inputs, covariances=covariances(inputs))
    return method.run(inputs, options)


def run_nested(method: MergeMethod, inputs: MergeInputs, options: Any) -> Merged:
    """Returns what a method makes of what another one works on.

    Args:
        method: The method.
        inputs: What the other one works on; of the options of models only the weights are passed.
        options: The method's options.
    """
    models = tuple(_options_of(method, own) for own in inputs.model_options)
    return run_gathered(method, replace(inputs, model_options=models), options)


def covariances(inputs: MergeInputs) -> dict[str, tuple[Tensor, ...]]:
    """Returns for every merge group one covariance per tap, over the features of all models."""
    runtime = inputs.runtime
    observations = [
        (group.name, observation)
        for group in inputs.groups
        for observation in group_observations(group, len(inputs.states))
    ]
    found = collect(
        runtime.models,
        runtime.calibration,
        [observation for _, observation in observations],
        Covariance,
        **runtime.running,
    )
    by_group: dict[str, tuple[Tensor, ...]] = {}
    for (name, _), statistic in zip(observations, found, strict=True):
        by_group[name] = (*by_group.get(name, ()), statistic.covariance().cpu())
    return by_group


def _options_of(method: MergeMethod, own: Any) -> Any:
    has_weight = hasattr(method.model_options(), "weight")
    return method.model_options(**({"weight": own.weight} if has_weight else {}))
