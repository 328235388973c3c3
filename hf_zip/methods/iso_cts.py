"""Iso-CTS: Iso-C in the directions of the sum and in those of single task vectors."""

from dataclasses import dataclass

from hf_zip.combining.combination import of_matrices
from hf_zip.combining.spectra import isotropic_in_subspaces
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class IsoCtsOptions:
    """Which directions are kept, and how much of the merged task vector is added.

    Args:
        common: Share of the directions that are those of the sum, in [0, 1].
        scaling: Factor of the merged task vector, the paper's α.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    common: float = 0.8
    scaling: float = 1.0
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("common", self.common)


COMBINATION = of_matrices(lambda vectors, options: isotropic_in_subspaces(vectors, options.common))


def run(inputs: MergeInputs, options: IsoCtsOptions) -> Merged:
    """Returns the base plus common and task-specific directions with one singular value for all.

    Source: Iso-CTS (https://arxiv.org/abs/2502.04959), algorithm 2. Linear layers are merged so,
    everything else is averaged. Deviation: so are embeddings, as for `tsv`.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="iso_cts",
    title="Iso-CTS: common and task-specific directions with one singular value for all",
    reference="https://arxiv.org/abs/2502.04959",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=IsoCtsOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
