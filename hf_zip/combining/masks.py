"""Which numbers of task vectors matter: the largest of all models, or those that models share."""

from jaxtyping import Bool, Float
from torch import Tensor


def largest(vectors: Float[Tensor, " models *shape"]) -> Float[Tensor, " *shape"]:
    """Returns for each number the one of largest magnitude among the models, the first of equals.

    Args:
        vectors: Task vectors.

    Source: MagMax (https://arxiv.org/abs/2407.06322).
    """
    chosen = vectors.abs().argmax(dim=0, keepdim=True)
    return vectors.gather(0, chosen).squeeze(0)


def consensus(
    vectors: Float[Tensor, " models *shape"], threshold: float, agreement: int
) -> Bool[Tensor, " *shape"]:
    """Returns which numbers matter to enough models.

    A number matters to a model if the model's own change is larger there than `threshold` times
    what the others change in sum.

    Args:
        vectors: Task vectors.
        threshold: The paper's λ, 0 or above.
        agreement: To how many models it should matter, the paper's k; to all if they are fewer.

    Source: TALL masks and Consensus Merging (https://arxiv.org/abs/2405.07813).
    """
    others = vectors.sum(dim=0) - vectors
    matters = vectors.abs() > threshold * others.abs()
    return matters.sum(dim=0) >= min(agreement, len(vectors))
