"""ZipIt!'s greedy matching: features of all models, also within a model, become fewer clusters."""

import logging
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.matching.correlation import checked_similarity
from hf_zip.matching.merge_map import MergeMap
from hf_zip.matching.permutation import match_head_pairs

logger = logging.getLogger(__name__)


def zip_features(
    similarity: Float[Tensor, "n n"],
    num_models: int,
    merged: int,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Int64[Tensor, " n"]:
    """Returns the cluster of each feature, after greedily merging the most similar ones.

    Every feature starts alone. The two most similar clusters become one until `merged` are left;
    among equals, those with the lowest first features. The similarity of a merged cluster to
    another is `m - (1 - alpha) |m|`, with `m` the lower similarity of its two parts.

    Each model has a budget for merges within it: the share `beta` of the merges it takes part in,
    `int((n - merged) / num_models * beta)`. Merging two clusters needs and costs one from the
    budget of every model that has features in both. When only merges beyond the budgets are left,
    the budgets are lifted, with a warning.

    Source: ZipIt! (https://arxiv.org/abs/2305.03053), section 4.3. Deviations from its code: a
    budget is checked before a merge rather than after it, so `beta = 0` allows none; it counts the
    models that two clusters share, rather than the models of their first features; a negative
    similarity falls with a merge, where a factor `alpha` would raise it; with exhausted budgets the
    most similar clusters are merged, where the code may leave features in no cluster.

    Args:
        similarity: Similarity of the features of all models, side by side. Only what is above the
            diagonal is read.
        num_models: Number of models, at least 2.
        merged: Number of clusters to end with, from 1 to the number of features of all models.
        alpha: In (0, 1]: how much of its similarity a cluster keeps after a merge. Below 1,
            clusters of many features are discouraged.
        beta: In [0, 1]: share of each model's merges that may be within the model.

    Returns:
        Clusters numbered from 0 by their first features.

    Raises:
        HfZipError: The similarity is not square or not finite or does not divide into the models,
            or an option is out of its range.

    Example:
        >>> similarity = torch.eye(4)
        >>> similarity[0, 2], similarity[1, 3] = 0.9, 0.4
        >>> zip_features(similarity, num_models=2, merged=2).tolist()
        [0, 1, 0, 1]
    """
    array = checked_similarity(similarity, num_models)
    _check_options(len(array), "features", merged, alpha, beta)
    clusters = _Clusters(array, num_models, int((len(array) - merged) / num_models * beta), alpha)
    for _ in range(len(array) - merged):
        clusters.merge_best()
    return torch.from_numpy(clusters.labels())


def zip_map(labels: Int64[Tensor, " n"], num_models: int) -> MergeMap:
    """Returns the map that averages the features of each cluster, and copies the mean back.

    Args:
        labels: Cluster of each feature of all models, side by side, numbered from 0.
        num_models: Number of models.

    Raises:
        HfZipError: The features do not divide into the models, or a cluster has no features.

    Example:
        >>> zip_map(torch.tensor([0, 1, 1, 1]), 2).merge[1].tolist()
        [[0.0, 0.0], [0.6666666865348816, 0.6666666865348816]]
    """
    if num_models < 1 or not len(labels) or len(labels) % num_models:
        raise HfZipError(f"{len(labels)} labels do not divide into {num_models} models")
    if labels.min() < 0:
        raise HfZipError(f"a label is {int(labels.min())}; clusters are numbered from 0")
    sizes = labels.bincount()
    if not sizes.all():
        raise HfZipError(f"cluster {int(sizes.argmin())} of {len(sizes)} has no features")
    members = torch.zeros(len(labels), len(sizes), device=labels.device)
    members[torch.arange(len(labels)), labels] = 1
    unmerge = members.view(num_models, -1, len(sizes))
    return MergeMap((unmerge * (num_models / sizes)).transpose(1, 2), unmerge)


def zip_heads(
    similarities: Sequence[Float[Tensor, "_n _n"]],
    num_models: int,
    num_heads: int,
    merged_heads: int,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> list[MergeMap]:
    """Returns one map per linked group, with whole heads zipped as `zip_features` zips features.

    The similarity of two heads is the mean over the groups of the mean similarity of their features
    in the best one-to-one matching. In a cluster of heads, the features of each head are matched to
    those of the first.

    Args:
        similarities: For every linked group, such as the values and the queries of one attention
            layer, the similarity of the features of all models, side by side.
        num_models: Number of models, at least 2.
        num_heads: Number of heads of each model, the same in all groups.
        merged_heads: Number of heads to end with, from 1 to the number of heads of all models.
        alpha: See `zip_features`.
        beta: See `zip_features`; the budget counts heads.

    Raises:
        HfZipError: There is no similarity, one is not square or not finite or does not divide into
            models and heads, or an option is out of its range.
    """
    if not similarities:
        raise HfZipError("there are no similarities to zip heads by; give one per linked group")
    arrays = [checked_similarity(each, num_models, num_heads) for each in similarities]
    count = num_models * num_heads
    _check_options(count, "heads", merged_heads, alpha, beta)
    pairs = list(combinations(range(count), 2))
    found = [match_head_pairs(array, count, pairs) for array in arrays]
    mean = np.mean([scores / orders.shape[2] for scores, orders in found], axis=0)
    heads = zip_features(torch.from_numpy(mean), num_models, merged_heads, alpha, beta).numpy()
    return [zip_map(_feature_labels(heads, orders), num_models) for _, orders in found]


def _feature_labels(heads: np.ndarray, orders: np.ndarray) -> Int64[Tensor, " n"]:
    """The cluster of each feature, from the clusters of heads and the features' order in each."""
    size = orders.shape[2]
    labels = np.empty((len(heads), size), dtype=np.int64)
    firsts = np.unique(heads, return_index=True)[1]
    for head, cluster in enumerate(heads):
        first = firsts[cluster]
        order = np.arange(size) if head == first else orders[first, head]
        labels[head, order] = cluster * size + np.arange(size)
    return torch.from_numpy(labels.reshape(-1))


def _check_options(count: int, what: str, merged: int, alpha: float, beta: float) -> None:
    if not 1 <= merged <= count:
        raise HfZipError(f"{count} {what} cannot be zipped into {merged}; give 1 to {count}")
    if not 0 < alpha <= 1:
        raise HfZipError(f"alpha is {alpha}; it should be in (0, 1]")
    if not 0 <= beta <= 1:
        raise HfZipError(f"beta is {beta}; it should be in [0, 1]")


class _Clusters:
    """Clusters of features, each at the place of its first feature, and their similarities.

    A merge rewrites one row of the similarities and nothing else; other rows catch up when they are
    needed. Similarities only fall, so what an outdated row says is an upper bound, and the row with
    the highest bound is the best one if it stays the highest once up to date.
    """

    def __init__(self, similarity: np.ndarray, num_models: int, budget: int, alpha: float) -> None:
        size = len(similarity)
        self._alpha = alpha
        self._similarity = _symmetric(similarity)
        # Highest similarity of each cluster to a later one, or a bound on it.
        self._bounds = np.full(size, -np.inf, dtype=similarity.dtype)
        for place in range(size - 1):
            self._bounds[place] = self._similarity[place, place + 1 :].max()
        self._models = np.repeat(np.eye(num_models, dtype=bool), size // num_models, axis=1)
        self._budgets = np.full(num_models, budget)
        # The merges so far, and how many of them each row knows of.
        self._kept = np.empty(size, dtype=np.int64)
        self._removed = np.empty(size, dtype=np.int64)
        self._merges = 0
        self._known = [0] * size
        self._penalty = np.zeros_like(self._bounds)
        self._scratch = np.empty_like(self._bounds)

    def merge_best(self) -> None:
        """Merges the two most similar clusters that the budgets allow."""
        first, second = self._best()
        self._update(second)
        self._budgets -= self._models[:, first] & self._models[:, second]
        self._models[:, first] |= self._models[:, second]
        self._penalty[second] = -np.inf
        row = self._similarity[first]
        np.minimum(row, self._similarity[second], out=row)
        if self._alpha < 1:
            self._discourage(row)
        self._kept[self._merges], self._removed[self._merges] = first, second
        self._merges += 1
        self._bounds[first] = self._admissible(first).max()
        self._bounds[second] = -np.inf

    def labels(self) -> np.ndarray:
        """Returns the cluster of each feature, numbered by first features."""
        places = np.arange(len(self._bounds))
        places[self._removed[: self._merges]] = self._kept[: self._merges]
        # A cluster moves to an earlier place, perhaps repeatedly.
        while (places != places[places]).any():
            places = places[places]
        return np.unique(places, return_inverse=True)[1]

    def _best(self) -> tuple[int, int]:
        while True:
            first = int(self._bounds.argmax())
            bound = self._bounds[first]
            if bound == -np.inf:
                self._lift_budgets()
                continue
            self._update(first)
            later = self._admissible(first)
            offset = int(later.argmax())
            if later[offset] == bound:
                return first, first + 1 + offset
            self._bounds[first] = later[offset]

    def _update(self, place: int) -> None:
        """Brings the row of a cluster up to date with all merges."""
        known = self._known[place]
        kept, removed = self._kept[known : self._merges], self._removed[known : self._merges]
        row = self._similarity[place]
        row[kept] = self._similarity[kept, place]
        row[removed] = -np.inf
        self._known[place] = self._merges

    def _admissible(self, place: int) -> np.ndarray:
        """The similarities of a cluster to later ones, -inf where a budget forbids the merge."""
        later = self._similarity[place, place + 1 :]
        exhausted = self._models[:, place] & (self._budgets <= 0)
        if not exhausted.any():
            return later
        return np.where(self._models[exhausted, place + 1 :].any(axis=0), -np.inf, later)

    def _discourage(self, row: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            np.abs(row, out=self._scratch)
            self._scratch *= 1 - self._alpha
            row -= self._scratch
        # Repeated merges may fall beyond the range; -inf is for clusters that are no more.
        np.maximum(row, np.finfo(row.dtype).min, out=row)
        row += self._penalty

    def _lift_budgets(self) -> None:
        logger.warning(
            "no merge is left within the budgets; the last %d clusters are merged without them",
            len(self._bounds) - self._merges,
        )
        self._budgets[:] = len(self._bounds)
        # The last place has none after it.
        self._bounds[:-1][self._penalty[:-1] == 0] = np.inf


def _symmetric(similarity: np.ndarray, block: int = 64) -> np.ndarray:
    """A copy of the upper triangle on both sides of the diagonal."""
    size = len(similarity)
    result = np.empty_like(similarity, order="C")
    for i in range(0, size, block):
        for j in range(i, size, block):
            part = similarity[i : i + block, j : j + block]
            if i == j:
                part = np.triu(part, 1) + np.triu(part, 1).T
            result[i : i + block, j : j + block] = part
            result[j : j + block, i : i + block] = part.T
    return result
