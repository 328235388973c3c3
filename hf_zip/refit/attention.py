"""The attention of one merged block: all teachers' heads, regressed on the merged stream."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from hf_zip.groups import Block
from hf_zip.matching.selection import select_heads
from hf_zip.refit.heads import truncate_scores, truncate_values
from hf_zip.refit.moments import Moments, RegressionMoments
from hf_zip.refit.shape import Shape
from hf_zip.refit.work import Work, set_linear


def fit_attention(work: Work, layer: Block, projections: Moments) -> float:
    """Sets the attention of a block and moves the merged stream past it.

    Args:
        work: The models and streams; `middle` is held, `contexts` and `gap` are for a while.
        layer: Names of the block's modules.
        projections: Moments of the merged model's normalised stream and of the queries, then keys,
            then values of all teachers.

    Returns:
        The share of the mapped streams' energy that the merged stream then holds.
    """
    weight, bias = projections.fit(work.penalty)
    (query, key, value), (query_bias, _, _) = weight.chunk(3), bias.chunk(3)
    count = len(work.teachers) * work.shape.teacher_heads
    rank = len(value) // count if work.shape.select else work.shape.head_width
    moment = projections.second_moment()
    parts = zip(query.chunk(count), query_bias.chunk(count), key.chunk(count), strict=True)
    heads = [truncate_scores(*part, moment, projections.mean_x, rank) for part in parts]
    queries, query_biases, keys = (torch.cat(part) for part in zip(*heads, strict=True))

    # A bias of the values adds the same to every context: that of the output can do it.
    contexts = _attend(work, layer, (queries, keys, value), query_biases)
    chosen, kept = keep_heads(contexts, work.shape, work.penalty)
    output, output_bias = contexts.mapped(kept).fit(work.penalty)
    rows = torch.cat([torch.arange(rank) + head * rank for head in chosen.tolist()])
    student = work.student
    set_linear(student.get_submodule(layer.query), queries[rows], query_biases[rows])
    set_linear(student.get_submodule(layer.key), keys[rows])
    set_linear(student.get_submodule(layer.value), kept @ value)
    set_linear(student.get_submodule(layer.output), output, output_bias)

    writes, write_bias = (part.to(work.matrix) for part in (output @ kept, output_bias))
    return work.explained(
        [
            work.advance(batch, linear(work.held.pop("contexts", batch), writes, write_bias))
            for batch in range(work.num_batches)
        ]
    )


def _attend(
    work: Work, layer: Block, projections: tuple[Tensor, Tensor, Tensor], query_bias: Tensor
) -> Moments:
    """Moments of the contexts of all heads and of what the merged stream lacks; holds both."""
    count = len(work.teachers) * work.shape.teacher_heads
    weights = [part.to(work.matrix) for part in projections]
    biases = (query_bias.to(work.matrix), None, None)
    norm = work.student.get_submodule(layer.attention_norm)
    sums = RegressionMoments(len(projections[2]), work.shape.width, device=work.accelerator.device)
    for batch in range(work.num_batches):
        normalised = norm(work.held["merged", batch])
        heads = [
            linear(normalised, weight, bias).unflatten(-1, (count, -1)).transpose(1, 2)
            for weight, bias in zip(weights, biases, strict=True)
        ]
        attended = scaled_dot_product_attention(*heads)
        contexts = attended.transpose(1, 2).flatten(2).flatten(0, 1)
        work.held["contexts", batch] = contexts
        sums.update(contexts, work.hold_gap(batch, work.held["middle", batch]))
    return work.reduced(sums).moments()


def keep_heads(
    contexts: Moments, shape: Shape, penalty: float
) -> tuple[Int64[Tensor, "heads"], Float64[Tensor, "kept n"]]:
    """Returns the heads that are kept and the map from all contexts to those of the merged model.

    Args:
        contexts: Moments of the contexts of all heads and of what is to be written.
        shape: Sizes of the merged model.
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
