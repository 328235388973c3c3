"""WUDI: task vectors merged so that none disturbs the inputs of another, solved in closed form."""

from dataclasses import dataclass

from hf_zip.combining.combination import of_matrices
from hf_zip.combining.interference import least_interference
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class WudiOptions:
    """How far the sum of task vectors is trusted, and how much of the merge is added.

    Args:
        penalty: Ridge towards the sum of task vectors, as a share of the mean diagonal of what is
            solved, from 1e-9 on. The default is about where the authors' steps stop for task
            vectors of falling singular values (`scripts/wudi_penalty.py`).
        scaling: Factor of the merged task vector; there is none in the paper.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    penalty: float = 0.1
    scaling: float = 1.0
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("penalty", self.penalty, 1e-9, float("inf"))


COMBINATION = of_matrices(lambda vectors, options: least_interference(vectors, options.penalty))


def run(inputs: MergeInputs, options: WudiOptions) -> Merged:
    """Returns the base plus the task vector that differs least from each on its own inputs.

    Source: WUDI-Merging (https://arxiv.org/abs/2503.08099); see `least_interference` for
    what differs. Linear layers are merged so, everything else is averaged.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="wudi",
    title="WUDI: the task vector that disturbs least what each model's inputs give",
    reference="https://arxiv.org/abs/2503.08099",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=WudiOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
