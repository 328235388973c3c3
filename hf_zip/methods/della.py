"""DELLA: numbers of task vectors dropped at random, small ones rather than large ones."""

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
from hf_zip.combining.drop import drop, ranked_rates
from hf_zip.combining.merging import Merge, merge_vectors, scaling_of
from hf_zip.errors import HfZipError
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class DellaOptions:
    """What is dropped of task vectors, and how the rest is merged.

    Args:
        drop_rate: Mean probability of the numbers to be dropped, the paper's p.
        window_size: How far apart the probabilities of the smallest and the largest number of a row
            lie, the paper's ε.
        rescale: Divide what is left by its probability to stay.
        merge: "linear" adds the weighted sum; "ties" the mean of the numbers of elected signs,
            "ties_sum" their weighted sum.
        scaling: Factor of the merged task vector; left out, 0.4 of a sum and 1 of a mean.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    drop_rate: float = 0.3
    window_size: float = 0.14
    rescale: bool = True
    merge: Merge = "ties"
    scaling: float | None = None
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not (0 <= self.window_size / 2 <= min(self.drop_rate, 1 - self.drop_rate)):
            raise HfZipError(
                f"drop_rate is {self.drop_rate} and window_size {self.window_size}, but drop_rate "
                "plus or minus half of window_size should be in [0, 1]"
            )


def _merge(parameter: Parameter, setting: Setting) -> Tensor:
    vectors, options = parameter.task_vectors, setting.options
    rates = per_model([options.drop_rate] * len(vectors), vectors)
    rates = ranked_rates(vectors, rates, options.window_size)
    return merge_vectors(
        drop(vectors, rates, setting.seed, parameter.name, options.rescale, parameter.start),
        setting,
    )


COMBINATION = Combination(added(_merge, scaling_of), by_rows=always)


def run(inputs: MergeInputs, options: DellaOptions) -> Merged:
    """Returns the base plus the merge of task vectors of which mostly small numbers were dropped.

    Source: DELLA-Merging (https://arxiv.org/abs/2406.11617); rate and window are those
    of the authors' example. Each parameter's numbers are drawn by the seed and its name.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="della",
    title="DELLA: numbers of task vectors dropped at random, small ones rather than large ones",
    reference="https://arxiv.org/abs/2406.11617",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=DellaOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
