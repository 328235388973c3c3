"""A folder is a registry: every module with an `ENTRY`, and every entry point of the same name."""

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from hf_zip.errors import HfZipError


@cache
def discover(package: str) -> dict[str, Any]:
    """Returns the entries of a registry package, by name, in alphabetical order.

    A module of the package that defines `ENTRY` is an entry. A third party adds one by an entry
    point in the group named like the package, such as `hf_zip.methods`.

    Args:
        package: Dotted name of the registry package.

    Raises:
        HfZipError: Two entries have one name.
    """
    found: list[tuple[str, Any]] = []
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        loaded = importlib.import_module(f"{package}.{module.name}")
        if hasattr(loaded, "ENTRY"):
            found.append((f"{package}.{module.name}", loaded.ENTRY))
    found += [(point.value, point.load()) for point in entry_points(group=package)]

    entries: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, entry in sorted(found, key=lambda pair: pair[1].name):
        if entry.name in entries:
            raise HfZipError(
                f"{package} has two entries named {entry.name!r}, from {origins[entry.name]} and "
                f"{origin}; rename or uninstall one of them"
            )
        entries[entry.name], origins[entry.name] = entry, origin
    return entries
