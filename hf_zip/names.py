"""A family's table → the modules and parameters that a model really has."""

from collections.abc import Iterator

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.errors import HfZipError


def owner(model: nn.Module, module: str) -> nn.Module:
    """Returns the innermost transformers model that a module belongs to; without one the outermost.

    Args:
        model: A model.
        module: Name of one of its modules; empty for the model itself.
    """
    modules = [model]
    for part in module.split(".") if module else ():
        modules.append(getattr(modules[-1], part))
    return next((m for m in reversed(modules) if isinstance(m, PreTrainedModel)), model)


def config_of(model: PreTrainedModel, module: str) -> PretrainedConfig:
    """Returns the config of the innermost model that a module belongs to.

    Args:
        model: A model.
        module: Name of one of its modules; empty for the model itself.
    """
    found: PretrainedConfig = owner(model, module).config
    return found


class Names:
    """Resolves a table's relative names in one model.

    Args:
        model: A model of the adapter's family, with or without a task head.
        adapter: The family's table.

    Raises:
        HfZipError: The model has no blocks where the table expects them.
    """

    def __init__(self, model: PreTrainedModel, adapter: Adapter) -> None:
        self.model, self.adapter = model, adapter
        self.modules = dict(model.named_modules())
        self.parameters = dict(model.named_parameters())
        firsts = {id(parameter): name for name, parameter in self.parameters.items()}
        every = model.named_parameters(remove_duplicate=False)
        self._firsts = {name: firsts[id(parameter)] for name, parameter in every}
        prefix = adapter.base or model.base_model_prefix
        self.prefix = f"{prefix}." if prefix in self.modules else ""
        blocks = self.modules.get(self.prefix + adapter.layers)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            raise HfZipError(
                f"{type(model).__name__} has no blocks at {self.prefix + adapter.layers!r}, where "
                f"the adapter {adapter.name!r} expects them; the adapter does not fit this class"
            )
        self.num_layers = len(blocks)

    @property
    def num_heads(self) -> int:
        """Number of heads of each attention."""
        base = self.modules[self.prefix.removesuffix(".")]
        count: int = base.config.num_attention_heads
        return count

    def base(self, name: str) -> str:
        """The full name of what a table names below the base model."""
        return self.prefix + name

    def block(self, layer: int, name: str) -> str:
        """The full name of what a table names below a block."""
        return f"{self.prefix}{self.adapter.layers}.{layer}.{name}"

    def parameter(self, name: str) -> str | None:
        """The name of a parameter in `named_parameters()`, also where it is tied to another."""
        return self._firsts.get(name)

    def places(self, name: str) -> tuple[str, ...]:
        """The full names that a name outside the blocks may mean."""
        return tuple(dict.fromkeys((self.base(name), name)))

    def linears(self, name: str) -> Iterator[str]:
        """The linear layers of a name outside the blocks."""
        for place in self.places(name):
            if isinstance(self.modules.get(place), nn.Linear):
                yield place

    def weight_and_bias(self, module: str) -> Iterator[str]:
        """The names of a module's parameters."""
        for kind in ("weight", "bias"):
            name = self.parameter(f"{module}.{kind}")
            if name is not None:
                yield name

    def size(self, module: str) -> int:
        """Number of output features of a linear layer of a block.

        Raises:
            HfZipError: The model does not have it.
        """
        weight = self.parameters.get(f"{module}.weight")
        if weight is None:
            raise HfZipError(
                f"{type(self.model).__name__} has no parameter {module}.weight, which the adapter "
                f"{self.adapter.name!r} names; the adapter does not fit this class"
            )
        return weight.shape[0]
