"""How the outputs of linear layers spread, and layers made to spread otherwise."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Float, Float64
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_zip.collect import observe, reduced
from hf_zip.groups import Tap
from hf_zip.statistics.variance import Variance


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of every output of a linear layer."""

    mean: Float64[Tensor, " units"]
    deviation: Float64[Tensor, " units"]


def spread_of(statistic: Variance, accelerator: Accelerator) -> Spread:
    """Returns the spread that a statistic holds, over the rows of all processes."""
    found = reduced(statistic, accelerator)
    return Spread(found.mean(), found.variance().sqrt())


def mapped_spreads(
    model: PreTrainedModel,
    matrices: Mapping[str, Float[Tensor, "_new _old"] | None],
    loader: Iterable[Mapping[str, Tensor]],
    accelerator: Accelerator,
) -> dict[str, Spread]:
    """Returns how the outputs of linear layers spread once they are mapped.

    Args:
        model: The model, on the accelerator's device.
        matrices: For every layer the map of its outputs; None leaves them.
        loader: The batches of this process.
        accelerator: Adds up the sums of all processes.
    """
    taps = {name: Tap(name, "output") for name in matrices}
    maps = {
        name: None if matrix is None else matrix.to(model.device, model.dtype)
        for name, matrix in matrices.items()
    }
    sums = {
        name: Variance(
            len(model.get_parameter(f"{name}.weight") if matrix is None else matrix),
            accelerator.device,
        )
        for name, matrix in maps.items()
    }
    for batch in loader:
        seen = observe(model, list(taps.values()), batch)
        for name, matrix in maps.items():
            outputs = seen[taps[name]]
            sums[name].update(outputs if matrix is None else outputs @ matrix.T)
    return {name: spread_of(statistic, accelerator) for name, statistic in sums.items()}


def mean_spread(spreads: Sequence[Spread], weights: Sequence[float]) -> Spread:
    """Returns the weighted mean of means and of standard deviations.

    Args:
        spreads: The spreads.
        weights: Their weights, which sum to 1.
    """
    pairs = list(zip(spreads, weights, strict=True))
    return Spread(
        mean=torch.stack([spread.mean * weight for spread, weight in pairs]).sum(dim=0),
        deviation=torch.stack([spread.deviation * weight for spread, weight in pairs]).sum(dim=0),
    )


@torch.no_grad()
def rescale(linear: nn.Module, found: Spread, wanted: Spread) -> None:
    """Scales and shifts a linear layer, so that its outputs spread as they should.

    Outputs that do not vary are left as they are; without a bias none is shifted.

    Args:
        linear: The layer; it is changed.
        found: How its outputs spread.
        wanted: How they should.
    """
    alive = found.deviation > 0
    scale = torch.where(alive, wanted.deviation / found.deviation, torch.ones_like(found.deviation))
    weight, bias = linear.get_parameter("weight"), dict(linear.named_parameters()).get("bias")
    weight.copy_(weight.to(scale) * scale[:, None])
    if bias is not None:
        shifted = scale * (bias.to(scale) - found.mean) + wanted.mean
        bias.copy_(torch.where(alive, shifted, bias.to(scale)))
