"""RegMean: the matrices of linear layers that answer like each model's on that model's inputs."""

from dataclasses import dataclass
from functools import partial

from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.siblings import SiblingRefit, with_matrices
from hf_zip.weighing.regmean import RegressionOptions, merged_matrices


@dataclass(frozen=True)
class RegMeanOptions(RegressionOptions):
    """How matrices are merged by regression, and what follows.

    Args:
        alpha: See `RegressionOptions`; so is the next.
        memory: See `alpha`.
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    refit: SiblingRefit = "none"


def run(inputs: MergeInputs, options: RegMeanOptions) -> Merged:
    """Returns (Σ W_k G_k) (Σ G_k)⁻¹ for each linear layer, and the weighted mean of all else.

    G_k is the mean of x xᵀ over the tokens x that go into the layer of model k, on inputs of its
    own where the recipe gives some. Each counts by its model's weight, and what is beside its
    diagonal is multiplied by `alpha`.

    Source: RegMean (https://arxiv.org/abs/2212.09849), section 4. The authors gather G_k on each
    model's training inputs. Deviations: means over tokens, not sums, so that a task with longer
    inputs does not count more; and directions that no input has keep the weighted mean.
    """
    solve = partial(merged_matrices, options=options)
    return with_matrices(inputs, "regmean", solve, options.refit)


ENTRY = MergeMethod(
    name="regmean",
    title="RegMean: linear layers that answer like each model's on that model's inputs",
    reference="https://arxiv.org/abs/2212.09849",
    requires=Requires(calibration=True, own_inputs=True, shared_init=True, elementwise=True),
    run=run,
    options=RegMeanOptions,
    model_options=WeightOptions,
    exact=True,
)
