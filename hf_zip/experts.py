"""Fine-tunes of one base → what they share, thin matrices of what else each knows, and a router."""

import torch
from torch import Tensor

from hf_zip.align import mean
from hf_zip.aligned import split_heads
from hf_zip.combining.exclusive import thinned
from hf_zip.method import MergeInputs
from hf_zip.modeling.modeling_hf_zip_routed import thin_shapes
from hf_zip.outcome import Merged, Routed
from hf_zip.router import check_routed, fit_router


@torch.no_grad()
def merge_experts(
    inputs: MergeInputs, scaling: float, rank: float, routing: str, penalty: float
) -> Merged:
    """Returns shared parameters, what is added to them for each model's inputs, and a router.

    Shared is the base plus the scaled sum of task vectors; what the base lacks is averaged. What a
    model is beside that is cut to a rank, matrix by matrix; biases and whatever is no matrix is
    kept whole. Running statistics are averaged, and stay so. The arithmetic is in float32, or
    float64 where a model is.

    Args:
        inputs: What the method works on.
        scaling: Factor of the sum of task vectors.
        rank: Share of the directions of a matrix that are kept.
        routing: See `HfZipRoutedConfig`.
        penalty: Ridge of the router, as a share of the mean variance of its features.

    Raises:
        HfZipError: There is no head that the router could read, or a model has no inputs of its
            own, by which it could be told.
    """
    check_routed(inputs)
    heads, trunks = split_heads(inputs, inputs.states)
    shared, parts = dict[str, Tensor](), (dict[str, Tensor](), dict[str, Tensor]())
    whole, base = dict[str, Tensor](), inputs.base or {}
    trained = {name for name, _ in inputs.runtime.models[0].named_parameters()}
    for name, first in trunks[0].items():
        dtype = torch.promote_types(first.dtype, torch.float32)
        own = torch.stack([trunk[name].to(dtype) for trunk in trunks])
        if name in base:
            origin = base[name].to(dtype)
            shared[name] = origin + scaling * (own - origin).sum(dim=0)
        else:
            shared[name] = mean([{name: tensor} for tensor in own])[name]
        if name not in trained:
            continue
        rest, shapes = own - shared[name], thin_shapes(first.shape, rank)
        if shapes is None:
            whole[name] = rest
            continue
        (rows, kept), _ = shapes
        for part, found in zip(parts, thinned(rest.reshape(len(own), rows, -1), kept), strict=True):
            part[name] = found
    reads = inputs.heads[0]
    router = fit_router(inputs, {**shared, **heads[0]}, reads, penalty)
    kept_of_each = Routed(*router, reads, routing, *parts, whole, rank)
    return Merged(state=shared, heads=heads, kept=kept_of_each)
