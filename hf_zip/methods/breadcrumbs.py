"""Model Breadcrumbs: the smallest and the largest changes reset, then merged."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from hf_zip.combining.combination import (
    Combination,
    Parameter,
    Parameters,
    Setting,
    added,
    always,
)
from hf_zip.combining.magnitude import middle, thresholds
from hf_zip.combining.merging import Merge, merge_vectors
from hf_zip.errors import HfZipError
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class BreadcrumbsOptions:
    """Which numbers of a task vector are reset, and how the rest is merged.

    Args:
        beta: Share of a parameter's numbers that are too small and reset, in [0, 1].
        gamma: Share of them that are not too large: those beyond are reset, in [beta, 1].
        merge: "linear" adds the weighted sum; "ties" the mean of the numbers of elected signs,
            "ties_sum" their weighted sum.
        scaling: Factor of the merged task vector, the paper's α.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    beta: float = 0.85
    gamma: float = 0.993
    merge: Merge = "linear"
    scaling: float = 0.3
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("beta", self.beta)
        check_between("gamma", self.gamma)
        if self.beta > self.gamma:
            raise HfZipError(
                f"beta is {self.beta} and gamma {self.gamma}, so all numbers would be reset; beta "
                "should be below gamma"
            )


def _look(parameters: Parameters, setting: Setting) -> tuple[tuple[float, ...], ...]:
    def vectors() -> Iterator[Tensor]:
        return (parameter.task_vectors for parameter in parameters())

    count, options = len(setting.models), setting.options
    return tuple(
        thresholds(vectors, [1 - share] * count) for share in (options.beta, options.gamma)
    )


def _merge(parameter: Parameter, setting: Setting) -> Tensor:
    return merge_vectors(middle(parameter.task_vectors, *parameter.found), setting)


COMBINATION = Combination(added(_merge), look=_look, by_rows=always)


def run(inputs: MergeInputs, options: BreadcrumbsOptions) -> Merged:
    """Returns the base plus the merge of task vectors without their smallest and largest numbers.

    Source: Model Breadcrumbs (https://arxiv.org/abs/2312.06795). The shares are those of
    every parameter. The election of signs is not part of the paper.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="breadcrumbs",
    title="Breadcrumbs: the smallest and the largest numbers of task vectors reset, then merged",
    reference="https://arxiv.org/abs/2312.06795",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=BreadcrumbsOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
