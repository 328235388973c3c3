"""TIES: small changes reset, one sign elected for every number, and the mean of what agrees."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hf_zip.combining.combination import (
    Combination,
    Parameter,
    Parameters,
    Setting,
    added,
    always,
)
from hf_zip.combining.magnitude import thresholds, trim
from hf_zip.combining.merging import votes_of
from hf_zip.combining.signs import elected_mean, elected_sum
from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class TiesOptions:
    """What is kept of task vectors, and how much of their merge is added.

    Args:
        density: Share of each task vector's numbers to keep, the largest, in [0, 1].
        trim: "global" keeps the largest of a whole task vector, as in the paper; "tensor" the same
            share of every parameter, as mergekit does.
        merge: "mean" takes the mean of the numbers that have the elected sign, as in the paper;
            "sum" their sum, as results of other programs may, with a `scaling` of 0.3 or so.
        scaling: Factor of the merged task vector, the paper's λ.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    density: float = 0.2
    trim: Literal["global", "tensor"] = "global"
    merge: Literal["mean", "sum"] = "mean"
    scaling: float = 1.0
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("density", self.density)


@dataclass(frozen=True)
class TiesModelOptions:
    """Options of one model.

    Args:
        weight: Weight of this model's vote and of its numbers in the mean, zero or above.
        density: Share of its task vector to keep; left out, the method's.
    """

    weight: float = 1.0
    density: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.density is not None:
            check_between("density", self.density)


def _survey(parameters: Parameters, setting: Setting) -> tuple[float, ...] | None:
    return None if setting.options.trim == "tensor" else _thresholds(parameters, setting)


def _look(parameters: Parameters, setting: Setting) -> tuple[float, ...] | None:
    return None if setting.options.trim == "global" else _thresholds(parameters, setting)


def _thresholds(parameters: Parameters, setting: Setting) -> tuple[float, ...]:
    return thresholds(
        lambda: (parameter.task_vectors for parameter in parameters()),
        setting.of_models("density"),
    )


def _merge(parameter: Parameter, setting: Setting) -> Tensor:
    vectors = parameter.task_vectors
    found = parameter.found if setting.found is None else setting.found
    merge = elected_mean if setting.options.merge == "mean" else elected_sum
    return merge(trim(vectors, found), votes_of(setting, vectors))


COMBINATION = Combination(added(_merge), _survey, _look, always, surveyed=("density",))


def run(inputs: MergeInputs, options: TiesOptions) -> Merged:
    """Returns the base plus `scaling` times the mean of trimmed numbers that have elected signs.

    Source: TIES-Merging (https://arxiv.org/abs/2306.01708), section 4. The threshold of a whole
    task vector is exact; numbers that equal it are all kept. Where votes cancel, the base stays.
    With densities that vary, "global" takes all parameters of the same density together.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="ties",
    title="TIES: task vectors trimmed, signs elected, and the mean of what agrees added",
    reference="https://arxiv.org/abs/2306.01708",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=TiesOptions,
    model_options=TiesModelOptions,
    exact=True,
    combination=COMBINATION,
)
