"""A family's table → merge groups: which dimensions of which parameters carry the same features."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.errors import HfZipError
from hf_zip.names import Names

Role = Literal["stream", "embeddings", "value", "query_key", "mlp", "pooler"]


@dataclass(frozen=True)
class Axis:
    """One dimension of one parameter, or an equal part of it.

    Args:
        parameter: Its name, as in `named_parameters()`.
        dim: The dimension.
        part: Which of the parts that stand side by side, from 0.
        parts: How many there are.
        per_head: Whether there is one entry per head of the group, not one per feature.
    """

    parameter: str
    dim: int
    part: int = 0
    parts: int = 1
    per_head: bool = False


@dataclass(frozen=True)
class Tap:
    """A place where features are observed: what goes into a module, or what comes out of it."""

    module: str
    side: Literal["input", "output"]


@dataclass(frozen=True)
class MergeGroup:
    """Features that are matched together.

    Args:
        name: Name of the group, unique in a model.
        role: What the features are.
        size: Number of features.
        taps: Where the features are observed.
        writers: Axes that produce the features; they receive the merge map.
        readers: Axes that consume the features; they receive the unmerge map.
        num_heads: Features mix only inside a head, and heads move as wholes.
        linked: Name of the group whose heads this group's heads move with.
    """

    name: str
    role: Role
    size: int
    taps: tuple[Tap, ...]
    writers: tuple[Axis, ...]
    readers: tuple[Axis, ...]
    num_heads: int = 1
    linked: str | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes, writers first."""
        return self.writers + self.readers


def merge_groups(model: PreTrainedModel, adapter: Adapter) -> tuple[MergeGroup, ...]:
    """Returns the merge groups of a model: its stream, then per block its heads and its MLP.

    After the stream come the embeddings where they have features of their own, and last the
    poolers. Groups that share an axis are one: a decoder that is tied to the word embeddings reads
    in their features what the layer before it writes.

    Args:
        model: A model of the adapter's family, with or without a task head.
        adapter: The family's table.

    Raises:
        HfZipError: A parameter is covered by no group and no head, or an axis has another size
            than its group.
    """
    names = Names(model, adapter)
    groups = _stream(names)
    for layer in range(names.num_layers):
        groups += _attention(names, layer)
        groups.append(_mlp(names, layer))
    for pooler in _poolers(names):
        groups = _united(groups, pooler)
    _check_coverage(names, groups)
    return tuple(groups)


@dataclass(frozen=True)
class Block:
    """The modules of one transformer block, named as in `named_modules()`.

    Args:
        name: The block itself.
        query: Linear layers of the attention; so are the next three.
        key: See `query`.
        value: See `query`.
        output: See `query`.
        mlp_in: First linear layer of the MLP.
        mlp_out: Second linear layer of the MLP.
        attention_norm: Normalisation of what the attention reads, or of what it has written.
        mlp_norm: The same of the MLP.
        attention_scale: Parameter that scales what the attention writes, if there is one.
        mlp_scale: The same of the MLP.
    """

    name: str
    query: str
    key: str
    value: str
    output: str
    mlp_in: str
    mlp_out: str
    attention_norm: str
    mlp_norm: str
    attention_scale: str | None = None
    mlp_scale: str | None = None


def blocks(model: PreTrainedModel, adapter: Adapter) -> tuple[Block, ...]:
    """Returns the blocks of a model in the order in which they run."""
    names = Names(model, adapter)
    attention_norm, mlp_norm = adapter.block_norms
    found = []
    scales = adapter.block_scales or ("", "")
    for layer in range(names.num_layers):
        roles = {
            role: names.block(layer, getattr(adapter, role))
            for role in ("query", "key", "value", "output", "mlp_in", "mlp_out")
        }
        found.append(
            Block(
                name=names.base(f"{adapter.layers}.{layer}"),
                attention_norm=names.block(layer, attention_norm),
                mlp_norm=names.block(layer, mlp_norm),
                attention_scale=names.parameter(names.block(layer, scales[0])),
                mlp_scale=names.parameter(names.block(layer, scales[1])),
                **roles,
            )
        )
    return tuple(found)


def outer_readers(model: PreTrainedModel, adapter: Adapter) -> tuple[str, ...]:
    """Returns the names of the linear layers outside the blocks that read the stream."""
    names = Names(model, adapter)
    fed = [
        linear
        for pooler in adapter.poolers
        if any(names.linears(pooler.dense))
        for name in pooler.readers
        for linear in names.linears(name)
    ]
    return tuple(linear for linear in _outer(names) if linear not in fed)


def base_name(model: PreTrainedModel, adapter: Adapter, name: str) -> str:
    """Returns the full name of a module or parameter that a table names below the base model."""
    return Names(model, adapter).base(name)


def head_names(model: nn.Module, adapter: Adapter) -> tuple[str, ...]:
    """Returns the names of the linear layers that make the model's task head; none without one."""
    modules = dict(model.named_modules())
    return tuple(name for name in adapter.heads if isinstance(modules.get(name), nn.Linear))


def _stream(names: Names) -> list[MergeGroup]:
    """The stream and, where they are projected to it, the embeddings."""
    table = names.adapter
    embeddings = [*_embeddings(names)]
    projections = [*names.linears(table.embedding_projection)]
    own = [_embedding_group(names, embeddings, projections)] if projections else []
    writers = [axis for name in projections for axis in _written(names, name)]
    writers += [] if projections else embeddings
    readers: list[Axis] = []
    for layer in range(names.num_layers):
        for module in (*table.block_norms, table.output, table.mlp_out):
            writers += _written(names, names.block(layer, module))
        for scale in table.block_scales:
            if names.block(layer, scale) in names.parameters:
                writers.append(Axis(names.block(layer, scale), 0))
        for module in (table.query, table.key, table.value, table.mlp_in):
            readers += _read(names, names.block(layer, module))
    for norm in table.norms:
        writers += [axis for place in names.places(norm) for axis in _written(names, place)]
    for linear in outer_readers(names.model, table):
        readers += _read(names, linear, table.head_parts if linear in table.heads else 1)
    first = projections or [names.base(table.embedding_output)]
    blocks = [f"{names.base(table.layers)}.{layer}" for layer in range(names.num_layers)]
    taps = [Tap(module, "output") for module in (*first, *blocks)]
    size = names.size(names.block(0, table.mlp_out))
    stream = MergeGroup("stream", "stream", size, tuple(taps), tuple(writers), tuple(readers))
    return [stream, *own]


def _embeddings(names: Names) -> Iterator[Axis]:
    for name, dim in names.adapter.embeddings.items():
        for place in names.places(name):
            parameter = names.parameter(place)
            if parameter is not None:
                yield Axis(parameter, dim)
    for norm in names.adapter.embedding_norms:
        for place in names.places(norm):
            yield from _written(names, place)


def _embedding_group(
    names: Names, writers: Sequence[Axis], projections: Sequence[str]
) -> MergeGroup:
    return MergeGroup(
        name="embeddings",
        role="embeddings",
        size=names.modules[projections[0]].in_features,
        taps=(Tap(names.base(names.adapter.embedding_output), "output"),),
        writers=tuple(writers),
        readers=tuple(axis for name in projections for axis in _read(names, name)),
    )


def _poolers(names: Names) -> Iterator[MergeGroup]:
    for pooler in names.adapter.poolers:
        readers = [linear for name in pooler.readers for linear in names.linears(name)]
        for dense in names.linears(pooler.dense) if readers else ():
            norms = [place for name in pooler.norms for place in names.places(name)]
            yield MergeGroup(
                name=pooler.dense,
                role="pooler",
                size=names.modules[dense].out_features,
                # What goes into the activation: units that are never active show nothing after it.
                taps=(Tap(dense, "output"),),
                writers=tuple(a for name in (dense, *norms) for a in _written(names, name)),
                readers=tuple(axis for name in readers for axis in _read(names, name)),
            )


def _united(groups: Sequence[MergeGroup], pooler: MergeGroup) -> list[MergeGroup]:
    """The groups with one more; its axes join the group that it shares one with."""
    for position, group in enumerate(groups):
        if set(group.axes) & set(pooler.axes):
            added = tuple(axis for axis in pooler.readers if axis not in group.axes)
            joined = replace(
                group, writers=group.writers + pooler.writers, readers=group.readers + added
            )
            return [*groups[:position], joined, *groups[position + 1 :]]
    return [*groups, pooler]


def _attention(names: Names, layer: int) -> list[MergeGroup]:
    table = names.adapter
    query, key, value, output = (
        names.block(layer, module) for module in (table.query, table.key, table.value, table.output)
    )
    values = MergeGroup(
        name=f"layers.{layer}.value",
        role="value",
        size=names.size(value),
        taps=(Tap(output, "input"),),
        writers=tuple(_written(names, value)),
        readers=tuple(_read(names, output)),
        num_heads=names.num_heads,
    )
    biases = ((names.block(layer, name), dim) for name, dim in table.score_biases.items())
    # Queries meet keys feature by feature, so both are written alike and nothing reads them.
    scores = MergeGroup(
        name=f"layers.{layer}.query_key",
        role="query_key",
        size=names.size(query),
        taps=(Tap(query, "output"), Tap(key, "output")),
        writers=(
            *_written(names, query),
            *_written(names, key),
            *(Axis(name, dim, per_head=True) for name, dim in biases if name in names.parameters),
        ),
        readers=(),
        num_heads=names.num_heads,
        linked=values.name,
    )
    return [values, scores]


def _mlp(names: Names, layer: int) -> MergeGroup:
    first, second = (
        names.block(layer, module) for module in (names.adapter.mlp_in, names.adapter.mlp_out)
    )
    return MergeGroup(
        name=f"layers.{layer}.mlp",
        role="mlp",
        size=names.size(first),
        taps=(Tap(second, "input"),),
        writers=tuple(_written(names, first)),
        readers=tuple(_read(names, second)),
    )


def _written(names: Names, module: str) -> Iterator[Axis]:
    """The output axes of a linear layer, or the only ones of a normalisation."""
    for parameter in names.weight_and_bias(module):
        yield Axis(parameter, 0)


def _read(names: Names, linear: str, parts: int = 1) -> Iterator[Axis]:
    """The input axis of a linear layer, part by part."""
    weight = names.parameter(f"{linear}.weight")
    if weight is not None:
        yield from (Axis(weight, 1, part, parts) for part in range(parts))


def _check_coverage(names: Names, groups: Sequence[MergeGroup]) -> None:
    sizes = {axis: group for group in groups for axis in group.axes}
    for axis, group in sizes.items():
        shape = tuple(names.parameters[axis.parameter].shape)
        what = f"{group.num_heads} heads" if axis.per_head else f"{group.size} features"
        size = (group.num_heads if axis.per_head else group.size) * axis.parts
        if axis.dim >= len(shape) or shape[axis.dim] != size:
            times = f" {axis.parts} times" if axis.parts > 1 else ""
            raise HfZipError(
                f"{axis.parameter} has shape {shape}, but its dimension {axis.dim} should carry "
                f"the {what} of {group.name!r}{times}"
            )
    covered = {axis.parameter for axis in sizes}
    # What is written outside the groups are outputs, such as labels: they stay put.
    covered |= {name for linear in _outer(names) for name in names.weight_and_bias(linear)}
    covered |= {place for name in names.adapter.outputs for place in names.places(name)}
    lost = [name for name in names.parameters if name not in covered]
    if lost:
        more = f" and {len(lost) - 8} more" if len(lost) > 8 else ""
        raise HfZipError(
            f"{type(names.model).__name__} has parameters that the adapter "
            f"{names.adapter.name!r} does not cover: {', '.join(lost[:8])}{more}; name them in the "
            "adapter's table"
        )


def _outer(names: Names) -> list[str]:
    """The linear layers outside the blocks, after them."""
    table = names.adapter
    tables = (*table.readers, *table.heads)
    hidden = (name for pooler in table.poolers for name in (pooler.dense, *pooler.readers))
    found = (linear for name in (*tables, *hidden) for linear in names.linears(name))
    return list(dict.fromkeys(found))
