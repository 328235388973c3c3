"""Streaming statistics of activations: any split of the data over processes gives the same sums.

A new statistic is a new file here with an `ENTRY`; nothing else is edited.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hf_zip.registry import discover


@dataclass(frozen=True)
class Statistic:
    """An accumulator that can be named.

    Args:
        name: Name of the statistic.
        title: What it says about the features, in a few words.
        create: Makes an empty accumulator from a number of features and a `device`. Accumulators
            have `update(x)`, `state()` and `load_state(state)`, and all tensors of their state are
            plain sums: one sum over processes reduces them.
    """

    name: str
    title: str
    create: Callable[..., Any]


def statistics() -> dict[str, Statistic]:
    """Returns every known statistic by name."""
    return discover("hf_zip.statistics")
