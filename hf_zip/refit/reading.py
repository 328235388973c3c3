"""What the teachers compute in one block, on the way of their streams past it."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hf_zip.groups import Block, Tap
from hf_zip.refit.moments import Moments, RegressionMoments
from hf_zip.refit.survey import run_block
from hf_zip.refit.work import Work
from hf_zip.statistics.covariance import Covariance

# MLP units are chosen on about so many rows: the choice hardly matters, its Gram matrix is large.
SELECTION_ROWS = 8192


def read_teachers(
    work: Work, layer: Block, choosing: bool = False
) -> tuple[Moments, Covariance | None]:
    """Moves the teachers' streams past their block; holds what they are in the middle of it.

    Args:
        work: The models and streams.
        layer: Names of the block's modules.
        choosing: Whether some of the teachers' MLP units are to be chosen.

    Returns:
        The moments of the merged model's normalised stream and of all queries, then keys, then
        values of all teachers; and, if choosing, the covariance of all teachers' MLP units.
    """
    attention, mlp = (
        work.teachers[0].get_submodule(name) for name in (layer.output, layer.mlp_out)
    )
    count, device = len(work.teachers), work.accelerator.device
    places = [Tap(name, "output") for name in (layer.query, layer.key, layer.value)]
    middle, units = Tap(layer.mlp_norm, "input"), Tap(layer.mlp_out, "input")
    projections = RegressionMoments(work.shape.width, 3 * count * attention.in_features, device)
    activity = Covariance(count * mlp.in_features, device) if choosing else None
    norm = work.student.get_submodule(layer.attention_norm)
    importance = written(work, layer, work.matrix)
    for batch in range(work.num_batches):
        before = work.held["teachers", batch].chunk(count, dim=-1)
        after, seen = run_block(work.teachers, layer.name, before, [*places, middle, units])
        work.held["teachers", batch] = torch.cat(after, dim=-1)
        work.held["middle", batch] = torch.cat([record[middle] for record in seen], dim=1)
        wanted = [record[place] for place in places for record in seen]
        projections.update(norm(work.held["merged", batch]).flatten(0, 1), torch.cat(wanted, dim=1))
        if activity is not None:
            stride = selection_stride(work.num_rows, num_tokens=after[0].shape[1])
            active = [record[units][::stride] for record in seen]
            activity.update(torch.cat(active, dim=1) * importance)
    moments = work.reduced(projections).moments()
    return moments, None if activity is None else work.reduced(activity)


def written(work: Work, layer: Block, matrix: Float[Tensor, "width n"]) -> Float[Tensor, " units"]:
    """Returns how much each MLP unit of all teachers writes to the merged stream when it is active.

    That is what a unit counts by, not how active it is.

    Args:
        work: The models.
        layer: Names of the block's modules.
        matrix: Maps what all teachers write, side by side, to the merged stream.
    """
    maps = matrix.chunk(len(work.teachers), dim=1)
    writers = [teacher.get_submodule(layer.mlp_out) for teacher in work.teachers]
    return torch.cat(
        [(part @ writer.weight).norm(dim=0) for part, writer in zip(maps, writers, strict=True)]
    )


def selection_stride(num_rows: int, num_tokens: int) -> int:
    """Returns how many rows to step over, so that about `SELECTION_ROWS` are left, of all tokens.

    Args:
        num_rows: Number of rows, input by input.
        num_tokens: Number of rows of an input.
    """
    stride = max(1, num_rows // SELECTION_ROWS)
    while math.gcd(stride, num_tokens) > 1:
        stride += 1
    return stride
