"""One declarative table per family of architectures: which parameters play which role.

A new family is a new file here with an `ENTRY`; nothing else is edited. The laws in `tests/laws`
run over every entry and decide whether its table is right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from hf_zip.errors import HfZipError
from hf_zip.registry import discover


@dataclass(frozen=True)
class Pooler:
    """A hidden layer between the stream and the outputs: a linear layer and an activation function.

    Args:
        dense: The linear layer. It reads the stream, or the features of the pooler that lists it as
            a reader.
        readers: Linear layers that read its features where a model has it, and otherwise the
            stream. In a model with none of them, its features are outputs and stay put.
        norms: Normalisations of its features.
        spaces: Entry of the config that counts the equal parts of its features that do not mix on
            their way to the readers; then a fit of all layers may put those of all models side by
            side. Left out, they are one.
    """

    dense: str
    readers: tuple[str, ...]
    norms: tuple[str, ...] = ()
    spaces: str = ""


@dataclass(frozen=True)
class AttentionPool:
    """A learnt probe that attends to the stream's tokens, with an MLP behind it.

    What it gives are outputs. All names but the first are relative to it.

    Args:
        module: The pooler.
        probe: Parameter `[1, 1, features]` that is the only query.
        attention: An `nn.MultiheadAttention`, whose queries, keys and values are the thirds of one
            parameter.
        norm: Normalisation of what the MLP reads.
        mlp_in: First linear layer of the MLP.
        mlp_out: Second linear layer of the MLP.
        switch: Entry of the config that says whether a model has it.
    """

    module: str
    probe: str
    attention: str
    norm: str
    mlp_in: str
    mlp_out: str
    switch: str


@dataclass(frozen=True)
class Adapter:
    """A family's table. All names are relative to what the comment of their block says.

    A name that a model does not have (an optional token, a pooler) is passed over; a parameter
    that no name covers is an error, so a misspelt name cannot go unnoticed.

    Args:
        name: Name of the family.
        model_types: The `config.model_type` values that this table describes.
        example: Returns a small randomly initialised model with a task head, for the laws.
        inputs: Returns random inputs for a config, a batch size and a generator.
        base: Name of the base model in a model with a head; left out, its `base_model_prefix`.
        config: Entry of a config with labels that holds the base model's config, if it has its own.

        embeddings: Parameters that write to the residual stream before the first block, and the
            dimension that carries its features. They are looked for below the base model and below
            the model itself; so are all names up to those of the blocks.
        embedding_norms: Normalisations of what the embeddings write.
        embedding_projection: Linear layer from features of the embeddings' own to the stream.
        embedding_output: Module whose output is the residual stream before the first block, where
            the embeddings are not projected.
        layers: The list of blocks, relative to the base model.
        norms: Normalisations of the stream after the blocks.
        readers: Linear layers outside the blocks that read the stream, and whose rows are outputs.
        poolers: Hidden layers between the stream and the outputs.
        attention_pool: A pooler that attends to the stream.
        outputs: Parameters outside the blocks that have one value per output, and stay put.

        query: Linear layers of the attention, relative to a block; so are the next ones.
        key: See `query`.
        value: See `query`.
        output: See `query`.
        mlp_in: First linear layer of the MLP.
        mlp_out: Second linear layer of the MLP.
        widths: Entries of the config that say how wide the stream is, beside `hidden_size`.
        units: Entry of the config that says how many hidden units the MLP has.
        score_biases: Parameters that add to the scores of each head, and the dimension that runs
            over the heads.
        block_norms: Normalisations inside a block, of the attention and of the MLP.
        block_scales: Parameters that scale what the attention and the MLP write, feature by
            feature.
        pre_norm: Whether a block normalises what it reads, not what it has written.
        key_bias: Whether the keys may have a bias.

        heads: Linear layers of the task head, whose rows are labels, relative to the model.
        head_parts: How many times the stream's features stand side by side in what a head reads.
        raw_head: Whether the head reads the stream as it is, and not its `norms`.
        partial: Whether the head reads the first token of the normalised stream and nothing else,
            so that the blocks can be shared in part.

        towers: Of a model with several stacks of blocks the tables of each, by the tower's name;
            what they put out lies in one joint space. The names above then say nothing, but for
            `outputs`. A model of these types that has one of the stacks alone is that table's.
    """

    name: str
    model_types: tuple[str, ...]
    example: Callable[[], PreTrainedModel]
    inputs: Callable[[PretrainedConfig, int, torch.Generator], dict[str, Tensor]]
    base: str = ""
    config: str = ""

    embeddings: Mapping[str, int] = field(default_factory=dict)
    embedding_norms: tuple[str, ...] = ()
    embedding_projection: str = ""
    embedding_output: str = "embeddings"
    layers: str = "layers"
    norms: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    poolers: tuple[Pooler, ...] = ()
    attention_pool: AttentionPool | None = None
    outputs: tuple[str, ...] = ()

    query: str = ""
    key: str = ""
    value: str = ""
    output: str = ""
    mlp_in: str = ""
    mlp_out: str = ""
    widths: tuple[str, ...] = ()
    units: str = "intermediate_size"
    score_biases: Mapping[str, int] = field(default_factory=dict)
    block_norms: tuple[str, ...] = ()
    block_scales: tuple[str, ...] = ()
    pre_norm: bool = True
    key_bias: bool = True

    heads: tuple[str, ...] = ()
    head_parts: int = 1
    raw_head: bool = False
    partial: bool = False

    towers: Mapping[str, "Adapter"] = field(default_factory=dict)


def adapters() -> dict[str, Adapter]:
    """Returns every known adapter by family name."""
    return discover("hf_zip.adapters")


def family(config: PretrainedConfig) -> str:
    """Returns the model type of a config; of a partial zip, that of its trunk."""
    trunk = getattr(config, "trunk_config", None)
    return str(config.model_type if trunk is None else trunk.model_type)


def adapter_of(model: PreTrainedModel) -> Adapter:
    """Returns the table that describes a model: of a family with towers, that of its only one.

    A model whose embeddings are as wide as its stream has no projection, and neither has its table.

    Raises:
        HfZipError: No family has a table for it.
    """
    adapter = adapter_for(family(model.config))
    modules = dict(model.named_children())
    present = [tower for tower in adapter.towers.values() if tower.base in modules]
    if len(present) == 1:
        return present[0]
    projection = adapter.embedding_projection
    if projection and not any(n.endswith(projection) for n, _ in model.named_modules()):
        return replace(adapter, embedding_projection="")
    return adapter


def table_of(model_type: str) -> Adapter | None:
    """Returns the adapter of a `config.model_type`; nothing if no family has a table for it."""
    for adapter in adapters().values():
        if model_type in adapter.model_types:
            return adapter
    return None


def adapter_for(model_type: str) -> Adapter:
    """Returns the adapter of a `config.model_type`.

    Raises:
        HfZipError: No family has a table for it.
    """
    adapter = table_of(model_type)
    if adapter is None:
        known = sorted(name for adapter in adapters().values() for name in adapter.model_types)
        raise HfZipError(
            f"models of type {model_type!r} have no table; there are tables of {', '.join(known)}. "
            "To add a family, write a table like hf_zip/adapters/vit.py (a file there, or an entry "
            "point in the group 'hf_zip.adapters'); `hf-zip inspect --propose MODEL` drafts one"
        )
    return adapter
