"""TSV-Merge: the strongest directions of task vectors, kept out of one another's way."""

from dataclasses import dataclass

from torch import Tensor

from hf_zip.combining.combination import (
    Combination,
    Parameter,
    Setting,
    added,
    unless_matrix,
    weights_of,
)
from hf_zip.combining.spectra import without_interference
from hf_zip.method import Merged, MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class TsvOptions:
    """How much of the merged task vector is added.

    Args:
        scaling: Factor of the merged task vector, the paper's α.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    scaling: float = 1.0
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"


def _merge(parameter: Parameter, setting: Setting) -> Tensor:
    vectors = parameter.task_vectors
    vectors = vectors * weights_of(setting, vectors)
    if not parameter.is_matrix:
        return vectors.mean(dim=0)
    return without_interference(vectors)


COMBINATION = Combination(added(_merge), by_rows=unless_matrix)


def run(inputs: MergeInputs, options: TsvOptions) -> Merged:
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
    options=TsvOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
