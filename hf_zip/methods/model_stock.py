"""Model Stock: between the base and the mean of its fine-tunes, by the angles between them."""

from dataclasses import dataclass

from torch import Tensor

from hf_zip.combining.combination import Combination, Parameter, Setting, moved
from hf_zip.combining.stock import stock_ratio
from hf_zip.method import MergeInputs, MergeMethod, Requires
from hf_zip.outcome import Merged
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class ModelStockOptions:
    """What follows the merge; there is nothing else to choose.

    Args:
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    refit: SiblingRefit = "none"


def _combine(parameter: Parameter, setting: Setting) -> Tensor:
    vectors = parameter.task_vectors
    return moved(parameter, stock_ratio(vectors) * vectors.mean(dim=0))


COMBINATION = Combination(_combine)


def run(inputs: MergeInputs, options: ModelStockOptions) -> Merged:
    """Returns the base moved towards the mean of the models, as far as their task vectors agree.

    Source: Model Stock (https://arxiv.org/abs/2403.19522): every parameter has a ratio
    of its own. The paper's models are fine-tuned on one task; of several, task vectors are nearly
    at right angles, and the merge stays close to the base.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="model_stock",
    title="Model Stock: as far from the base towards the mean as task vectors agree",
    reference="https://arxiv.org/abs/2403.19522",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=ModelStockOptions,
    exact=True,
    combination=COMBINATION,
)
