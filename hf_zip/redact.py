"""What may be published of a report: local folders by their names, never where they lie."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hf_zip.evaluate import Evaluation
from hf_zip.generated import FROM, parts_of
from hf_zip.report import Report
from hf_zip.report_records import SourceRecord
from hf_zip.sources import pinned
from hf_zip.sweep_report import SweepReport

# How a path that says where somebody's files lie begins: /x, ~/x, ./x, ../x, C:\x, file:/x. Where
# inputs are drawn from a model or a corpus there, a word before it says so, which is kept.
_START = rf"(?:{'|'.join(FROM)})?(?:~|\.{{1,2}}|[A-Za-z]:|file:)?[/\\]"
_QUOTED = re.compile(rf"(?<=')(?:{_START})[^']+(?=')|(?<=\")(?:{_START})[^\"]+(?=\")")
_BARE = re.compile(rf"(?<![\w/\\:.~'\"])(?:{_START})[^\s'\",;:()]+")


def published(report: Report) -> Report:
    """Returns the report with every local path reduced to its last part.

    Names of tasks and labels stay as they are, even where they look like paths.
    """
    base, adapter = report.base, report.adapter
    own_bases = tuple(own.base for own in report.own_bases)
    models = (*report.sources, *([base] if base else []), *own_bases)
    names = {s.reference: s.name for s in models if s.revision is None}
    names |= _of_adapters(report)
    evaluation = report.evaluation
    if evaluation is not None:
        evaluation = _evaluation(evaluation, names)
    validation = report.validation
    if validation is not None:
        tasks = tuple(replace(t, data=_value(t.data, names)) for t in validation.tasks)
        validation = replace(validation, tasks=tasks)
    return replace(
        report,
        recipe=_value(report.recipe, names),
        sources=tuple(_source(s, names) for s in report.sources),
        base=replace(base, reference=_value(base.reference, names)) if base else None,
        own_bases=tuple(replace(own, base=_source(own.base, names)) for own in report.own_bases),
        findings=tuple(_sentence(finding, names) for finding in report.findings),
        adapter=replace(adapter, base=_value(adapter.base, names)) if adapter else None,
        calibration=_value(report.calibration, names),
        own_calibration=_value(report.own_calibration, names),
        evaluation=evaluation,
        validation=validation,
    )


def published_sweep(report: SweepReport) -> SweepReport:
    """Returns the report of a sweep with every local path reduced to its last part."""
    return replace(
        report, recipe=_value(report.recipe, {}), evaluation=_evaluation(report.evaluation, {})
    )


def _of_adapters(report: Report) -> dict[str, str]:
    """What is said instead of the bases of adapters, and of base+adapter in the recipe."""
    names = {}
    for source, spec in zip(report.sources, report.recipe.get("models", ()), strict=False):
        base = source.adapter_base
        if base is not None:
            if base.revision is None:
                names[base.reference] = _last_part(base.reference)
            parts = (
                pinned(model.reference, model.revision) if model.revision else name
                for model, name in ((base, _last_part(base.reference)), (source, source.name))
            )
            names[spec["model"]] = "+".join(parts)
    return names


def _source(source: SourceRecord, names: Mapping[str, str]) -> SourceRecord:
    base = source.adapter_base
    if base is not None:
        base = replace(base, reference=_value(base.reference, names))
    return replace(source, reference=_value(source.reference, names), adapter_base=base)


def _evaluation(evaluation: Evaluation, names: Mapping[str, str]) -> Evaluation:
    tasks = tuple(replace(t, data=_value(t.data, names)) for t in evaluation.tasks)
    skipped = {key: _sentence(why, names) for key, why in evaluation.skipped.items()}
    return replace(evaluation, tasks=tasks, skipped=skipped)


def _value(value: Any, names: Mapping[str, str]) -> Any:
    """A value of a recipe or a description, where a text that looks like a path is one."""
    if isinstance(value, Mapping):
        return {key: item if key == "task" else _value(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_value(item, names) for item in value)
    if not isinstance(value, str):
        return value
    prefix, place = parts_of(value)
    if place in names:
        return prefix + names[place]
    return _last_part(value) if re.match(_START, value) else value


def _sentence(text: str, names: Mapping[str, str]) -> str:
    """A text with paths inside; those with spaces are found if they are quoted or a source's."""
    for reference in sorted(names, key=len, reverse=True):
        if re.search(r"[/\\]", reference):
            text = text.replace(reference, names[reference])
    for pattern in (_QUOTED, _BARE):
        text = pattern.sub(lambda found: _last_part(found[0]), text)
    return text


def described_publicly(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a description of data, its local paths reduced to their last parts.

    Args:
        data: The description.
    """
    return {key: _value(item, {}) for key, item in data.items()}


def _last_part(path: str) -> str:
    prefix, place = parts_of(path)
    return prefix + re.split(r"[/\\]", place.rstrip("/\\"))[-1]
