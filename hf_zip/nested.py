"""A merge method run by itself or by another one: what it needs is gathered first."""

from dataclasses import replace
from typing import Any

from hf_zip.covariances import group_covariances
from hf_zip.method import MergeInputs, MergeMethod
from hf_zip.outcome import Merged


def run_gathered(method: MergeMethod, inputs: MergeInputs, options: Any) -> Merged:
    """Returns what a method makes of models, after gathering the statistics it needs.

    Args:
        method: The method.
        inputs: What it works on, but for the statistics.
        options: Its options.
    """
    if method.requires.covariances:
        runtime = inputs.runtime
        given = (inputs.groups, runtime.models, runtime.calibration)
        inputs = replace(inputs, covariances=group_covariances(*given, **runtime.running))
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


def _options_of(method: MergeMethod, own: Any) -> Any:
    has_weight = hasattr(method.model_options(), "weight")
    return method.model_options(**({"weight": own.weight} if has_weight else {}))
