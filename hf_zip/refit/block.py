"""One block of a zipfit: all teachers' heads at a lower rank, and the MLP units that matter."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import linear

from hf_zip.groups import Block
from hf_zip.matching.selection import select_features, select_heads
from hf_zip.refit.attention import Heads, fit_attention
from hf_zip.refit.heads import truncate_scores, truncate_values
from hf_zip.refit.mlp import fit_mlp, normalised
from hf_zip.refit.moments import Moments
from hf_zip.refit.reading import read_teachers
from hf_zip.refit.shape import ZipShape
from hf_zip.refit.work import Work
from hf_zip.statistics.covariance import Covariance


def fit_block(work: Work, layer: Block, shape: ZipShape) -> dict[str, float]:
    """Sets one block of the merged model and moves all streams past it.

    Args:
        work: The models and streams.
        layer: Names of the block's modules.
        shape: Sizes of the merged model, and what becomes of the teachers' heads.

    Returns:
        The share of the mapped streams' energy that the merged stream holds, after the attention
        and after the MLP.
    """
    all_units = len(work.teachers) * work.teachers[0].get_submodule(layer.mlp_out).in_features
    projections, activity = read_teachers(work, layer, choosing=shape.units < all_units)
    units = choose_units(activity, work, layer)

    def wanted(middle: Float[Tensor, "rows n"]) -> Float[Tensor, "rows units"]:
        return kept_units(work, layer, units, normalised(work, layer, middle))

    heads = lower_heads(projections, work, shape)
    keep = partial(keep_heads, shape=shape, penalty=work.penalty)
    return {
        "attention": fit_attention(work, layer, heads, keep),
        "mlp": fit_mlp(work, layer, wanted),
    }


def lower_heads(projections: Moments, work: Work, shape: ZipShape) -> Heads:
    """Returns all heads of all teachers, their queries and keys at the merged heads' rank.

    Args:
        projections: Moments of the merged model's normalised stream and of the queries, then keys,
            then values of all teachers.
        work: The models and the ridge.
        shape: Sizes of the merged model, and what becomes of the teachers' heads.
    """
    weight, bias = projections.fit(work.penalty)
    (query, key, value), (query_bias, _, _) = weight.chunk(3), bias.chunk(3)
    count = len(work.teachers) * shape.teacher_heads
    rank = len(value) // count if shape.select else shape.head_width
    moment = projections.second_moment()
    parts = zip(query.chunk(count), query_bias.chunk(count), key.chunk(count), strict=True)
    heads = [truncate_scores(*part, moment, projections.mean_x, rank) for part in parts]
    queries, query_biases, keys = (torch.cat(part) for part in zip(*heads, strict=True))
    return Heads(queries, query_biases, keys, value, count)


def keep_heads(
    contexts: Moments, shape: ZipShape, penalty: float
) -> tuple[Int64[Tensor, " heads"], Float64[Tensor, "kept n"]]:
    """Returns the heads that are kept and the map from all contexts to those of the merged model.

    Args:
        contexts: Moments of the contexts of all heads and of what is to be written.
        shape: Sizes of the merged model, and what becomes of the teachers' heads.
        penalty: Ridge of the fit that says how much each head's features matter.
    """
    covariance = contexts.covariance
    if shape.select:
        count = len(covariance) // shape.head_width
        chosen = select_heads(covariance, count, shape.num_heads)[0].sort().values
        eye = torch.eye(len(covariance)).to(covariance)
        return chosen, eye.unflatten(0, (count, -1))[chosen].flatten(0, 1)
    width = len(covariance) // shape.num_heads
    output, _ = contexts.fit(penalty)
    own = [slice(at, at + width) for at in range(0, len(covariance), width)]
    maps = [truncate_values(output[:, h], covariance[h, h], shape.head_width) for h in own]
    return torch.arange(shape.num_heads), torch.block_diag(*maps)


def choose_units(
    activity: Covariance | None, work: Work, layer: Block
) -> tuple[Int64[Tensor, " _"], ...]:
    """Returns for each teacher the MLP units to keep.

    Args:
        activity: Covariance of all teachers' units; left out where all are kept.
        work: The models.
        layer: Names of the block's modules.
    """
    size = work.teachers[0].get_submodule(layer.mlp_out).in_features
    if activity is None:
        return tuple(torch.arange(size) for _ in work.teachers)
    kept = torch.zeros(size * len(work.teachers), dtype=torch.bool)
    kept[select_features(activity.covariance(), work.shape.units)] = True
    return tuple(own.nonzero().flatten() for own in kept.chunk(len(work.teachers)))


def kept_units(
    work: Work,
    layer: Block,
    units: Sequence[Int64[Tensor, " _"]],
    streams: Sequence[Float[Tensor, "rows _"]],
) -> Float[Tensor, "rows units"]:
    """Returns what goes into the kept units of all teachers.

    Args:
        work: The models.
        layer: Names of the block's modules.
        units: For each teacher the MLP units to keep.
        streams: What each teacher's MLP reads.
    """
    parts = []
    for teacher, stream, own in zip(work.teachers, streams, units, strict=True):
        mlp_in = teacher.get_submodule(layer.mlp_in)
        parts.append(linear(stream, mlp_in.weight[own], mlp_in.bias[own]))
    return torch.cat(parts, dim=1)
