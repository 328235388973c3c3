"""The loss on the straight way between two models: whether they lie in one basin."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from hf_zip.collect import make_loader

_PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def loss_barrier(
    model: PreTrainedModel,
    ends: Sequence[Mapping[str, Tensor]],
    loss_on: Callable[[Mapping[str, Any]], Callable[[Any], Tensor]],
    inputs: Any,
    batch_size: int,
    accelerator: Accelerator,
) -> float:
    """Returns how far the loss rises above the line between the losses at two ends of a way.

    It is a share of the larger of the two; 0 where the loss nowhere lies above the line.

    Args:
        model: Runs with the parameters on the way; those that the ends lack are its own.
        ends: Parameters by name.
        loss_on: Returns, of a batch, the loss of each input, given what is called like the model.
        inputs: A map-style data set of keyword arguments for the model.
        batch_size: Inputs per forward.
        accelerator: Adds up the losses of all processes.

    Source: Frankle et al. (2020), https://arxiv.org/abs/1912.05671, section 2: error barrier, with
    the line between the ends in the place of their mean.
    """
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    start, end = ({n: x.to(own[n]) for n, x in state.items()} for state in ends)
    sums = torch.zeros(len(_PLACES) + 1, device=accelerator.device)
    loader = make_loader(inputs, batch_size, accelerator)
    for batch in loader:
        loss = loss_on(batch)
        for position, place in enumerate(_PLACES):
            there = {**own, **{name: torch.lerp(x, end[name], place) for name, x in start.items()}}
            losses = loss(_With(model, there))
            sums[position] += losses.sum()
        sums[-1] += len(losses)
    *totals, count = accelerator.reduce(sums, reduction="sum").tolist()
    means = [total / count for total in totals]
    line = [means[0] + place * (means[-1] - means[0]) for place in _PLACES]
    rise = max(mean - at for mean, at in zip(means, line, strict=True))
    worse = max(means[0], means[-1])
    return rise / worse if worse > 0 else 0.0


class _With:
    """A model that is called with other parameters than its own."""

    def __init__(self, model: PreTrainedModel, parameters: Mapping[str, Tensor]) -> None:
        self._model, self._parameters = model, dict(parameters)

    def __call__(self, **batch: Any) -> Any:
        return functional_call(self._model, self._parameters, kwargs=batch)
