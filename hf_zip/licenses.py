"""Licences of models and of their merge: compared, and stated where there is no doubt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What a card says that states no licence.
_NONE = ("other", "unknown")
# What licences with such words in their names ask of those who publish adapted works.
_TERMS = (
    ("-nd", "forbids publishing adapted works"),
    ("-nc", "forbids commercial use"),
    ("-sa", "asks that adapted works have the same licence"),
    ("gpl", "asks that adapted works have the same licence"),
)


@dataclass(frozen=True)
class License:
    """A licence as a model card states it.

    Args:
        name: What it is called: the Hub's name of it, or its own.
        listed: Whether the name is the Hub's; else the card has `license: other` and this name.
        link: Where its text is, if the card says so.
    """

    name: str
    listed: bool = True
    link: str | None = None


def common_license(licenses: Sequence[License | None]) -> License | None:
    """Returns the licence that all models state, if it is one and the same.

    Args:
        licenses: The licence of each model; nothing where it states none.
    """
    first, *others = licenses
    if first is None or first.name.lower() in _NONE:
        return None
    for other in others:
        if other is None or other.name.lower() != first.name.lower() or other.link != first.link:
            return None
    return License(first.name.lower()) if first.listed else first


def stated_licenses(sources: Sequence[Any]) -> dict[str, License | None]:
    """Returns what each source states, and what the base of each that is an adapter does.

    Args:
        sources: Sources or their records.
    """
    stated = {}
    for source in sources:
        stated[source.name] = source.license
        if source.adapter_base is not None:
            stated[f"the base of {source.name}"] = source.adapter_base.license
    return stated


def license_warnings(licenses: Mapping[str, License | None]) -> list[str]:
    """Returns what somebody who publishes a merge should know of the licences of its sources.

    Nothing is said where no source states one, as of models that were never published.

    Args:
        licenses: The licence of each source by its name; nothing where it states none.
    """
    stated = {name: found.name for name, found in licenses.items() if found is not None}
    if not stated:
        return []
    warnings = []
    if common_license([*licenses.values()]) is None:
        listed = "; ".join(f"{name!r} states {stated.get(name, 'none')}" for name in licenses)
        warnings.append(
            f"the models do not state one and the same licence ({listed}), so the card of the "
            "merge states none; see what they allow before you publish it, and give the licence "
            "that it has under 'license' in the recipe (--license)"
        )
    for part, term in _TERMS:
        names = [name for name, found in stated.items() if part in found.lower()]
        if names:
            which = dict.fromkeys(stated[name] for name in names)
            owners = ", ".join(map(repr, names))
            warnings.append(f"the licence of {owners}, {', '.join(which)}, {term}")
    return warnings
