"""The eight CLIP tasks: their checkpoints and data on the Hub, and what is published of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import yaml
from datasets import ClassLabel
from datasets.exceptions import DatasetNotFoundError

from hf_zip.columns import label_column
from hf_zip.data import Table, draw
from hf_zip.errors import HfZipError, first_few, first_line
from hf_zip.images import ImageReader
from hf_zip.inputs import Inputs
from hf_zip.plain import build
from hf_zip.tasks import Task

_FOLDER = Path(__file__).parent / "clip8"
_COMMIT = re.compile(r"@([0-9a-f]{40})/")

# What the checkpoints of an architecture are called.
ARCHITECTURES = {
    "B-32": "clip-vit-base-patch32",
    "B-16": "clip-vit-base-patch16",
    "L-14": "clip-vit-large-patch14",
}


@dataclass(frozen=True)
class ClipTask:
    """One of the tasks.

    Args:
        name: What checkpoints call it.
        title: What tables call it.
        data: Hub id of its data.
        images: Size of the test split.
        templates: What is said of a class, with `{}` for its name.
        classes: The names, in the order of the labels.
        config: Which part of the data, where there are several.
    """

    name: str
    title: str
    data: str
    images: int
    templates: tuple[str, ...]
    classes: tuple[str, ...]
    config: str | None = None

    def task(self, position: int = 0, start: int = 0) -> Task:
        """Returns it as a task of a merge.

        Args:
            position: Which of the models was trained on it.
            start: Its first row in the merged head.
        """
        rows = tuple(range(len(self.classes)))
        return Task(self.name, self.classes, start, (position,), (rows,))


@cache
def clip_tasks() -> Mapping[str, ClipTask]:
    """Returns the tasks by name, in the order of the published tables."""
    found = _read("tasks.yaml").items()
    return {name: build(ClipTask, {"name": name, **own}, "tasks.yaml") for name, own in found}


@cache
def published(architecture: str) -> Mapping[str, Mapping[str, Any]]:
    """Returns the published accuracies in % of an architecture, by row."""
    found: Mapping[str, Mapping[str, Any]] = _read("published.yaml")[architecture]
    return found


def encoder_of(architecture: str, task: str) -> str:
    """Returns the Hub id of the image encoder that was fine-tuned on a task."""
    return f"tanganke/{ARCHITECTURES[architecture]}_{task}"


def base_of(architecture: str) -> str:
    """Returns the Hub id of the CLIP that they were fine-tuned from."""
    return f"openai/{ARCHITECTURES[architecture]}"


def tasks_of_merge(chosen: Sequence[ClipTask]) -> list[Task]:
    """Returns the tasks of a merge of one model per task, in this order."""
    found: list[Task] = []
    for position, each in enumerate(chosen):
        found.append(each.task(position, found[-1].stop if found else 0))
    return found


def open_split(task: ClipTask, split: str) -> Table:
    """Returns one split of a task's data; of other splits nothing is fetched.

    Raises:
        HfZipError: The data are not in reach, or have no such split.
    """
    try:
        builder = datasets.load_dataset_builder(task.data, task.config)
        files = (builder.config.data_files or {}).get(split)
        if not files:
            raise HfZipError(f"data {task.data!r} have no split {split!r}")
        # By file: asked for one split of a repository, the library fetches all of them.
        rows = datasets.load_dataset("parquet", data_files={split: list(files)}, split=split)
    except DatasetNotFoundError as error:
        raise HfZipError(f"data {task.data!r} are no data set that you may read") from error
    except HfZipError:
        raise
    except Exception as error:  # whatever the Hub, the network or foreign files make it raise
        reason = first_line(error.__cause__ or error)
        raise HfZipError(f"data {task.data!r} cannot be had: {reason}") from error
    commit = _COMMIT.search(str(files[0]))
    return Table(task.data, rows, split, revision=commit[1] if commit else None)


def compare_classes(task: ClipTask, table: Table) -> dict[str, Any]:
    """Returns how the data's own names of the classes go with those that CLIP is told.

    Labels are positions, as in the published protocol, so that the names need not be the same; but
    there must be as many, and names that stand at another place make the order doubtful.

    Args:
        task: The task.
        table: Its data.

    Returns:
        How many of the `classes` have the `same` name at the same place, and which names stand
        `elsewhere`; nothing where the data have numbers alone.

    Raises:
        HfZipError: The data have another number of classes.
    """
    feature = table.rows.features[label_column(table, None)]
    if not isinstance(feature, ClassLabel):
        return {}
    if len(feature.names) != len(task.classes):
        raise HfZipError(
            f"data {task.data!r} have {len(feature.names)} classes, but task {task.name!r} has "
            f"{len(task.classes)}; labels are matched by position, so these are other data"
        )
    own, told = [*map(_plain, feature.names)], [*map(_plain, task.classes)]
    pairs = [*zip(own, told, strict=True)]
    elsewhere = [name for name, other in pairs if name != other and name in told]
    return {
        "classes": len(own),
        "same": sum(name == other for name, other in pairs),
        "elsewhere": elsewhere,
    }


def comparison_line(task: ClipTask, found: Mapping[str, Any]) -> str:
    """Returns what `compare_classes` found, in words."""
    if not found:
        return f"{task.title}: the data name no classes; labels are taken by position"
    line = (
        f"{task.title}: {found['same']} of {found['classes']} classes are called in the data what "
        "CLIP is told, at the same place; labels are taken by position"
    )
    if found["elsewhere"]:
        line += f". At ANOTHER place stand {first_few(found['elsewhere'], 4)}: is the order right?"
    return line


def images_of(
    task: ClipTask,
    table: Table,
    processor: Any,
    size: int,
    limit: int | None,
    seed: int,
    labelled: bool = True,
) -> Inputs:
    """Returns the images of a task, prepared when they are asked for.

    Args:
        task: The task.
        table: One split of its data.
        processor: CLIP's image processor.
        size: Height and width of the images that the models take.
        limit: So many of them, drawn at random; left out, all.
        seed: Decides which.
        labelled: Whether the labels come with them.
    """
    column, count = label_column(table, None), len(table.rows)
    rows = draw(count if limit is None else min(limit, count), count, [seed], task.data)
    reader = ImageReader(processor, image_size=size)
    part = reader.read(table, reader.columns(table, None, column), rows)
    description = {"data": table.name, "split": table.split, "revision": table.revision}
    if not labelled:
        return reader.join([part], {**description, "rows": len(rows)})
    labels = table.rows.select_columns(column)[:][column]
    return reader.join([part], description, [{"labels": labels[row]} for row in rows])


def _read(name: str) -> Any:
    return yaml.safe_load((_FOLDER / name).read_text(encoding="utf-8"))


def _plain(name: str) -> str:
    """A name without what differs between ways to write it."""
    return re.sub(r"[^a-z0-9]+", " ", str(name).lower()).strip()
