"""A mergekit configuration → a recipe that means the same, or why there is none."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from hf_zip.errors import HfZipError, unknown
from hf_zip.mergekit_methods import METHODS, known_parameters, recipe_of
from hf_zip.plain import kind

_KEYS = {
    "merge_method": "",
    "models": "",
    "base_model": "",
    "parameters": "",
    "dtype": "",
    "out_dtype": "",
    "tokenizer_source": "",
    "tokenizer": "",
    "chat_template": "",
    "slices": "layers of models would be put together to another architecture, which is no merge "
    "of whole models; list whole models under 'models'",
    "modules": "the parts of a model would be merged apart, by methods of their own; merge whole "
    "models under 'models'",
}
# Where one of these stands, a file is mergekit's; its other keys are keys of recipes here too.
_OWN_KEYS = ("out_dtype", "tokenizer_source", "tokenizer", "chat_template", "slices", "modules")
_OWN_PARAMETERS = ("normalize", "int8_mask", "lambda", "max_iter", "tol", "filter_wise", "epsilon")
_OWN_METHODS = ("linear", "dare_linear", "dare_ties", "breadcrumbs_ties", "della_linear")


def is_mergekit(values: Mapping[str, Any]) -> bool:
    """Tells whether a YAML file is one of mergekit's: it has a key or a method that only these do.

    Or it lists the base model among the models.

    Args:
        values: What the file holds.
    """
    parameters = values.get("parameters")
    own = [*parameters] if isinstance(parameters, Mapping) else []
    listed = values.get("models")
    models = [m.get("model") for m in listed if isinstance(m, Mapping)] if _is_list(listed) else []
    return (
        values.get("merge_method") in _OWN_METHODS
        or (values.get("base_model") is not None and values.get("base_model") in models)
        or any(key in values for key in _OWN_KEYS)
        or any(key in own for key in _OWN_PARAMETERS)
    )


def translated(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the recipe that means what a mergekit configuration does, and where it may differ.

    Every default that mergekit has is written out.

    Args:
        values: The configuration.

    Raises:
        HfZipError: Something of it has no counterpart here.

    Source: mergekit's docs/merge_methods.md (https://github.com/arcee-ai/mergekit) for what methods
    and parameters mean. Of trimmed numbers mergekit keeps the whole number below, here the nearest
    is kept; where votes for a sign cancel, it takes plus, here the base stays.
    """
    _check_keys(values)
    method = str(values.get("merge_method"))
    if method not in METHODS:
        raise unknown("merge_method of mergekit", method, METHODS)
    base, own = _models(values)
    common = _constants(values.get("parameters"), "parameters")
    for given, where in ((common, "parameters"), *((o, f"parameters of {n!r}") for n, o in own)):
        for key in given:
            if key not in (*known_parameters(method), "int8_mask"):
                known = known_parameters(method)
                raise unknown(f"parameter of mergekit's {method!r} in {where}", key, known)
    # A base among the models has no task vector.
    tuned = own if method in ("linear", "karcher") else [(n, o) for n, o in own if n != base]
    recipe, notes = recipe_of(method, base, tuned, common)
    notes += _tokenizer_notes(values)
    if common.get("int8_mask"):
        notes.append("int8_mask saves memory in mergekit and changes nothing here")
    dtype = values.get("out_dtype") or values.get("dtype")
    if dtype is None:
        notes.append("weights are written in float32, where mergekit keeps the models' precision")
    return recipe if dtype is None else {**recipe, "dtype": dtype}, notes


def _check_keys(values: Mapping[str, Any]) -> None:
    for key in values:
        if key not in _KEYS:
            raise unknown("key in the mergekit configuration", str(key), _KEYS)
        if _KEYS[key] and values[key] is not None:
            raise HfZipError(f"the mergekit configuration has {key!r}: {_KEYS[key]}")


def _models(
    values: Mapping[str, Any],
) -> tuple[str | None, list[tuple[str, dict[str, Any]]]]:
    """The base, and each model with its parameters."""
    listed = values.get("models")
    if not _is_list(listed):
        raise HfZipError(f"models should be a list, not {kind(listed)}")
    own = []
    for i, entry in enumerate(listed):
        if not isinstance(entry, Mapping) or "model" not in entry:
            raise HfZipError(f"models.{i} should be a mapping with the key 'model'")
        name = str(entry["model"])
        own.append((name, _constants(entry.get("parameters"), f"models.{i}.parameters")))
    base = values.get("base_model")
    return None if base is None else str(base), own


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _constants(parameters: Any, where: str) -> dict[str, Any]:
    """Parameters that are the same for all tensors.

    Raises:
        HfZipError: One differs between layers or tensors.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, Mapping):
        raise HfZipError(f"{where} should be a mapping of keys to values, not {kind(parameters)}")
    return {str(key): _constant(value, f"{where}.{key}") for key, value in parameters.items()}


def _constant(value: Any, where: str) -> Any:
    entries = value if isinstance(value, list) else [value]
    found = []
    for entry in entries:
        if isinstance(entry, Mapping):
            chosen = entry.get("filter")
            if chosen not in (None, "*"):
                raise HfZipError(
                    f"{where} is for tensors with {chosen!r} in their names only; here a parameter "
                    "is the same for all tensors, so give one number"
                )
            return _constant(entry.get("value"), where)  # the first without a condition decides
        found.append(entry)
    if any(entry != found[0] for entry in found):
        raise HfZipError(
            f"{where} is {value}, a gradient over the layers; here a parameter is the same for all "
            "layers, so give one number (methods of task vectors have layer_scale, a factor of the "
            "first block)"
        )
    return found[0]


def _tokenizer_notes(values: Mapping[str, Any]) -> list[str]:
    chosen = values.get("tokenizer_source")
    settings = values.get("tokenizer")
    if isinstance(settings, Mapping):
        chosen = settings.get("source", "base")
        more = [key for key in settings if key != "source"]
        if more:
            raise HfZipError(
                f"tokenizer.{more[0]} builds another vocabulary, which merges here do not; models "
                "should have the same tokens, in any order"
            )
    if chosen == "union":
        raise HfZipError(
            "tokenizer_source: union adds rows for tokens that some models lack, which merges here "
            "do not; models should have the same tokens, in any order. Leave it out"
        )
    notes = []
    if chosen is not None:
        notes.append(
            f"tokenizer_source: {chosen} has no counterpart: tokens in another order are put into "
            "that of the first model, whose tokenizer is kept, and other tokens are refused"
        )
    if values.get("chat_template") is not None:
        notes.append("chat_template is left out: the first model's tokenizer is kept as it is")
    return notes
