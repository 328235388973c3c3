"""A family's table → merge groups: which dimensions of which parameters carry the same features."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.errors import HfZipError

Role = Literal["stream", "value", "query_key", "mlp"]


@dataclass(frozen=True)
class Axis:
    """One dimension of one parameter, named as in `named_parameters()`."""

    parameter: str
    dim: int


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

    Args:
        model: A model of the adapter's family, with or without a task head.
        adapter: The family's table.

    Raises:
        HfZipError: A parameter is covered by no group and no head, or an axis has another size
            than its group.
    """
    names = _Names(model, adapter)
    groups = [_stream(names)]
    for layer in range(names.num_layers):
        groups += _attention(names, layer)
        groups.append(_mlp(names, layer))
    _check_coverage(model, adapter, groups)
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
        attention_norm: Normalisation of what the attention reads.
        mlp_norm: Normalisation of what the MLP reads.
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


def blocks(model: PreTrainedModel, adapter: Adapter) -> tuple[Block, ...]:
    """Returns the blocks of a model in the order in which they run.

    Raises:
        HfZipError: The family's blocks do not normalise what they read.
    """
    if not adapter.pre_norm:
        raise HfZipError(
            f"the blocks of {adapter.name!r} do not normalise what they read (post-norm), so they "
            "cannot be refitted one by one; use another merge method"
        )
    names = _Names(model, adapter)
    attention_norm, mlp_norm = adapter.block_norms
    found = []
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
                **roles,
            )
        )
    return tuple(found)


def base_name(model: PreTrainedModel, adapter: Adapter, name: str) -> str:
    """Returns the full name of a module or parameter that a table names below the base model."""
    return _Names(model, adapter).base(name)


def head_names(model: nn.Module, adapter: Adapter) -> tuple[str, ...]:
    """Returns the names of the linear layers that make the model's task head; none without one."""
    modules = dict(model.named_modules())
    return tuple(name for name in adapter.heads if isinstance(modules.get(name), nn.Linear))


class _Names:
    """Resolves a table's relative names to the parameters that a model really has."""

    def __init__(self, model: PreTrainedModel, adapter: Adapter) -> None:
        self.model, self.adapter = model, adapter
        self.parameters = dict(model.named_parameters())
        self.modules = dict(model.named_modules())
        prefix = model.base_model_prefix
        self.prefix = f"{prefix}." if prefix in self.modules else ""
        blocks = self.modules.get(self.prefix + adapter.layers)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            raise HfZipError(
                f"{type(model).__name__} has no blocks at {self.prefix + adapter.layers!r}, where "
                f"the adapter {adapter.name!r} expects them; the adapter does not fit this class"
            )
        self.num_layers = len(blocks)

    def base(self, name: str) -> str:
        return self.prefix + name

    def block(self, layer: int, name: str) -> str:
        return f"{self.prefix}{self.adapter.layers}.{layer}.{name}"

    def weight_and_bias(self, module: str) -> Iterator[Axis]:
        """The output axis of a linear layer, or a normalisation's only axis."""
        for kind in ("weight", "bias"):
            if f"{module}.{kind}" in self.parameters:
                yield Axis(f"{module}.{kind}", 0)

    def inputs(self, module: str) -> Iterator[Axis]:
        if f"{module}.weight" in self.parameters:
            yield Axis(f"{module}.weight", 1)

    def size(self, module: str) -> int:
        """Number of output features of a linear layer of a block."""
        weight = self.parameters.get(f"{module}.weight")
        if weight is None:
            raise HfZipError(
                f"{type(self.model).__name__} has no parameter {module}.weight, which the adapter "
                f"{self.adapter.name!r} names; the adapter does not fit this class"
            )
        return weight.shape[0]


def _stream(names: _Names) -> MergeGroup:
    table = names.adapter
    writers: list[Axis] = []
    for name, dim in table.embeddings.items():
        if names.base(name) in names.parameters:
            writers.append(Axis(names.base(name), dim))
    readers: list[Axis] = []
    for layer in range(names.num_layers):
        for module in (*table.block_norms, table.output, table.mlp_out):
            writers += names.weight_and_bias(names.block(layer, module))
        for module in (table.query, table.key, table.value, table.mlp_in):
            readers += names.inputs(names.block(layer, module))
    for module in table.norms:
        writers += names.weight_and_bias(names.base(module))
    for module in table.readers:
        readers += names.inputs(names.base(module))
    for module in table.heads:
        readers += names.inputs(module)
    blocks = [f"{names.base(table.layers)}.{layer}" for layer in range(names.num_layers)]
    taps = [Tap(module, "output") for module in (names.base(table.embedding_output), *blocks)]
    size = names.size(names.block(0, table.mlp_out))
    return MergeGroup("stream", "stream", size, tuple(taps), tuple(writers), tuple(readers))


def _attention(names: _Names, layer: int) -> list[MergeGroup]:
    table = names.adapter
    num_heads: int = names.model.config.num_attention_heads
    query, key, value, output = (
        names.block(layer, module) for module in (table.query, table.key, table.value, table.output)
    )
    values = MergeGroup(
        name=f"layers.{layer}.value",
        role="value",
        size=names.size(value),
        taps=(Tap(output, "input"),),
        writers=tuple(names.weight_and_bias(value)),
        readers=tuple(names.inputs(output)),
        num_heads=num_heads,
    )
    # Queries meet keys feature by feature, so both are written alike and nothing reads them.
    scores = MergeGroup(
        name=f"layers.{layer}.query_key",
        role="query_key",
        size=names.size(query),
        taps=(Tap(query, "output"), Tap(key, "output")),
        writers=(*names.weight_and_bias(query), *names.weight_and_bias(key)),
        readers=(),
        num_heads=num_heads,
        linked=values.name,
    )
    return [values, scores]


def _mlp(names: _Names, layer: int) -> MergeGroup:
    first, second = (
        names.block(layer, module) for module in (names.adapter.mlp_in, names.adapter.mlp_out)
    )
    return MergeGroup(
        name=f"layers.{layer}.mlp",
        role="mlp",
        size=names.size(first),
        taps=(Tap(second, "input"),),
        writers=tuple(names.weight_and_bias(first)),
        readers=tuple(names.inputs(second)),
    )


def _check_coverage(model: PreTrainedModel, adapter: Adapter, groups: list[MergeGroup]) -> None:
    parameters = dict(model.named_parameters())
    sizes = {axis: group for group in groups for axis in group.axes}
    for axis, group in sizes.items():
        shape = tuple(parameters[axis.parameter].shape)
        if axis.dim >= len(shape) or shape[axis.dim] != group.size:
            raise HfZipError(
                f"{axis.parameter} has shape {shape}, but its dimension {axis.dim} should carry "
                f"the {group.size} features of {group.name!r}"
            )
    covered = {axis.parameter for axis in sizes}
    heads = tuple(f"{name}." for name in adapter.heads)
    lost = [name for name in parameters if name not in covered and not name.startswith(heads)]
    # A reader outside the blocks (a pooler) ends in features that are outputs: they stay put.
    lost = [name for name in lost if not name.endswith(_outputs(adapter))]
    if lost:
        raise HfZipError(
            f"{type(model).__name__} has parameters that the adapter {adapter.name!r} does not "
            f"cover: {', '.join(lost)}; name them in the adapter's table"
        )


def _outputs(adapter: Adapter) -> tuple[str, ...]:
    return tuple(f"{name}.bias" for name in adapter.readers)
