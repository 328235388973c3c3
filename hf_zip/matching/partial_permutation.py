"""One-to-one matching in part: the best matches are merged, all else is kept side by side."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.matching.correlation import checked_similarity
from hf_zip.matching.merge_map import MergeMap


def partial_permutation(
    permutations: Sequence[MergeMap],
    similarities: Sequence[Float[Tensor, "_n _n"]],
    num_heads: int,
    merged: int,
) -> list[MergeMap]:
    """Returns one map per linked group that merges only the best matched heads of all models.

    Merged heads come first, in the order of the permutations; then the other heads of the first
    model, of the second, and so on. A head is as well matched as its features are similar in the
    mean, over the groups and all pairs of models; of equals, the first are merged.

    Args:
        permutations: For every linked group the one-to-one map of its features; see `match_heads`.
        similarities: For every group the similarity of the features of all models, side by side.
        num_heads: Number of heads of each model; as many as there are features where these are
            merged or kept one by one.
        merged: Number of heads to merge, from 0 to `num_heads`.

    Raises:
        HfZipError: So many heads cannot be merged, or a similarity is not square, not finite, or
            does not divide into models and heads.

    Source: PLeaS (https://arxiv.org/abs/2407.02447), section 4.1.

    Example:
        >>> similarity = torch.eye(4)
        >>> similarity[0, 2] = similarity[2, 0] = 0.9
        >>> (found,) = partial_permutation([MergeMap.identity(2, 2)], [similarity], 2, merged=1)
        >>> found.merge[1].tolist()
        [[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]
    """
    if not 0 <= merged <= num_heads:
        raise HfZipError(f"{merged} of {num_heads} heads cannot be merged; give 0 to {num_heads}")
    scores = np.mean(
        [_scores(*pair, num_heads) for pair in zip(permutations, similarities, strict=True)],
        axis=0,
    )
    best = torch.from_numpy(np.argsort(-scores, kind="stable"))
    together, apart = best[:merged].sort().values, best[merged:].sort().values
    return [_partial(found, together, apart, num_heads) for found in permutations]


def _scores(permutation: MergeMap, similarity: Tensor, num_heads: int) -> np.ndarray:
    """The mean similarity of the features that each head would merge."""
    count, size = permutation.num_models, permutation.size
    blocks = checked_similarity(similarity, count, num_heads).reshape(count, size, count, size)
    orders = permutation.merge.argmax(dim=2).numpy()
    pairs = [
        blocks[k, orders[k], m, orders[m]].astype(np.float64)
        for k in range(count)
        for m in range(k)
    ]
    scores: np.ndarray = np.mean(pairs, axis=0).reshape(num_heads, -1).mean(axis=1)
    return scores


def _partial(
    permutation: MergeMap, together: Int64[Tensor, " _"], apart: Int64[Tensor, " _"], num_heads: int
) -> MergeMap:
    count, size = permutation.num_models, permutation.size
    heads = torch.arange(size).reshape(num_heads, -1)
    shared = permutation.merge[:, heads[together].flatten()]
    own = permutation.merge[:, heads[apart].flatten()]
    # Each model has a place of its own for what is kept, and nothing in those of the others.
    places = torch.zeros(count, count, *own.shape[1:], dtype=own.dtype)
    places[torch.arange(count), torch.arange(count)] = own
    places = places.flatten(1, 2)
    # Features are means over all models, so what only one model has counts for all of them.
    return MergeMap(
        merge=torch.cat([shared, count * places], dim=1),
        unmerge=torch.cat([shared, places], dim=1).transpose(1, 2),
    )
