"""A mergekit configuration → a recipe that means the same, or why there is none."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from hf_zip.errors import HfZipError, unknown
from hf_zip.mergekit_methods import METHODS, REFUSED, Settings, known_parameters, recipe_of
from hf_zip.mergekit_values import setting
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
_MODEL_KEYS = ("model", "parameters")
# Where one of these stands, a file is mergekit's; its other keys are keys of recipes here too.
_OWN_KEYS = ("out_dtype", "tokenizer_source", "tokenizer", "chat_template", "slices", "modules")
_OWN_PARAMETERS = ("normalize", "int8_mask", "lambda", "max_iter", "tol", "filter_wise", "epsilon")
_OWN_METHODS = (
    "linear",
    "nuslerp",
    "multislerp",
    "dare_linear",
    "dare_ties",
    "breadcrumbs_ties",
    "della_linear",
    *REFUSED,
)


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
        or ("density" in own and values.get("merge_method") in ("breadcrumbs", "della"))
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
    if method in REFUSED:
        raise HfZipError(f"mergekit's {method!r} {REFUSED[method]}")
    if method not in METHODS:
        raise unknown("merge_method of mergekit", method, METHODS)
    base, own = _models(values)
    common = _settings(values.get("parameters"), "parameters")
    for given, where in ((common, "parameters"), *((o, f"parameters of {n!r}") for n, o in own)):
        for key in given:
            if key not in (*known_parameters(method), "int8_mask"):
                known = known_parameters(method)
                raise unknown(f"parameter of mergekit's {method!r} in {where}", key, known)
    # A base among the models has no task vector.
    tuned = own if method in ("linear", "karcher") else [(n, o) for n, o in own if n != base]
    recipe, notes = recipe_of(method, base, tuned, common)
    notes += _varying_notes([common, *(options for _, options in own)])
    notes += _tokenizer_notes(values)
    if "int8_mask" in common and any(common["int8_mask"].values):
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
) -> tuple[str | None, list[tuple[str, Settings]]]:
    """The base, and each model with its parameters."""
    listed = values.get("models")
    if not _is_list(listed):
        raise HfZipError(f"models should be a list, not {kind(listed)}")
    own: list[tuple[str, Settings]] = []
    for i, entry in enumerate(listed):
        if not isinstance(entry, Mapping) or "model" not in entry:
            raise HfZipError(f"models.{i} should be a mapping with the key 'model'")
        for key in entry:
            if key not in _MODEL_KEYS:
                raise unknown(f"key in models.{i}", str(key), _MODEL_KEYS)
        name = str(entry["model"])
        own.append((name, _settings(entry.get("parameters"), f"models.{i}.parameters")))
    base = values.get("base_model")
    return None if base is None else str(base), own


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _settings(parameters: Any, where: str) -> Settings:
    """Parameters as mergekit reads them."""
    if parameters is None:
        return {}
    if not isinstance(parameters, Mapping):
        raise HfZipError(f"{where} should be a mapping of keys to values, not {kind(parameters)}")
    return {str(key): setting(value, f"{where}.{key}") for key, value in parameters.items()}


def _varying_notes(given: Sequence[Settings]) -> list[str]:
    settings = [found for parameters in given for found in parameters.values()]
    notes = []
    if any(found.is_gradient for found in settings):
        notes.append(
            "what follows the layers has the last value of a gradient, where mergekit gives it the "
            "first"
        )
    if any(found.has_filters for found in settings):
        notes.append(
            "filters are looked for in the names that parameters have in transformers, which may "
            "differ from those in files, and one that is in no name is refused"
        )
    return notes


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
