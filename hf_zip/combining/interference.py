"""Task vectors of linear layers merged so that none disturbs what another one answers to."""

import torch
from jaxtyping import Float
from torch import Tensor


def least_interference(
    vectors: Float[Tensor, "models m n"], penalty: float
) -> Float[Tensor, "m n"]:
    """Returns the matrix that differs least from all matrices on the inputs that each stands for.

    The rows of a task vector span, nearly, the inputs that it was trained on. So the merged one, τ,
    minimises the sum over models of ||(τ - τ_k) τ_kᵀ||² / ||τ_k||². With G_k = τ_kᵀ τ_k / ||τ_k||²
    the minimum is where τ ΣG_k = Σ τ_k G_k; a ridge pulls it towards the sum of all task vectors
    where little is known.

    Args:
        vectors: Task vectors of one linear layer; those of zeros say nothing.
        penalty: The ridge, as a share of the mean diagonal of ΣG_k, above 0.

    Source: WUDI-Merging (https://arxiv.org/abs/2503.08099). Deviation: the authors take
    some hundred steps of Adam from the sum of task vectors, here it is solved; so the ridge stands
    for how early they stop.
    """
    exact = vectors.double()
    norms = exact.square().sum(dim=(1, 2), keepdim=True).sqrt()
    units = exact / torch.where(norms > 0, norms, 1)
    rows = units.flatten(0, 1)
    both = rows.T @ rows
    size = float(both.trace()) / len(both)
    if size == 0:
        return torch.zeros_like(vectors[0])
    ridge = penalty * size
    # In this order the products are of the size of the outputs, mostly the smaller one.
    wanted = (units @ units.mT @ exact).sum(dim=0) + ridge * exact.sum(dim=0)
    system = both + ridge * torch.eye(len(both), dtype=both.dtype, device=both.device)
    return torch.cholesky_solve(wanted.T, torch.linalg.cholesky(system)).T.to(vectors.dtype)
