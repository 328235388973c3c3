"""New task heads for a trunk that is already merged."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.collect import Observation, collect
from hf_zip.groups import Tap, head_names
from hf_zip.learned import learned
from hf_zip.refit.readout import split_heads
from hf_zip.refit.ridge import regress
from hf_zip.statistics.covariance import Covariance


def refit_heads(
    trunk: Mapping[str, Tensor],
    models: Sequence[PreTrainedModel],
    adapter: Adapter,
    inputs: Any,
    penalty: float = 1e-3,
    batch_size: int = 32,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    like: PreTrainedModel | None = None,
) -> tuple[dict[str, Tensor], ...]:
    """Returns for each model the parameters of a head that reads the merged trunk.

    Each is the ridge regression of the model's own logits on what the head of the merged model
    reads: soft targets, no labels.

    Args:
        trunk: Parameters of the merged model by name, heads left out.
        models: The models that were merged; left unchanged.
        adapter: Their family's table.
        inputs: A map-style data set of keyword arguments for the models.
        penalty: Ridge of the fits, as a share of the mean diagonal of the Gram.
        batch_size: Inputs per forward.
        accelerator: The accelerator to run under; made here when left out.
        progress: Show a progress bar, on the main process.
        like: A model of the merged one's shapes; left out, they are those of the first.

    Raises:
        HfZipError: There are no inputs.
    """
    merged = with_trunk(like or models[0], trunk)
    names = head_names(merged, adapter)
    sizes = [[m.get_submodule(name).out_features for m in models] for name in names]
    widths = [merged.get_submodule(name).in_features for name in names]
    observations = [
        Observation(
            width + sum(own),
            (
                (0, Tap(name, "input")),
                *((k, Tap(name, "output")) for k in range(1, len(models) + 1)),
            ),
        )
        for name, width, own in zip(names, widths, sizes, strict=True)
    ]
    found = collect(
        [merged, *models], inputs, observations, Covariance, batch_size, accelerator, progress
    )
    fits = {
        name: regress(statistic, width, penalty)
        for name, width, statistic in zip(names, widths, found, strict=True)
    }
    return split_heads(fits, dict(zip(names, sizes, strict=True)), merged.dtype)


@torch.no_grad()
def with_trunk(model: PreTrainedModel, trunk: Mapping[str, Tensor]) -> PreTrainedModel:
    """Returns a copy of a model with a merged trunk in the place of its own.

    Args:
        model: One of the models that were merged, in the form that was merged; left unchanged.
        trunk: Parameters and running statistics of the merged model by name, heads left out.
    """
    merged = copy.deepcopy(model)
    own = learned(merged)
    for name, tensor in trunk.items():
        own[name].copy_(tensor)
    return merged


def trunk_of(model: PreTrainedModel, adapter: Adapter) -> dict[str, Tensor]:
    """Returns the parameters of a merged model by name, heads left out, on the CPU.

    Args:
        model: The model.
        adapter: Its family's table.
    """
    heads = tuple(f"{name}." for name in head_names(model, adapter))
    return {
        name: parameter.detach().cpu()
        for name, parameter in model.named_parameters()
        if not name.startswith(heads)
    }
