"""The maps by which the tails of a partial zip read its trunk, and what they explain."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hf_zip.assemble import load_parameters
from hf_zip.collect import Observation, collect
from hf_zip.errors import HfZipError
from hf_zip.groups import Tap, base_name
from hf_zip.method import Runtime
from hf_zip.modeling import HfZipForImageClassification
from hf_zip.refit import regress
from hf_zip.statistics.covariance import Covariance


def fit_unmerge(
    model: HfZipForImageClassification,
    state: Mapping[str, Tensor],
    runtime: Runtime,
    depth: int,
    penalty: float,
) -> tuple[dict[str, Tensor], tuple[float, ...]]:
    """Returns the maps from the trunk's stream to each source's, and what they explain.

    Args:
        model: The partial zip; its parameters are set, but for the maps.
        state: All its parameters but the maps.
        runtime: The sources and what they run on.
        depth: Number of shared blocks, at least one.
        penalty: Ridge, as a share of the mean diagonal of the Gram.

    Returns:
        The maps by their names in the model, and for each source the share of its stream's variance
        that its map explains.

    Raises:
        HfZipError: There are no calibration inputs.
    """
    sources, adapter = runtime.models, runtime.adapter
    merged, width = model.config.trunk_config.hidden_size, model.config.tail_config.hidden_size
    if runtime.calibration is None:
        raise HfZipError(
            "the tails of a partial zip read its trunk through maps that are fitted on calibration "
            "inputs, and there are none; give calibration data, or unmerge: exact with a method "
            "that allows it"
        )
    load_parameters(
        model, {**state, **{n: p for n, p in model.named_parameters() if ".unmerge." in n}}
    )
    last = f"{adapter.layers}.{depth - 1}"
    own = (
        (k, Tap(base_name(source, adapter, last), "output"))
        for k, source in enumerate(sources, start=1)
    )
    places = ((0, Tap(f"trunk.{last}", "output")), *own)
    (found,) = collect(
        [model, *sources],
        runtime.calibration,
        [Observation(merged + width * len(sources), places)],
        Covariance,
        **runtime.running,
    )
    weight, bias = regress(found, merged, penalty)
    maps = {}
    for k, (rows, shift) in enumerate(zip(weight.split(width), bias.split(width), strict=True)):
        maps[f"tails.{k}.unmerge.weight"], maps[f"tails.{k}.unmerge.bias"] = rows, shift
    return maps, explained_shares(weight, bias, found, len(sources), width)


def explained_shares(
    weight: Float[Tensor, "n merged"],
    bias: Float[Tensor, " n"],
    found: Covariance,
    count: int,
    width: int,
) -> tuple[float, ...]:
    """Returns how much of each source's stream a linear map of the merged stream explains.

    The mean over the features of a stream is left out: the blocks that read it normalise it away.

    Args:
        weight: The map to all sources' streams, side by side.
        bias: Its bias.
        found: Moments of the merged stream and all sources' streams, side by side, on the inputs
            that judge.
        count: Number of sources.
        width: Features of one source's stream.

    Returns:
        For each source the share of the variance that is explained, at most 1.
    """
    covariance, mean = found.covariance(), found.mean()
    merged = len(mean) - count * width
    shares = []
    for rows in (slice(k * width, (k + 1) * width) for k in range(count)):
        centre = torch.eye(width).to(covariance) - 1 / width
        own = centre @ covariance[merged:, merged:][rows, rows] @ centre
        cross = centre @ covariance[merged:, :merged][rows]
        w, b, m = centre @ weight[rows], centre @ bias[rows], centre @ mean[merged:][rows]
        missing = (
            own.diagonal().sum()
            - 2 * (w * cross).sum()
            + (w @ covariance[:merged, :merged] * w).sum()
            + (m - w @ mean[:merged] - b).square().sum()
        )
        shares.append(1 - float(missing / own.diagonal().sum()))
    return tuple(shares)
