"""Data sets in, model inputs out: unlabelled for calibration, labelled for evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset as Rows
from datasets import DatasetDict
from torch import Tensor

from hf_zip.data import Table, draw, open_table
from hf_zip.errors import HfZipError
from hf_zip.generated import SAMPLED, SYNTHESISED, TEXTS, check_once, is_generated, parts_of
from hf_zip.images import ImageReader
from hf_zip.inputs import Inputs, Part, Reader
from hf_zip.kinds import Kind
from hf_zip.labelled import prepared_targets, read_labelled
from hf_zip.pairs import PairReader
from hf_zip.recipe import IN_MEMORY, CalibrationSpec, EvaluationSpec
from hf_zip.recombined import recombined_texts
from hf_zip.sampled import sampled_texts
from hf_zip.synthesised import synthesised_images
from hf_zip.texts import TextReader


def load_inputs(
    spec: CalibrationSpec,
    reader: Reader,
    seed: int,
    *,
    progress: bool = True,
    allow_pickle: bool = False,
) -> Inputs:
    """Returns unlabelled inputs, an equal part from every data set.

    Args:
        spec: Which data, and how many inputs.
        reader: Reads data as the models take them.
        seed: Decides which rows.
        progress: Show progress bars where inputs are drawn by a model, on the main process.
        allow_pickle: Whether that model's weights may be pickles.

    Raises:
        HfZipError: No data are named, a data set cannot be read or holds nothing that the models
            take, something else is drawn, or what there is cannot be prepared as the models take
            it.
    """
    if not spec.data:
        raise HfZipError("the calibration names no data; list data sets under 'data'")
    if spec.samples < len(spec.data):
        raise HfZipError(
            f"{spec.samples} samples cannot be taken from {len(spec.data)} data sets; ask for at "
            "least one of each"
        )
    check_once(spec.data)  # not the recipe: as published, two names may have become one
    share, remainder = divmod(spec.samples, len(spec.data))
    parts, descriptions = [], []
    for position, data in enumerate(spec.data):
        count = share + (position < remainder)
        if is_generated(data):
            part, description = _generated(
                data, count, reader, spec, seed, progress=progress, allow_pickle=allow_pickle
            )
            parts.append(part)
            descriptions.append(description)
            continue
        table = open_table(data, spec.split, ("train",))
        columns = reader.columns(table, spec.column)
        rows = draw(count, len(table.rows), (seed, position), table.name)
        parts.append(reader.read(table, columns, rows))
        descriptions.append(_describe(table, columns, parts[-1]))
    if len(parts) == 1:
        return reader.join(parts, descriptions[0])
    names = [description["data"] for description in descriptions]
    total = sum(map(len, parts))
    return reader.join(parts, {"data": names, "rows": total, "parts": descriptions})


def load_labelled(
    spec: EvaluationSpec,
    reader: Reader,
    labels: Sequence[str],
    seed: int,
    preferred: Sequence[str] = ("test", "validation"),
    kind: Kind = "classification",
) -> Inputs:
    """Returns labelled inputs of one task; `label_positions` says how labels are matched.

    Args:
        spec: Which data, and how many inputs.
        reader: Reads data as the models take them.
        labels: The task's labels, in the order of its rows in the merged head.
        seed: Decides which rows.
        preferred: The splits to take where none is named, the first that exists.
        kind: What the task's heads answer.

    Raises:
        HfZipError: As for `load_inputs`; or a row has no label or one that the model does not know.
    """
    table = open_table(spec.data, spec.split, preferred)
    available = len(table.rows)
    rows = draw(spec.samples or available, available, (seed,), table.name)
    return _labelled(table, rows, reader, labels, spec, kind)


def from_memory(data: Any, reader: Reader) -> Inputs:
    """Returns data in memory as unlabelled inputs, all of them.

    Args:
        data: What the reader takes (`reader.in_memory`), or `Inputs`.
        reader: Reads data as the models take them.

    Raises:
        HfZipError: The data are of another kind or empty, or cannot be prepared as the models take
            them.
    """
    if isinstance(data, Inputs):
        return data
    if isinstance(data, DatasetDict):
        raise HfZipError(f"the data are a DatasetDict; give one of its splits: {', '.join(data)}")
    if not isinstance(data, Rows | Tensor | list | tuple):
        raise HfZipError(f"the data are a {type(data).__name__}, but should be {reader.in_memory}")
    if len(data) == 0:
        raise HfZipError("the data in memory have no rows; give at least one")
    if isinstance(data, Rows):
        table = _table(data)
        if reader.key in data.column_names:
            stored = reader.stored(data)
            return reader.join([stored], _describe(table, (reader.key,), stored))
        columns = reader.columns(table, None)
        read = reader.read(table, columns, range(len(data)))
        return reader.join([read], _describe(table, columns, read))
    part = reader.listed(data)
    if part is None:
        kinds = ", ".join(dict.fromkeys(type(item).__name__ for item in data))
        what = "Tensor" if isinstance(data, Tensor) else f"list of {kinds}"
        raise HfZipError(f"the data are a {what}, but should be {reader.in_memory}")
    return reader.join([part], {"data": IN_MEMORY, "rows": len(data), **part.notes})


def labelled_from_memory(
    data: Any, reader: Reader, labels: Sequence[str], task: str, kind: Kind = "classification"
) -> Any:
    """Returns labelled data in memory as model inputs.

    Args:
        data: A `datasets.Dataset` with inputs and labels, or a list of dicts with inputs that are
            prepared already and what is right, as models take it: `labels`, positions among the
            task's (one per token, -100 where there is none, or numbers, by the kind of the task),
            or `start_positions` and `end_positions`. What else it is, such as a map-style data set
            of model inputs, comes back as it is.
        reader: Reads data as the models take them.
        labels: The task's labels, in the order of its rows in the merged head.
        task: The task's name.
        kind: What its heads answer.

    Raises:
        HfZipError: As for `load_labelled`, or an input has no label.
    """
    if isinstance(data, Rows) and reader.key not in data.column_names and len(data):
        spec = EvaluationSpec(task=task, data=IN_MEMORY)
        return _labelled(_table(data), range(len(data)), reader, labels, spec, kind)
    if not isinstance(data, Rows | list | tuple) or not len(data):
        return data
    if not all(isinstance(item, Mapping) and reader.key in item for item in data):
        return data
    targets = prepared_targets(data, kind, task)
    part = reader.stored(data)
    description = {"data": IN_MEMORY, "rows": len(data), **part.notes}
    return reader.join([part], description, targets)


def _generated(
    name: str, count: int, reader: Reader, spec: CalibrationSpec, seed: int, **loading: bool
) -> tuple[Part, dict[str, Any]]:
    """Inputs that are drawn, and their description."""
    how, source = parts_of(name)
    if not how and isinstance(reader, ImageReader):
        part = reader.generated(name, count, seed)
        return part, {"data": name, "rows": count, **part.notes}
    if how == SYNTHESISED and isinstance(reader, ImageReader):
        reader.drawn([np.zeros((1, 1, 3), np.uint8)], name)  # see below
        images, notes = synthesised_images(source, count, seed, **loading)
        part = reader.drawn(images, name)
        return part, {"data": name, "rows": count, **notes, **part.notes}
    if how not in TEXTS or not isinstance(reader, TextReader):
        kinds = {ImageReader.key: "images", TextReader.key: "texts"}
        takes = "images with texts" if isinstance(reader, PairReader) else kinds[reader.key]
        drawn = "texts" if how in TEXTS else "images"
        raise HfZipError(
            f"{name!r} draws {drawn}, but the models take {takes}; name a data set of {takes}"
        )
    if how == SAMPLED:
        reader.drawn(["a"], name)  # where no text can be read, it shows before the work
        texts, notes = sampled_texts(source, count, seed, reader.length, **loading)
        part = reader.drawn(texts, name)
        return part, {"data": name, "rows": count, **notes, **part.notes}
    table = open_table(source, spec.split, ("train",))
    columns = reader.columns(table, spec.column)
    texts, notes = recombined_texts(table, columns, count, seed)
    part = reader.drawn(texts, name)
    return part, {**_describe(table, columns, part), "data": name, **notes}


def _labelled(
    table: Table,
    rows: Sequence[int],
    reader: Reader,
    labels: Sequence[str],
    spec: EvaluationSpec,
    kind: Kind,
) -> Inputs:
    found = read_labelled(table, rows, reader, spec, labels, kind)
    description = {**_describe(table, found.columns, found.part), **found.notes}
    return reader.join([found.part], description, found.targets)


def _table(data: Rows) -> Table:
    return Table(IN_MEMORY, data, split=str(data.split) if data.split else None)


def _describe(table: Table, columns: Sequence[str], part: Part) -> dict[str, Any]:
    return {
        "data": table.name,
        "split": table.split,
        "column": columns[0] if len(columns) == 1 else list(columns),
        "revision": table.revision,
        "fingerprint": None if table.revision else table.rows._fingerprint,
        "rows": len(part),
        "rows_available": len(table.rows),
        **part.notes,
    }
