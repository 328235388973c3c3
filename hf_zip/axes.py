"""What a merge group is: the dimensions of parameters that carry the same features."""

from dataclasses import dataclass
from typing import Literal

Role = Literal[
    "stream",
    "embeddings",
    "value",
    "query_key",
    "mlp",
    "pooler",
    "pool_value",
    "pool_query_key",
    "joint",
]


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
    """A place where features are observed.

    Args:
        module: A module, as in `named_modules()`.
        side: What goes into it, or what comes out of it; of an `nn.MultiheadAttention` also its
            keys or its values, which no module of its own gives.
    """

    module: str
    side: Literal["input", "output", "keys", "values"]


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
