"""The sum of task vectors, each times a factor."""

from jaxtyping import Float
from torch import Tensor


def weighted_sum(
    tensors: Float[Tensor, " models *shape"], weights: Float[Tensor, "models ..."]
) -> Float[Tensor, " *shape"]:
    """Returns the sum of tensors, each times its weight.

    Args:
        tensors: One tensor of each model.
        weights: The factor of each.

    Source: Task Arithmetic (https://arxiv.org/abs/2212.04089), section 2, where all are 1.
    """
    return (weights * tensors).sum(dim=0)
