"""A merge's result → a partial zip: its first blocks shared, every source's other blocks kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.align import State
from hf_zip.assemble import bare_config, load_parameters, set_labels
from hf_zip.entries import set_entries
from hf_zip.errors import HfZipError
from hf_zip.groups import base_name, head_names
from hf_zip.lineage import CONFIG_KEY
from hf_zip.method import Runtime
from hf_zip.modeling import HfZipConfig, HfZipForImageClassification
from hf_zip.outcome import Merged
from hf_zip.recipe import Unmerge
from hf_zip.tasks import Task
from hf_zip.unmerge import fit_unmerge


def assemble_partial(
    merged: Merged,
    runtime: Runtime,
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    depth: int,
    unmerge: Unmerge,
    dtype: torch.dtype = torch.float32,
    penalty: float = 1e-3,
) -> tuple[HfZipForImageClassification, tuple[float, ...]]:
    """Returns a model with a shared trunk and one tail per source, and how well their maps fit.

    Each tail is its source's blocks and head. By "ridge" they are as they were, and read the trunk
    through a linear map, the ridge regression of the source's own stream at that depth on the
    trunk's. By "exact" they are rewritten in the merged features, which leaves what they compute,
    and read the trunk as it is. At depth 0 nothing is shared: the trunk holds all embeddings side
    by side, and the model equals the ensemble.

    Args:
        merged: The result of a method.
        runtime: The sources and what they run on.
        tasks: The tasks.
        record: What else `config.hf_zip` should keep, as plain values.
        depth: Number of shared blocks, from 0 to one less than there are.
        unmerge: How the tails read the trunk; "exact" needs a method that only moves features.
        dtype: Precision of the parameters.
        penalty: Ridge of the maps, as a share of the mean diagonal of the Gram.

    Returns:
        The model, and for each source the share of its stream's variance that its map explains;
        nothing where no map was fitted.

    Raises:
        HfZipError: The models are not image classifiers with one head, or maps are to be fitted and
            there are no calibration inputs.

    Source: ZipIt! (https://arxiv.org/abs/2305.03053), section 4.3, for the partial zip; the map by
    ridge regression, where the paper copies features back, is a deviation.
    """
    sources, adapter = runtime.models, runtime.adapter
    check_partial(sources[0], adapter)
    (head,) = head_names(sources[0], adapter)
    config = partial_config(merged, runtime, tasks, record, depth, unmerge, dtype)
    with torch.random.fork_rng(devices=[]):
        model = HfZipForImageClassification(config).to(sources[0].dtype).eval()
    state = _trunk(merged, runtime, depth)
    rewritten = depth > 0 and unmerge == "exact"
    for position, source in enumerate(sources):
        own = merged.aligned[position] if rewritten else dict(source.named_parameters())
        state |= _tail(own, base_name(source, adapter, ""), adapter, position, depth, head)
    explained: tuple[float, ...] = ()
    if depth == 0:
        explained = tuple(1.0 for _ in sources)
    elif unmerge == "ridge":
        maps, explained = fit_unmerge(model, state, runtime, depth, penalty)
        state |= maps
    load_parameters(model, state)
    return model.to(dtype), explained


def check_partial(model: PreTrainedModel, adapter: Adapter) -> None:
    """Checks that models can share some of their blocks.

    Args:
        model: One of the models.
        adapter: Their family's table.

    Raises:
        HfZipError: They are not image classifiers with one head, which reads the first token.
    """
    heads = head_names(model, adapter)
    if adapter.towers:
        reason = f"{type(model).__name__} has {len(adapter.towers)} towers"
    elif not adapter.partial:
        reason = f"the heads of {adapter.name!r} read something else"
    elif len(heads) != 1 or "ForImageClassification" not in type(model).__name__:
        reason = f"{type(model).__name__} has {len(heads)} heads"
    else:
        return
    raise HfZipError(
        "only image classifiers with one head, which reads the first token, can share some of "
        f"their blocks, but {reason}; leave stop_at out"
    )


def partial_config(
    merged: Merged,
    runtime: Runtime,
    tasks: Sequence[Task],
    record: Mapping[str, Any],
    depth: int,
    unmerge: Unmerge,
    dtype: torch.dtype,
) -> HfZipConfig:
    """Returns the config of a partial zip; the arguments are those of `assemble_partial`."""
    native = runtime.models[0].config
    count = len(runtime.models)
    tail, trunk = (bare_config(native) for _ in range(2))
    tail.num_hidden_layers = native.num_hidden_layers - depth
    trunk.num_hidden_layers = depth
    set_entries(trunk, merged.config)
    if depth and unmerge == "exact":
        set_entries(tail, merged.config)
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
        unmerge=depth > 0 and unmerge == "ridge",
        dtype=dtype,
    )
    set_labels(config, [label for task in tasks for label in task.labels])
    setattr(config, CONFIG_KEY, {**record, "tasks": rows})
    return config


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
    own: State, prefix: str, adapter: Adapter, position: int, depth: int, head: str
) -> dict[str, Tensor]:
    """One source's blocks, normalisation and head by their names in the partial zip."""
    place = f"tails.{position}"
    state = {}
    for name, parameter in own.items():
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
