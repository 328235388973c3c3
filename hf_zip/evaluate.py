"""Labelled data in, metrics out: the merge beside its parents, their ensemble and controls."""

import dataclasses
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from jaxtyping import Float64
from torch import Tensor

from hf_zip.candidates import Answers, Candidate, Kind
from hf_zip.collect import collation, make_accelerator, make_loader
from hf_zip.cost import macs, parameters
from hf_zip.errors import HfZipError, unknown
from hf_zip.kinds import target_names
from hf_zip.metrics import METRICS, metric_of
from hf_zip.plain import build
from hf_zip.tasks import Task

_COUNTS = 4  # before the sums of the metric: see `_tally`


@dataclass(frozen=True)
class Row:
    """What was measured of one candidate.

    Args:
        name: Its name.
        kind: What it is.
        per_task: For each evaluated task the value of its metric, at most 1; of an accuracy, the
            best label is taken among the task's own. Nothing where it cannot answer.
        mean: Mean of these values over tasks; nothing if it cannot answer all.
        joint: Accuracy in [0, 1] over the samples of all tasks, the best label taken among those
            of all tasks; nothing if it cannot answer all, or if not all ask for one label.
        parameters: Number of parameters.
        macs: Multiply-accumulates for the first input: of texts, the longest.
    """

    name: str
    kind: Kind
    per_task: Mapping[str, float | None]
    mean: float | None
    joint: float | None
    parameters: int
    macs: int


@dataclass(frozen=True)
class EvaluatedTask:
    """The data that one task was evaluated on.

    Args:
        name: The task.
        samples: Number of samples.
        data: Where they come from, as the data set describes itself.
        metric: What was measured; see `hf_zip.metrics`.
    """

    name: str
    samples: int
    data: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "accuracy"


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured of a merge and of what it is compared with.

    Args:
        rows: One per candidate, in order.
        tasks: The evaluated tasks.
        skipped: What was not measured, by name, and why.
    """

    rows: tuple[Row, ...]
    tasks: tuple[EvaluatedTask, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def of_kind(self, kind: Kind) -> tuple[Row, ...]:
        """Returns the rows of one kind."""
        return tuple(row for row in self.rows if row.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Returns the evaluation as plain dicts, sequences and scalars."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Evaluation":
        """Returns the evaluation that `to_dict` described.

        Raises:
            HfZipError: A key is unknown or missing, or a value has the wrong type.
        """
        evaluation: Evaluation = build(cls, values, "evaluation")
        return evaluation


@torch.no_grad()
def evaluate(
    candidates: Sequence[Candidate],
    tasks: Sequence[Task],
    data: Mapping[str, Any],
    batch_size: int,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    skipped: Mapping[str, str] | None = None,
) -> Evaluation:
    """Returns metrics and costs of all candidates, in one pass over each task's data.

    Each process sums over its own batches and the sums are reduced once, so any number of processes
    gives the same numbers. What is measured depends on what the heads of a task answer: see
    `hf_zip.metrics`.

    Args:
        candidates: What to compare; their modules are moved to the accelerator's device.
        tasks: The tasks of the merge.
        data: For each task to evaluate a map-style data set of model inputs with what is right:
            `labels` (the position of the right label in the task, for every token where the task
            asks of tokens; of a regression numbers), or `start_positions` and `end_positions`. Its
            `description`, if any, goes on record.
        batch_size: Inputs per forward.
        accelerator: The accelerator to run under; made here when left out.
        progress: Show a progress bar, on the main process.
        skipped: What is missing among the candidates, and why; goes on record.

    Raises:
        HfZipError: Candidates share a name, a task is unknown, has no data, no metric or a label
            out of range, an answer is not a number, or samples were counted twice.
    """
    _check(candidates, tasks, data)
    accelerator = accelerator or make_accelerator()
    for module in (module for candidate in candidates for module in candidate.modules):
        module.to(accelerator.device).eval()
    evaluated = [task for task in tasks if task.name in data]
    sums = [
        _sum(candidates, task, tasks, data[task.name], batch_size, accelerator, progress)
        for task in evaluated
    ]
    if accelerator.num_processes > 1:
        sums = accelerator.reduce([x.to(accelerator.device) for x in sums], reduction="sum")
    sums = [x.cpu() for x in sums]
    for task, found in zip(evaluated, sums, strict=True):
        _check_samples(task, int(found[0, 0]), len(data[task.name]))
    first = _first_input(data[evaluated[0].name], accelerator.device)
    return Evaluation(
        rows=tuple(
            _row(
                candidate,
                evaluated,
                [found[position] for found in sums],
                macs(candidate.answers, first),
            )
            for position, candidate in enumerate(candidates)
        ),
        tasks=tuple(
            EvaluatedTask(
                task.name,
                len(data[task.name]),
                description_of(data[task.name]),
                metric_of(task).name,
            )
            for task in evaluated
        ),
        skipped=dict(skipped or {}),
    )


def _sum(
    candidates: Sequence[Candidate],
    task: Task,
    tasks: Sequence[Task],
    data: Any,
    batch_size: int,
    accelerator: Accelerator,
    progress: bool,
) -> Float64[Tensor, "candidates sums"]:
    """Returns this process's sums over one task's data."""
    size = _COUNTS + metric_of(task).size(len(task.labels))
    sums = torch.zeros(len(candidates), size, dtype=torch.float64)
    loader = make_loader(data, batch_size, accelerator)
    for batch in tqdm(loader, desc=f"evaluation, {task.name}", disable=not progress, leave=False):
        _check_targets(batch, task)
        inputs = _inputs(batch)
        for position, candidate in enumerate(candidates):
            answers = candidate.answers(inputs)
            _check_finite(candidate, answers, task)
            sums[position] += _tally(answers, batch, task, tasks)
    return sums


def _tally(
    answers: Answers, batch: Mapping[str, Tensor], task: Task, tasks: Sequence[Task]
) -> Float64[Tensor, " sums"]:
    """Returns four numbers of samples, then the sums of the task's metric.

    The samples are all; those that are answered for this task; those that are answered for every
    task by one of its labels; and those that are answered right among the labels of all tasks.
    """
    metric = metric_of(task)
    samples = len(batch[target_names(task.kind)[0]])
    counts = torch.zeros(_COUNTS, dtype=torch.float64)
    sums = torch.zeros(metric.size(len(task.labels)), dtype=torch.float64)
    counts[0] = samples
    if task.name in answers:
        counts[1] = samples
        sums = metric.tally(answers[task.name], batch, task)
    if all(other.name in answers and other.kind == "classification" for other in tasks):
        side_by_side = torch.cat([answers[other.name] for other in tasks], dim=1)
        counts[2] = samples
        counts[3] = (side_by_side.argmax(dim=1) == task.start + batch["labels"]).sum()
    return torch.cat([counts, sums])


def _row(
    candidate: Candidate,
    tasks: Sequence[Task],
    sums: Sequence[Float64[Tensor, " _"]],
    cost: int,
) -> Row:
    per_task: dict[str, float | None] = {
        task.name: metric_of(task).value(found[_COUNTS:], task) if found[1] == found[0] else None
        for task, found in zip(tasks, sums, strict=True)
    }
    values = [value for value in per_task.values() if value is not None]
    samples, _, answered, right = torch.stack([x[:_COUNTS] for x in sums]).sum(dim=0).tolist()
    return Row(
        name=candidate.name,
        kind=candidate.kind,
        per_task=per_task,
        mean=sum(values) / len(tasks) if len(values) == len(tasks) else None,
        joint=right / samples if answered == samples else None,
        parameters=parameters(candidate.modules),
        macs=cost,
    )


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    targets = {name for kind in METRICS for name in target_names(kind)}
    return {key: value for key, value in batch.items() if key not in targets}


def _first_input(data: Any, device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in _inputs(collation(data)([data[0]])).items()}


def description_of(data: Any) -> dict[str, Any]:
    """Returns where data come from, as they describe themselves."""
    return dict(getattr(data, "description", None) or {})


def _check(candidates: Sequence[Candidate], tasks: Sequence[Task], data: Mapping[str, Any]) -> None:
    names = [candidate.name for candidate in candidates]
    for name in names:
        if names.count(name) > 1:
            raise HfZipError(f"two candidates are named {name!r}; give the models different names")
    if not candidates or not data:
        missing = "candidates" if data else "data"
        raise HfZipError(f"there are no {missing} to evaluate; give at least one")
    known = [task.name for task in tasks]
    for name, rows in data.items():
        if name not in known:
            raise unknown("task in the evaluation data", name, known)
        if not isinstance(rows, Sized) or not len(rows):
            raise HfZipError(
                f"the evaluation data of task {name!r} has no rows, or does not know how many; "
                "give a map-style data set with at least one"
            )


def _check_targets(batch: Mapping[str, Tensor], task: Task) -> None:
    for name in target_names(task.kind):
        if name not in batch:
            raise HfZipError(
                f"the evaluation data of task {task.name!r} have no {name!r}; for {task.kind} give "
                f"every input {' and '.join(map(repr, target_names(task.kind)))}"
            )


def _check_finite(candidate: Candidate, answers: Answers, task: Task) -> None:
    for answer in answers.values():
        if not (answer.isfinite() | answer.isneginf()).all():
            raise HfZipError(
                f"{candidate.name!r} gave an answer that is not a number on task {task.name!r}; "
                "check the inputs and the weights"
            )


def _check_samples(task: Task, counted: int, samples: int) -> None:
    if counted != samples:
        raise HfZipError(
            f"task {task.name!r} has {samples} samples, but {counted} were counted; make the "
            "Accelerator with DataLoaderConfiguration(even_batches=False)"
        )
