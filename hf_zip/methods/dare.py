"""DARE: numbers of task vectors dropped at random, what is left enlarged, then merged."""

from dataclasses import dataclass

from torch import Tensor

from hf_zip.combining.combination import (
    Combination,
    Parameter,
    Setting,
    added,
    always,
    per_model,
)
from hf_zip.combining.drop import drop
from hf_zip.combining.merging import Merge, merge_vectors, scaling_of
from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class DareOptions:
    """What is dropped of task vectors, and how the rest is merged.

    Args:
        drop_rate: Probability of each number to be dropped, in [0, 1], the paper's p.
        rescale: Divide what is left by 1 - p.
        merge: "linear" adds the weighted sum; "ties" the mean of the numbers of elected signs,
            "ties_sum" their weighted sum.
        scaling: Factor of the merged task vector; left out, 0.4 of a sum and 1 of a mean.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    drop_rate: float = 0.2
    rescale: bool = True
    merge: Merge = "linear"
    scaling: float | None = None
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("drop_rate", self.drop_rate)


@dataclass(frozen=True)
class DareModelOptions:
    """Options of one model.

    Args:
        weight: Factor of this model's task vector, or the weight of its vote.
        drop_rate: Probability of its numbers to be dropped; left out, the method's.
    """

    weight: float = 1.0
    drop_rate: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.drop_rate is not None:
            check_between("drop_rate", self.drop_rate)


def _merge(parameter: Parameter, setting: Setting) -> Tensor:
    vectors = parameter.task_vectors
    rates = per_model(setting.of_models("drop_rate"), vectors)
    options = setting.options
    return merge_vectors(
        drop(vectors, rates, setting.seed, parameter.name, options.rescale, parameter.start),
        setting,
    )


COMBINATION = Combination(added(_merge, scaling_of), by_rows=always)


def run(inputs: MergeInputs, options: DareOptions) -> Merged:
    """Returns the base plus the merge of task vectors of which numbers were dropped at random.

    Source: DARE (https://arxiv.org/abs/2311.03099), section 3.2; the default rate is that of the
    authors' example of a merge. Each parameter's numbers are drawn by the seed and its name.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="dare",
    title="DARE: numbers of task vectors dropped at random, the rest enlarged, then merged",
    reference="https://arxiv.org/abs/2311.03099",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=DareOptions,
    model_options=DareModelOptions,
    exact=True,
    combination=COMBINATION,
)
