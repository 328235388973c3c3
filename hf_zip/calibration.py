"""Data sets in, model inputs out: unlabelled for calibration, labelled for evaluation."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, DatasetDict
from datasets import Dataset as Rows
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from hf_zip.data import Table, draw, input_column, label_column, open_table
from hf_zip.errors import HfZipError
from hf_zip.images import PreparedImages, StoredPixels, check_shape
from hf_zip.recipe import CalibrationSpec, EvaluationSpec
from hf_zip.tasks import says_nothing

logger = logging.getLogger(__name__)

_IN_MEMORY = (
    "a datasets.Dataset, a tensor of pixel values [inputs, channels, height, width], a list of PIL "
    "images, or a list of dicts with 'pixel_values'"
)


class Inputs(Dataset[dict[str, Any]]):
    """Unlabelled inputs: `inputs[i]` is `{"pixel_values": ...}`, `[channels, height, width]`.

    Args:
        pixels: Pixel values, data set by data set.
        description: Where they come from, as plain values: data, split, column, revision or
            fingerprint, and the number of rows used; with several data sets, all of it in `parts`.

    Raises:
        HfZipError: The data sets' inputs have different shapes.
    """

    def __init__(self, pixels: Sequence[Dataset[Tensor]], description: Mapping[str, Any]) -> None:
        self.description = dict(description)
        self._pixels: ConcatDataset[Tensor] = ConcatDataset(pixels)
        for part, data in enumerate(pixels[1:], start=1):
            check_shape(data[0], tuple(pixels[0][0].shape), f"the first input of data set {part}")

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {"pixel_values": self._pixels[position]}


class LabelledInputs(Inputs):
    """Labelled inputs: as `Inputs`, with `labels`, the position of the right label in the task.

    Args:
        pixels: See `Inputs`.
        description: See `Inputs`.
        labels: The position for every input.
    """

    def __init__(
        self,
        pixels: Sequence[Dataset[Tensor]],
        description: Mapping[str, Any],
        labels: Sequence[int],
    ) -> None:
        super().__init__(pixels, description)
        self._labels = list(labels)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**super().__getitem__(position), "labels": self._labels[position]}


def load_inputs(
    spec: CalibrationSpec,
    processor: Any,
    seed: int,
    *,
    num_channels: int | None = None,
    image_size: int | Sequence[int] | None = None,
) -> Inputs:
    """Returns unlabelled inputs, an equal part from every data set.

    Args:
        spec: Which data, and how many inputs.
        processor: The models' image processor.
        seed: Decides which rows.
        num_channels: Channels that the models take; left out, as many as the processor normalises.
        image_size: Height and width that the models take, or one number for both; left out, those
            of the first input.

    Raises:
        HfZipError: No data are named, a data set cannot be read or holds no images, or its images
            do not come out of the processor as the models take them.
    """
    if not spec.data:
        raise HfZipError("the calibration names no data; list data sets under 'data'")
    if spec.samples < len(spec.data):
        raise HfZipError(
            f"{spec.samples} samples cannot be taken from {len(spec.data)} data sets; ask for at "
            "least one of each"
        )
    share, remainder = divmod(spec.samples, len(spec.data))
    pixels, parts = [], []
    for position, data in enumerate(spec.data):
        table = open_table(data, spec.split, ("train",))
        column = input_column(table, spec.column)
        rows = draw(share + (position < remainder), len(table.rows), (seed, position), table.name)
        pixels.append(_prepared(table, column, rows, processor, num_channels, image_size))
        parts.append(_describe(table, column, len(rows)))
    if len(parts) == 1:
        return Inputs(pixels, parts[0])
    names, total = [part["data"] for part in parts], sum(part["rows"] for part in parts)
    return Inputs(pixels, {"data": names, "rows": total, "parts": parts})


def load_labelled(
    spec: EvaluationSpec,
    processor: Any,
    labels: tuple[str, ...],
    seed: int,
    *,
    num_channels: int | None = None,
    image_size: int | Sequence[int] | None = None,
) -> LabelledInputs:
    """Returns labelled inputs of one task.

    Labels are matched by name, with or without the `task/` that a merge puts before some. Numbers
    without names are positions among the model's labels, and so are the numbers of class labels if
    there are as many as the model has and either's names say nothing.

    Args:
        spec: Which data, and how many inputs.
        processor: The models' image processor.
        labels: The task's labels, in the order of its rows in the merged head.
        seed: Decides which rows.
        num_channels: See `load_inputs`.
        image_size: See `load_inputs`.

    Raises:
        HfZipError: As for `load_inputs`; or a row has no label or one that the model does not know.
    """
    table = open_table(spec.data, spec.split, ("test", "validation"))
    column, targets = input_column(table, spec.column), label_column(table, spec.label_column)
    positions, matched_by = _positions(table, targets, labels, spec.task)
    available = len(table.rows)
    rows = draw(spec.samples or available, available, (seed,), table.name)
    description = {
        **_describe(table, column, len(rows)),
        "label_column": targets,
        "labels_matched_by": matched_by,
    }
    pixels = _prepared(table, column, rows, processor, num_channels, image_size)
    return LabelledInputs([pixels], description, [positions[row] for row in rows])


def from_memory(
    data: Any,
    processor: Any = None,
    *,
    num_channels: int | None = None,
    image_size: int | Sequence[int] | None = None,
) -> Inputs:
    """Returns data in memory as unlabelled inputs, all of them and in their order.

    Args:
        data: A `datasets.Dataset` with a column of images or of `pixel_values`; a float tensor
            `[inputs, channels, height, width]`; a list of PIL images; a list of dicts with
            `pixel_values`; or `Inputs`.
        processor: The models' image processor, for images.
        num_channels: See `load_inputs`.
        image_size: See `load_inputs`.

    Raises:
        HfZipError: The data are of another kind or empty, or do not come out of the processor as
            the models take them.
    """
    if isinstance(data, Inputs):
        return data
    if isinstance(data, DatasetDict):
        raise HfZipError(f"the data are a DatasetDict; give one of its splits: {', '.join(data)}")
    if not isinstance(data, Rows | Tensor | list | tuple):
        raise HfZipError(f"the data are a {type(data).__name__}, but should be {_IN_MEMORY}")
    if len(data) == 0:
        raise HfZipError("the data in memory have no rows; give at least one")
    name, rows = "in memory", range(len(data))
    if isinstance(data, Tensor):
        return Inputs([StoredPixels(data, image_size)], {"data": name, "rows": len(data)})
    if isinstance(data, Rows):
        table = Table(name, data, split=str(data.split) if data.split else None)
        if "pixel_values" in data.column_names:
            values = data["pixel_values"]
            description = _describe(table, "pixel_values", len(data))
            return Inputs([StoredPixels(values, image_size)], description)
        column = input_column(table, None)
        pixels = _prepared(table, column, rows, processor, num_channels, image_size)
        return Inputs([pixels], _describe(table, column, len(data)))
    if all(isinstance(item, Image.Image) for item in data):
        images = PreparedImages(data, rows, processor, name, None, num_channels, image_size)
        return Inputs([images], {"data": name, "rows": len(data)})
    if all(isinstance(item, Mapping) and "pixel_values" in item for item in data):
        values = [item["pixel_values"] for item in data]
        return Inputs([StoredPixels(values, image_size)], {"data": name, "rows": len(data)})
    kinds = ", ".join(dict.fromkeys(type(item).__name__ for item in data))
    raise HfZipError(f"the data are a list of {kinds}, but should be {_IN_MEMORY}")


def _prepared(
    table: Table,
    column: str,
    rows: Sequence[int],
    processor: Any,
    num_channels: int | None,
    image_size: int | Sequence[int] | None,
) -> PreparedImages:
    values = table.rows[column]
    return PreparedImages(
        values, rows, processor, table.name, table.folder, num_channels, image_size
    )


def _describe(table: Table, column: str, rows: int) -> dict[str, Any]:
    return {
        "data": table.name,
        "split": table.split,
        "column": column,
        "revision": table.revision,
        "fingerprint": None if table.revision else table.rows._fingerprint,
        "rows": rows,
        "rows_available": len(table.rows),
    }


def _positions(
    table: Table, column: str, labels: Sequence[str], task: str
) -> tuple[list[int], str]:
    """Returns every row's position among the labels, and what decided it: name or position."""
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
            f"some names twice: {_first_few(own)}; give every label a name of its own in id2label"
        )
    strange = list(dict.fromkeys(name for name in shown if name not in known))
    raise HfZipError(
        f"{len(strange)} labels of data {table.name!r} are unknown to task {task!r}: "
        f"{_first_few(strange)}. It knows {len(own)}: {_first_few(own)}. Leave their rows out, or "
        "give both sides the same names"
    )


def _first_few(names: Sequence[str], count: int = 4) -> str:
    return ", ".join(map(repr, names[:count])) + (", …" if len(names) > count else "")
