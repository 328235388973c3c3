"""Orthogonal matching: every model's features, or those of each head, are rotated to fit."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zip.errors import HfZipError
from hf_zip.matching.correlation import DEAD_DEVIATION
from hf_zip.matching.merge_map import MergeMap

# Covariances of what networks compute in float32 say nothing about directions weaker than this
# share of the strongest one.
WEAKEST_DIRECTION = torch.finfo(torch.float32).eps
# With more than two models, a round that adds a smaller share than this to the total is the last:
# on random features, all further ones together added less than 1e-4.
SMALLEST_GAIN = 1e-5

# Of every linked group the orthogonal map of one model's features to the shared ones.
Rotations = list[Tensor]


def match_rotation(
    covariances: Sequence[Float[Tensor, "n n"]], num_models: int, fix_ones: bool = True
) -> MergeMap:
    """Returns the orthogonal maps that bring the features of all models closest to each other.

    See `match_head_rotations`, of which this is the case of one head and one group.

    Args:
        covariances: One covariance per tap of the features of all models, side by side.
        num_models: Number of models, at least 2.
        fix_ones: Map the vector of ones to itself and leave the mean over features out of account.
            Such maps commute with a LayerNorm without gain and bias.

    Raises:
        HfZipError: There is no covariance, or one is not square, not finite, or does not divide
            into the models.

    Example:
        >>> turned = torch.tensor([[1.0, 0, 0, 1], [0, 4, -4, 0], [0, -4, 4, 0], [1, 0, 0, 1]])
        >>> match_rotation([turned], 2, fix_ones=False).merge[1].round(decimals=6).tolist()
        [[0.0, 1.0], [-1.0, 0.0]]
    """
    if fix_ones:
        covariances = [centred(covariance, num_models) for covariance in covariances]
    blocks = _blocks(covariances, num_models, 1)
    if fix_ones:
        # Centred features do not vary along the ones; as a direction that all models share, and no
        # weaker than any other, it stays what it is.
        blocks += 1 / blocks.shape[-1]
    return _match_all([blocks], num_models, 1)[0]


def match_head_rotations(
    covariances: Sequence[Sequence[Float[Tensor, "_n _n"]]], num_models: int, num_heads: int
) -> list[MergeMap]:
    """Returns one map per linked group; features rotate inside their head, heads move as wholes.

    Models are first matched to model 0, which stays as it is. With more than two, each in turn is
    then matched to the sum of all others until the total hardly grows. A match is optimal: the
    orthogonal Procrustes problem is solved inside every pair of heads, then heads are assigned by
    its optima summed over the groups. Every head of every model counts the same, however strong its
    features are; so does every tap. Directions in which features do not vary cannot be matched and
    stay as close to what they are as they can.

    Source: Beyond the Permutation Symmetry of Transformers (https://arxiv.org/abs/2502.00264) for
    rotations inside heads; generalised Procrustes analysis (Gower 1975,
    https://doi.org/10.1007/BF02291478) for more than two models. Deviations: heads are compared by
    activations, not weights, and are assigned to each other.

    Args:
        covariances: For every linked group, such as the values and the queries of one attention
            layer, one covariance per tap of the features of all models, side by side.
        num_models: Number of models, at least 2.
        num_heads: Number of heads of each model, the same in all groups.

    Raises:
        HfZipError: There is no group, or a group without a covariance, or one is not square, not
            finite, or does not divide into models and heads.
    """
    if not covariances:
        raise HfZipError("there are no groups to match heads by; give at least one")
    groups = [_blocks(taps, num_models, num_heads) for taps in covariances]
    return _match_all(groups, num_models, num_heads)


def centred(covariance: Float[Tensor, "n n"], num_models: int) -> Float64[Tensor, "n n"]:
    """Returns the covariance of features after each model's mean over its features is taken out.

    Args:
        covariance: Covariance of the features of all models, side by side.
        num_models: Number of models.

    Raises:
        HfZipError: The covariance is not square or does not divide into the models.
    """
    split = _split(covariance, num_models, 1)
    split = split - split.mean(dim=1, keepdim=True)
    return (split - split.mean(dim=3, keepdim=True)).reshape(covariance.shape)


def aligned_covariance(
    covariance: Float[Tensor, "n n"], merge_map: MergeMap
) -> Float64[Tensor, "n n"]:
    """Returns the covariance of the features of all models, mapped to the shared ones.

    Args:
        covariance: Covariance of the features of all models, side by side.
        merge_map: A map to as many shared features as each model has.

    Raises:
        HfZipError: The covariance is not square or is not that of as many features as are mapped.
    """
    split = _split(covariance, merge_map.num_models, 1)
    if split.shape[1] != merge_map.size:
        raise HfZipError(
            f"a covariance of {split.shape[1]} features per model is to be mapped by a merge map "
            f"for {merge_map.size}"
        )
    merge = merge_map.merge.double()
    left = torch.einsum("kmi,kilj->kmlj", merge, split)
    return torch.einsum("kmlj,lnj->kmln", left, merge).reshape(covariance.shape)


def procrustes(cross: Float[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """Returns the orthogonal matrix `t` with the largest `trace(t @ cross.T)`.

    Where `cross` is zero, which leaves a choice, `t` is as close to the identity as it can be: what
    does not vary stays as it is.

    Args:
        cross: Mean of `x yᵀ` over the rows of two sets of features; `t` brings `y` closest to `x`.

    Source: Schönemann (1966), https://doi.org/10.1007/BF02289451.
    """
    left, values, right = torch.linalg.svd(cross.double())
    seen = int((values > WEAKEST_DIRECTION * values[0]).sum())
    if seen < len(values):
        u, _, v = torch.linalg.svd(left[:, seen:].T @ right[seen:].T)
        right = torch.cat([right[:seen], u @ v @ right[seen:]])
    return left @ right


def _split(
    covariance: Tensor, num_models: int, num_heads: int
) -> Float64[Tensor, "models d models d"]:
    """A covariance by model and feature, in float64."""
    shape = tuple(covariance.shape)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise HfZipError(f"a covariance has shape {shape}; it should be square")
    if num_models < 1 or num_heads < 1 or not shape[0] or shape[0] % (num_models * num_heads):
        raise HfZipError(
            f"a covariance of {shape[0]} features does not divide into {num_models} models with "
            f"{num_heads} heads each"
        )
    size = shape[0] // num_models
    return covariance.detach().cpu().double().reshape(num_models, size, num_models, size)


def _blocks(
    covariances: Sequence[Tensor], num_models: int, num_heads: int
) -> Float64[Tensor, "models models d d"]:
    """The mean over taps of the covariances of one model's features with another's."""
    if num_models < 2:
        raise HfZipError(f"features of {num_models} model are to be matched; it takes at least 2")
    if not covariances:
        raise HfZipError("there are no covariances to match by; a group needs at least one tap")
    sizes = [tuple(covariance.shape) for covariance in covariances]
    if len(set(sizes)) > 1:
        raise HfZipError(f"covariances of one group have different shapes: {sizes}")
    total = _normalised(covariances[0], num_models, num_heads)
    for covariance in covariances[1:]:
        total += _normalised(covariance, num_models, num_heads)
    return total.div_(len(covariances)).transpose(1, 2)


def _normalised(
    covariance: Tensor, num_models: int, num_heads: int
) -> Float64[Tensor, "models d models d"]:
    """A covariance in which every head of every model has variance 1 in all.

    The nuclear norm of the part of two heads is then in [0, 1]. Dead heads covary with nothing.
    """
    split = _split(covariance, num_models, num_heads)
    if not split.isfinite().all():
        raise HfZipError("a covariance holds values that are not finite; check the statistics")
    variances = torch.einsum("kiki->ki", split).clamp(min=0)
    variances = variances.reshape(num_models, num_heads, -1).sum(dim=2)
    weakest = DEAD_DEVIATION**2 * variances.amax(dim=1, keepdim=True)
    scales = torch.where(variances > weakest, variances, torch.inf).rsqrt()
    scales = scales.repeat_interleave(split.shape[1] // num_heads, dim=1)
    return split * scales[:, :, None, None] * scales


def _match_all(groups: list[Tensor], num_models: int, num_heads: int) -> list[MergeMap]:
    anchor = [torch.eye(blocks.shape[2], dtype=blocks.dtype) for blocks in groups]
    rotations = [anchor] + [
        _match([blocks[0, k] for blocks in groups], num_heads) for k in range(1, num_models)
    ]
    if num_models > 2:
        rotations = _ascend(groups, rotations, num_heads)
    stacked = [torch.stack(list(of_group)) for of_group in zip(*rotations, strict=True)]
    return [MergeMap(merge, merge.transpose(1, 2)) for merge in stacked]


def _match(crosses: list[Tensor], num_heads: int) -> Rotations:
    """The rotations of one model's features that fit best; rows are shared, columns the model's."""
    heads = [
        cross.reshape(num_heads, len(cross) // num_heads, num_heads, -1).transpose(1, 2)
        for cross in crosses
    ]
    if num_heads == 1:
        pairs = [(0, 0)]
    else:
        scores = sum(torch.linalg.matrix_norm(split, "nuc").numpy() for split in heads)
        pairs = list(zip(*linear_sum_assignment(scores, maximize=True), strict=True))
    found = []
    for cross, split in zip(crosses, heads, strict=True):
        rotation = torch.zeros_like(cross).reshape(num_heads, split.shape[2], num_heads, -1)
        for slot, head in pairs:
            rotation[slot, :, head] = procrustes(split[slot, head])
        found.append(rotation.reshape(cross.shape))
    return found


def _ascend(groups: list[Tensor], rotations: list[Rotations], num_heads: int) -> list[Rotations]:
    """Matches each model but the first to the sum of all others, as long as the total grows."""
    total = _total(groups, rotations)
    while True:
        trial = list(rotations)
        for k in range(1, len(rotations)):
            others = [m for m in range(len(rotations)) if m != k]
            sums = [
                torch.stack([trial[m][g] @ blocks[m, k] for m in others]).sum(dim=0)
                for g, blocks in enumerate(groups)
            ]
            trial[k] = _match(sums, num_heads)
        trial_total = _total(groups, trial)
        if not trial_total > total:
            return rotations
        rotations, gain, total = trial, trial_total - total, trial_total
        if gain <= SMALLEST_GAIN * total:
            return rotations


def _total(groups: list[Tensor], rotations: list[Rotations]) -> float:
    """Covariance of aligned features, summed over all groups and pairs of models."""
    return float(
        sum(
            (rotations[k][g] @ blocks[k, m] * rotations[m][g]).sum()
            for g, blocks in enumerate(groups)
            for k in range(len(rotations))
            for m in range(k)
        )
    )
