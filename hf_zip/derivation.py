"""The table of one stack of blocks → its merge groups, and the axes of what it puts out."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from hf_zip.adapters import AttentionPool
from hf_zip.axes import Axis, MergeGroup, Role, Tap
from hf_zip.names import Names


def groups_of(names: Names) -> list[MergeGroup]:
    """Returns the merge groups of one stack of blocks, in order.

    Args:
        names: Its table, resolved in a model.
    """
    groups = _stream(names)
    for layer in range(names.num_layers):
        groups += _attention(names, layer)
        groups.append(_mlp(names, layer))
    groups += _attention_pool(names)
    for pooler in _poolers(names):
        groups = _united(groups, pooler)
    return groups


@dataclass(frozen=True)
class Outputs:
    """The axes of what a stack of blocks puts out where it has no task head.

    Args:
        size: Number of features.
        taps: Where they are observed.
        writers: Axes that produce them.
        readers: Axes that consume them on the way.
    """

    size: int
    taps: tuple[Tap, ...]
    writers: tuple[Axis, ...]
    readers: tuple[Axis, ...] = ()


def outputs_of(names: Names) -> Iterator[Outputs]:
    """Yields the axes of what linear layers after the blocks put out, and the attention pool."""
    readers = (place for name in names.adapter.readers for place in names.linears(name))
    for linear in dict.fromkeys(readers):
        size = names.modules[linear].out_features
        yield Outputs(size, (Tap(linear, "output"),), tuple(_written(names, linear)))
    pool = pool_of(names)
    if pool is not None:
        output = f"{pool.attention}.out_proj"
        yield Outputs(
            size=names.modules[output].out_features,
            taps=(Tap(pool.module, "output"),),
            writers=tuple(
                axis for name in (output, pool.norm, pool.mlp_out) for axis in _written(names, name)
            ),
            readers=tuple(_read(names, pool.mlp_in)),
        )


def joint_group(outputs: Sequence[Outputs]) -> MergeGroup:
    """Returns the group of the space in which the outputs of several stacks of blocks lie.

    Args:
        outputs: What each stack puts out.
    """
    return MergeGroup(
        name="joint",
        role="joint",
        size=outputs[0].size,
        taps=tuple(tap for found in outputs for tap in found.taps),
        writers=tuple(axis for found in outputs for axis in found.writers),
        readers=tuple(axis for found in outputs for axis in found.readers),
    )


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
    for linear in stream_readers(names):
        readers += _read(names, linear, table.head_parts if linear in table.heads else 1)
    pool = pool_of(names)
    if pool is not None:
        # Its queries are read from the probe by the parameter that reads keys from the stream.
        writers.append(Axis(pool.probe, 2))
        readers.append(Axis(f"{pool.attention}.in_proj_weight", 1))
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


def pool_of(names: Names) -> AttentionPool | None:
    """Returns the full names of the attention pool; nothing where there is none."""
    table = names.adapter.attention_pool
    if table is None:
        return None
    for place in names.places(table.module):
        if place in names.modules:
            parts = {key: f"{place}.{name}" for key, name in asdict(table).items()}
            return AttentionPool(**{**parts, "module": place, "switch": table.switch})
    return None


def _attention_pool(names: Names) -> list[MergeGroup]:
    pool = pool_of(names)
    if pool is None:
        return []
    output = f"{pool.attention}.out_proj"
    size = names.modules[output].in_features

    def thirds(*parts: int) -> Iterator[Axis]:
        for part in parts:
            for kind in ("weight", "bias"):
                yield Axis(f"{pool.attention}.in_proj_{kind}", 0, part, 3)

    values = MergeGroup(
        name="pool.value",
        role="pool_value",
        size=size,
        taps=(Tap(pool.attention, "values"),),
        writers=tuple(thirds(2)),
        readers=tuple(_read(names, output)),
        num_heads=names.num_heads,
    )
    scores = MergeGroup(
        name="pool.query_key",
        role="pool_query_key",
        size=size,
        # The queries are those of the probe: the same for all inputs, they correlate with nothing.
        taps=(Tap(pool.attention, "keys"),),
        writers=tuple(thirds(0, 1)),
        readers=(),
        num_heads=names.num_heads,
        linked=values.name,
    )
    return [values, scores, _hidden(names, "pool.mlp", "pooler", pool.mlp_in, pool.mlp_out)]


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
                num_heads=getattr(names.model.config, pooler.spaces) if pooler.spaces else 1,
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
    return _hidden(names, f"layers.{layer}.mlp", "mlp", first, second)


def _hidden(names: Names, name: str, role: Role, first: str, second: str) -> MergeGroup:
    """The hidden units between two linear layers."""
    return MergeGroup(
        name=name,
        role=role,
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


def stream_readers(names: Names) -> tuple[str, ...]:
    """Returns the names of the linear layers outside the blocks that read the stream."""
    fed = [
        linear
        for pooler in names.adapter.poolers
        if any(names.linears(pooler.dense))
        for name in pooler.readers
        for linear in names.linears(name)
    ]
    return tuple(linear for linear in outer_linears(names) if linear not in fed)


def outer_linears(names: Names) -> list[str]:
    """Returns the names of the linear layers outside the blocks, after them."""
    table = names.adapter
    tables = (*table.readers, *table.heads)
    hidden = (name for pooler in table.poolers for name in (pooler.dense, *pooler.readers))
    found = (linear for name in (*tables, *hidden) for linear in names.linears(name))
    return list(dict.fromkeys(found))
