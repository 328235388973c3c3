"""Plain weight averaging: for models that were fine-tuned from one initialisation."""

from dataclasses import dataclass

from hf_zip.aligned import Refit, merge_aligned
from hf_zip.match import Matching
from hf_zip.method import Merged, MergeInputs, MergeMethod, Requires, WeightOptions


@dataclass(frozen=True)
class AverageOptions:
    """What follows the mean.

    Args:
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives; "all" fits every layer to the
            mean of the models' features.
    """

    refit: Refit = "none"


def run(inputs: MergeInputs, options: AverageOptions) -> Merged:
    """Returns the weighted mean of the parameters."""
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
)
