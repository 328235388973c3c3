"""The embeddings of the merged model: mapped, and what normalises them fitted; then held."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float, Float64
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import along
from hf_zip.calls import first_call
from hf_zip.canonical import stream_writers
from hf_zip.collect import capture, reduced
from hf_zip.groups import Tap, base_name
from hf_zip.refit.held import Held
from hf_zip.refit.survey import embedded
from hf_zip.statistics.sums import NamedSums

Batches = Iterable[Mapping[str, Tensor]]


def set_embeddings(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    adapter: Adapter,
    loader: Batches,
    matrix: Float64[Tensor, "width n"],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Sets the embeddings of the merged model to those of all teachers, mapped to its stream.

    What is linear in the stream is mapped without loss. A normalisation between the embeddings and
    the stream, whose gains and bias stand in the stream, is not: what goes into it is mapped with
    the teachers' gains, divided by their root mean square in each merged feature, and its own gain
    and bias are then fitted, feature by feature, to the mapped streams.

    Args:
        student: The merged model; its normalisations are plain.
        teachers: Models in canonical form.
        adapter: Their family's table.
        loader: The batches of this process.
        matrix: Maps the teachers' streams, side by side, to the merged one.
        accelerator: Adds up the sums of all processes.

    Returns:
        The share of the mapped streams' energy that the merged stream holds, by "embeddings", where
        it may be less than all.
    """
    if not adapter.embedding_norms:
        _map(student, teachers, adapter, matrix)
        return {}
    norm = base_name(student, adapter, adapter.embedding_norms[0])
    first = base_name(student, adapter, f"{adapter.layers}.0")
    scales = _scales(teachers, norm, first, loader, accelerator).to(matrix)
    gains = torch.cat([teacher.get_parameter(f"{norm}.weight") for teacher in teachers]).to(matrix)
    _map(student, teachers, adapter, _before_norm(matrix, gains, scales))
    return {"embeddings": _fit_norm(student, teachers, norm, first, loader, matrix, accelerator)}


def hold_embeddings(
    held: Held,
    models: Sequence[PreTrainedModel],
    adapter: Adapter,
    loader: Batches,
) -> tuple[int, int]:
    """Holds all streams before the first block; returns how many batches, and tokens per input.

    Args:
        held: Where to hold them, as `merged` and `teachers`.
        models: The merged model, then the teachers.
        adapter: Their family's table.
        loader: The batches of this process.
    """
    count, num_tokens = 0, 1
    for inputs in loader:
        merged, *streams = embedded(models, adapter, inputs)
        held["merged", count] = merged
        held["teachers", count] = torch.cat(streams, dim=-1)
        count, num_tokens = count + 1, merged.shape[1]
    return count, num_tokens


def _map(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    adapter: Adapter,
    matrix: Float64[Tensor, "width n"],
) -> None:
    names = {base_name(student, adapter, name) for name in adapter.embeddings}
    for axis in stream_writers(student, adapter):
        if axis.parameter in names:
            parts = [teacher.get_parameter(axis.parameter).to(matrix) for teacher in teachers]
            mapped = along(torch.cat(parts, axis.dim), axis.dim, matrix)
            student.get_parameter(axis.parameter).copy_(mapped)


def _before_norm(
    matrix: Float64[Tensor, "width n"],
    gains: Float64[Tensor, " n"],
    scales: Float64[Tensor, " models"],
) -> Float64[Tensor, "width n"]:
    """The map of what goes into the normalisation, from what goes into those of the teachers.

    One model, and copies of one, give in each merged feature the gain of what is mapped to it; so
    then the normalisation computes what theirs do.
    """
    size = len(gains) // len(scales)
    energy = matrix.square() / matrix.square().sum(dim=1, keepdim=True)
    mean = (energy @ gains.square()).sqrt().copysign(energy @ gains)
    inverse = torch.where(mean.abs() > 0, 1 / mean, torch.zeros_like(mean))
    parts = (matrix * gains * scales.repeat_interleave(size)).chunk(len(scales), dim=1)
    # A normalisation takes the mean over features out before the gains apply.
    centred = torch.cat([part - part.mean(dim=1, keepdim=True) for part in parts], dim=1)
    # Of the size of what goes into theirs: then what keeps the division from zero weighs the same.
    size_now = (matrix.square().sum() * len(scales) / len(matrix)).sqrt() * scales.mean()
    return inverse[:, None] * centred / size_now


def _scales(
    teachers: Sequence[PreTrainedModel],
    norm: str,
    first: str,
    loader: Batches,
    accelerator: Accelerator,
) -> Float64[Tensor, " models"]:
    """By what each teacher's normalisation multiplies what goes into it, in the mean of tokens."""
    sums = NamedSums(len(teachers), accelerator.device, factors=(len(teachers), 2))
    factors = sums.state()["factors"]
    for inputs in loader:
        for position, teacher in enumerate(teachers):
            before, _ = _around(teacher, norm, first, inputs)
            own = before.to(factors).var(dim=1, correction=0).rsqrt()
            factors[position] += torch.stack([own.sum(), own.new_tensor(len(own))])
    total, count = reduced(sums, accelerator).state()["factors"].unbind(dim=1)
    return total / count


def _fit_norm(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    norm: str,
    first: str,
    loader: Batches,
    matrix: Float64[Tensor, "width n"],
    accelerator: Accelerator,
) -> float:
    """Sets gain and bias of a normalisation; returns the share of the mapped streams it holds."""
    sums = NamedSums(len(matrix), accelerator.device, rows=(), moments=(5, len(matrix)))
    rows, moments = sums.state().values()
    for inputs in loader:
        _, plain = _around(student, norm, first, inputs)
        streams = [_around(teacher, norm, first, inputs)[1] for teacher in teachers]
        x, y = plain.to(moments), torch.cat(streams, dim=1).to(moments) @ matrix.T.to(moments)
        moments += torch.stack([part.sum(dim=0) for part in (x, y, x * x, x * y, y * y)])
        rows += len(x)
    rows, moments = reduced(sums, accelerator).state().values()
    x, y, xx, xy, yy = moments / rows
    variance = xx - x * x
    gain = torch.where(variance > 0, (xy - x * y) / variance, torch.zeros_like(x))
    bias = y - gain * x
    student.get_parameter(f"{norm}.weight").copy_(gain)
    student.get_parameter(f"{norm}.bias").copy_(bias)
    left = yy - 2 * (gain * xy + bias * y) + gain * gain * xx + 2 * gain * bias * x + bias * bias
    return float(1 - left.sum() / yy.sum())


def _around(
    model: PreTrainedModel, norm: str, first: str, inputs: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "rows _"], Float[Tensor, "rows _"]]:
    """What goes into a normalisation before the first block, and what comes out of it."""
    before, after = Tap(norm, "input"), Tap(norm, "output")
    given = {key: x.to(model.dtype) for key, x in inputs.items() if x.is_floating_point()}
    with capture(model, [before, after]) as seen:
        first_call(model, first, {**inputs, **given})
    return seen[before], seen[after]
