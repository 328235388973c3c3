"""The lists of merge methods and of supported families, for the terminal and the README."""

import dataclasses

from hf_zip.adapters import adapters
from hf_zip.methods import MergeMethod, methods


def methods_text() -> str:
    """Returns the merge methods with their needs and options, as plain text."""
    return "\n\n".join(_method_text(method) for method in methods().values())


def adapters_text() -> str:
    """Returns the supported families, as plain text."""
    width = max(len(name) for name in adapters())
    return "\n".join(
        f"{name:<{width}}  {', '.join(adapter.model_types)}" for name, adapter in adapters().items()
    )


def methods_table() -> str:
    """Returns the merge methods as a Markdown table."""
    rows = ["| method | what it does | needs | options |", "|---|---|---|---|"]
    for method in methods().values():
        options = ", ".join(f"`{name}={default}`" for name, default in _options(method))
        link = f"[`{method.name}`]({method.reference})" if method.reference else f"`{method.name}`"
        rows.append(f"| {link} | {method.title} | {_needs(method)} | {options} |")
    return "\n".join(rows)


def adapters_table() -> str:
    """Returns the supported families as a Markdown table."""
    rows = ["| family | `model_type` | task heads |", "|---|---|---|"]
    for name, adapter in adapters().items():
        types = ", ".join(f"`{model_type}`" for model_type in adapter.model_types)
        tables = (adapter, *adapter.towers.values())
        heads = ", ".join(f"`{head}`" for table in tables for head in table.heads)
        rows.append(f"| {name} | {types} | {heads} |")
    return "\n".join(rows)


def _method_text(method: MergeMethod) -> str:
    lines = [f"{method.name}: {method.title}", f"    needs: {_needs(method)}"]
    if method.reference:
        lines.append(f"    source: {method.reference}")
    for where, options in (
        ("parameters", _options(method)),
        ("models[].parameters", _options(method, of_models=True)),
    ):
        lines += [f"    {where}.{name} = {default}" for name, default in options]
    return "\n".join(lines)


def _needs(method: MergeMethod) -> str:
    needs = {
        "a shared initialisation": method.requires.shared_init,
        "a base model": method.requires.base,
        "unlabelled inputs": method.requires.calibration,
    }
    return ", ".join(name for name, needed in needs.items() if needed) or "nothing more"


def _options(method: MergeMethod, of_models: bool = False) -> list[tuple[str, object]]:
    record = method.model_options if of_models else method.options
    return [(field.name, field.default) for field in dataclasses.fields(record)]
