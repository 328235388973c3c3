"""A merged trunk and the heads of its sources → one model that answers every kind of task."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.align import State
from hf_zip.assemble import bare_config, load_parameters, native_values
from hf_zip.collect import Observation, collect
from hf_zip.entries import set_entries
from hf_zip.errors import HfZipError
from hf_zip.groups import Tap
from hf_zip.headless import base_of
from hf_zip.lineage import CONFIG_KEY
from hf_zip.method import Runtime
from hf_zip.modeling import HfZipMultiHeadConfig, HfZipMultiHeadModel
from hf_zip.outcome import Merged
from hf_zip.recipe import Unmerge
from hf_zip.refit import regress
from hf_zip.sources import Source
from hf_zip.statistics.covariance import Covariance
from hf_zip.tasks import Task
from hf_zip.unmerge import explained_shares

_STREAM = Tap("", "output")


def assemble_multi_head(
    merged: Merged,
    runtime: Runtime,
    sources: Sequence[Source],
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    unmerge: Unmerge,
    dtype: torch.dtype = torch.float32,
    penalty: float = 1e-3,
    moments: Covariance | None = None,
) -> tuple[HfZipMultiHeadModel, tuple[float, ...]]:
    """Returns a model with the merged trunk and all heads, and how well their maps fit.

    The heads, poolers included, are as they were. By "ridge" each reads the trunk through a linear
    map, the ridge regression of what its own trunk gives on what the merged one does; by "exact" it
    reads the trunk as it is.

    Args:
        merged: The result of a method on the trunks.
        runtime: The sources' trunks and what they run on.
        sources: The sources, with their heads.
        tasks: The task of each.
        record: What else `config.hf_zip` should keep, as plain values.
        unmerge: How the heads read the trunk; "exact" needs a trunk in the sources' own features.
        dtype: Precision of the parameters.
        penalty: Ridge of the maps, as a share of the mean diagonal of the Gram.
        moments: What `stream_moments` found of the merged trunk, if it is known.

    Returns:
        The model, and for each source the share of its stream's variance that its map explains;
        nothing where no map was fitted.

    Raises:
        HfZipError: Maps are to be fitted and there are no calibration inputs; or none are, and the
            method has moved features.
    """
    if unmerge == "exact":
        _check_unmoved(merged, runtime.models)
    config = _config(merged, runtime, sources, tasks, record, unmerge, dtype)
    with torch.random.fork_rng(devices=[]):
        model = HfZipMultiHeadModel(config).to(runtime.models[0].dtype).eval()
    state = {f"trunk.{name}": tensor for name, tensor in merged.state.items()}
    for position, (head, source) in enumerate(zip(model.heads, sources, strict=True)):
        own = dict(source.model.named_parameters(remove_duplicate=False))
        for name, parameter in head.named_parameters():
            state[f"heads.{position}.{name}"] = own.get(name, parameter).detach()
    load_parameters(model, state)
    explained: tuple[float, ...] = ()
    if unmerge == "ridge":
        if moments is None:
            (moments,) = stream_moments(runtime, [model.trunk])
        explained = _set_maps(model, moments, penalty)
    return model.to(dtype), explained


def stream_moments(
    runtime: Runtime, trunks: Sequence[PreTrainedModel] | None = None
) -> list[Covariance]:
    """Returns for each trunk the moments of its stream and those of all sources, side by side.

    Args:
        runtime: The sources' trunks and what they run on; each runs once on every input.
        trunks: The trunks; left out, the sources' own.

    Raises:
        HfZipError: There are no calibration inputs.
    """
    if runtime.calibration is None:
        raise HfZipError(
            "heads of several kinds read the merged trunk through maps that are fitted on "
            "calibration inputs, and there are none; give calibration data, or average models that "
            "share their initialisation without (unmerge: exact)"
        )
    models, count = [*runtime.models, *(trunks or ())], len(runtime.models)
    own = tuple((position, _STREAM) for position in range(count))
    observations = []
    for position in range(count) if trunks is None else range(count, len(models)):
        places = ((position, _STREAM), *own)
        width = sum(models[k].config.hidden_size for k, _ in places)
        observations.append(Observation(width, places))
    return collect(models, runtime.calibration, observations, Covariance, **runtime.running)


@torch.no_grad()
def _set_maps(model: HfZipMultiHeadModel, moments: Covariance, penalty: float) -> tuple[float, ...]:
    """Sets the maps from the merged stream to each source's; returns what they explain."""
    merged, count = model.trunk.config.hidden_size, len(model.heads)
    width = (moments.size - merged) // count
    weight, bias = regress(moments, merged, penalty)
    for position, entry in enumerate(model.config.heads):
        rows = slice(position * width, (position + 1) * width)
        place = f"heads.{position}.{entry['base']}.unmerge"
        model.get_parameter(f"{place}.weight").copy_(weight[rows])
        model.get_parameter(f"{place}.bias").copy_(bias[rows])
    model.cpu()
    return explained_shares(weight, bias, moments, count, width)


def _config(
    merged: Merged,
    runtime: Runtime,
    sources: Sequence[Source],
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    unmerge: Unmerge,
    dtype: torch.dtype,
) -> HfZipMultiHeadConfig:
    trunk = bare_config(runtime.models[0].config)
    set_entries(trunk, merged.config)
    heads = [
        {
            "name": task.name,
            "kind": task.kind,
            "labels": list(task.labels),
            "architecture": type(source.model).__name__,
            "base": base_of(source.model),
            "config": native_values(source.model),
        }
        for task, source in zip(tasks, sources, strict=True)
    ]
    config = HfZipMultiHeadConfig(
        trunk_config=trunk, heads=heads, unmerge=unmerge == "ridge", dtype=dtype
    )
    rows = [{key: head[key] for key in ("name", "kind", "labels")} for head in heads]
    setattr(config, CONFIG_KEY, {**record, "tasks": rows})
    return config


def _check_unmoved(merged: Merged, trunks: Sequence[PreTrainedModel]) -> None:
    states: tuple[State, ...] = tuple(dict(trunk.named_parameters()) for trunk in trunks)
    same = len(merged.aligned) == len(states) and all(
        _equal(x, y) for x, y in zip(merged.aligned, states, strict=True)
    )
    if not same:
        raise HfZipError(
            "unmerge is exact, but the heads of several kinds are left as they were, and the "
            "method has moved the features that they read; use unmerge: ridge with calibration "
            "inputs"
        )


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name].cpu(), tensor.cpu()) for name, tensor in other.items())
