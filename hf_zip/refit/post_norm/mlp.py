"""The MLP of one merged post-norm block, and the normalisation behind it."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from hf_zip.groups import Block, Tap
from hf_zip.refit.moments import RegressionMoments
from hf_zip.refit.post_norm.carry import Carry, fit_carry
from hf_zip.refit.post_norm.gains import GainMoments, set_norm
from hf_zip.refit.post_norm.weighted import ScaledMoments
from hf_zip.refit.post_norm.work import PostNormWork, centred, energies, normalised, scales
from hf_zip.refit.work import set_linear

# Rounds of the MLP's output and of the normalisation behind it, each given the other.
ROUNDS = 2


def fit_mlp(
    work: PostNormWork,
    layer: Block,
    wanted: Callable[[Float[Tensor, "rows n"]], Float[Tensor, "rows units"]],
) -> dict[str, float]:
    """Sets a block's MLP and last normalisation, and moves the merged stream past the block.

    What it writes is fitted to what brings the stream to where the map would have it, once the
    normalisation has scaled it: that resets what errors of the blocks before have added up to.

    Args:
        work: The models and streams; `middle` and `mlp` are given up.
        layer: Names of the block's modules.
        wanted: What should go into the merged model's units, from the streams of all teachers
            between attention and MLP, side by side.

    Returns:
        The share of the mapped streams' energy that the merged stream holds, after the attention
        and after the MLP.
    """
    shares = {}
    carry, shares["attention"] = _fit_inner(work, layer, wanted)
    for first in (True, *[False] * (ROUNDS - 1)):
        _fit_outer(work, layer, carry if first or work.basis.own else None)
        if work.basis.own:
            break
        _fit_norm(work, layer)
    left = []
    for batch in range(work.num_batches):
        work.held.pop("mlp", batch)
        after, _ = work.run_student(layer, batch, [])
        work.held["merged", batch] = after
        target = work.basis.target(work.rows("teachers", batch), layer.mlp_norm)
        left.append(energies(target, work.rows("merged", batch)))
    shares["mlp"] = work.explained(left)
    return shares


def _fit_inner(
    work: PostNormWork,
    layer: Block,
    wanted: Callable[[Float[Tensor, "rows n"]], Float[Tensor, "rows units"]],
) -> tuple[Carry, float]:
    """Sets the MLP's first layer; returns how its stream carries the teachers', and how well."""
    width, device, read = work.shape.width, work.accelerator.device, Tap(layer.mlp_in, "input")
    inner = RegressionMoments(width, work.shape.units, device)
    carried = RegressionMoments(work.matrix.shape[1], width, device)
    norm, left = layer.attention_norm, []
    for batch in range(work.num_batches):
        streams = work.held.pop("middle", batch)
        merged = work.run_student(layer, batch, [read])[1][read]
        inner.update(merged, wanted(streams))
        carried.update(work.basis.plains[norm](streams), merged)
        left.append(energies(work.basis.target(streams, norm), merged))
    mlp_in = work.student.get_submodule(layer.mlp_in)
    set_linear(mlp_in, *work.reduced(inner).moments().fit(work.penalty))
    return fit_carry(work, work.reduced(carried).moments(), norm), work.explained(left)


def _fit_outer(work: PostNormWork, layer: Block, carry: Carry | None) -> None:
    """Sets the MLP's second layer.

    Args:
        work: The models and streams.
        layer: Names of the block's modules.
        carry: Maps what the teachers' MLPs write to the merged stream: how large the stream will be
            is not known before something is written to it. Left out, it is as large as it is now.
    """
    norm = work.student.get_submodule(layer.mlp_norm)
    read, units = Tap(layer.mlp_in, "input"), Tap(layer.mlp_out, "input")
    whole = Tap(layer.mlp_norm, "input")
    outer = ScaledMoments(work.shape.units, work.shape.width, work.accelerator.device)
    for batch in range(work.num_batches):
        _, seen = work.run_student(layer, batch, [read, units, whole])
        before, after = seen[read], seen[whole]
        if carry is not None:
            after = before + carry(work.held["mlp", batch])
        scale = scales(after, norm.eps)
        if not work.basis.own:
            target = work.basis.target(work.rows("teachers", batch), layer.mlp_norm)
            after = scale[:, None] * normalised((target - norm.bias) / norm.weight, norm.eps)
        outer.update(seen[units], centred(after - before), scale)
    mlp_out = work.student.get_submodule(layer.mlp_out)
    set_linear(mlp_out, *work.reduced(outer).moments().fit(work.penalty))


def _fit_norm(work: PostNormWork, layer: Block) -> None:
    """Sets gain and bias behind the MLP."""
    norm, whole = work.student.get_submodule(layer.mlp_norm), Tap(layer.mlp_norm, "input")
    sums = GainMoments(work.shape.width, work.accelerator.device)
    for batch in range(work.num_batches):
        seen = work.run_student(layer, batch, [whole])[1][whole]
        target = work.basis.target(work.rows("teachers", batch), layer.mlp_norm)
        sums.update(normalised(seen, norm.eps), target)
    set_norm(norm, *work.reduced(sums).fit())
