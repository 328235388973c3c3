"""Attention heads at a lower rank: the best approximation on what the heads really read."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def truncate_scores(
    query: Float[Tensor, "d_head d"],
    query_bias: Float[Tensor, " d_head"],
    key: Float[Tensor, "d_head d"],
    second_moment: Float[Tensor, "d d"],
    mean: Float[Tensor, " d"],
    rank: int,
) -> tuple[Float64[Tensor, "rank d"], Float64[Tensor, " rank"], Float64[Tensor, "rank d"]]:
    """Returns query weight and bias and key weight of a head of lower rank with the closest scores.

    The scores of all pairs of inputs are a bilinear form; its best approximation of a given rank
    under the inputs' second moment is a truncated singular value decomposition. The result already
    makes up for the other root of the head's width that attention divides by. A key bias has no
    effect on softmax and is left out.

    Args:
        query: Query weight of the head.
        query_bias: Its bias.
        key: Key weight of the head.
        second_moment: Mean of `z zᵀ` of the inputs.
        mean: Mean of the inputs.
        rank: New width of the head, at most the old one.

    Source: Eckart and Young (1936), under the metric of the inputs.
    """
    width = len(query)
    query_full = torch.cat([query, query_bias[:, None]], dim=1).double()
    key = key.double()
    if rank == width:
        return query_full[:, :-1], query_full[:, -1], key
    moment, mean = second_moment.double(), mean.double()
    corner = torch.ones(1, 1, dtype=torch.float64, device=mean.device)
    extended = torch.cat(
        [
            torch.cat([moment, mean[:, None]], dim=1),
            torch.cat([mean[None, :], corner], dim=1),
        ]
    )
    left = _square_root(query_full @ extended @ query_full.T)
    right = _square_root(key @ moment @ key.T)
    u, s, v = torch.linalg.svd(left @ right)
    scale = _inverse_root(s[:rank]) * (rank / width) ** 0.25
    new_query = scale[:, None] * (v[:rank] @ right @ query_full)
    new_key = scale[:, None] * (u[:, :rank].T @ left @ key)
    return new_query[:, :-1], new_query[:, -1], new_key


def truncate_values(
    output: Float[Tensor, "d d_head"], covariance: Float[Tensor, "d_head d_head"], rank: int
) -> Float64[Tensor, "rank d_head"]:
    """Returns the combinations of a head's features that matter most to what it writes.

    Args:
        output: Output weight of the head.
        covariance: Covariance of the head's contexts, the features that the weight reads.
        rank: How many combinations, at most as many as there are features.
    """
    output = output.double()
    if rank == output.shape[1]:
        return torch.eye(rank, dtype=torch.float64, device=output.device)
    u, s, _ = torch.linalg.svd(output @ _square_root(covariance.double()), full_matrices=False)
    inverse = torch.where(s > 1e-12 * s[0], 1 / s, torch.zeros_like(s))[:rank]
    return inverse[:, None] * (u[:, :rank].T @ output)


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _inverse_root(values: Tensor) -> Tensor:
    # A direction without energy stays empty: its inverse root would be noise.
    floor = 1e-12 * values[0]
    return torch.where(values > floor, values.clamp(min=floor).rsqrt(), torch.zeros_like(values))
