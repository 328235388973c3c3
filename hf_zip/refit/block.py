"""One block of the merged model, solved for what the same blocks of all teachers do."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hf_zip.groups import Block, Tap
from hf_zip.matching.selection import select_features
from hf_zip.refit.attention import fit_attention
from hf_zip.refit.mlp import fit_mlp
from hf_zip.refit.moments import Moments, RegressionMoments
from hf_zip.refit.survey import run_block
from hf_zip.refit.work import Work
from hf_zip.statistics.covariance import Covariance

# MLP units are chosen on about so many rows: the choice hardly matters, its Gram matrix is large.
SELECTION_ROWS = 8192


def fit_block(work: Work, layer: Block) -> dict[str, float]:
    """Sets one block of the merged model and moves all streams past it.

    Args:
        work: The models and streams.
        layer: Names of the block's modules.

    Returns:
        The share of the mapped streams' energy that the merged stream holds, after the attention
        and after the MLP.
    """
    projections, units = _read_teachers(work, layer)
    attention = fit_attention(work, layer, projections)
    return {"attention": attention, "mlp": fit_mlp(work, layer, units)}


def _read_teachers(work: Work, layer: Block) -> tuple[Moments, tuple[Int64[Tensor, "_"], ...]]:
    """Moves the teachers' streams past their block; holds what they are in the middle of it.

    Returns the moments of the merged model's normalised stream and of all queries, keys and values,
    and for each teacher the MLP units to keep.
    """
    attention, mlp = (
        work.teachers[0].get_submodule(name) for name in (layer.output, layer.mlp_out)
    )
    count, device = len(work.teachers), work.accelerator.device
    places = [Tap(name, "output") for name in (layer.query, layer.key, layer.value)]
    middle, units = Tap(layer.mlp_norm, "input"), Tap(layer.mlp_out, "input")
    projections = RegressionMoments(work.shape.width, 3 * count * attention.in_features, device)
    all_units = count * mlp.in_features
    activity = Covariance(all_units, device) if work.shape.units < all_units else None
    norm = work.student.get_submodule(layer.attention_norm)
    # A unit counts by what it writes to the stream, not by how active it is.
    importance = _written(work, layer)
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
    if activity is None:
        return moments, tuple(torch.arange(mlp.in_features) for _ in work.teachers)
    chosen = select_features(work.reduced(activity).covariance(), work.shape.units)
    kept = torch.zeros(all_units, dtype=torch.bool)
    kept[chosen] = True
    return moments, tuple(own.nonzero().flatten() for own in kept.chunk(count))


def _written(work: Work, layer: Block) -> Float[Tensor, "units"]:
    """How much each MLP unit of all teachers writes to the merged stream when it is active."""
    maps = work.matrix.chunk(len(work.teachers), dim=1)
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
