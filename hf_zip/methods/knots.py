"""KnOTS: task vectors of a layer written in common directions, and merged there."""

from dataclasses import dataclass

from torch import Tensor

from hf_zip.combining.combination import Combination, Parameter, Setting, added, weights_of
from hf_zip.combining.magnitude import thresholds, trim
from hf_zip.combining.merging import Merge, merge_vectors, scaling_of
from hf_zip.combining.spectra import in_common_directions
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.outcome import Merged
from hf_zip.ranges import check_between
from hf_zip.siblings import SiblingRefit, merge_siblings


@dataclass(frozen=True)
class KnotsOptions:
    """How what models have of common directions is merged.

    Args:
        density: Share of the numbers of each model's part to keep, the largest, in [0, 1].
        merge: "ties" takes the mean of the numbers of elected signs, "ties_sum" their weighted sum;
            "linear" the weighted sum of all.
        scaling: Factor of the merged task vector; left out, 0.4 of a sum and 1 of a mean.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    density: float = 0.2
    merge: Merge = "ties"
    scaling: float | None = None
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_between("density", self.density)


def _merge(parameter: Parameter, setting: Setting) -> Tensor:
    vectors = parameter.task_vectors
    if not parameter.is_matrix:
        return (vectors * weights_of(setting, vectors)).mean(dim=0)
    basis, parts = in_common_directions(vectors)
    least = thresholds(lambda: [parts], [setting.options.density] * len(parts))
    return basis @ merge_vectors(trim(parts, least), setting)


COMBINATION = Combination(
    added(_merge, scaling_of), by_rows=lambda options, is_matrix: not is_matrix
)


def run(inputs: MergeInputs, options: KnotsOptions) -> Merged:
    """Returns the base plus task vectors merged by what each has of their common directions.

    Source: KnOTS (https://arxiv.org/abs/2410.19735), section 4: of all matrices side by side,
    U S [V_1 ... V_K], the V are merged, here by TIES with a threshold for every layer. Linear
    layers are merged so, everything else is averaged.
    """
    return merge_siblings(inputs, COMBINATION, options)


ENTRY = MergeMethod(
    name="knots",
    title="KnOTS: task vectors of a layer written in common directions, merged there by TIES",
    reference="https://arxiv.org/abs/2410.19735",
    requires=Requires(base=True, shared_init=True, elementwise=True),
    run=run,
    options=KnotsOptions,
    model_options=WeightOptions,
    exact=True,
    combination=COMBINATION,
)
