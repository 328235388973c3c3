"""What the config of a merge says of where it comes from: its sources, their weights, its tasks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from hf_zip.errors import HfZipError
from hf_zip.kinds import Kind
from hf_zip.plain import build

CONFIG_KEY = "hf_zip"


@dataclass(frozen=True)
class Ancestor:
    """One model that a merge was made of.

    Args:
        name: What it was called.
        model: Its id on the Hub; nothing for a folder or a model in memory.
        digest: Its commit on the Hub, or the digest of its weights.
        weight: Its share in the means of the merge, beside those of the other sources. A merge
            has by default the sum of its sources', so that merging models one after the other
            weighs each of them as merging all at once does.
        merge_method: How it was merged itself, if it is a merge.
        sources: Of what.
        base: Of an adapter, the id on the Hub of what it was merged into.
        base_digest: The commit or digest of that.
    """

    name: str
    model: str | None = None
    digest: str | None = None
    weight: float = 1.0
    merge_method: str | None = None
    sources: tuple["Ancestor", ...] = ()
    base: str | None = None
    base_digest: str | None = None


@dataclass(frozen=True)
class MergedTask:
    """One task of a merge and its rows in the head, as the config keeps them."""

    name: str
    labels: tuple[str, ...]
    start: int
    kind: Kind | None = None


def method_of_merge(config: PretrainedConfig) -> str | None:
    """Returns the method by which a model was merged; nothing if it was not."""
    found = _record(config).get("merge_method")
    return str(found) if found else None


def sources_of_merge(config: PretrainedConfig) -> tuple[Ancestor, ...]:
    """Returns what a model was merged of; nothing where it was not, or its config does not say.

    Raises:
        HfZipError: The entry of its config is damaged.
    """
    values = _record(config).get("sources", ())
    where = f"config.{CONFIG_KEY}.sources"
    return tuple(build(Ancestor, entry, f"{where}.{i}") for i, entry in _listed(values, where))


def tasks_of_merge(config: PretrainedConfig) -> tuple[MergedTask, ...]:
    """Returns the tasks that a model has by its merge, if their rows are those of its labels.

    Raises:
        HfZipError: The entry of its config is damaged, or names rows that the head does not have.
    """
    values, where = _record(config).get("tasks", ()), f"config.{CONFIG_KEY}.tasks"
    tasks = tuple(build(MergedTask, entry, f"{where}.{i}") for i, entry in _listed(values, where))
    if not any(task.labels for task in tasks):
        return ()
    end = 0
    for task in tasks:
        if task.start != end:
            raise HfZipError(
                f"{where} gives the task {task.name!r} rows from {task.start} on, but those before "
                f"end at {end}; the config does not belong to a merge of this version"
            )
        end += len(task.labels)
    if end != len(config.id2label):
        raise HfZipError(
            f"{where} names {end} rows, but the config has {len(config.id2label)} labels; labels "
            f"were changed after the merge. Take the entry {CONFIG_KEY!r} out of config.json"
        )
    return tasks


def weight_of(config: PretrainedConfig) -> float:
    """Returns what a model weighs in a mean by default: a merge as much as its sources together."""
    total = sum(source.weight for source in sources_of_merge(config))
    return total if math.isfinite(total) and total > 0 else 1.0


def tree(sources: Sequence[Ancestor], indent: str = "") -> list[str]:
    """Returns a family tree as lines of text.

    Args:
        sources: What a merge was made of.
        indent: What the lines begin with.
    """
    lines = []
    for position, source in enumerate(sources):
        last = position == len(sources) - 1
        parts = [source.name if source.model is None else source.model, f"weight {source.weight:g}"]
        if source.digest:
            parts.append(source.digest[:12])
        if source.base_digest:
            place = f" to {source.base}" if source.base else ""
            parts.append(f"an adapter{place}, {source.base_digest[:12]}")
        if source.merge_method:
            parts.append(f"merged by {source.merge_method}")
        lines.append(f"{indent}{'└─' if last else '├─'} {', '.join(parts)}")
        lines += tree(source.sources, f"{indent}{'   ' if last else '│  '}")
    return lines


def _record(config: PretrainedConfig) -> Mapping[str, Any]:
    found = getattr(config, CONFIG_KEY, None)
    return found if isinstance(found, Mapping) else {}


def _listed(values: Any, where: str) -> list[tuple[int, Any]]:
    if not isinstance(values, list | tuple):
        raise HfZipError(f"{where} should be a list, not {type(values).__name__}")
    return list(enumerate(values))
