"""Task arithmetic: the base model plus the sum of what fine-tuning added in every model."""

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
from hf_zip.combining.linear import weighted_sum
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class TaskArithmeticOptions:
    """How much of the sum of task vectors is added.

    Args:
        scaling: Factor of the sum, the paper's λ.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    scaling: float = 0.4
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"


def _merge(parameter: Parameter, setting: Setting) -> Tensor:
    vectors = parameter.task_vectors
    return weighted_sum(vectors, weights_of(setting, vectors))


COMBINATION = Combination(added(_merge), by_rows=always)


def run(inputs: MergeInputs, options: TaskArithmeticOptions) -> Merged:
    """Returns the base plus `scaling` times the weighted sum of task vectors.

    Source: Task Arithmetic (https://arxiv.org/abs/2212.04089), section 2. The weights, which may be
    negative to take a task away, are 1 there; λ is chosen there on validation data.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="task_arithmetic",
    title="The base model plus the scaled sum of task vectors",
    reference="https://arxiv.org/abs/2212.04089",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=TaskArithmeticOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
