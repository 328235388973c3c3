"""Plain weight averaging: for models that were fine-tuned from one initialisation."""

from dataclasses import dataclass, replace

from torch import Tensor

from hf_zip.align import mean
from hf_zip.aligned import Refit, merge_aligned
from hf_zip.combining.combination import Combination, Parameter, Setting, always
from hf_zip.errors import HfZipError
from hf_zip.match import Matching
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.siblings import merge_siblings


@dataclass(frozen=True)
class AverageOptions:
    """What follows the mean.

    Args:
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives; "all" fits every layer to the
            mean of the models' features.
    """

    refit: Refit = "none"


def _combine(parameter: Parameter, setting: Setting) -> Tensor:
    states = [{parameter.name: tensor} for tensor in parameter.tensors]
    return mean(states, setting.of_models("weight"))[parameter.name]


COMBINATION = Combination(_combine, by_rows=always, weighted=True)


def run(inputs: MergeInputs, options: AverageOptions) -> Merged:
    """Returns the weighted mean of the parameters.

    Raises:
        HfZipError: The weights vary over the model, and something is fitted by them.
    """
    if inputs.varied:
        if options.refit in ("repair", "all"):
            raise HfZipError(
                f"weight varies over the model, but refit: {options.refit} fits all layers to one "
                "mean of the models; give each model one weight, or use refit: none or head"
            )
        merged = merge_siblings(inputs, COMBINATION, options)
        return replace(merged, weights=inputs.weights)
    return merge_aligned(inputs, Matching({}, {}), inputs.weights, options.refit)


ENTRY = MergeMethod(
    name="average",
    title="Weighted mean of the parameters",
    reference="https://arxiv.org/abs/2203.05482",
    requires=Requires(shared_init=True, elementwise=True),
    run=run,
    options=AverageOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
