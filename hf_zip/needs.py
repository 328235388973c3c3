"""What a method needs of a request, checked before anything is loaded."""

from hf_zip.choices import method_options
from hf_zip.errors import HfZipError
from hf_zip.lora_output import check_lora
from hf_zip.method import MergeMethod
from hf_zip.methods import methods
from hf_zip.recipe import Recipe, Unmerge
from hf_zip.request import Request


def check_needs(method: MergeMethod, request: Request) -> None:
    """Checks that a method gets what it needs, before anything is loaded.

    Raises:
        HfZipError: It needs unlabelled inputs or a base model, and there are none; it merges
            another number of models; or it cannot give what the recipe asks of it.
    """
    recipe = request.recipe
    method = method.with_options(method_options(method, recipe.parameters))
    if method.per_task:
        _check_per_task(method, recipe)
    resolve_unmerge(method, request)
    if request.own_inputs and not method.requires.own_inputs:
        able = ", ".join(name for name, known in methods().items() if known.requires.own_inputs)
        raise HfZipError(
            f"models.{request.own_inputs[0]} has its own 'calibration', but {method.name!r} "
            "compares all models on the same inputs: with inputs of its own for each, nothing "
            "tells which features belong together. List all data sets under 'calibration: {data: "
            f"[...]}}' of the recipe, or use one of the methods {able}"
        )
    _check_own_bases(method, request)
    if method.requires.calibration and not request.has_calibration:
        raise HfZipError(
            f"{method.name!r} needs unlabelled inputs to run the models on; give calibration "
            "data, such as --calibration images/ or 'calibration: {data: images/}' in the recipe"
            + _of_each(method)
        )
    count = method.requires.models
    if count is not None and len(recipe.models) != count:
        raise HfZipError(
            f"{method.name!r} merges {count} models, but there are {len(recipe.models)}; give "
            f"{count}, or use a method for any number, such as 'karcher' or 'average'"
        )
    if method.requires.any_base and recipe.base_model is None:
        raise HfZipError(
            f"{method.name!r} is to take base_model as the root, but there is none; give "
            "base_model (--base), or the position of a model as root"
        )
    if method.requires.base and recipe.base_model is None:
        raise HfZipError(
            f"{method.name!r} needs the model that the others were fine-tuned from; give "
            "base_model (--base)"
        )
    if recipe.output == "lora":
        check_lora(method, request)
    if by_accuracy(recipe) and not request.validates:
        raise HfZipError(
            "budget.points chooses the depth by accuracy, and the choice must not see the data "
            "that the result is reported on; give labelled data of every task as validation"
        )
    if request.validates and not by_accuracy(recipe):
        raise HfZipError(
            "validation data choose the depth with stop_at: auto and 'budget: {points: 1.0}', but "
            "there is no such budget; leave them out"
        )


def _check_own_bases(method: MergeMethod, request: Request) -> None:
    named = [i for i, spec in enumerate(request.recipe.models) if spec.base_model is not None]
    if named and not method.requires.own_bases:
        able = ", ".join(name for name, known in methods().items() if known.requires.own_bases)
        raise HfZipError(
            f"models.{named[0]} has its own 'base_model', but {method.name!r} brings nothing from "
            f"one base to another; leave it out, or use {able}"
        )


def _check_per_task(method: MergeMethod, recipe: Recipe) -> None:
    """Checks that a merge with weights of every task is not asked to share blocks or fit maps."""
    for key in ("stop_at", "unmerge"):
        value = getattr(recipe, key)
        if value is not None:
            raise HfZipError(
                f"{key} is {value}, but {method.name!r} gives every task weights of its own in all "
                f"blocks, so there are no tails behind shared blocks; leave {key} out"
            )


def resolve_unmerge(method: MergeMethod, request: Request) -> Unmerge:
    """Returns how the tails of a partial zip are to read what is shared.

    Raises:
        HfZipError: They should be exact, and the method does more than move features.
    """
    asked = request.recipe.unmerge
    if asked == "exact" and not method.exact:
        able = ", ".join(name for name, known in methods().items() if known.exact)
        raise HfZipError(
            f"unmerge is exact, but {method.name!r} merges features into ones that none of the "
            f"models has, which cannot be undone; use unmerge: ridge, or one of the methods {able}"
        )
    if asked is not None:
        return asked
    return "exact" if method.exact and not request.has_calibration else "ridge"


def by_accuracy(recipe: Recipe) -> bool:
    """Tells whether the depth of a partial zip is chosen by accuracy."""
    return recipe.budget is not None and recipe.budget.points is not None


def _of_each(method: MergeMethod) -> str:
    return ", or some of its own for every model" if method.requires.own_inputs else ""
