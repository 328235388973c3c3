"""Labels as data sets hold them → their positions among a task's labels."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from datasets import ClassLabel

from hf_zip.data import Table
from hf_zip.errors import HfZipError, first_few
from hf_zip.kinds import UNLABELLED
from hf_zip.tasks import says_nothing

logger = logging.getLogger(__name__)


def label_positions(
    table: Table, column: str, labels: Sequence[str], task: str
) -> tuple[list[int], str]:
    """Returns every row's position among a task's labels, and what decided it: name or position.

    Labels are matched by name, with or without the `task/` that a merge puts before some. Numbers
    without names are positions among the model's labels, and so are the numbers of class labels if
    there are as many as the model has and either's names say nothing.

    Args:
        table: The data.
        column: The column that holds labels.
        labels: The task's labels, in the order of its rows in the merged head.
        task: The task's name.

    Raises:
        HfZipError: A row has no label, or one that the task does not know.
    """
    values = _column(table, column)
    without = [row for row, value in enumerate(values) if value is None or value == -1]
    if without:
        raise _unlabelled(table, column, without, "None or -1")
    feature = table.rows.features[column]
    return _positions(values, feature, table.name, labels, task)


def tag_positions(
    table: Table, column: str, labels: Sequence[str], task: str
) -> tuple[list[list[int]], str]:
    """Returns for every row the position of each word's label, and what decided it.

    They are matched as by `label_positions`. Words that have no label (-100) keep it.

    Args:
        table: The data.
        column: The column that holds a list of labels for every row.
        labels: The task's labels, in the order of its rows in the merged head.
        task: The task's name.

    Raises:
        HfZipError: As for `label_positions`.
    """
    tags = _column(table, column)
    without = [row for row, own in enumerate(tags) if own is None or None in own or -1 in own]
    if without:
        raise _unlabelled(table, column, without, "None or -1")
    values = list(dict.fromkeys(tag for own in tags for tag in own if tag != UNLABELLED))
    feature = table.rows.features[column].feature
    found, matched_by = _positions(values, feature, table.name, labels, task)
    known = {UNLABELLED: UNLABELLED, **dict(zip(values, found, strict=True))}
    return [[known[tag] for tag in own] for own in tags], matched_by


def scores(table: Table, column: str, labels: Sequence[str]) -> list[Any]:
    """Returns the number of every row, or its numbers where there are several to predict.

    Args:
        table: The data.
        column: The column that holds them.
        labels: The task's labels, one per number.

    Raises:
        HfZipError: A row has none, or another number of them.
    """
    values = _column(table, column)
    found = [torch.tensor(_listed(value), dtype=torch.float64) for value in values]
    without = [row for row, x in enumerate(found) if not len(x) or not x.isfinite().all()]
    if without:
        raise _unlabelled(table, column, without, "None or not a number")
    wrong = [row for row, x in enumerate(found) if len(x) != len(labels)]
    if wrong:
        raise HfZipError(
            f"row {wrong[0]} of data {table.name!r} has {len(found[wrong[0]])} numbers in column "
            f"{column!r}, but the task has {len(labels)}; name another label_column"
        )
    return found


def _listed(value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    return [float("nan") if number is None else float(number) for number in values]


def _column(table: Table, column: str) -> list[Any]:
    values: list[Any] = table.rows.with_format(None).select_columns(column)[:][column]
    return values


def _unlabelled(table: Table, column: str, rows: Sequence[int], what: str) -> HfZipError:
    return HfZipError(
        f"{len(rows)} of {len(table.rows)} rows of data {table.name!r} have no label in column "
        f"{column!r} ({what}; the first is row {rows[0]}); choose a split with labels, or leave "
        "these rows out"
    )


def _positions(
    values: Sequence[Any], feature: Any, data: str, labels: Sequence[str], task: str
) -> tuple[list[int], str]:
    """The positions of labels, and what decided them: name or position."""
    own = [label.removeprefix(f"{task}/") for label in labels]
    known = {**{name: i for i, name in enumerate(own)}, **{x: i for i, x in enumerate(labels)}}
    names = feature.names if isinstance(feature, ClassLabel) else None
    shown = [str(names[value] if names else value) for value in values]
    unique = len(set(own)) == len(own)
    if unique and all(name in known for name in shown):
        return [known[name] for name in shown], "name"

    numbered = not any(isinstance(value, str) for value in values[:1]) and not any(
        label.isdigit() for label in own
    )
    if names:
        counted = [str(i) for i in range(len(names))]
        nameless = says_nothing(own) or says_nothing(names) or names == counted or not unique
        numbered = nameless and len(names) == len(own)
    if numbered and all(0 <= int(value) < len(own) for value in values):
        logger.info("labels of data %r are positions among those of task %r", data, task)
        return [int(value) for value in values], "position"
    if not unique:
        raise HfZipError(
            f"labels of data {data!r} cannot be matched by name, because task {task!r} has "
            f"some names twice: {first_few(own, 4)}; give every label a name of its own in id2label"
        )
    strange = list(dict.fromkeys(name for name in shown if name not in known))
    raise HfZipError(
        f"{len(strange)} labels of data {data!r} are unknown to task {task!r}: "
        f"{first_few(strange, 4)}. It knows {len(own)}: {first_few(own, 4)}. Leave their rows "
        "out, or give both sides the same names"
    )
