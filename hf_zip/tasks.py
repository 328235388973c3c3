"""Tasks and their labels: who shares a head, and where each task's rows lie in the merged one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from hf_zip.errors import HfZipError
from hf_zip.kinds import Kind, has_labels, head_kind
from hf_zip.lineage import tasks_of_merge
from hf_zip.recipe import Labels
from hf_zip.sources import Source

_SAYS_NOTHING = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class Task:
    """One task of a merge.

    Args:
        name: Its name.
        labels: Its labels, in the order of its rows in the merged head; none where the rows are no
            labels and all tasks share them, as those of spans and of words.
        start: Its first row in the merged head.
        members: Positions of the sources that were trained on it.
        rows: For each member, which row of the member's own head holds each label; nothing where
            the member does not have it.
        kind: What the members' heads answer.
    """

    name: str
    labels: tuple[str, ...]
    start: int
    members: tuple[int, ...]
    rows: tuple[tuple[int | None, ...], ...]
    kind: Kind = "classification"

    @property
    def stop(self) -> int:
        """One past its last row in the merged head."""
        return self.start + len(self.labels)


def labels_of(config: PretrainedConfig) -> tuple[str, ...]:
    """Returns a model's labels in the order of its head's rows.

    Raises:
        HfZipError: A row has no label.
    """
    absent = [i for i in range(len(config.id2label)) if i not in config.id2label]
    if absent:
        raise HfZipError(
            f"id2label has {len(config.id2label)} labels but none for row {absent[0]}; number them "
            "from 0 in the model's config.json"
        )
    return tuple(str(config.id2label[i]) for i in range(len(config.id2label)))


def says_nothing(labels: Sequence[str]) -> bool:
    """Tells whether labels are transformers' defaults, LABEL_0, LABEL_1 …, which mean nothing."""
    return all(_SAYS_NOTHING.fullmatch(label) for label in labels)


def resolve_tasks(sources: Sequence[Source], overlapping: Labels | None = None) -> tuple[Task, ...]:
    """Returns the tasks of a merge, in the order of the sources.

    Sources with the same task name share one head, row by row of the same label. A source without a
    task name that is a merge has the tasks of that; another one shares the head of an unnamed
    source with the same, meaningful labels; else its task is named after it. Labels that say
    nothing become `task/LABEL_0`.

    Args:
        sources: The models.
        overlapping: "apart" keeps labels that occur in several tasks apart as `task/label`, and
            "union" gives models of one task whose labels differ one head with all of them, instead
            of refusing.

    Raises:
        HfZipError: Models of one task have different labels, or labels that cannot be matched; a
            label occurs in two tasks; or a row has none.
    """
    parts: dict[str, list[_Part]] = {}
    for position in range(len(sources)):
        for name, part in _parts(sources, position, parts):
            parts.setdefault(name, []).append(part)

    kinds = {name: _common_kind(name, shared) for name, shared in parts.items()}
    named = {
        name: _common_labels(name, shared, overlapping == "union")
        if has_labels(kinds[name])
        else ()
        for name, shared in parts.items()
    }
    apart = {name: says_nothing(labels) for name, labels in named.items()}
    owners: dict[str, str] = {}
    clashes: set[str] = set()
    for name, labels in named.items():
        for label in () if apart[name] else labels:
            if owners.get(label, name) != name:
                clashes.add(label)
                if overlapping != "apart":
                    raise HfZipError(
                        f"label {label!r} belongs to task {owners[label]!r} and to task {name!r}, "
                        "so an answer would be ambiguous. Set labels: apart (--labels apart) to "
                        f"keep them apart as '{owners[label]}/{label}' and '{name}/{label}'; or, "
                        "if they do the same job, give both models the same task, with labels: "
                        "union where their other labels differ"
                    )
            owners.setdefault(label, name)

    tasks, start = [], 0
    for name, labels in named.items():
        shown = tuple(f"{name}/{x}" if apart[name] or x in clashes else x for x in labels)
        rows = tuple(_rows(labels, part) for part in parts[name])
        members = tuple(part.position for part in parts[name])
        tasks.append(Task(name, shown, start, members, rows, kinds[name]))
        start += len(labels)
    return tuple(tasks)


def separate_tasks(sources: Sequence[Source]) -> tuple[Task, ...]:
    """Returns one task for every source, named after it: their heads stay apart.

    Labels are those of the source's own head, whatever those of others are called; heads whose rows
    are no labels have none.

    Args:
        sources: The models.

    Raises:
        HfZipError: Two sources have the same task.
    """
    tasks: list[Task] = []
    for position, source in enumerate(sources):
        name, kind = source.task or source.name or f"task_{position}", head_kind(source.model)
        twice = next((task for task in tasks if task.name == name), None)
        if twice is not None:
            raise HfZipError(
                f"{sources[twice.members[0]].reference!r} and {source.reference!r} are both given "
                f"as task {name!r}, but heads of several kinds stay apart, one for each task; give "
                "them different tasks, or merge the two first"
            )
        labels = labels_of(source.model.config) if has_labels(kind) else ()
        tasks.append(Task(name, labels, 0, (position,), (tuple(range(len(labels))),), kind))
    return tuple(tasks)


@dataclass(frozen=True)
class _Part:
    """The rows of one source's head that answer one task.

    Args:
        position: Which source.
        source: The source.
        kind: What its head answers.
        labels: Its labels for the task, in the order of its rows.
        start: The first of these rows.
    """

    position: int
    source: Source
    kind: Kind
    labels: tuple[str, ...]
    start: int = 0


def _parts(
    sources: Sequence[Source], position: int, known: Mapping[str, list[_Part]]
) -> Iterator[tuple[str, _Part]]:
    """The tasks of a source by name: one, or those of a merge that is given no task."""
    source = sources[position]
    labels, kind = labels_of(source.model.config), head_kind(source.model)
    entries = tasks_of_merge(source.model.config) if source.task is None else ()
    if not entries or not has_labels(kind):
        yield _task_name(sources, position, known), _Part(position, source, kind, labels)
        return
    for entry in entries:
        prefix = f"{entry.name}/"  # of labels that the merge kept apart
        own = labels[entry.start : entry.start + len(entry.labels)]
        found = tuple(label.removeprefix(prefix) for label in own)
        yield entry.name, _Part(position, source, entry.kind or kind, found, entry.start)


def _task_name(sources: Sequence[Source], position: int, known: Mapping[str, list[_Part]]) -> str:
    source = sources[position]
    if source.task is not None:
        return source.task
    labels, kind = labels_of(source.model.config), head_kind(source.model)
    for name, (first, *_) in known.items():
        same = set(first.labels) == set(labels) and first.kind == kind
        if same and first.source.task is None and not says_nothing(labels):
            return name
    name = source.name or f"task_{position}"
    taken = {*known, *(other.task for other in sources)}
    while name in taken:
        name = f"{name}_{position}"
    return name


def _common_labels(name: str, parts: Sequence[_Part], union: bool) -> tuple[str, ...]:
    first, *others = parts
    if union and any(sorted(other.labels) != sorted(first.labels) for other in others):
        return _united(name, parts)
    for other in others:
        if sorted(other.labels) != sorted(first.labels):
            only = sorted(set(other.labels) ^ set(first.labels))
            raise HfZipError(
                f"{_both(first, other)} both have the task {name!r}, but their labels differ "
                f"({len(first.labels)} and {len(other.labels)} labels; in one only: "
                f"{', '.join(only[:5])}). Set labels: union (--labels union) to give them "
                "one head with the labels of both, or give them different tasks, with labels: "
                "apart to keep the labels that both have as 'task/label'"
            )
        if len(set(other.labels)) < len(other.labels) and other.labels != first.labels:
            raise HfZipError(
                f"{_both(first, other)} share task {name!r} and repeat "
                "labels in different orders, so their rows cannot be matched; give every label a "
                "name of its own in id2label"
            )
    return first.labels


def _united(name: str, parts: Sequence[_Part]) -> tuple[str, ...]:
    """The labels of all models of a task, each once, in the order in which they come."""
    found: dict[str, None] = {}
    for part in parts:
        labels = part.labels
        if says_nothing(labels) or len(set(labels)) < len(labels):
            reason = "says nothing" if says_nothing(labels) else "occurs twice"
            twice = next((x for x in labels if labels.count(x) > 1), labels[0])
            raise HfZipError(
                f"the labels of task {name!r} cannot be united by name, because {twice!r} of "
                f"{part.source.reference!r} {reason}; give every label a name of its own in "
                "id2label"
            )
        found |= dict.fromkeys(labels)
    return tuple(found)


def _common_kind(name: str, parts: Sequence[_Part]) -> Kind:
    first, *others = parts
    for other in others:
        if other.kind != first.kind:
            raise HfZipError(
                f"{_both(first, other)} both have the task {name!r}, but their heads answer "
                f"different questions, {first.kind} and {other.kind} (by their class and the "
                "problem_type of their config). Give them different tasks"
            )
    return first.kind


def _both(first: _Part, other: _Part) -> str:
    return f"{first.source.reference!r} and {other.source.reference!r}"


def _rows(labels: tuple[str, ...], part: _Part) -> tuple[int | None, ...]:
    own, start = part.labels, part.start
    if labels and len(set(own)) < len(own):  # repeated names cannot tell rows apart
        return tuple(range(start, start + len(own)))
    return tuple(start + own.index(label) if label in own else None for label in labels)
