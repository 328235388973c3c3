"""What the merged model makes of its stream after the blocks, regressed to what the teachers do."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.calls import in_place_of_blocks
from hf_zip.collect import observe
from hf_zip.groups import Tap, base_name, head_names
from hf_zip.names import Names
from hf_zip.refit.moments import RegressionMoments
from hf_zip.refit.work import Work, set_linear


def fit_readout(
    work: Work, adapter: Adapter, loader: Iterable[Mapping[str, Tensor]], penalty: float
) -> tuple[dict[str, Tensor], ...]:
    """Returns for each teacher the parameters of a head on the merged features, if it has one.

    The heads are fitted to the teachers' logits on what the merged model's head reads. Where a
    layer before them keeps the features of all models in spaces of their own, that layer is fitted
    instead, to what the teachers' give, and each head reads its own spaces as it did. What comes
    after the blocks is run on the streams as they are held, so that no block runs again.

    Args:
        work: The models, with their streams after the last block.
        adapter: Their family's table.
        loader: The batches of this process, in the order in which their streams are held.
        penalty: Ridge of the fits.
    """
    heads, count = head_names(work.student, adapter), len(work.teachers)
    if not heads:
        return tuple({} for _ in work.teachers)
    dense, _ = _layer_of_spaces(work.student, adapter)
    names = (dense,) if dense else heads
    layers = base_name(work.student, adapter, adapter.layers)
    inputs = [Tap(name, "input") for name in names]
    outputs = [Tap(name, "output") for name in names]
    sizes = {
        name: [teacher.get_submodule(name).out_features for teacher in work.teachers]
        for name in names
    }
    sums = {
        name: RegressionMoments(
            work.student.get_submodule(name).in_features, sum(own), work.accelerator.device
        )
        for name, own in sizes.items()
    }
    for batch, given in enumerate(loader):
        with replayed(work.student, layers, work.held["merged", batch]):
            read = observe(work.student, inputs, given)
        logits = []
        streams = work.held["teachers", batch].chunk(count, dim=-1)
        for teacher, stream in zip(work.teachers, streams, strict=True):
            with replayed(teacher, layers, stream):
                logits.append(observe(teacher, outputs, given))
        for place, answer in zip(inputs, outputs, strict=True):
            wanted = torch.cat([seen[answer] for seen in logits], dim=1)
            sums[place.module].update(read[place], wanted)

    fits = {name: work.reduced(sums[name]).moments().fit(penalty) for name in names}
    if dense:
        set_linear(work.student.get_submodule(dense), *fits[dense])
        return _in_own_spaces(work.teachers, heads)
    return split_heads(fits, sizes, work.student.dtype)


def spaces_side_by_side(teachers: Sequence[PreTrainedModel], adapter: Adapter) -> dict[str, int]:
    """Returns the entry of the config that counts the spaces of all models; none without any.

    Args:
        teachers: The models.
        adapter: Their family's table.
    """
    _, entry = _layer_of_spaces(teachers[0], adapter)
    return {entry: sum(getattr(model.config, entry) for model in teachers)} if entry else {}


def _layer_of_spaces(model: PreTrainedModel, adapter: Adapter) -> tuple[str, str]:
    """The linear layer whose features are in spaces, and what counts these; empty without one."""
    names = Names(model, adapter)
    for pooler in adapter.poolers:
        for dense in names.linears(pooler.dense) if pooler.spaces else ():
            return dense, pooler.spaces
    return "", ""


def _in_own_spaces(
    teachers: Sequence[PreTrainedModel], heads: Sequence[str]
) -> tuple[dict[str, Tensor], ...]:
    """The teachers' heads, reading nothing of one another's spaces, on the CPU."""
    found: list[dict[str, Tensor]] = []
    for position, teacher in enumerate(teachers):
        own = {}
        for name in heads:
            weight = teacher.get_parameter(f"{name}.weight")
            parts = [torch.zeros_like(weight) for _ in teachers]
            parts[position] = weight
            own[f"{name}.weight"] = torch.cat(parts, dim=1).cpu()
            own[f"{name}.bias"] = teacher.get_parameter(f"{name}.bias").cpu()
        found.append(own)
    return tuple(found)


def split_heads(
    fits: Mapping[str, tuple[Tensor, Tensor]],
    sizes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
) -> tuple[dict[str, Tensor], ...]:
    """Returns for each model its heads' parameters, on the CPU.

    Args:
        fits: For each head the weight and bias of all models' logits, one below the other.
        sizes: For each head the number of logits of every model.
        dtype: Precision of the parameters.
    """
    heads: tuple[dict[str, Tensor], ...] = tuple({} for _ in next(iter(sizes.values()), ()))
    for name, (weight, bias) in fits.items():
        own = list(sizes[name])
        for head, rows, shift in zip(heads, weight.split(own), bias.split(own), strict=True):
            head[f"{name}.weight"] = rows.to(dtype).cpu()
            head[f"{name}.bias"] = shift.to(dtype).cpu()
    return heads


def replayed(model: PreTrainedModel, layers: str, stream: Tensor) -> AbstractContextManager[None]:
    """Has a model take its stream after the blocks from here, instead of running them.

    Args:
        model: The model; its blocks are back in the end.
        layers: Full name of the list of its blocks.
        stream: The stream.
    """
    return in_place_of_blocks(model, layers, _Replay(stream))


class _Replay(nn.Module):
    """In the place of blocks: gives a stream, whatever goes in."""

    def __init__(self, stream: Tensor) -> None:
        super().__init__()
        self._stream = stream

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._stream
