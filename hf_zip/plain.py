"""Dataclasses from what YAML and JSON hold, with every key and type checked, and back."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from hf_zip.errors import HfZipError, unknown


def build(cls: type, values: Any, where: str) -> Any:
    """Returns a dataclass from a mapping, with every key and type checked.

    Args:
        cls: A dataclass whose fields are scalars, literals, mappings, dataclasses or tuples; its
            `REFUSED` may hold keys that somebody could expect of it, and why there are none.
        values: The mapping, as YAML holds it.
        where: What the mapping is, for messages.

    Raises:
        HfZipError: A key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise HfZipError(f"{where} should be a mapping of keys to values, not {kind(values)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    refused: Mapping[str, str] = getattr(cls, "REFUSED", {})
    for key in values:
        if key not in fields:
            if key in refused:
                raise HfZipError(f"{where} has its own {key!r}, but {refused[key]}")
            raise unknown(f"key in {where}", str(key), fields)
    for name, spec in fields.items():
        required = spec.default is dataclasses.MISSING and (
            spec.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise HfZipError(f"{where} lacks the key {name!r}")
    built = {
        key: _value(hints[key], value, key if where == "recipe" else f"{where}.{key}")
        for key, value in values.items()
    }
    return cls(**built)


def read_json(path: Path, reference: str) -> Any:
    """Returns what a JSON file of a checkpoint holds.

    Args:
        path: The file.
        reference: What the recipe calls the checkpoint, for messages.

    Raises:
        HfZipError: It is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HfZipError(f"{reference!r}: {path.name} is not valid JSON: {error}") from error


def plain(value: Any) -> Any:
    """Returns a value as dicts, lists and scalars, dataclasses with every field."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def assign_texts(values: dict[str, Any], assignments: Sequence[str]) -> None:
    """Makes `key=value` assignments, as `--set` takes them.

    Args:
        values: Nested dicts and lists; changed in place.
        assignments: Dotted keys and YAML values, such as `parameters.alpha=0.5`.

    Raises:
        HfZipError: An assignment has no `=`, its value is not YAML, or its key cannot be made.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise HfZipError(f"--set takes key=value, such as seed=1, not {assignment!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise HfZipError(f"--set {key}: {text!r} is not a YAML value: {error}") from error
        assign(values, key.split("."), value, assignment)


def assign(values: Any, path: list[str], value: Any, assignment: str) -> None:
    """Sets one dotted path in nested dicts and lists, making dicts where there is nothing yet.

    Args:
        values: The dicts and lists; changed in place.
        path: The parts of the path.
        value: What to set.
        assignment: The path and the value as they were given, for messages.

    Raises:
        HfZipError: The path does not exist and cannot be made.
    """
    head, *rest = path
    place: Any = values
    key: Any = head
    if isinstance(values, list):
        if not head.isdigit() or int(head) >= len(values):
            raise HfZipError(
                f"--set {assignment}: {head!r} should be a position from 0 to {len(values) - 1}"
            )
        key = int(head)
    elif not isinstance(values, dict):
        raise HfZipError(f"--set {assignment}: {head!r} is below a value that holds no keys")
    if not rest:
        place[key] = value
        return
    if isinstance(place, dict) and place.get(key) is None:
        place[key] = {}
    assign(place[key], rest, value, assignment)


def kind(value: Any) -> str:
    """Returns a value in the words of somebody who writes YAML, for messages."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return f"{value!r}"


def _value(hint: Any, value: Any, where: str) -> Any:
    """Returns a YAML value as the type that a field is declared with."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        hints = [arg for arg in get_args(hint) if arg is not type(None)]
        if isinstance(value, str) and str in hints:  # a number or any text
            return value
        # A number or one of a few words: what is text should be one of the words. A name or
        # several: what is a list should be several.
        origins: tuple[Any, ...] = (Literal,) if isinstance(value, str) else ()
        origins = (tuple,) if isinstance(value, list | tuple) else origins
        chosen = [arg for arg in hints if get_origin(arg) in origins] or hints
        return _value(chosen[0], value, where)
    if origin is Literal:
        if value not in get_args(hint):
            raise unknown(where, str(value), get_args(hint))
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, Sequence):
            raise HfZipError(f"{where} should be a list, not {kind(value)}")
        return tuple(
            _value(get_args(hint)[0], item, f"{where}.{i}") for i, item in enumerate(items)
        )
    if origin is Mapping:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise HfZipError(f"{where} should be a mapping of keys to values, not {kind(value)}")
        return dict(value)
    return _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    """Returns a scalar of the declared type; an int is a float, a bool is not an int."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise HfZipError(f"{where} should be {_NAMES[hint]}, not {kind(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise HfZipError(f"{where} is {value}; it should be a finite number")
    return value


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
