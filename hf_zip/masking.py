"""Fine-tunes of one base → one vector of all, and for each a bit per number and a factor."""

from collections.abc import Callable

import torch
from torch import Tensor

from hf_zip.aligned import split_heads
from hf_zip.combining.unified import rescaling
from hf_zip.method import MergeInputs
from hf_zip.modeling.modeling_hf_zip_masked import pack
from hf_zip.outcome import Masked, Merged

_AT_ONCE = 1 << 20  # numbers of a model; whole bytes of bits


@torch.no_grad()
def merge_masked(
    inputs: MergeInputs,
    unify: Callable[[Tensor], Tensor],
    select: Callable[[Tensor, Tensor], Tensor],
    rescale: bool = False,
) -> Merged:
    """Returns one vector of all models, and of each which of its numbers it takes.

    The arithmetic is in float32, or float64 where a model is, and its sums in float64. What the
    base model lacks, heads and running statistics have no task vector, and stay each model's own.

    Args:
        inputs: What the method works on.
        unify: Returns one task vector of those of all models, `[models, numbers]`.
        select: Returns by all task vectors and the unified one which numbers each model takes.
        rescale: Whether what a model takes is made as large as its own task vector, in the sum of
            magnitudes.
    """
    heads, trunks = split_heads(inputs, inputs.states)
    device = inputs.runtime.accelerator.device
    if device.type == "mps":  # which has no float64, as the sums need
        device = torch.device("cpu")
    count = len(trunks)
    base, vector, masks = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    own, taken = (torch.zeros(count, dtype=torch.float64, device=device) for _ in range(2))
    for name, origin in (inputs.base or {}).items():
        tensors = [trunk[name].flatten() for trunk in trunks]
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        unified, bits = [], []
        for at in range(0, origin.numel(), _AT_ONCE):
            part = slice(at, at + _AT_ONCE)
            start = origin.flatten()[part].to(device, dtype)
            vectors = torch.stack([tensor[part].to(device, dtype) for tensor in tensors]) - start
            whole = unify(vectors)
            mask = select(vectors, whole)
            own += vectors.abs().sum(dim=1, dtype=torch.float64)
            taken += (mask * whole.abs()).sum(dim=1, dtype=torch.float64)
            unified.append(whole.cpu())
            bits.append(torch.stack([pack(row) for row in mask]).cpu())
        base[name] = origin.to(dtype)
        vector[name] = torch.cat(unified).view(origin.shape)
        masks[name] = torch.cat(bits, dim=1)
    scales = rescaling(own, taken).tolist() if rescale else [1.0] * count
    return Merged(
        state={name: origin + vector[name].to(origin.device) for name, origin in base.items()},
        heads=heads,
        kept=Masked(base, vector, masks, tuple(scales)),
    )
