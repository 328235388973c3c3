"""Labels as data sets hold them → their positions among a task's labels."""

import logging
from collections.abc import Sequence

from datasets import ClassLabel

from hf_zip.data import Table
from hf_zip.errors import HfZipError, first_few
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
    values = table.rows.with_format(None).select_columns(column)[:][column]
    without = [row for row, value in enumerate(values) if value is None or value == -1]
    if without:
        raise HfZipError(
            f"{len(without)} of {len(values)} rows of data {table.name!r} have no label in column "
            f"{column!r} (None or -1; the first is row {without[0]}); choose a split with labels, "
            "or leave these rows out"
        )
    own = [label.removeprefix(f"{task}/") for label in labels]
    known = {**{name: i for i, name in enumerate(own)}, **{x: i for i, x in enumerate(labels)}}
    feature = table.rows.features[column]
    names = feature.names if isinstance(feature, ClassLabel) else None
    shown = [str(names[value] if names else value) for value in values]
    unique = len(set(own)) == len(own)
    if unique and all(name in known for name in shown):
        return [known[name] for name in shown], "name"

    numbered = not isinstance(values[0], str) and not any(label.isdigit() for label in own)
    if names:
        counted = [str(i) for i in range(len(names))]
        nameless = says_nothing(own) or says_nothing(names) or names == counted or not unique
        numbered = nameless and len(names) == len(own)
    if numbered and all(0 <= int(value) < len(own) for value in values):
        logger.info("labels of data %r are positions among those of task %r", table.name, task)
        return [int(value) for value in values], "position"
    if not unique:
        raise HfZipError(
            f"labels of data {table.name!r} cannot be matched by name, because task {task!r} has "
            f"some names twice: {first_few(own, 4)}; give every label a name of its own in id2label"
        )
    strange = list(dict.fromkeys(name for name in shown if name not in known))
    raise HfZipError(
        f"{len(strange)} labels of data {table.name!r} are unknown to task {task!r}: "
        f"{first_few(strange, 4)}. It knows {len(own)}: {first_few(own, 4)}. Leave their rows out, "
        "or give both sides the same names"
    )
