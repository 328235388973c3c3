"""What follows once task vectors were made sparse: their sum, or what has elected signs."""

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from hf_zip.combining.combination import Setting, weights_of
from hf_zip.combining.linear import weighted_sum
from hf_zip.combining.signs import elected_mean, elected_sum
from hf_zip.errors import HfZipError

Merge = Literal["linear", "ties", "ties_sum"]
# What the papers of task arithmetic and of TIES take where nothing can be measured.
_SCALING: dict[Merge, float] = {"linear": 0.4, "ties": 1.0, "ties_sum": 0.4}


def merge_vectors(
    vectors: Float[Tensor, " models *shape"], setting: Setting
) -> Float[Tensor, " *shape"]:
    """Returns the merged task vector of a parameter, by the option `merge`.

    Args:
        vectors: Task vectors.
        setting: What the merge was asked for.

    Raises:
        HfZipError: A weight is negative where it is that of a vote.
    """
    if setting.options.merge == "linear":
        return weighted_sum(vectors, weights_of(setting, vectors))
    merge = elected_mean if setting.options.merge == "ties" else elected_sum
    return merge(vectors, votes_of(setting, vectors))


def scaling_of(options: Any) -> float:
    """Returns the factor of a merged task vector: the option `scaling`, else what fits `merge`."""
    return _SCALING[options.merge] if options.scaling is None else options.scaling


def votes_of(setting: Setting, like: Tensor) -> Float[Tensor, "models ..."]:
    """Returns the weights of the models, shaped as by `weights_of`, for an election of signs.

    Raises:
        HfZipError: One is negative.
    """
    weights = setting.of_models("weight")
    if min(weights) < 0:
        raise HfZipError(
            f"a model has the weight {min(weights):g}, but where signs are elected a weight is "
            "that of a vote; it should be 0 or more"
        )
    return weights_of(setting, like)
