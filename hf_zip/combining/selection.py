"""Numbers in which models differ most, and how much each model has changed of them."""

import torch
from jaxtyping import Float
from torch import Tensor

from hf_zip.combining.combination import per_model
from hf_zip.combining.magnitude import thresholds


def most_varied(
    vectors: Float[Tensor, " models *shape"], share: float
) -> Float[Tensor, " models *shape"]:
    """Returns task vectors with all numbers set to zero but those that vary most among models.

    Args:
        vectors: Task vectors of one parameter.
        share: Share of the numbers to keep, in [0, 1]; those that vary as little as the last one
            kept are all kept.

    Source: SCE (https://arxiv.org/abs/2408.07990), the step "select".
    """
    variances = vectors.var(dim=0, correction=0)
    (least,) = thresholds(lambda: [variances[None]], [share])
    return torch.where(variances >= least, vectors, 0)


def energies(vectors: Float[Tensor, " models *shape"]) -> Float[Tensor, "models ..."]:
    """Returns each model's share of the squares of all numbers, shaped as by `per_model`.

    Args:
        vectors: Task vectors of one parameter.

    Source: SCE (https://arxiv.org/abs/2408.07990), the step "calculate".
    """
    squares = vectors.reshape(len(vectors), -1).double().square().sum(dim=1)
    total = squares.sum()
    return per_model((squares / torch.where(total > 0, total, 1)).tolist(), vectors)
