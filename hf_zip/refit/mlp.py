"""The MLP of one merged block: units of the teachers, refitted to the merged stream."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.activations import ACT2FN

from hf_zip.groups import Block
from hf_zip.refit.moments import RegressionMoments
from hf_zip.refit.work import Work, set_linear


def fit_mlp(work: Work, layer: Block, units: tuple[Int64[Tensor, "_"], ...]) -> float:
    """Sets both layers of a block's MLP and moves the merged stream past it.

    Args:
        work: The models and streams; `middle` is given up, `gap` is held for a while.
        layer: Names of the block's modules.
        units: For each teacher its units that the merged model has.

    Returns:
        The share of the mapped streams' energy that the merged stream then holds.
    """
    batches, device = range(work.num_batches), work.accelerator.device
    norm, mlp_in, mlp_out = (
        work.student.get_submodule(name) for name in (layer.mlp_norm, layer.mlp_in, layer.mlp_out)
    )
    activation: nn.Module = ACT2FN[work.student.config.hidden_act]

    inner = RegressionMoments(work.shape.width, work.shape.units, device)
    for batch in batches:
        wanted = _pre_activations(work, layer, work.held.pop("middle", batch), units)
        inner.update(norm(work.merged_rows(batch)), wanted)
    set_linear(mlp_in, *work.reduced(inner).moments().fit(work.penalty))

    # Holding the active units would take more room than all streams; computing them twice is cheap.
    outer = RegressionMoments(work.shape.units, work.shape.width, device)
    for batch in batches:
        active = activation(mlp_in(norm(work.merged_rows(batch))))
        outer.update(active, work.hold_gap(batch, work.held["teachers", batch].flatten(0, 1)))
    set_linear(mlp_out, *work.reduced(outer).moments().fit(work.penalty))
    return work.explained(
        [
            work.advance(batch, mlp_out(activation(mlp_in(norm(work.merged_rows(batch))))))
            for batch in batches
        ]
    )


def _pre_activations(
    work: Work,
    layer: Block,
    middle: Float[Tensor, "rows n"],
    units: tuple[Int64[Tensor, "_"], ...],
) -> Float[Tensor, "rows units"]:
    """What goes into the kept units of all teachers."""
    parts = []
    streams = middle.chunk(len(work.teachers), dim=1)
    for teacher, stream, own in zip(work.teachers, streams, units, strict=True):
        norm, mlp_in = (teacher.get_submodule(name) for name in (layer.mlp_norm, layer.mlp_in))
        parts.append(linear(norm(stream), mlp_in.weight[own], mlp_in.bias[own]))
    return torch.cat(parts, dim=1)
