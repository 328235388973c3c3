"""Iso-C: the sum of task vectors with one singular value for all its directions."""

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
from hf_zip.combining.spectra import isotropic
from hf_zip.method import Merged, MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class IsoCOptions:
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
    return isotropic(vectors.sum(dim=0))


COMBINATION = Combination(added(_merge), by_rows=unless_matrix)


def run(inputs: MergeInputs, options: IsoCOptions) -> Merged:
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
    options=IsoCOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
