"""Iso-C: the sum of task vectors with one singular value for all its directions."""

from hf_zip.combining.combination import of_matrices
from hf_zip.combining.spectra import isotropic
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.siblings import ScaledOptions, merge_siblings

COMBINATION = of_matrices(lambda vectors, _: isotropic(vectors.sum(dim=0)))


def run(inputs: MergeInputs, options: ScaledOptions) -> Merged:
    """Returns the base plus the sum of task vectors, its singular values replaced by their mean.

    Source: Iso-C (https://arxiv.org/abs/2502.04959), algorithm 1. Linear layers are merged so,
    everything else is averaged. Deviation: so are embeddings, as for `tsv`.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="iso_c",
    title="Iso-C: the sum of task vectors with its singular values made equal",
    reference="https://arxiv.org/abs/2502.04959",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=ScaledOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
