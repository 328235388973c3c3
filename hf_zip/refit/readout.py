"""The task heads of the merged model, regressed to the teachers' logits."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.collect import in_place_of_blocks, observe
from hf_zip.groups import Tap, base_name, head_names
from hf_zip.refit.moments import RegressionMoments
from hf_zip.refit.work import Work


def fit_readout(
    work: Work, adapter: Adapter, loader: Iterable[Mapping[str, Tensor]], penalty: float
) -> tuple[dict[str, Tensor], ...]:
    """Returns for each teacher the parameters of a head on the merged features, if it has one.

    The heads are fitted to the teachers' logits on what the merged model's head reads. What comes
    after the blocks is run on the streams as they are held, so that no block runs again.

    Args:
        work: The models, with their streams after the last block.
        adapter: Their family's table.
        loader: The batches of this process, in the order in which their streams are held.
        penalty: Ridge of the fits.
    """
    names, count = head_names(work.student, adapter), len(work.teachers)
    if not names:
        return tuple({} for _ in work.teachers)
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
    return split_heads(fits, sizes, work.student.dtype)


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
