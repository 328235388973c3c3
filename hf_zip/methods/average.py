"""Plain weight averaging: for models that were fine-tuned from one initialisation."""

from hf_zip.match import Matching
from hf_zip.methods import (
    Merged,
    MergeInputs,
    MergeMethod,
    NoOptions,
    Requires,
    WeightOptions,
    merge_aligned,
)


def run(inputs: MergeInputs, options: NoOptions) -> Merged:
    """Returns the weighted mean of the parameters."""
    return merge_aligned(inputs, Matching({}, {}), tuple(o.weight for o in inputs.model_options))


ENTRY = MergeMethod(
    name="average",
    title="Weighted mean of the parameters",
    reference="https://arxiv.org/abs/2203.05482",
    requires=Requires(shared_init=True),
    run=run,
    model_options=WeightOptions,
)
