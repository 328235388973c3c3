"""The attention of one merged block: its heads set, its output regressed on what they attend to."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from hf_zip.groups import Block
from hf_zip.refit.moments import Moments, RegressionMoments
from hf_zip.refit.work import Work, set_linear


@dataclass(frozen=True)
class Heads:
    """Heads that read the merged stream.

    A bias of the keys has no effect on softmax, and one of the values adds the same to every
    context, which the bias of the output can do: there are none.

    Args:
        query: Query weights of all heads, one below the other.
        query_bias: Their biases.
        key: Key weights likewise.
        value: Value weights likewise.
        count: Number of heads.
    """

    query: Float64[Tensor, "queries width"]
    query_bias: Float64[Tensor, "queries"]
    key: Float64[Tensor, "queries width"]
    value: Float64[Tensor, "values width"]
    count: int


# From the moments of all heads' contexts and of what is to be written: the heads that are kept, and
# the map from all contexts to those of the merged model.
Keep = Callable[[Moments], tuple[Int64[Tensor, "heads"], Float64[Tensor, "kept n"]]]


def fit_attention(work: Work, layer: Block, heads: Heads, keep: Keep | None = None) -> float:
    """Sets the attention of a block and moves the merged stream past it.

    Args:
        work: The models and streams; `middle` is held, `contexts` and `gap` are for a while.
        layer: Names of the block's modules.
        heads: What the heads read.
        keep: Chooses among them; left out, all are kept as they are.

    Returns:
        The share of the mapped streams' energy that the merged stream then holds.
    """
    contexts = _attend(work, layer, heads)
    student, value, rows = work.student, heads.value, torch.arange(len(heads.query))
    if keep is not None:
        chosen, kept = keep(contexts)
        rows = rows.unflatten(0, (heads.count, -1))[chosen].flatten()
        contexts, value = contexts.mapped(kept), kept @ value
    output, output_bias = contexts.fit(work.penalty)
    set_linear(student.get_submodule(layer.query), heads.query[rows], heads.query_bias[rows])
    set_linear(student.get_submodule(layer.key), heads.key[rows])
    set_linear(student.get_submodule(layer.value), value)
    set_linear(student.get_submodule(layer.output), output, output_bias)

    writes = output if keep is None else output @ kept
    writes, write_bias = (part.to(work.matrix) for part in (writes, output_bias))
    return work.explained(
        [
            work.advance(batch, linear(work.held.pop("contexts", batch), writes, write_bias))
            for batch in range(work.num_batches)
        ]
    )


def _attend(work: Work, layer: Block, heads: Heads) -> Moments:
    """Moments of the contexts of all heads and of what the merged stream lacks; holds both."""
    weights = [part.to(work.matrix) for part in (heads.query, heads.key, heads.value)]
    biases = (heads.query_bias.to(work.matrix), None, None)
    norm = work.student.get_submodule(layer.attention_norm)
    sums = RegressionMoments(len(heads.value), work.shape.width, device=work.accelerator.device)
    for batch in range(work.num_batches):
        normalised = norm(work.held["merged", batch])
        projected = [
            linear(normalised, weight, bias).unflatten(-1, (heads.count, -1)).transpose(1, 2)
            for weight, bias in zip(weights, biases, strict=True)
        ]
        attended = scaled_dot_product_attention(*projected)
        contexts = attended.transpose(1, 2).flatten(2).flatten(0, 1)
        work.held["contexts", batch] = contexts
        sums.update(contexts, work.hold_gap(batch, work.held["middle", batch]))
    return work.reduced(sums).moments()
