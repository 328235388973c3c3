"""What `hf-zip inspect` shows: merge groups and whether models fit, or a partial zip's parts."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from torch import nn

from hf_zip.arrangement import arrange_heads, trunks_of
from hf_zip.cost import parameters
from hf_zip.errors import first_few
from hf_zip.groups import MergeGroup
from hf_zip.lineage import method_of_merge, sources_of_merge, tasks_of_merge, tree
from hf_zip.merged import is_of_own_class, load_merge
from hf_zip.methods import elementwise_methods
from hf_zip.modeling import (
    HfZipForImageClassification,
    HfZipMaskedModel,
    HfZipMixtureModel,
    HfZipMultiHeadModel,
    HfZipRoutedModel,
)
from hf_zip.modeling.modeling_hf_zip_routed import tensor_of
from hf_zip.preflight import preflight, render
from hf_zip.recipe import ModelSpec
from hf_zip.sources import Source, load_sources
from hf_zip.support import support
from hf_zip.tables import amount
from hf_zip.tasks import labels_of


def describe(references: Sequence[str], allow_pickle: bool = False) -> str:
    """Returns a plain text description of models and of how they fit together.

    Args:
        references: Local folders and Hub ids; a merge of a class of hf_zip's own only alone, as it
            cannot be merged again.
        allow_pickle: See `hf_zip.merge`.

    Raises:
        HfZipError: A model cannot be loaded, or the models cannot be merged.
    """
    if len(references) == 1 and is_of_own_class(references[0]):
        model, _ = load_merge(references[0])
        own: Callable[[str, Any], list[str]] = _partial_lines
        if isinstance(model, HfZipMultiHeadModel):
            own = _multi_head_lines
        elif isinstance(model, HfZipMaskedModel):
            own = _masked_lines
        elif isinstance(model, HfZipRoutedModel):
            own = _routed_lines
        elif isinstance(model, HfZipMixtureModel):
            own = _mixture_lines
        return "\n".join(own(references[0], model))
    sources = load_sources(
        [ModelSpec(reference) for reference in references], allow_pickle=allow_pickle
    )
    lines = [line for source in sources for line in _source_lines(source)]
    first = sources[0].model
    known, trunks = support(first), trunks_of(sources)
    heads, tasks = arrange_heads(sources, "apart")
    kept = ", ".join(heads) or ("none" if trunks is sources else "stays apart")
    lines += ["", f"task head of {type(first).__name__}: {kept}"]
    if known.groups:
        lines += [f"merge groups of {type(first).__name__}:", *_group_lines(known.groups)]
    else:
        lines.append(
            f"no merge groups, as {known.obstacle}. Without a table, models of any class are "
            f"merged by {elementwise_methods()}"
        )
    if len(sources) > 1:
        lines += ["", render(preflight(trunks, tasks, force=True))]
    return "\n".join(lines)


def _source_lines(source: Source) -> list[str]:
    model = source.model
    labels = labels_of(model.config)
    lines = [
        f"{source.reference}: {type(model).__name__}, {_size(model)}",
        f"    revision: {source.revision or source.sha256}",
        f"    labels ({len(labels)}): {first_few(labels, 8, str)}",
    ]
    if source.adapter_base is not None:
        lines.append(f"    an adapter of {source.adapter_base.reference}, merged into it")
    if method_of_merge(model.config):
        tasks = tasks_of_merge(model.config)
        of = ", ".join(f"{task.name} ({len(task.labels)})" for task in tasks)
        lines.append(
            f"    a merge by {method_of_merge(model.config)}" + f" of the tasks {of}" * bool(of)
        )
        lines += tree(sources_of_merge(model.config), "    ")
    return lines


def _multi_head_lines(folder: str, model: HfZipMultiHeadModel) -> list[str]:
    config = model.config
    lines = [
        f"{folder}: {type(model).__name__}, {_size(model)}",
        f"    a merge by {method_of_merge(config)} with several heads",
        f"    trunk: {config.trunk_config.num_hidden_layers} blocks, width "
        f"{config.trunk_config.hidden_size}, {_size(model.trunk)}",
    ]
    lines += tree(sources_of_merge(config), "    ")
    for entry, head in zip(config.heads, model.heads, strict=True):
        labels = f": {first_few(entry['labels'], 8, str)}" if entry["labels"] else ""
        lines.append(
            f"    task {entry['name']}, {entry['kind']} by the head of {entry['architecture']}, "
            f"{_size(head)}{labels}"
        )
    return lines


def _masked_lines(folder: str, model: HfZipMaskedModel) -> list[str]:
    config = model.config
    lines = [
        f"{folder}: {type(model).__name__}, {_size(model)}",
        f"    a merge by {method_of_merge(config)} with weights for every task",
        f"    shared: a base and a vector, {_size(model.base)} each",
    ]
    lines += tree(sources_of_merge(config), "    ")
    masks = list(model.masks.tensors())
    for position, (entry, own) in enumerate(zip(config.members, model.own, strict=True)):
        size = amount(sum(packed[position].numel() for _, packed in masks))
        lines.append(
            f"    model {position}: {entry['architecture']}, a mask of {size} bytes, "
            f"scale {entry['scale']:.4g}, of its own {_size(own)}"
        )
    for task in config.tasks:
        models = " and ".join(map(str, task["members"]))
        labels = f": {first_few(task['labels'], 8, str)}" if task["labels"] else ""
        lines.append(f"    task {task['name']}, {task['kind']} by model {models}{labels}")
    return lines


def _routed_lines(folder: str, model: HfZipRoutedModel) -> list[str]:
    config = model.config
    added = sum(map(parameters, ([model.left], [model.right], [model.whole])))
    replaced = sum(tensor_of(model.shared, name).numel() for name in config.separate)
    count = len(config.members)
    each = f"{amount(added // count)} parameters, at {config.rank:g} of the rank,"
    shared = _size(model.shared)
    if not config.expert:  # what replaces is as large in each, and the first one's is inside
        shared = f"{amount(parameters([model.shared]) - replaced)} parameters, with all heads"
        each = f"{amount(replaced)} parameters,"
    lines = [
        f"{folder}: {type(model).__name__}, {_size(model)}",
        f"    a merge by {method_of_merge(config)} with weights for every task",
        f"    shared: a {type(model.shared).__name__}, {shared}",
        f"    of each of {count} models: {each} chosen for an input by {config.routing} routing on "
        f"{config.features} features of {config.reads}",
    ]
    return [*lines, *tree(sources_of_merge(config), "    "), *_stacked_tasks(config)]


def _mixture_lines(folder: str, model: HfZipMixtureModel) -> list[str]:
    config = model.config
    routers = [mlp.get_submodule("router") for mlp in model.mlps]
    kept = parameters([*model.mlps]) - parameters(routers)
    lines = [
        f"{folder}: {type(model).__name__}, {_size(model)}",
        f"    a merge by {method_of_merge(config)} with MLPs that are mixed for every input",
        f"    shared: a {type(model.shared).__name__}, {_size(model.shared)}",
        f"    of each of {len(config.members)} models: {amount(kept // len(config.members))} "
        f"parameters of {len(routers)} MLPs, by routers of {config.layers} layers and "
        f"{amount(parameters(routers))} parameters",
    ]
    return [*lines, *tree(sources_of_merge(config), "    "), *_stacked_tasks(config)]


def _stacked_tasks(config: Any) -> list[str]:
    """A line for each task of a model that has the rows of all heads side by side."""
    return [
        f"    task {task['name']}, {task['kind']} by model "
        f"{' and '.join(map(str, task['members']))}: {first_few(task['labels'], 8, str)}"
        for task in config.tasks
    ]


def _partial_lines(folder: str, model: HfZipForImageClassification) -> list[str]:
    config = model.config
    shared, own = (c.num_hidden_layers for c in (config.trunk_config, config.tail_config))
    lines = [
        f"{folder}: {type(model).__name__}, {_size(model)}",
        f"    a partial zip by {method_of_merge(config)}",
        f"    trunk: {shared} of {shared + own} blocks, width {config.trunk_config.hidden_size}, "
        f"{_size(model.trunk)}",
    ]
    lines += tree(sources_of_merge(config), "    ")
    lines += [
        f"    tail {position}: {own} of {shared + own} blocks, {labels} labels, {_size(tail)}"
        for position, (tail, labels) in enumerate(zip(model.tails, config.tails, strict=True))
    ]
    for task in config.tasks:
        tails = " and ".join(map(str, task["members"]))
        labels = task["labels"]
        lines.append(f"    task {task['name']}, tail {tails}: {first_few(labels, 8, str)}")
    return lines


def _size(module: nn.Module) -> str:
    return f"{amount(parameters([module]))} parameters"


def _group_lines(groups: Sequence[MergeGroup]) -> list[str]:
    lines = []
    for role, members in groupby(sorted(groups, key=lambda g: g.role), key=lambda g: g.role):
        same = list(members)
        first = same[0]
        heads = f" in {first.num_heads} heads" if first.num_heads > 1 else ""
        axes = sum(len(group.axes) for group in same)
        lines.append(
            f"    {role}: {len(same)} x {first.size} features{heads}, carried by {axes} axes"
        )
    return lines
