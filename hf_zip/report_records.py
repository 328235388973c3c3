"""What a report says of single things: sources, tasks, the method, pairs, a validation."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from hf_zip.evaluate import EvaluatedTask
from hf_zip.kinds import Kind
from hf_zip.licenses import License
from hf_zip.similarity import PairSimilarity
from hf_zip.sources import AdapterBase, Source
from hf_zip.tasks import Task


@dataclass(frozen=True)
class SourceRecord:
    """Where one of the merged models comes from; the fields are those of `Source`."""

    reference: str
    name: str
    task: str | None = None
    revision: str | None = None
    sha256: str | None = None
    license: License | None = None
    architecture: str | None = None
    adapter_base: AdapterBase | None = None

    @classmethod
    def of(cls, source: Source) -> "SourceRecord":
        """Returns the record of a source."""
        return cls(**{f.name: getattr(source, f.name) for f in fields(cls)})


@dataclass(frozen=True)
class OwnBaseRecord:
    """What one source was fine-tuned from, where that is not the base of the merge.

    Args:
        source: Name of the source.
        base: Its base.
    """

    source: str
    base: SourceRecord


@dataclass(frozen=True)
class TaskRecord:
    """One task and its rows in the merged head; the fields are those of `Task`."""

    name: str
    labels: tuple[str, ...]
    start: int
    members: tuple[int, ...]
    kind: Kind = "classification"

    @property
    def stop(self) -> int:
        """One past its last row in the merged head."""
        return self.start + len(self.labels)

    @classmethod
    def of(cls, task: Task) -> "TaskRecord":
        """Returns the record of a task."""
        return cls(task.name, task.labels, task.start, task.members, task.kind)


@dataclass(frozen=True)
class MethodRecord:
    """The merge method.

    Args:
        name: What a recipe calls it.
        title: What it does, in one line.
        reference: The paper, as a link; empty where there is none.
    """

    name: str
    title: str
    reference: str = ""


@dataclass(frozen=True)
class SimilarityRecord:
    """How alike two sources are.

    Args:
        first: Name of the one.
        second: Name of the other.
        compared: Their weights, or their task vectors: what each changed of the base model.
        cosines: By role of the weights; see `hf_zip.similarity.PairSimilarity`.
        sign_conflicts: The same for the share of opposite signs.
        share: Share of these weights that was compared, in (0, 1].
    """

    first: str
    second: str
    compared: Literal["weights", "task vectors"]
    cosines: Mapping[str, float]
    sign_conflicts: Mapping[str, float] = field(default_factory=dict)
    share: float = 1.0

    @classmethod
    def of(
        cls, pair: PairSimilarity, compared: Literal["weights", "task vectors"]
    ) -> "SimilarityRecord":
        """Returns the record of what preflight found of a pair."""
        return cls(pair.first, pair.second, compared, pair.cosines, pair.sign_conflicts, pair.share)


@dataclass(frozen=True)
class AdapterRecord:
    """What is known of a merge that was written as an adapter of its base.

    Args:
        base: The base: a folder or a Hub id.
        revision: Its commit on the Hub; nothing for a folder.
        rank: The adapter's rank.
        modules: How many matrices it changes.
        error: The norm of what of their changes is left out, relative to all of it.
        worst: The module of which the largest share is left out.
        worst_error: That share.
        whole: Modules that are kept whole.
    """

    base: str
    revision: str | None
    rank: int
    modules: int
    error: float
    worst: str
    worst_error: float
    whole: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validation:
    """What a depth that was chosen by accuracy was chosen on.

    Args:
        points: How many percent points of accuracy the merge may lose against the ensemble.
        tasks: The data of each task.
        ensemble: The ensemble's accuracy on them, by task.
    """

    points: float
    tasks: tuple[EvaluatedTask, ...]
    ensemble: Mapping[str, float | None]
