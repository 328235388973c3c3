"""EMR: one vector of all task vectors, of which every model takes what has its signs."""

from hf_zip.combining.unified import elected_largest, of_same_sign
from hf_zip.masking import merge_masked
from hf_zip.method import MergeInputs, MergeMethod, NoOptions, Requires
from hf_zip.outcome import Merged


def run(inputs: MergeInputs, options: NoOptions) -> Merged:
    """Returns the largest numbers of elected signs, and a mask and a factor for every model.

    Source: EMR-Merging (https://arxiv.org/abs/2405.17461), algorithm 1. A factor is the paper's
    ratio of sums over the whole task vector; the authors' code adds up means of single tensors.
    """
    return merge_masked(inputs, elected_largest, of_same_sign, rescale=True)


ENTRY = MergeMethod(
    name="emr",
    title="EMR: one vector of all task vectors, of which each model takes what has its signs",
    reference="https://arxiv.org/abs/2405.17461",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    per_task=True,
)
