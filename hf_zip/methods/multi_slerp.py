"""Multi-SLERP: any number of models interpolated on a sphere, by arcs from one point."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hf_zip.align import shares
from hf_zip.combining.combination import Combination, Parameter, Setting, moved
from hf_zip.combining.sphere import karcher_mean
from hf_zip.method import MergeInputs, MergeMethod, Origin, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class MultiSlerpOptions:
    """Where the sphere lies, and what is averaged on it.

    Args:
        tangent: "arc" averages the arcs from the normalised mean to all models, which of two models
            is the point at the share of the second's weight; "plane" their shadows on the plane
            that touches the sphere there, which leaves the normalised mean.
        origin: "zero" takes the directions of parameters, "base" those of task vectors.
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    tangent: Literal["arc", "plane"] = "arc"
    origin: Origin = "zero"
    refit: SiblingRefit = "none"


def _combine(parameter: Parameter, setting: Setting) -> Tensor:
    vectors = parameter.task_vectors
    weights = shares(len(vectors), setting.of_models("weight"))
    steps = 1 if setting.options.tangent == "arc" else 0
    return moved(parameter, karcher_mean(vectors, weights, steps, 0.0))


COMBINATION = Combination(_combine)


def run(inputs: MergeInputs, options: MultiSlerpOptions) -> Merged:
    """Returns the weighted mean of directions by one step on the sphere, times that of the norms.

    Source: Buss & Fillmore (2001, https://doi.org/10.1145/502122.502124), section 3, for averages
    on spheres by arcs, of which this is the first step from the normalised mean; `karcher` goes on
    until they cancel.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="multi_slerp",
    title="Any number of models interpolated on a sphere, in one step along the arcs to them",
    reference="https://doi.org/10.1145/502122.502124",
    requires=Requires(shared_init=True, elementwise=True),
    run=run,
    options=MultiSlerpOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
