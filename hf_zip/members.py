"""What a method keeps of every model → a model that makes the weights of each when it is asked."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.assemble import (
    assemble,
    bare_config,
    load_parameters,
    merge_record,
    native_values,
    set_labels,
    stack_own_heads,
    task_model,
)
from hf_zip.errors import HfZipError, unknown
from hf_zip.headless import base_of, heads_apart
from hf_zip.kinds import Kind
from hf_zip.learned import counters, stored
from hf_zip.lineage import CONFIG_KEY
from hf_zip.modeling import (
    HfZipMaskedConfig,
    HfZipMaskedModel,
    HfZipMembersModel,
    HfZipMixtureConfig,
    HfZipMixtureModel,
    HfZipRoutedConfig,
    HfZipRoutedModel,
    HfZipStackedModel,
)
from hf_zip.modeling.modeling_hf_zip_routed import tensor_of
from hf_zip.outcome import Masked, Merged, Routed
from hf_zip.sources import Source
from hf_zip.tasks import Task

T = TypeVar("T", bound=HfZipStackedModel)
_CHOICES: tuple[Kind, ...] = ("classification", "token-classification")  # one label of several


def assemble_kept(
    merged: Merged,
    sources: Sequence[Source],
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Returns the model of a merge that keeps something of every source.

    Args:
        merged: The result of a method, with what it kept.
        sources: The sources.
        tasks: Their tasks, at least one.
        record: What else `config.hf_zip` should keep, as plain values.
        dtype: Precision of the parameters.
    """
    if isinstance(merged.kept, Masked):
        return _masked(merged.kept, sources, tasks, record, dtype)
    if isinstance(merged.kept, Routed):
        return _routed(merged, merged.kept, sources, tasks, record, dtype)
    return _mixture(merged, merged.kept, sources, tasks, record, dtype)


def native_of_task(model: HfZipMembersModel, task: str) -> PreTrainedModel:
    """Returns the native model that answers one task of a merge with weights for every task.

    Args:
        model: The merge; left unchanged.
        task: Name of the task.

    Raises:
        HfZipError: The model is not a merge or has no such task, or several of its sources answer
            the task, or one that answers others too.
    """
    merge_record(model.config)
    entries = {entry["name"]: entry for entry in model.config.tasks}
    if task not in entries:
        raise unknown("task", task, entries)
    entry = entries[task]
    if len(entry["members"]) > 1:
        raise HfZipError(
            f"task {task!r} is answered by {len(entry['members'])} models with weights of their "
            "own each, so no native model answers it; use the merge with task="
            f"{task!r}, or merge these models into one first"
        )
    (member,), (rows,) = entry["members"], entry["rows"]
    native = model.native(member)
    row = {key: entry[key] for key in ("name", "labels", "kind")} | {"start": next(iter(rows), 0)}
    cut = copy.copy(native)  # with a config of its own, which says where the task's rows are
    cut.config = copy.deepcopy(native.config)
    setattr(cut.config, CONFIG_KEY, {"tasks": [row]})
    return task_model(cut, task)


def single_task(model: HfZipRoutedModel, task: str) -> PreTrainedModel:
    """Returns the native model with the weights and the rows of one task.

    Args:
        model: The merge; left unchanged.
        task: Name of the task.

    Raises:
        HfZipError: The model is not a merge or has no such task, or a router chooses one of several
            sources that answer it.
    """
    merge_record(model.config)
    if task not in model.task_names:
        raise unknown("task", task, model.task_names)
    count = len(model.task_entry(task)["members"])
    if count > 1 and model.config.routing == "top":
        raise HfZipError(
            f"task {task!r} is answered by the likeliest of {count} models, for each input, so no "
            f"native model answers it; use the merge with task={task!r}, or routing: soft"
        )
    native = copy.deepcopy(model.shared)
    with torch.no_grad():
        for name, tensor in model.parameters_for(model.weights_of(task)[0]).items():
            tensor_of(native, name).copy_(tensor)
    return task_model(native, task)


def _routed(
    merged: Merged,
    kept: Routed,
    sources: Sequence[Source],
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    dtype: torch.dtype,
) -> HfZipRoutedModel:
    """Returns a model with the heads of all sources, which adds to or replaces what they share."""
    native = assemble(merged, sources[0].model, tasks, {}, sources[0].model.dtype)
    separate = dict(kept.separate)
    if separate and any(len(task.members) > 1 for task in tasks):
        for name, own in stack_own_heads(merged, tasks).items():
            tensor_of(native, name).data.copy_(own[0])
            separate[name] = own[1:]
    config = HfZipRoutedConfig(
        **_entries(native, sources, tasks),
        reads=kept.reads,
        features=kept.weight.shape[1],
        expert=[*kept.left, *kept.whole],
        rank=kept.rank,
        separate=[*separate],
        routing=kept.routing,
        selects=kept.selects and len(tasks) > 1 and all(task.kind in _CHOICES for task in tasks),
        dtype=dtype,
    )
    state = {f"separate.{name}": tensor for name, tensor in separate.items()}
    for place in ("left", "right", "whole"):
        state |= {f"{place}.{name}": x for name, x in getattr(kept, place).items()}
    state |= {"router.weight": kept.weight, "router.bias": kept.bias}
    model = _stacked(HfZipRoutedModel, config, native, state, record)
    return model.to(dtype)


def _mixture(
    merged: Merged,
    kept: Any,
    sources: Sequence[Source],
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    dtype: torch.dtype,
) -> HfZipMixtureModel:
    """Returns a model with the heads of all sources, whose MLPs are mixed for each input."""
    native = assemble(merged, sources[0].model, tasks, {}, sources[0].model.dtype)
    config = HfZipMixtureConfig(
        **_entries(native, sources, tasks),
        mlps=[list(names) for names in kept.mlps],
        layers=kept.layers,
        dtype=dtype,
    )
    state = {f"mlps.{i}.{n}": x for i, part in enumerate(kept.parts) for n, x in part.items()}
    model = _stacked(HfZipMixtureModel, config, native, state, record)
    return model.to(dtype)


def _masked(
    kept: Masked,
    sources: Sequence[Source],
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    dtype: torch.dtype,
) -> HfZipMaskedModel:
    """Returns a model with what all sources share, and of each what is kept of it.

    Heads, running statistics and parameters that the base lacks are as they were in each source.
    """
    apart = heads_apart(sources)
    saved = [stored(source.model) for source in sources]
    config = _config(kept, sources, saved, tasks, record, apart, dtype)
    with torch.random.fork_rng(devices=[]):
        model = HfZipMaskedModel(config).to(next(iter(kept.vector.values())).dtype).eval()
    state = {
        **{f"base.{name}": tensor for name, tensor in kept.base.items()},
        **{f"vector.{name}": tensor for name, tensor in kept.vector.items()},
        **{f"masks.{name}": tensor for name, tensor in kept.masks.items()},
    }
    for position, (entry, own) in enumerate(zip(config.members, saved, strict=True)):
        state |= {f"own.{position}.{name}": own[name] for name in entry["own"]}
    _load(model, state)
    return model.to(dtype)


def _entries(
    native: PreTrainedModel, sources: Sequence[Source], tasks: Sequence[Task]
) -> dict[str, Any]:
    """What the configs of models with stacked heads have in common."""
    return {
        "trunk_config": native.config,
        "members": [{"architecture": type(source.model).__name__} for source in sources],
        "tasks": _rows(tasks),
    }


def _stacked(
    cls: type[T],
    config: Any,
    native: PreTrainedModel,
    added: Mapping[str, Tensor],
    record: Mapping[str, Any],
) -> T:
    """A model with a shared one in it, and what is added to that."""
    set_labels(config, [label for entry in config.tasks for label in entry["labels"]])
    setattr(config, CONFIG_KEY, {**record, "tasks": config.tasks})
    with torch.random.fork_rng(devices=[]):
        model = cls(config).to(native.dtype).eval()
    _load(model, {**{f"shared.{name}": x for name, x in stored(native).items()}, **added})
    return model


def _config(
    kept: Masked,
    sources: Sequence[Source],
    saved: Sequence[Mapping[str, Tensor]],
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    apart: bool,
    dtype: torch.dtype,
) -> HfZipMaskedConfig:
    members = []
    for source, known, scale in zip(sources, saved, kept.scales, strict=True):
        prefix = f"{base_of(source.model)}." if apart else ""
        shared = {f"{prefix}{name}" for name in kept.vector}
        members.append(
            {
                "architecture": type(source.model).__name__,
                "config": native_values(source.model),
                "prefix": prefix,
                "own": [name for name in known if name not in shared],
                "scale": scale,
            }
        )
    rows = _rows(tasks)
    config = HfZipMaskedConfig(
        trunk_config=bare_config(sources[0].model.config),
        members=members,
        tasks=rows,
        apart=apart or not all(task.labels for task in tasks),
        dtype=dtype,
    )
    set_labels(config, [] if config.apart else [x for task in tasks for x in task.labels])
    setattr(config, CONFIG_KEY, {**record, "tasks": rows})
    return config


def _rows(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    return [
        {
            "name": task.name,
            "kind": task.kind,
            "labels": list(task.labels),
            "start": task.start,
            "members": list(task.members),
            "rows": [list(own) for own in task.rows],
        }
        for task in tasks
    ]


def _load(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Sets parameters, running statistics and bits."""
    counted = counters(model)
    load_parameters(model, {name: x for name, x in state.items() if name not in counted})
    for name, buffer in counted.items():
        buffer.copy_(state[name])
