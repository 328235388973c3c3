"""The attention of one merged block: its heads set, its output regressed on what they attend to."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import PreTrainedModel

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
    query_bias: Float64[Tensor, " queries"]
    key: Float64[Tensor, "queries width"]
    value: Float64[Tensor, "values width"]
    count: int


# From the moments of all heads' contexts and of what is to be written: the heads that are kept, and
# the map from all contexts to those of the merged model.
Keep = Callable[[Moments], tuple[Int64[Tensor, " heads"], Float64[Tensor, "kept n"]]]


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
    contexts = _contexts(work, layer, heads)
    value, chosen = heads.value, torch.arange(heads.count)
    if keep is not None:
        chosen, kept = keep(contexts)
        contexts, value = contexts.mapped(kept), kept @ value
    output, output_bias = contexts.fit(work.penalty)
    set_attention(work.student, layer, heads, chosen, value)
    set_linear(work.student.get_submodule(layer.output), output, output_bias)

    writes = output if keep is None else output @ kept
    writes, write_bias = (part.to(work.matrix) for part in (writes, output_bias))
    return work.explained(
        [
            work.advance(batch, linear(work.held.pop("contexts", batch), writes, write_bias))
            for batch in range(work.num_batches)
        ]
    )


def attend(
    stream: Float[Tensor, "inputs tokens width"], heads: Heads, mask: Tensor | None = None
) -> Float[Tensor, "inputs tokens values"]:
    """Returns the contexts of all heads, side by side.

    Args:
        stream: What the heads read.
        heads: The heads.
        mask: Where a token may attend to another, in the shape of the scores; left out, everywhere.
    """
    weights = [part.to(stream) for part in (heads.query, heads.key, heads.value)]
    biases = (heads.query_bias.to(stream), None, None)
    query, key, value = (
        linear(stream, weight, bias).unflatten(-1, (heads.count, -1)).transpose(1, 2)
        for weight, bias in zip(weights, biases, strict=True)
    )
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)


def set_attention(
    student: PreTrainedModel,
    layer: Block,
    heads: Heads,
    chosen: Int64[Tensor, " heads"],
    value: Float64[Tensor, "kept width"],
) -> None:
    """Sets the queries, keys and values of a block.

    Args:
        student: The merged model.
        layer: Names of the block's modules.
        heads: Heads whose queries and keys it takes.
        chosen: Which of them.
        value: Its value weights.
    """
    rows = torch.arange(len(heads.query)).unflatten(0, (heads.count, -1))[chosen].flatten()
    set_linear(student.get_submodule(layer.query), heads.query[rows], heads.query_bias[rows])
    set_linear(student.get_submodule(layer.key), heads.key[rows])
    set_linear(student.get_submodule(layer.value), value)


def _contexts(work: Work, layer: Block, heads: Heads) -> Moments:
    """Moments of the contexts of all heads and of what the merged stream lacks; holds both."""
    norm = work.student.get_submodule(layer.attention_norm)
    sums = RegressionMoments(len(heads.value), work.shape.width, device=work.accelerator.device)
    for batch in range(work.num_batches):
        contexts = attend(norm(work.held["merged", batch]), heads).flatten(0, 1)
        work.held["contexts", batch] = contexts
        sums.update(contexts, work.hold_gap(batch, work.held["middle", batch]))
    return work.reduced(sums).moments()
