"""The rows of the table of `reproduce_clip8.py`: methods with the options that are published."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

REFERENCES = ("zero-shot", "fine-tuned")
_MATRICES = "the table of positions is averaged; what is published takes it for a matrix"


@dataclass(frozen=True)
class Row:
    """One row of the table: a merge method, and what is published of it.

    Args:
        name: What the row is called.
        method: The merge method.
        parameters: Its options.
        published: The row of `clip8/published.yaml` that has the same options.
        note: What differs from it, or where the options come from.
        split: The split whose images each model is given, without labels; left out, none.
        images: So many of them, drawn at random; left out, all, or those that are measured.
    """

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    published: str | None = None
    note: str = ""
    split: Literal["train", "test"] | None = None
    images: int | None = None


_REGRESSION = (
    "256 training images of each task, without labels, as published; alpha as in FusionBench's "
    "configuration, of which older versions have 0.6"
)
_ADAPTED = "learnt from the images of the test split, without labels, as published"
_TRAINING = {"steps": 1000, "learning_rate": 0.001, "batch_size": 16}
ROWS = (
    Row("average", "average", published="average"),
    Row("task_arithmetic", "task_arithmetic", {"scaling": 0.3}, "task_arithmetic"),
    Row(
        "ties, sum",
        "ties",
        {"merge": "sum", "scaling": 0.3},
        "ties",
        "what is published adds up what agrees, with 0.3; the paper's mean is the next row; the "
        "projection, which no task changed, counts here in the density (0.5 % of the numbers)",
    ),
    Row("ties", "ties", {"scaling": 1.0}),
    Row(
        "dare",
        "dare",
        {"drop_rate": 0.5, "scaling": 0.3},
        note="options of FusionBench's configuration; no accuracy is published",
    ),
    Row("della", "della"),
    Row("breadcrumbs", "breadcrumbs"),
    Row("consensus", "consensus"),
    Row("magmax", "magmax", {"scaling": 0.5}, "magmax"),
    Row("pcb", "pcb"),
    Row("sce", "sce"),
    Row("model_stock", "model_stock", note="made for models of one task"),
    Row("karcher", "karcher"),
    Row("tsv", "tsv", {"scaling": 1.0}, note=_MATRICES.partition(";")[0]),
    Row("iso_c", "iso_c", {"scaling": 1.5}, "iso_c", _MATRICES),
    Row("iso_cts", "iso_cts", {"scaling": 1.5}, "iso_cts", _MATRICES),
    Row(
        "wudi",
        "wudi",
        published="wudi",
        note=f"solved in closed form, where 400 steps of Adam are published; {_MATRICES}",
    ),
    Row("regmean", "regmean", {"alpha": 0.95}, "regmean", _REGRESSION, "train", 256),
    Row("regmean_pp", "regmean_pp", {"alpha": 0.95}, "regmean++", _REGRESSION, "train", 256),
    Row(
        "adamerging, task",
        "adamerging",
        {"granularity": "task", "training": _TRAINING},
        "adamerging task-wise",
        _ADAPTED,
        "test",
    ),
    Row(
        "adamerging, layer",
        "adamerging",
        {"training": _TRAINING},
        "adamerging layer-wise",
        _ADAPTED,
        "test",
    ),
)


def all_names() -> list[str]:
    """Returns the names of all rows, in order."""
    return [*REFERENCES, *(row.name for row in ROWS)]


def dataless_names() -> list[str]:
    """Returns the names of the rows that need no images to merge, in order."""
    return [*REFERENCES, *(row.name for row in ROWS if row.split is None)]
