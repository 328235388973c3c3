"""SLERP: two models interpolated along the arc between their parameters."""

from dataclasses import dataclass

from torch import Tensor

from hf_zip.combining.combination import (
    Combination,
    Parameter,
    Parameters,
    Setting,
    always,
    moved,
)
from hf_zip.combining.sphere import angle_between, slerp
from hf_zip.method import MergeInputs, MergeMethod, Origin, Requires
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class SlerpOptions:
    """How far along the arcs.

    Args:
        t: Share of the way from the first model to the second, in [0, 1].
        origin: "zero" takes the arcs between parameters, "base" those between task vectors.
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    t: float = 0.5
    origin: Origin = "zero"
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("t", self.t)


def _look(parameters: Parameters, setting: Setting) -> float:
    return angle_between(lambda: (parameter.task_vectors for parameter in parameters()))


def _combine(parameter: Parameter, setting: Setting) -> Tensor:
    first, second = parameter.task_vectors
    return moved(parameter, slerp(first, second, setting.options.t, parameter.found))


COMBINATION = Combination(_combine, look=_look, by_rows=always)


def run(inputs: MergeInputs, options: SlerpOptions) -> Merged:
    """Returns the point at a share of the arc between two models, parameter by parameter.

    Source: Shoemake (1985, https://doi.org/10.1145/325165.325242), section 3.3, applied to whole
    parameters. Angles are exact down to 1e-7, so that close fine-tunes are not just averaged.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="slerp",
    title="Two models interpolated along the arcs between their parameters",
    reference="https://doi.org/10.1145/325165.325242",
    requires=Requires(shared_init=True, elementwise=True, models=2),
    run=run,
    options=SlerpOptions,
    exact=True,
    combination=COMBINATION,
)
