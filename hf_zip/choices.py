"""The options that a recipe chooses for a method and its models, and which of them vary."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.lineage import weight_of
from hf_zip.method import MergeMethod
from hf_zip.places import places
from hf_zip.recipe import ModelSpec, Recipe
from hf_zip.varying import Variation, Varied, build_options, varied_by_name


@dataclass(frozen=True)
class Choices:
    """What a recipe chooses.

    Args:
        options: The method's options; of those that vary the last value.
        models: The same of each model.
        varying: The method's options that vary.
        models_varying: The same of each model.
    """

    options: Any
    models: tuple[Any, ...]
    varying: Mapping[str, Variation]
    models_varying: tuple[Mapping[str, Variation], ...]

    def settled(self, model: PreTrainedModel, adapter: Adapter | None) -> "Choices":
        """Returns the same with what the method's options leave to the models.

        Args:
            model: One of the models.
            adapter: Their family's table; nothing if there is none.
        """
        settle = getattr(self.options, "settled", None)
        return self if settle is None else replace(self, options=settle(model, adapter))

    def weighted(self, specs: Sequence[ModelSpec], sources: Sequence[PreTrainedModel]) -> "Choices":
        """Returns the same, but models without a weight weigh as much as their sources together.

        Args:
            specs: The models as the recipe lists them.
            sources: The models.
        """
        models = [
            replace(options, weight=weight_of(source.config))
            if hasattr(options, "weight") and "weight" not in spec.parameters
            else options
            for options, spec, source in zip(self.models, specs, sources, strict=True)
        ]
        return replace(self, models=tuple(models))

    def varied(
        self, model: PreTrainedModel, adapter: Adapter | None, names: Iterable[str]
    ) -> dict[str, Varied]:
        """Returns what options that vary are for each parameter; nothing where none varies.

        Args:
            model: One of the models.
            adapter: Their family's table; nothing if there is none.
            names: Its parameters and running statistics.

        Raises:
            HfZipError: A rule is for no parameter, or a value is out of range.
        """
        if not (self.varying or any(self.models_varying)):
            return {}
        every = places(model, adapter, names)
        found = varied_by_name(every, self.varying, self.models_varying)
        for own in found.values():  # options check their ranges when they are made
            own.of_method(self.options)
            own.of_models(self.models)
        return found


def method_options(method: MergeMethod, values: Mapping[str, Any]) -> Any:
    """Returns a method's options in a recipe's `parameters`; of those that vary the last value.

    Raises:
        HfZipError: They are not options of the method.
    """
    return build_options(method.options, values, "parameters", _may_vary(method))[0]


def choices(method: MergeMethod, recipe: Recipe) -> Choices:
    """Returns what a recipe chooses for a method and its models.

    Raises:
        HfZipError: They have no such options.
    """
    may = _may_vary(method)
    options, varying = build_options(method.options, recipe.parameters, "parameters", may)
    models = [
        build_options(method.model_options, spec.parameters, f"models.{i}.parameters", may)
        for i, spec in enumerate(recipe.models)
    ]
    return Choices(
        options, tuple(own for own, _ in models), varying, tuple(rules for _, rules in models)
    )


def _may_vary(method: MergeMethod) -> bool:
    """Whether a method merges one parameter at a time."""
    return method.combination is not None
