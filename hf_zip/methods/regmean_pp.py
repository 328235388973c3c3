"""RegMean++: RegMean from block to block, on what the merged blocks before give."""

from dataclasses import dataclass
from functools import partial

from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.siblings import SiblingRefit, with_matrices
from hf_zip.weighing.regmean import RegressionOptions
from hf_zip.weighing.walk import merged_in_order


@dataclass(frozen=True)
class RegMeanPlusOptions(RegressionOptions):
    """How matrices are merged by regression, and what follows.

    Args:
        alpha: Factor of what is beside the diagonal of the inputs' second moments, in [0, 1].
        memory: What each process may hold of the merged model's streams in memory, in GiB; the
            rest goes to temporary files.
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    alpha: float = 0.95
    refit: SiblingRefit = "none"


def run(inputs: MergeInputs, options: RegMeanPlusOptions) -> Merged:
    """Returns RegMean's matrices, with blocks that read what the merged blocks before them give.

    Source: RegMean++ (https://arxiv.org/abs/2508.03121). As there, the layers inside a block read
    what the model's own layers before them in the same block make of the merged stream. Deviations:
    those of `regmean`; and layers outside the blocks are merged too, in the order in which they
    run, on what the model merged so far gives them.
    """
    solve = partial(merged_in_order, adapter=inputs.runtime.adapter, options=options)
    return with_matrices(inputs, "regmean_pp", solve, options.refit)


ENTRY = MergeMethod(
    name="regmean_pp",
    title="RegMean++: RegMean from block to block, on what the merged blocks give",
    reference="https://arxiv.org/abs/2508.03121",
    requires=Requires(calibration=True, own_inputs=True, shared_init=True),
    run=run,
    options=RegMeanPlusOptions,
    model_options=WeightOptions,
    exact=True,
)
