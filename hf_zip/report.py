"""Everything known about one merge: what went in, what was found, what was measured."""

import dataclasses
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from hf_zip.errors import HfZipError
from hf_zip.evaluate import Evaluation
from hf_zip.licenses import License, common_license, stated_licenses
from hf_zip.lineage import Ancestor
from hf_zip.plain import build
from hf_zip.report_records import (
    AdapterRecord,
    MethodRecord,
    OwnBaseRecord,
    SimilarityRecord,
    SourceRecord,
    TaskRecord,
    Validation,
)
from hf_zip.tables import table
from hf_zip.training.trained import Trained

__all__ = ["REPORT_NAME", "Report", "read", "table", "versions"]

REPORT_NAME = "hf_zip_report.json"
SCHEMA_VERSION = 1

_PACKAGES = (
    "hf_zip",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
)


@dataclass(frozen=True)
class Report:
    """Everything known about one merge.

    Args:
        architecture: Class of the merged model.
        recipe: The resolved recipe, every default written out.
        sources: The merged models.
        tasks: Their tasks; none for models without a task head.
        method: The merge method.
        versions: Versions of Python and of the packages that took part.
        seconds: Time from loading to the merged model, without evaluation.
        num_processes: Number of processes.
        dtype: Precision of the written weights.
        processor: Class of the image processor or tokenizer that is saved with the model, if any.
        shared_init: Whether the sources were fine-tuned from one initialisation; nothing if that
            was not checked.
        similarities: How alike the weights of every pair of sources are, and, where the base model
            is known, their task vectors.
        findings: What the checks before the merge found, one sentence each.
        matching: Mean correlation of the features that were merged, by merge group; nothing for
            a method that matches none.
        explained: Share of the sources' features that the merged ones hold, in [0, 1], by place;
            nothing for a method that fits none.
        coefficients: Learnt factor of each source's task vector, by parameter, or by "all"; nothing
            for a method that learns none.
        trainings: What was trained for the merge.
        barriers: Loss barrier between the root and each source that was rooted, as a share of the
            larger loss at the ends; by name.
        depths: The depths that `stop_at: auto` chose from: `blocks`, what each source is
            `explained` to on held-out inputs, and `parameters`; where it chose by accuracy, also
            the accuracies on the `validation` data by task, of the depths that were measured.
        validation: What it chose on by accuracy; nothing where it did not.
        family: The sources by their weights, with what those that are merges were merged of.
        calibration: Where the calibration inputs come from, as they describe themselves; nothing
            where there were none.
        own_calibration: The same for inputs of sources' own, by the name of the source.
        evaluation: What was measured; nothing before that.
        base: The model that the sources were fine-tuned from, where it is known.
        own_bases: What sources were fine-tuned from, of those whose task vectors were brought to
            `base` from there.
        sizes: Bytes of the weights in the precision of the merge: of the `merge` and of all
            `sources` together; of a merge with weights for every task only.
        adapter: What is known of the adapter that it was written as; nothing where it was not.
        schema_version: Version of these fields.

    Raises:
        HfZipError: The fields are those of another version.
    """

    architecture: str
    recipe: Mapping[str, Any]
    sources: tuple[SourceRecord, ...]
    tasks: tuple[TaskRecord, ...]
    method: MethodRecord
    versions: Mapping[str, str]
    seconds: float
    num_processes: int = 1
    dtype: str = "float32"
    processor: str | None = None
    shared_init: bool | None = None
    similarities: tuple[SimilarityRecord, ...] = ()
    findings: tuple[str, ...] = ()
    matching: Mapping[str, float] = field(default_factory=dict)
    explained: Mapping[str, float] = field(default_factory=dict)
    coefficients: Mapping[str, Any] = field(default_factory=dict)
    trainings: tuple[Trained, ...] = ()
    barriers: Mapping[str, float] = field(default_factory=dict)
    depths: tuple[Mapping[str, Any], ...] = ()
    validation: Validation | None = None
    family: tuple[Ancestor, ...] = ()
    calibration: Mapping[str, Any] | None = None
    own_calibration: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    base: SourceRecord | None = None
    own_bases: tuple[OwnBaseRecord, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    adapter: AdapterRecord | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def apart(self) -> bool:
        """Whether the answers to the tasks cannot stand side by side."""
        if self.architecture == "HfZipMaskedModel":
            starts = [task.start for task in self.tasks]
            return len({*starts}) < len(starts) or not all(task.labels for task in self.tasks)
        return self.architecture == "HfZipMultiHeadModel"

    @property
    def common_license(self) -> License | None:
        """The licence that all sources state, if it is one and the same; bases of adapters too."""
        return common_license([*stated_licenses(self.sources).values()])

    @property
    def own_parts(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Every data set that one source alone was run on, with the source's name."""
        return [
            (name, part)
            for name, found in self.own_calibration.items()
            for part in found.get("parts", [found])
        ]

    def __post_init__(self) -> None:
        """Checks the version."""
        if self.schema_version != SCHEMA_VERSION:
            raise HfZipError(
                f"the report has schema version {self.schema_version}, but this hf_zip reads "
                f"{SCHEMA_VERSION}; use the version of hf_zip that wrote it"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain dicts, sequences and scalars."""
        return {"schema_version": self.schema_version, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        """Returns the report that `to_dict` described.

        Raises:
            HfZipError: A key is unknown or missing, a value has the wrong type, or the fields are
                those of another version.
        """
        report: Report = build(cls, values, "report")
        return report

    def to_json(self) -> str:
        """Returns the report as JSON, its keys always in the same order.

        Raises:
            HfZipError: A value has no place in JSON.
        """
        try:
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise HfZipError(
                f"the report cannot be written as JSON: {error}; descriptions of data and the "
                "recipe should hold plain values, and numbers should be finite"
            ) from error
        return text + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Returns the report that `to_json` wrote.

        Raises:
            HfZipError: The text is not JSON, or `from_dict` refuses it.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise HfZipError(f"the report is not valid JSON: {error}") from error
        return cls.from_dict(values)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that take part in a merge."""
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in _PACKAGES}}


def read(folder: str | Path) -> Report:
    """Returns the report in the folder of a merge.

    Raises:
        HfZipError: There is none, or it is not a report of this version.
    """
    path = Path(folder) / REPORT_NAME
    if not path.is_file():
        raise HfZipError(f"{str(folder)!r} holds no {REPORT_NAME}; give a folder of a merge")
    return Report.from_json(path.read_text(encoding="utf-8"))
