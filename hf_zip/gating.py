"""Models of one architecture → what all share, what each has of its own, and a gate."""

from typing import Literal

import torch
from torch import Tensor

from hf_zip.align import mean
from hf_zip.aligned import split_heads
from hf_zip.combining.likeness import distance, nearest
from hf_zip.errors import HfZipError
from hf_zip.groups import blocks
from hf_zip.method import MergeInputs
from hf_zip.outcome import Merged, Routed
from hf_zip.router import check_routed, fit_router

GateAfter = int | Literal["head"]


@torch.no_grad()
def merge_gated(
    inputs: MergeInputs, shared: float, gate_after: GateAfter, routing: str, penalty: float
) -> Merged:
    """Returns the means of what is most alike, the rest of every model, and a gate.

    The arithmetic is in float32, or float64 where a model is.

    Args:
        inputs: What the method works on.
        shared: Which part of the parameters is to be one for all, the most alike first.
        gate_after: How many blocks run before what the gate reads, or that it reads what goes into
            the head.
        routing: See `HfZipRoutedConfig`.
        penalty: Ridge of the gate, as a share of the mean variance of what it reads.

    Raises:
        HfZipError: There is no head, a model has no inputs of its own, or there is no such block.
    """
    check_routed(inputs)
    reads = _place(inputs, gate_after)
    heads, trunks = split_heads(inputs, inputs.states)

    def own(name: str) -> Tensor:
        dtype = torch.promote_types(trunks[0][name].dtype, torch.float32)
        return torch.stack([trunk[name].to(dtype) for trunk in trunks])

    alike = nearest(
        {name: distance(own(name)) for name in trunks[0]},
        {name: tensor.numel() for name, tensor in trunks[0].items()},
        shared,
    )
    state, separate = dict[str, Tensor](), dict[str, Tensor]()
    for name in trunks[0]:
        tensors = own(name)
        if name in alike:
            state[name] = mean([{name: tensor} for tensor in tensors])[name]
        else:
            state[name], separate[name] = tensors[0], tensors[1:]
    gate = fit_router(inputs, {**state, **heads[0]}, reads, penalty)
    kept = Routed(*gate, reads, routing, separate=separate, selects=True)
    return Merged(state=state, heads=heads, kept=kept)


def _place(inputs: MergeInputs, gate_after: GateAfter) -> str:
    """The name of the module whose input the gate reads."""
    runtime = inputs.runtime
    if gate_after == "head":
        return inputs.heads[0]
    if runtime.table is None:
        raise HfZipError(
            f"gate_after is {gate_after}, but which blocks {type(runtime.models[0]).__name__} has "
            "is not known without a table of its family; give gate_after: head, for a gate that "
            "reads what goes into the head"
        )
    found = blocks(runtime.models[0], runtime.table)
    if gate_after >= len(found):
        raise HfZipError(
            f"gate_after is {gate_after}, but {type(runtime.models[0]).__name__} has {len(found)} "
            f"blocks; give a number below, from 0 to {len(found) - 1}, or head"
        )
    return found[gate_after].name
