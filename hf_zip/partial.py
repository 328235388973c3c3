"""A merge's result → a partial zip: its first blocks shared, every source's other blocks kept."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.assemble import CONFIG_KEY, load_parameters, set_labels
from hf_zip.collect import Observation, collect
from hf_zip.errors import HfZipError
from hf_zip.groups import Tap, base_name, head_names
from hf_zip.methods import Merged, Runtime
from hf_zip.modeling import HfZipConfig, HfZipForImageClassification
from hf_zip.refit import regress
from hf_zip.statistics.covariance import Covariance
from hf_zip.tasks import Task


def assemble_partial(
    merged: Merged,
    runtime: Runtime,
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    depth: int,
    dtype: torch.dtype = torch.float32,
    penalty: float = 1e-3,
) -> tuple[HfZipForImageClassification, tuple[float, ...]]:
    """Returns a model with a shared trunk and one tail per source, and how well the tails fit.

    Each tail reads the trunk through a linear map, the ridge regression of the source's own stream
    at that depth on the trunk's; without calibration inputs it is the identity. At depth 0 nothing
    is shared: the trunk holds all embeddings side by side, and the model equals the ensemble.

    Args:
        merged: The result of a method.
        runtime: The sources and what they run on.
        tasks: The tasks.
        record: What else `config.hf_zip` should keep, as plain values.
        depth: Number of shared blocks, from 0 to one less than there are.
        dtype: Precision of the parameters.
        penalty: Ridge of the maps, as a share of the mean diagonal of the Gram.

    Returns:
        The model, and for each source the share of its stream's variance that its map explains.

    Raises:
        HfZipError: The models are not image classifiers with one head.

    Source: ZipIt! (https://arxiv.org/abs/2305.03053), section 4.3, for the partial zip; the map by
    ridge regression, where the paper copies features back, is a deviation.
    """
    sources, adapter = runtime.models, runtime.adapter
    heads = head_names(sources[0], adapter)
    if len(heads) != 1 or "ForImageClassification" not in type(sources[0]).__name__:
        raise HfZipError(
            f"only image classifiers with one head can share some of their blocks, but "
            f"{type(sources[0]).__name__} has {len(heads)} heads; leave stop_at out"
        )
    config = partial_config(merged, runtime, tasks, record, depth, dtype)
    with torch.random.fork_rng(devices=[]):
        model = HfZipForImageClassification(config).eval()
    state = _trunk(merged, runtime, depth)
    for position, source in enumerate(sources):
        state |= _tail(source, adapter, position, depth, heads[0])
    if depth:
        maps, explained = _unmerge(model, state, runtime, depth, penalty)
        state |= maps
    else:
        explained = tuple(1.0 for _ in sources)
    load_parameters(model, state)
    return model.to(dtype), explained


def partial_config(
    merged: Merged,
    runtime: Runtime,
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    depth: int,
    dtype: torch.dtype,
) -> HfZipConfig:
    """Returns the config of a partial zip; the arguments are those of `assemble_partial`."""
    native = runtime.models[0].config
    count = len(runtime.models)
    tail, trunk = (_bare(native) for _ in range(2))
    tail.num_hidden_layers = native.num_hidden_layers - depth
    trunk.num_hidden_layers = depth
    for key, value in merged.config.items():
        setattr(trunk, key, value)
    if depth == 0:
        trunk.hidden_size = native.hidden_size * count
        trunk.num_attention_heads = native.num_attention_heads * count
    rows = [
        {
            "name": task.name,
            "labels": list(task.labels),
            "start": task.start,
            "members": list(task.members),
            "rows": [list(own) for own in task.rows],
        }
        for task in tasks
    ]
    config = HfZipConfig(
        trunk_config=trunk,
        tail_config=tail,
        tails=[model.config.num_labels for model in runtime.models],
        tasks=rows,
        layers=runtime.adapter.layers,
        norm=runtime.adapter.norms[0],
        slices=depth == 0,
        dtype=dtype,
    )
    set_labels(config, [label for task in tasks for label in task.labels])
    setattr(config, CONFIG_KEY, {**record, "tasks": rows})
    return config


def _bare(config: PretrainedConfig) -> PretrainedConfig:
    """A copy without what describes a checkpoint."""
    bare = copy.deepcopy(config)
    bare.architectures = bare.dtype = None
    if hasattr(bare, CONFIG_KEY):
        delattr(bare, CONFIG_KEY)
    set_labels(bare, ["LABEL_0", "LABEL_1"])
    return bare


def _trunk(merged: Merged, runtime: Runtime, depth: int) -> dict[str, Tensor]:
    """The trunk's parameters by their names in the partial zip."""
    model, adapter = runtime.models[0], runtime.adapter
    prefix = base_name(model, adapter, "")
    if depth == 0:
        return {
            f"trunk.{name}": torch.cat(
                [source.get_parameter(f"{prefix}{name}").detach() for source in runtime.models],
                dim,
            )
            for name, dim in adapter.embeddings.items()
            if f"{prefix}{name}" in dict(model.named_parameters())
        }
    kept = tuple(f"{prefix}{adapter.layers}.{layer}." for layer in range(depth))
    embeddings = tuple(prefix + name for name in adapter.embeddings)
    return {
        f"trunk.{name.removeprefix(prefix)}": tensor
        for name, tensor in merged.state.items()
        if name.startswith(kept) or name in embeddings
    }


def _tail(
    source: PreTrainedModel, adapter: Adapter, position: int, depth: int, head: str
) -> dict[str, Tensor]:
    """One tail's blocks, normalisation and head by their names in the partial zip."""
    prefix = base_name(source, adapter, "")
    place = f"tails.{position}"
    state = {}
    for name, parameter in source.named_parameters():
        inner = name.removeprefix(prefix)
        if inner.startswith(f"{adapter.layers}."):
            layer, _, rest = inner.removeprefix(f"{adapter.layers}.").partition(".")
            if int(layer) >= depth:
                moved = f"{place}.blocks.{adapter.layers}.{int(layer) - depth}.{rest}"
                state[moved] = parameter.detach()
        elif inner.startswith(tuple(f"{norm}." for norm in adapter.norms)):
            state[f"{place}.blocks.{inner}"] = parameter.detach()
        elif name.startswith(f"{head}."):
            state[f"{place}.classifier.{name.removeprefix(f'{head}.')}"] = parameter.detach()
    return state


def _unmerge(
    model: HfZipForImageClassification,
    state: Mapping[str, Tensor],
    runtime: Runtime,
    depth: int,
    penalty: float,
) -> tuple[dict[str, Tensor], tuple[float, ...]]:
    """The maps from the trunk's stream to each source's, and what they explain."""
    sources, adapter = runtime.models, runtime.adapter
    merged, width = model.config.trunk_config.hidden_size, model.config.tail_config.hidden_size
    if runtime.calibration is None:
        eye = torch.eye(width, merged)
        maps = {f"tails.{k}.unmerge.weight": eye for k in range(len(sources))}
        zeros = {f"tails.{k}.unmerge.bias": torch.zeros(width) for k in range(len(sources))}
        return maps | zeros, ()
    load_parameters(
        model, {**state, **{n: p for n, p in model.named_parameters() if ".unmerge." in n}}
    )
    last = f"{adapter.layers}.{depth - 1}"
    own = (
        (k, Tap(base_name(source, adapter, last), "output"))
        for k, source in enumerate(sources, start=1)
    )
    places = ((0, Tap(f"trunk.{last}", "output")), *own)
    model.to(sources[0].dtype)
    (found,) = collect(
        [model, *sources],
        runtime.calibration,
        [Observation(merged + width * len(sources), places)],
        Covariance,
        runtime.batch_size,
        runtime.accelerator,
        runtime.progress,
    )
    weight, bias = regress(found, merged, penalty)
    maps = {}
    for k, (rows, shift) in enumerate(zip(weight.split(width), bias.split(width), strict=True)):
        maps[f"tails.{k}.unmerge.weight"], maps[f"tails.{k}.unmerge.bias"] = rows, shift
    return maps, explained_shares(weight, bias, found, len(sources), width)


def explained_shares(
    weight: Float[Tensor, "n merged"],
    bias: Float[Tensor, "n"],
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
