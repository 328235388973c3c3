"""One-to-one matching: every model's features, or whole heads, are reordered to fit the others."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.matching.correlation import checked_similarity
from hf_zip.matching.merge_map import MergeMap

# One array per linked group: feature `order[m]` of a model becomes shared feature `m`.
Orders = list[np.ndarray]


def match_permutation(similarity: Float[Tensor, "n n"], num_models: int) -> MergeMap:
    """Returns the permutations that make the features of all models most similar to each other.

    See `match_heads`, of which this is the case of one head and one group.

    Args:
        similarity: Similarity of the features of all models, side by side.
        num_models: Number of models, at least 2.

    Raises:
        HfZipError: The similarity is not square or not finite, or does not divide into the models.

    Example:
        >>> similarity = torch.eye(4)
        >>> similarity[:2, 2:] = similarity[2:, :2] = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
        >>> match_permutation(similarity, 2).merge[1].tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    return match_heads([similarity], num_models, 1)[0]


def match_heads(
    similarities: Sequence[Float[Tensor, "_n _n"]], num_models: int, num_heads: int
) -> list[MergeMap]:
    """Returns one map per linked group; features move inside their head, heads move as wholes.

    Models are first matched to model 0, which stays as it is. With more than two, each in turn is
    then matched to the sum of all others until the similarity summed over all pairs of models no
    longer grows. A match is optimal: assignments inside every pair of heads, then an assignment of
    heads by their scores summed over the groups.

    Source: Git Re-Basin (https://arxiv.org/abs/2209.04836), section 3.1, for the assignment, and
    its algorithm 3 for more than two models. Deviations: the objective is the sum over pairs of
    models, not the distance to their mean, and the heads' assignments are nested.

    Args:
        similarities: For every linked group, such as the values and the queries of one attention
            layer, the similarity of the features of all models, side by side.
        num_models: Number of models, at least 2.
        num_heads: Number of heads of each model, the same in all groups.

    Raises:
        HfZipError: There is no similarity, or one is not square, not finite, or does not divide
            into models and heads.
    """
    if not similarities:
        raise HfZipError("there are no similarities to match heads by; give one per linked group")
    blocks = [
        _by_model(checked_similarity(similarity, num_models, num_heads), num_models)
        for similarity in similarities
    ]
    anchor = [np.arange(group.shape[1]) for group in blocks]
    orders = [anchor] + [
        _match([group[0, :, k] for group in blocks], num_heads) for k in range(1, num_models)
    ]
    if num_models > 2:
        orders = _ascend(blocks, orders, num_heads)
    return [
        _permutations([orders[k][group] for k in range(num_models)]) for group in range(len(blocks))
    ]


def match_head_pairs(
    similarity: np.ndarray, num_heads: int, pairs: Iterable[tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how similar heads are, and how the features of one fit those of another best.

    Args:
        similarity: Similarity of the features of heads, `[heads * d, heads * d]`.
        num_heads: Number of heads.
        pairs: Rows and columns of heads to compare; the results are 0 elsewhere.

    Returns:
        The sums of matched similarities, `[heads, heads]`, and the feature of the second head that
        matches each feature of the first, `[heads, heads, d]`.
    """
    size = len(similarity) // num_heads
    heads = similarity.reshape(num_heads, size, num_heads, size)
    scores = np.zeros((num_heads, num_heads))
    orders = np.zeros((num_heads, num_heads, size), dtype=np.int64)
    for i, j in pairs:
        rows, orders[i, j] = linear_sum_assignment(heads[i, :, j], maximize=True)
        scores[i, j] = heads[i, rows, j, orders[i, j]].sum(dtype=np.float64)
    return scores, orders


def _match(similarities: Sequence[np.ndarray], num_heads: int) -> Orders:
    """The orders of one model's features that fit best; rows are shared, columns the model's."""
    pairs = list(np.ndindex(num_heads, num_heads))
    found = [match_head_pairs(similarity, num_heads, pairs) for similarity in similarities]
    scores = np.sum([scores for scores, _ in found], axis=0)
    slots, heads = linear_sum_assignment(scores, maximize=True)
    # A head's features are numbered from where it starts.
    return [
        (heads[:, None] * inner.shape[2] + inner[slots, heads]).reshape(-1) for _, inner in found
    ]


def _ascend(blocks: list[np.ndarray], orders: list[Orders], num_heads: int) -> list[Orders]:
    """Matches each model but the first to the sum of all others, as long as the total grows."""
    total = _total(blocks, orders)
    while True:
        trial = list(orders)
        for k in range(1, len(orders)):
            others = [m for m in range(len(orders)) if m != k]
            sums = [
                sum(group[m, trial[m][g], k].astype(np.float64) for m in others)
                for g, group in enumerate(blocks)
            ]
            trial[k] = _match(sums, num_heads)
        trial_total = _total(blocks, trial)
        if trial_total <= total:
            return orders
        orders, total = trial, trial_total


def _total(blocks: list[np.ndarray], orders: list[Orders]) -> float:
    """Similarity of matched features, summed over all groups and pairs of models."""
    return float(
        sum(
            group[k, orders[k][g], m, orders[m][g]].sum(dtype=np.float64)
            for g, group in enumerate(blocks)
            for k in range(len(orders))
            for m in range(k)
        )
    )


def _by_model(similarity: np.ndarray, num_models: int) -> np.ndarray:
    size = len(similarity) // num_models
    return similarity.reshape(num_models, size, num_models, size)


def _permutations(orders: Sequence[np.ndarray]) -> MergeMap:
    merge = torch.zeros(len(orders), len(orders[0]), len(orders[0]))
    for matrix, order in zip(merge, orders, strict=True):
        matrix[torch.arange(len(order)), torch.from_numpy(order)] = 1
    return MergeMap(merge, merge.transpose(1, 2))
