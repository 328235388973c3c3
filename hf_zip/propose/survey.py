"""One forward of a model on random inputs: which modules ran, in what order, and who reads whom."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_zip.errors import HfZipError
from hf_zip.probe import random_inputs

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Seen:
    """The first call of a module.

    Args:
        order: When it ended, among all modules.
        given: Its first tensor argument; nothing if it has none.
        output: Its first tensor output; nothing if it has none.
    """

    order: int
    given: Tensor | None
    output: Tensor | None


class Survey:
    """One forward of a model on random inputs, module by module.

    Args:
        model: The model, its parameters random and in float64.

    Raises:
        HfZipError: It cannot be run on inputs that are made up here, or has no list of equal
            blocks.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.modules = model, dict(model.named_modules())
        self.layers = _layers(model)
        self.block = f"{self.layers}.0"
        generator = torch.Generator().manual_seed(0)
        self._inputs = {
            key: value.double() if value.is_floating_point() else value
            for key, value in random_inputs(model, 2, generator).items()
        }
        before = torch.get_rng_state()
        self.seen, self.runs = self._run()
        if not torch.equal(torch.get_rng_state(), before):
            raise HfZipError(
                f"{type(model).__name__} draws random numbers, so what changes its outputs cannot "
                "be told; write its table by hand, like hf_zip/adapters/vit.py"
            )

    @property
    def width(self) -> int:
        """Features of the stream."""
        return self.output(self.block).shape[-1]

    def given(self, name: str) -> Tensor:
        """What a module read first, one that takes features as blocks and linear layers do."""
        given: Any = self.seen[name].given
        return given

    def output(self, name: str) -> Tensor:
        """What such a module gave first."""
        output: Any = self.seen[name].output
        return output

    @property
    def in_order(self) -> list[str]:
        """The names of the modules that ran, by when they ended."""
        return sorted(self.seen, key=lambda name: self.seen[name].order)

    def linears(self, inside: bool) -> list[str]:
        """The linear layers that ran, inside the first block or outside the blocks, in order."""
        return [
            name
            for name in self.in_order
            if isinstance(self.modules[name], nn.Linear) and self._is_at(name, inside)
        ]

    def norms(self, inside: bool) -> list[str]:
        """The same of the modules that have a gain for every feature that they pass on."""
        return [n for n in self.in_order if is_norm(self.modules[n]) and self._is_at(n, inside)]

    def before_blocks(self, name: str) -> bool:
        """Whether a module ran before the first block."""
        return self.seen[name].order < self.seen[self.block].order

    def feeds(self, writer: str, reader: str) -> bool:
        """Whether what a module reads depends on what another one gives."""
        given, output = self.seen[reader].given, self.seen[writer].output
        if given is None or output is None or not given.requires_grad or not output.requires_grad:
            return False
        if given is output:
            return True
        (grad,) = torch.autograd.grad(given.sum(), output, retain_graph=True, allow_unused=True)
        return grad is not None

    def changed(self, module: str, change: Change, reader: str) -> Tensor:
        """What a module reads once the output of another one is changed."""
        with _changing(self.modules[module], change):
            given: Any = self._run()[0][reader].given
        return given

    @property
    def base(self) -> str:
        """The name of the base model in a model with a head, and a point."""
        if self.usual_base.removesuffix(".") in self.modules:
            return self.usual_base
        if type(self.model).__name__ in modeling_auto.MODEL_MAPPING_NAMES.values():
            return self.usual_base
        around = [
            name
            for name, module in self.modules.items()
            if isinstance(module, PreTrainedModel) and self.layers.startswith(f"{name}.")
        ]
        return f"{min(around, key=len)}." if around else self.usual_base

    @property
    def base_config(self) -> Any:
        """The config of the base model."""
        return getattr(self.modules.get(self.base.removesuffix(".")), "config", self.model.config)

    @property
    def usual_base(self) -> str:
        """The same by the model's own word, which is not always true."""
        return f"{self.model.base_model_prefix}."

    def short(self, name: str) -> str:
        """A name below the base model, or below the model itself where it is not in that."""
        return name.removeprefix(self.base)

    def _is_at(self, name: str, inside: bool) -> bool:
        if inside:
            return name.startswith(f"{self.block}.")
        return not name.startswith(f"{self.layers}.")

    def _run(self) -> tuple[dict[str, Seen], int]:
        seen: dict[str, Seen] = {}
        counts = {"block": 0}
        handles = [
            module.register_forward_hook(_keeper(seen, name, counts, self.block), with_kwargs=True)
            for name, module in self.modules.items()
        ]
        try:
            self.model(**self._inputs)
        except Exception as error:  # whatever a foreign class makes of random inputs
            raise HfZipError(
                f"{type(self.model).__name__} does not run on random inputs "
                f"({', '.join(self._inputs) or 'none are known for it'}): {error}; write its table "
                "by hand, like hf_zip/adapters/vit.py"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        if self.block not in seen or seen[self.block].output is None:
            raise HfZipError(
                f"{self.block!r} of {type(self.model).__name__} looks like its first block, but "
                "gives no features; write its table by hand, like hf_zip/adapters/vit.py"
            )
        return seen, counts["block"]


def is_norm(module: nn.Module) -> bool:
    """Whether a module's own parameters are a gain, and perhaps a bias, for every feature."""
    own = dict(module.named_parameters(recurse=False))
    gains = "weight" in own and own.keys() <= {"weight", "bias"}
    return gains and all(parameter.dim() == 1 for parameter in own.values())


def _keeper(seen: dict[str, Seen], name: str, counts: dict[str, int], block: str) -> Any:
    def keep(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        counts["block"] += name == block
        if name not in seen:
            seen[name] = Seen(len(seen), _first((*args, *kwargs.values())), _first(output))

    return keep


def _first(values: Any) -> Tensor | None:
    """The first tensor in what a module takes or gives."""
    if isinstance(values, Tensor):
        return values
    if isinstance(values, Mapping):
        values = tuple(values.values())
    if isinstance(values, Sequence) and not isinstance(values, str):
        return next((value for value in values if isinstance(value, Tensor)), None)
    return None


@contextmanager
def _changing(module: nn.Module, change: Change) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, __, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def _layers(model: PreTrainedModel) -> str:
    """The name of the list of equal blocks that holds most of a model's parameters."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and _equal(module)
    }
    if not found:
        raise HfZipError(
            f"{type(model).__name__} has no list of equal blocks, which a table describes; "
            "features are not matched in such a model"
        )
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in found.items()}
    # Of lists in lists with the same parameters, the innermost.
    best = max(found, key=lambda name: (sizes[name], len(name)))
    block = type(found[best][0])
    rivals = [
        name
        for name, module in found.items()
        if name != best and type(module[0]) is block and not _nested(name, best)
    ]
    if rivals:
        raise HfZipError(
            f"{type(model).__name__} has several lists of {block.__name__}, {best} and "
            f"{', '.join(rivals)}, but a table describes one stream of one width; give a model of "
            "one part, if there is one"
        )
    return best


def _equal(blocks: nn.ModuleList) -> bool:
    """Whether all blocks are of one class, and what they share has one shape."""
    shapes = [{name: p.shape for name, p in block.named_parameters()} for block in blocks]
    first = shapes[0]
    return bool(first) and all(
        type(block) is type(blocks[0])
        and all(own[name] == first[name] for name in own.keys() & first.keys())
        for block, own in zip(blocks, shapes, strict=True)
    )


def _nested(name: str, other: str) -> bool:
    return name.startswith(f"{other}.") or other.startswith(f"{name}.")
