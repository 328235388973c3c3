"""Consensus merging: the sum of task vectors where it matters to several models."""

from dataclasses import dataclass

from torch import Tensor

from hf_zip.combining.combination import (
    Combination,
    Parameter,
    Setting,
    added,
    always,
    weights_of,
)
from hf_zip.combining.masks import consensus
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class ConsensusOptions:
    """Which numbers matter, and how much of their sum is added.

    Args:
        threshold: A number matters to a model that changed it by more than so many times what the
            others did in sum; the paper's λ, chosen from 0.2 to 0.6 there.
        agreement: To how many models a number should matter, the paper's k.
        scaling: Factor of the sum, as for `task_arithmetic`.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    threshold: float = 0.4
    agreement: int = 2
    scaling: float = 0.4
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("threshold", self.threshold, 0, float("inf"))
        check_between("agreement", self.agreement, 1, float("inf"))


def _merge(parameter: Parameter, setting: Setting) -> Tensor:
    vectors, options = parameter.task_vectors, setting.options
    vectors = weights_of(setting, vectors) * vectors
    return vectors.sum(dim=0) * consensus(vectors, options.threshold, options.agreement)


COMBINATION = Combination(added(_merge), by_rows=always)


def run(inputs: MergeInputs, options: ConsensusOptions) -> Merged:
    """Returns the base plus the sum of task vectors where it matters to several models.

    Source: Consensus Merging (https://arxiv.org/abs/2405.07813). The paper chooses λ for
    every task on validation data; here one is for all.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="consensus",
    title="Consensus: the sum of task vectors where it matters to several models",
    reference="https://arxiv.org/abs/2405.07813",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=ConsensusOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
