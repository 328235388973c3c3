"""Karcher mean: the mean direction of several models, parameter by parameter."""

from dataclasses import dataclass

from torch import Tensor

from hf_zip.align import shares
from hf_zip.combining.combination import Combination, Parameter, Setting
from hf_zip.combining.sphere import karcher_mean
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class KarcherOptions:
    """When the mean is exact enough.

    Args:
        max_iterations: Steps at most, 1 or more.
        tolerance: Length of a step, in radians, that is small enough to stop at.
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    max_iterations: int = 10
    tolerance: float = 1e-5
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("max_iterations", self.max_iterations, 1, float("inf"))
        check_between("tolerance", self.tolerance, 0, float("inf"))


def _combine(parameter: Parameter, setting: Setting) -> Tensor:
    weights = shares(len(parameter.tensors), setting.of_models("weight"))
    options = setting.options
    return karcher_mean(parameter.tensors, weights, options.max_iterations, options.tolerance)


COMBINATION = Combination(_combine)


def run(inputs: MergeInputs, options: KarcherOptions) -> Merged:
    """Returns the mean direction of every parameter, times the mean of its norms.

    Source: Karcher (1977, https://doi.org/10.1002/cpa.3160300502), on the sphere of each
    parameter's directions.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="karcher",
    title="The mean direction of every parameter, on the sphere that its values lie on",
    reference="https://doi.org/10.1002/cpa.3160300502",
    requires=Requires(shared_init=True, elementwise=True),
    run=run,
    options=KarcherOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
