"""The MLP of one merged block: both layers refitted to the merged stream."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from hf_zip.groups import Block
from hf_zip.names import config_of
from hf_zip.refit.moments import RegressionMoments
from hf_zip.refit.work import Work, set_linear


def fit_mlp(
    work: Work,
    layer: Block,
    wanted: Callable[[Float[Tensor, "rows n"]], Float[Tensor, "rows units"]],
) -> float:
    """Sets both layers of a block's MLP and moves the merged stream past it.

    Args:
        work: The models and streams; `middle` is given up, `gap` is held for a while.
        layer: Names of the block's modules.
        wanted: What should go into the merged model's units, from the streams of all teachers
            between attention and MLP, side by side.

    Returns:
        The share of the mapped streams' energy that the merged stream then holds.
    """
    batches, device = range(work.num_batches), work.accelerator.device
    norm, mlp_in, mlp_out = (
        work.student.get_submodule(name) for name in (layer.mlp_norm, layer.mlp_in, layer.mlp_out)
    )
    activation: nn.Module = ACT2FN[config_of(work.student, layer.name).hidden_act]

    inner = RegressionMoments(work.shape.width, work.shape.units, device)
    for batch in batches:
        inner.update(norm(work.merged_rows(batch)), wanted(work.held.pop("middle", batch)))
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


def normalised(
    work: Work, layer: Block, middle: Float[Tensor, "rows n"]
) -> list[Float[Tensor, "rows _"]]:
    """Returns what each teacher's MLP reads, from all streams before it, side by side."""
    streams = middle.chunk(len(work.teachers), dim=1)
    return [
        teacher.get_submodule(layer.mlp_norm)(stream)
        for teacher, stream in zip(work.teachers, streams, strict=True)
    ]
