"""What a model calls its blocks with, and another module that is called in their place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """What a module was called with, but for its first argument.

    Args:
        others: The other positional arguments.
        keywords: The other arguments by name.
        name: Name of the first argument where it was given by name.
    """

    others: tuple[Any, ...]
    keywords: Mapping[str, Any]
    name: str | None = None

    def again(self, module: nn.Module, first: Tensor) -> Tensor:
        """Returns what a module gives for a first argument and the same others."""
        named = {} if self.name is None else {self.name: first}
        given = (first, *self.others) if self.name is None else ()
        output = module(*given, **named, **self.keywords)
        return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def first_call(model: nn.Module, block: str, batch: Mapping[str, Tensor]) -> tuple[Tensor, Call]:
    """Returns with what a forward calls its first block: first argument, and others.

    Args:
        model: The model; its blocks do not run.
        block: Full name of the first block.
        batch: Arguments of the model.
    """
    recorder = _Recorder()
    with in_place_of_blocks(model, block.rpartition(".")[0], recorder):
        model(**batch)
    return recorder.calls[0]


@contextmanager
def in_place_of_blocks(model: nn.Module, layers: str, module: nn.Module) -> Iterator[None]:
    """Has a model run another module instead of its blocks.

    Args:
        model: The model; its blocks are back in the end.
        layers: Full name of the list of its blocks.
        module: Takes what a block takes and gives a stream.
    """
    blocks = model.get_submodule(layers)
    model.set_submodule(layers, nn.ModuleList([module]))
    try:
        yield
    finally:
        model.set_submodule(layers, blocks)


class _Recorder(nn.Module):
    """Keeps what it is called with, and gives the first of it back."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Call]] = []

    def forward(self, *given: Any, **keywords: Any) -> Tensor:
        if given:
            first, call = given[0], Call(given[1:], keywords)
        else:
            name = next(iter(keywords))
            first = keywords[name]
            call = Call((), {key: x for key, x in keywords.items() if key != name}, name)
        self.calls.append((first, call))
        return first
