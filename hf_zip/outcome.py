"""What a merge method returns: parameters, heads, and what is kept of every model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hf_zip.align import State


@dataclass(frozen=True)
class Masked:
    """One task vector for all models, and which of its numbers each of them takes.

    A model is the base plus its scale times the numbers of the vector that its mask leaves.

    Args:
        base: Parameters of the base model by name; others are each model's own.
        vector: What all models share beside them, by name.
        masks: Of each parameter the bits of all models, `[models, bytes]`.
        scales: One factor for each model.
    """

    base: State
    vector: State
    masks: State
    scales: tuple[float, ...]


@dataclass(frozen=True)
class Routed:
    """What each model is beside what all share, and what tells whose an input is.

    Args:
        weight: Of the router, a row for every model.
        bias: The same.
        reads: Name of the module whose input the router reads.
        routing: See `HfZipRoutedConfig`.
        left: Of each parameter that is cut to a rank the thin matrices of all models that give its
            rows, by name; with those on the right they are added to what is shared.
        right: Those that give its columns.
        whole: The same of parameters that are not cut, `[models, ...]`.
        rank: Share of the directions of a matrix that are kept.
        separate: What takes the place of what is shared, of all models but the first, whose own
            that is: `[models - 1, ...]`, by name.
        selects: See `HfZipRoutedConfig`; for tasks that allow it.
    """

    weight: Tensor
    bias: Tensor
    reads: str
    routing: str
    left: State = field(default_factory=dict)
    right: State = field(default_factory=dict)
    whole: State = field(default_factory=dict)
    rank: float = 1.0
    separate: State = field(default_factory=dict)
    selects: bool = False


@dataclass(frozen=True)
class Mixture:
    """What each model changed of the MLPs, and what says how much of it is added for an input.

    Args:
        mlps: Of each block the names of the two linear layers of its MLP.
        parts: Of each block the parameters of its `RoutedMlp` by name: task vectors and router.
        layers: How many linear layers a router has.
    """

    mlps: tuple[tuple[str, str], ...]
    parts: tuple[State, ...]
    layers: int


@dataclass(frozen=True)
class Merged:
    """The result of a method, before it is put together as a model.

    Args:
        state: Shared parameters by name, heads left out.
        heads: For each source its head's parameters, rewritten to read the merged features.
        provenance: What the method found, as plain values for the report.
        config: Entries of the config that differ from the sources'.
        aligned: Each source's parameters, heads included, rewritten in the merged features; nothing
            for a method that has no such maps. They go with `config`, as the merged ones do.
        weights: Share of each source in rows that several heads have; nothing where all have the
            same.
        kept: What is kept of every model, for a method that keeps something; then the merge is a
            model of hf_zip's own, and `state` is what the models share.
    """

    state: dict[str, Tensor]
    heads: tuple[dict[str, Tensor], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    aligned: tuple[State, ...] = ()
    weights: tuple[float, ...] = ()
    kept: Masked | Routed | Mixture | None = None
