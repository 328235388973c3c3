"""TSV-Merge: the strongest directions of task vectors, kept out of one another's way."""

from hf_zip.combining.combination import of_matrices
from hf_zip.combining.spectra import without_interference
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.siblings import ScaledOptions, merge_siblings

COMBINATION = of_matrices(lambda vectors, _: without_interference(vectors))


def run(inputs: MergeInputs, options: ScaledOptions) -> Merged:
    """Returns the base plus the strongest singular directions of all task vectors, made orthogonal.

    Source: Task Singular Vectors (https://arxiv.org/abs/2412.00081), algorithm 1. Linear layers are
    merged so, everything else is averaged. Deviation: the authors take all matrices but CLIP's text
    projection, embeddings among them; rows of those are looked up, not multiplied.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="tsv",
    title="TSV: the strongest singular directions of task vectors, made orthogonal, then added",
    reference="https://arxiv.org/abs/2412.00081",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=ScaledOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
