"""How far from the base towards the mean of its fine-tunes their centre lies, by their angles."""

import torch
from jaxtyping import Float
from torch import Tensor


def stock_ratio(vectors: Float[Tensor, " models *shape"]) -> float:
    """Returns the share of the way from the base to the mean of its fine-tunes, in [0, 1].

    With c the mean cosine between the task vectors of two models, and K models, it is
    K c / (1 + (K - 1) c): 1 where all agree, 0 where they are at right angles or further apart.

    Args:
        vectors: Task vectors of one parameter; one that is zero has no direction, and its cosines
            are 0.

    Source: Model Stock (https://arxiv.org/abs/2403.19522), for K models.
    Deviation: a negative mean cosine, which the paper does not meet, counts as 0.
    """
    count = len(vectors)
    if count == 1:
        return 1.0
    rows = vectors.reshape(count, -1).double()
    norms = rows.norm(dim=1, keepdim=True)
    units = rows / torch.where(norms > 0, norms, 1)
    cosines = units @ units.T
    mean = float((cosines.sum() - cosines.trace()) / (count * (count - 1)))
    cosine = min(max(mean, 0.0), 1.0)
    return count * cosine / (1 + (count - 1) * cosine)
