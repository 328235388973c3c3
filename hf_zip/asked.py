"""The arguments of `hf_zip.merge` → the request that they describe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from hf_zip.errors import HfZipError
from hf_zip.given import given_calibration, given_labelled
from hf_zip.recipe import Recipe
from hf_zip.request import Request

_FOR_LISTS = "give them in the recipe, or give a list of models instead of a recipe"


def read_request(
    models: Recipe | Mapping[str, Any] | str | Path | Sequence[str | Path | PreTrainedModel],
    method: str | None = None,
    tasks: Sequence[str | None] | None = None,
    processor: Any = None,
    calibration: Any = None,
    evaluation: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    recipe_keys: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    own_calibration: Sequence[Any] | None = None,
    own_bases: Sequence[str | Path | PreTrainedModel | None] | None = None,
) -> Request:
    """Returns the request that the arguments of `hf_zip.merge` describe.

    Raises:
        HfZipError: The arguments contradict one another or do not make a recipe.
    """
    recipe = _as_recipe(models)
    if recipe is not None:
        given = {"method": method, "tasks": tasks, "calibration": calibration}
        given |= {"evaluation": evaluation, "validation": validation}
        given |= {"own_calibration": own_calibration, "own_bases": own_bases}
        given |= recipe_keys or {}
        twice = [name for name, value in given.items() if value is not None]
        if twice:
            raise HfZipError(f"the recipe decides {', '.join(twice)}; {_FOR_LISTS}")
        return Request(recipe, processor=processor)
    if method is None:
        raise HfZipError("no merge method; give method=NAME, such as method='zipit'")
    listed: list[Any] = list(cast("Sequence[Any]", models))
    task_names = _one_each(listed, tasks, "tasks", "give one task per model")
    own = [
        given_calibration(given)
        for given in _one_each(
            listed,
            own_calibration,
            "entries of own_calibration",
            "give one per model, None for a model without inputs of its own",
        )
    ]
    bases = _one_each(
        listed,
        own_bases,
        "entries of own_bases",
        "give one per model, None for a model without a base of its own",
    )
    in_memory = {i: m for i, m in enumerate(listed) if isinstance(m, PreTrainedModel)}
    names = [f"model_{i}" if i in in_memory else str(m) for i, m in enumerate(listed)]
    bases_in_memory = {i: m for i, m in enumerate(bases) if isinstance(m, PreTrainedModel)}
    base_names = [
        f"base_{[id(other) for other in bases].index(id(own))}"
        if i in bases_in_memory
        else None
        if own is None
        else str(own)
        for i, own in enumerate(bases)
    ]
    keys = dict(recipe_keys or {})
    base = keys.get("base_model")
    base = base if isinstance(base, PreTrainedModel) else None
    if base is not None:
        keys["base_model"] = "base_model"
    calibration_spec, calibration_memory = given_calibration(calibration)
    evaluation_specs, evaluation_memory = given_labelled(evaluation)
    validation_specs, validation_memory = given_labelled(validation)
    values = {
        "merge_method": method,
        "models": [
            {"model": name, "task": task, "calibration": spec, "base_model": origin}
            for name, task, (spec, _), origin in zip(
                names, task_names, own, base_names, strict=True
            )
        ],
        "calibration": calibration_spec,
        "evaluation": evaluation_specs,
        "validation": validation_specs,
        **keys,
    }
    return Request(
        Recipe.from_dict(values),
        in_memory,
        base,
        processor,
        calibration_memory,
        evaluation_memory,
        validation_memory,
        {i: data for i, (_, data) in enumerate(own) if data is not None},
        bases_in_memory,
    )


def _one_each(
    models: Sequence[Any], given: Sequence[Any] | None, what: str, remedy: str
) -> Sequence[Any]:
    """Returns what was given for every model, `None` for each where nothing was."""
    if given is None:
        return [None] * len(models)
    if len(given) != len(models):
        raise HfZipError(f"there are {len(models)} models but {len(given)} {what}; {remedy}")
    return given


def _as_recipe(models: Any) -> Recipe | None:
    if isinstance(models, Recipe):
        return models
    if isinstance(models, Mapping):
        return Recipe.from_dict(models)
    if isinstance(models, str | Path):
        return Recipe.from_yaml(models)
    return None
