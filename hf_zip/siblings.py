"""Fine-tunes of one base model merged parameter by parameter, in memory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_zip.align import mean
from hf_zip.aligned import check_refit, completed, fit_after, split_heads
from hf_zip.combining.combination import Combination, Parameter, Setting
from hf_zip.layer_depth import layer_depths
from hf_zip.method import Merged, MergeInputs

SiblingRefit = Literal["none", "head", "repair"]


@torch.no_grad()
def merge_siblings(inputs: MergeInputs, combination: Combination, options: Any) -> Merged:
    """Returns models whose features mean the same merged parameter by parameter.

    The arithmetic is in float32, or float64 where a model is, and the result is cast once. What the
    combination is not for is averaged: parameters that the base model lacks, which have no task
    vector, and running statistics, of which some must stay positive. Heads stay apart.

    Args:
        inputs: What the method works on.
        combination: What becomes of one parameter.
        options: The method's options; their `refit` says what follows the merge.

    Raises:
        HfZipError: Something is to be fitted that cannot be, see `merge_aligned`.
    """
    check_refit(inputs, options.refit)
    heads, trunks = split_heads(inputs, inputs.states)
    device = inputs.runtime.accelerator.device
    if device.type == "mps":  # which has no float64, as some methods need
        device = torch.device("cpu")
    model = inputs.runtime.models[0]
    learned = dict(model.named_parameters())
    matrices = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    names = [
        name
        for name in trunks[0]
        if name in learned and (inputs.base is None or name in inputs.base)
    ]
    depths = layer_depths(model)

    def parameters() -> Iterator[Parameter]:
        for name in names:
            own = [trunk[name] for trunk in trunks]
            dtype = torch.promote_types(own[0].dtype, torch.float32)

            def ready(tensor: Tensor, dtype: torch.dtype = dtype) -> Tensor:
                return tensor.to(device, dtype)

            base = None if inputs.base is None else ready(inputs.base[name])
            tensors = torch.stack([ready(tensor) for tensor in own])
            yield Parameter(name, tensors, base, name in matrices, depths[name])

    setting = Setting(options, inputs.model_options, inputs.seed)
    if combination.survey is not None:
        setting = replace(setting, found=combination.survey(parameters, setting))
    chosen = {*names}
    merged = mean([{n: t for n, t in trunk.items() if n not in chosen} for trunk in trunks])
    for parameter in parameters():
        combined = combination.combine(parameter, setting)
        merged[parameter.name] = combined.to(trunks[0][parameter.name])
    trunk = {name: merged[name] for name in trunks[0]}
    found = fit_after(inputs, trunk, heads, options.refit)
    return replace(found, aligned=completed(inputs.states, found.state))
