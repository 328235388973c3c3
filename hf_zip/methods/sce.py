"""SCE: numbers in which models differ, weighted by how much each has changed them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_zip.combining.combination import Combination, Parameter, Setting, added
from hf_zip.combining.selection import energies, most_varied
from hf_zip.combining.signs import elected_mean
from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class SceOptions:
    """What is kept of task vectors, and how much of their merge is added.

    Args:
        select_topk: Share of a parameter's numbers to keep, those that vary most among the models,
            in [0, 1]; the paper's τ.
        scaling: Factor of the merged task vector; there is none in the paper.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    select_topk: float = 0.1
    scaling: float = 1.0
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("select_topk", self.select_topk)


def _merge(parameter: Parameter, setting: Setting) -> Tensor:
    vectors = most_varied(parameter.task_vectors, setting.options.select_topk)
    weights = energies(vectors)
    return elected_mean(vectors, weights, votes=torch.ones_like(weights))


COMBINATION = Combination(added(_merge))


def run(inputs: MergeInputs, options: SceOptions) -> Merged:
    """Returns the base plus the mean of the numbers in which models differ, by how much they moved.

    Source: SCE (https://arxiv.org/abs/2408.07990): select, calculate, erase. What is
    left after the minority's signs are erased is divided by its weights, as mergekit does it.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="sce",
    title="SCE: numbers in which models differ most, weighted by how much each has moved",
    reference="https://arxiv.org/abs/2408.07990",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=SceOptions,
    exact=True,
    combination=COMBINATION,
)
