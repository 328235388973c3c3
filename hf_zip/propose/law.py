"""Whether a table is right: it covers the model, and permuting its groups leaves the outputs."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import align
from hf_zip.errors import HfZipError
from hf_zip.groups import MergeGroup, merge_groups
from hf_zip.matching.merge_map import MergeMap
from hf_zip.probe import random_inputs

EXACT = 1e-10
_ANSWERS = ("logits", "start_logits", "prediction_logits")


def check_table(model: PreTrainedModel, adapter: Adapter) -> str:
    """Returns what is wrong with a table for a model; nothing if it covers it and the law holds.

    The law: with all parameters random in float64, permuting the features of every merge group
    leaves the outputs; where they are the stream's features, it permutes them as the stream.

    Args:
        model: A small model of the family, its parameters random and in float64.
        adapter: The table.
    """
    try:
        groups = merge_groups(model, adapter)
    except HfZipError as error:
        return str(error)
    maps = _permutations(groups)
    moved = copy.deepcopy(model)
    state = align(dict(model.named_parameters()), groups, maps, 0)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter.copy_(state[name])
    before, after = _output(model), _output(moved)
    if not has_answers(model):
        stream = next(group for group in groups if group.role == "stream")
        if before.shape[-1] != stream.size:
            return f"the law was not checked, as it does not give the {stream.size} of the stream"
        before = before @ maps[stream.name].merge[0].T
    change = float((after - before).abs().max() / before.abs().max())
    if change <= EXACT:
        return ""
    return f"permuting all groups changes the outputs by {change:.1e}, relative to the largest"


def has_answers(model: PreTrainedModel) -> bool:
    """Tells whether a model gives logits, and not only features."""
    return any(key in _run(model) for key in _ANSWERS)


def _output(model: PreTrainedModel) -> Tensor:
    """A model's answers, else its first output."""
    output = _run(model)
    return next((output[key] for key in _ANSWERS if key in output), output[0])


@torch.no_grad()
def _run(model: PreTrainedModel) -> Any:
    inputs = random_inputs(model, 3, torch.Generator().manual_seed(1))
    return model(**{key: x.double() if x.is_floating_point() else x for key, x in inputs.items()})


def _permutations(groups: Sequence[MergeGroup]) -> dict[str, MergeMap]:
    """For every group one that keeps its function: heads as wholes, linked alike."""
    generator = torch.Generator().manual_seed(0)
    orders: dict[str, Tensor] = {}
    maps = {}
    for group in groups:
        heads = orders.get(group.linked or "")
        if heads is None:
            heads = torch.randperm(group.num_heads, generator=generator)
        orders[group.name] = heads
        width = group.size // group.num_heads
        index = torch.cat([h * width + torch.randperm(width, generator=generator) for h in heads])
        matrix = torch.eye(group.size, dtype=torch.float64)[index].unsqueeze(0)
        maps[group.name] = MergeMap(matrix, matrix.transpose(1, 2))
    return maps
