"""A merge's result → a native transformers model: heads stacked, labels joined; and back."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from hf_zip.align import mean
from hf_zip.entries import set_entries
from hf_zip.errors import HfZipError, first_few, unknown
from hf_zip.kinds import problem_type
from hf_zip.learned import counters, learned
from hf_zip.lineage import CONFIG_KEY
from hf_zip.outcome import Merged
from hf_zip.task_head import task_heads
from hf_zip.tasks import Task


def assemble(
    merged: Merged,
    template: PreTrainedModel,
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Returns the merged model in the sources' own class.

    The head's rows are those of all tasks, in order; a task with several sources has the mean of
    theirs. `config.id2label` is the union, and `config.hf_zip` says which rows belong to which
    task.

    Args:
        merged: The result of a method.
        template: One of the sources, for the class, the config and the buffers; left unchanged.
        tasks: The tasks; none for models without a task head.
        record: What else `config.hf_zip` should keep, as plain values.
        dtype: Precision of the parameters.

    Raises:
        HfZipError: The merged parameters are not those of the class.
    """
    config = merged_config(merged, template.config, tasks, record, dtype)
    return _build(template, config, {**merged.state, **stack_heads(merged, tasks)}, dtype)


def merged_config(
    merged: Merged,
    template: PretrainedConfig,
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    dtype: torch.dtype,
) -> PretrainedConfig:
    """Returns the config of a merged model of the sources' own class.

    Args:
        merged: The result of a method; of it only what it changes of the config.
        template: The config of one of the sources; left unchanged.
        tasks: See `assemble`.
        record: The same.
        dtype: The same.
    """
    config = _config(template, tasks, dtype)
    set_entries(config, merged.config)
    rows = [
        {"name": t.name, "start": t.start, "labels": list(t.labels), "kind": t.kind} for t in tasks
    ]
    setattr(config, CONFIG_KEY, {**record, "tasks": rows})
    return config


def stack_heads(merged: Merged, tasks: Sequence[Task]) -> dict[str, Tensor]:
    """Returns the head's parameters with the rows of all tasks, in the order of the tasks.

    A row is the mean of the members that have its label, by their weights.
    """
    weights = merged.weights or (1.0,) * len(merged.heads)
    stacked: dict[str, list[Tensor]] = {}
    for task in tasks:
        heads = [merged.heads[i] for i in task.members]
        for label in range(len(task.labels)):
            having = [k for k, own in enumerate(task.rows) if own[label] is not None]
            rows = [
                {name: tensor[task.rows[k][label]] for name, tensor in heads[k].items()}
                for k in having
            ]
            # A row that one model alone has stays, whatever that model weighs.
            shares = [weights[task.members[k]] for k in having] if len(having) > 1 else None
            for name, row in mean(rows, shares).items():
                stacked.setdefault(name, []).append(row)
    return {name: torch.stack(rows) for name, rows in stacked.items()}


def stack_own_heads(merged: Merged, tasks: Sequence[Task]) -> dict[str, Tensor]:
    """Returns the same with the rows of each source's own, `[sources, rows, ...]`.

    Args:
        merged: The result of a method.
        tasks: The tasks; a row of one that a source has not is as in `stack_heads`.
    """
    stacked = stack_heads(merged, tasks)
    count = len(merged.heads)
    found = {name: torch.stack([tensor] * count) for name, tensor in stacked.items()}
    for task in tasks:
        for member, rows in zip(task.members, task.rows, strict=True):
            for place, row in enumerate(rows, start=task.start):
                if row is not None:
                    for name, own in merged.heads[member].items():
                        found[name][member, place] = own[row]
    return found


def task_model(model: PreTrainedModel, task: str) -> PreTrainedModel:
    """Returns a single-task model: the merged trunk with the rows of one task.

    Args:
        model: A merged model, as assembled or as loaded; left unchanged.
        task: Name of one of its tasks.

    Raises:
        HfZipError: The model is not a merge, or has no such task.
    """
    tasks = {entry["name"]: entry for entry in merge_record(model.config)["tasks"]}
    if task not in tasks:
        raise unknown("task", task, tasks)
    labels = [str(label).removeprefix(f"{task}/") for label in tasks[task]["labels"]]
    start = tasks[task]["start"]
    config = copy.deepcopy(model.config)
    delattr(config, CONFIG_KEY)
    if labels:
        set_labels(config, labels)
        kind = tasks[task].get("kind", "classification")  # merges once did not tell
        config.problem_type = problem_type([kind], config.problem_type)
    heads = task_heads(model)
    state = {
        name: tensor[start : start + len(labels)]
        if name.startswith(tuple(f"{head}." for head in heads))
        else tensor
        for name, tensor in learned(model).items()
    }
    return _build(model, config, state, model.dtype)


def merge_record(config: PretrainedConfig) -> dict[str, Any]:
    """Returns what a merged model's config says about its merge.

    Raises:
        HfZipError: The config is not that of a merged model.
    """
    record = getattr(config, CONFIG_KEY, None)
    if not isinstance(record, dict) or "tasks" not in record:
        raise HfZipError(
            "this model was not merged by hf_zip (its config has no 'hf_zip' entry), so its tasks "
            "are not known; give the folder that `hf-zip merge` wrote"
        )
    return record


def set_labels(config: PretrainedConfig, labels: Sequence[str]) -> None:
    """Gives a config its labels, in the order of the head's rows."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}


def bare_config(config: PretrainedConfig) -> PretrainedConfig:
    """Returns a copy of a config without what describes a checkpoint."""
    bare = copy.deepcopy(config)
    bare.architectures = bare.dtype = None
    if hasattr(bare, CONFIG_KEY):
        delattr(bare, CONFIG_KEY)
    set_labels(bare, ["LABEL_0", "LABEL_1"])
    return bare


def native_values(model: PreTrainedModel) -> dict[str, Any]:
    """Returns a native model's config as plain values, without what describes a checkpoint."""
    values: dict[str, Any] = model.config.to_dict()
    for key in ("architectures", "dtype", "transformers_version", CONFIG_KEY):
        values.pop(key, None)
    return values


def load_parameters(model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    """Sets all parameters of a model, and its running statistics.

    Raises:
        HfZipError: A parameter is missing, left over, or has another shape.
    """
    own = learned(model)
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        wrong = sorted(n for n in {*expected, *found} if expected.get(n) != found.get(n))
        raise HfZipError(
            f"the merged parameters do not fit {type(model).__name__}: {', '.join(wrong[:5])} "
            "have other shapes or are missing; the adapter or the merge method is at fault"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _config(
    template: PretrainedConfig, tasks: Sequence[Task], dtype: torch.dtype
) -> PretrainedConfig:
    config = copy.deepcopy(template)
    config.dtype = dtype
    labels = [label for task in tasks for label in task.labels]
    if labels:
        set_labels(config, labels)
        config.problem_type = problem_type((task.kind for task in tasks), config.problem_type)
    return config


def _build(
    template: PreTrainedModel,
    config: PretrainedConfig,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):  # the initialisation is overwritten: draw nothing
        # Of the template's precision, which may exceed the default, until the one cast at the end.
        model = type(template)(config).to(template.dtype)
    if {*learned(model)} != {*state}:
        _check_parts(template)
    load_parameters(model, state)
    counted = counters(template)
    for name, buffer in counters(model).items():
        buffer.copy_(counted[name])
    return model.to(dtype).eval()


def _check_parts(template: PreTrainedModel) -> None:
    """Checks that a source has the parts that its class makes of its config.

    Raises:
        HfZipError: It was made with arguments that its config does not keep.
    """
    with torch.device("meta"):
        made = learned(type(template)(copy.deepcopy(template.config)))
    own = learned(template)
    wrong = [*(n for n in made if n not in own), *(n for n in own if n not in made)]
    if wrong:
        raise HfZipError(
            f"the models have other parts than {type(template).__name__} makes of their config: "
            f"{first_few(wrong, 4)}. A saved merge would load with random weights there; make the "
            "models without further arguments, such as add_pooling_layer=False"
        )
