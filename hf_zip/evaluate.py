"""Labelled data in, accuracies out: the merge beside its parents, their ensemble and controls."""

import dataclasses
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from jaxtyping import Int
from torch import Tensor

from hf_zip.candidates import Answers, Candidate, Kind
from hf_zip.collect import collation, make_accelerator, make_loader
from hf_zip.cost import macs, parameters
from hf_zip.errors import HfZipError, unknown
from hf_zip.plain import build
from hf_zip.tasks import Task

LABELS = "labels"


@dataclass(frozen=True)
class Row:
    """What was measured of one candidate.

    Args:
        name: Its name.
        kind: What it is.
        per_task: For each evaluated task its accuracy in [0, 1], the best label taken among the
            task's own; nothing where it cannot answer.
        mean: Mean of the accuracies over tasks; nothing if it cannot answer all.
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
    """

    name: str
    samples: int
    data: Mapping[str, Any] = field(default_factory=dict)


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
    """Returns the accuracies and costs of all candidates, in one pass over each task's data.

    Each process counts the right answers of its own batches and the counts are reduced once, so any
    number of processes gives the same accuracies.

    Args:
        candidates: What to compare; their modules are moved to the accelerator's device.
        tasks: The tasks of the merge.
        data: For each task to evaluate a map-style data set of model inputs and `labels`, the
            position of the right label in the task. Its `description`, if any, goes on record.
        batch_size: Inputs per forward.
        accelerator: The accelerator to run under; made here when left out.
        progress: Show a progress bar, on the main process.
        skipped: What is missing among the candidates, and why; goes on record.

    Raises:
        HfZipError: Candidates share a name, a task is unknown, has no data or a label out of range,
            an answer is not a number, or samples were counted twice.
    """
    _check(candidates, tasks, data)
    accelerator = accelerator or make_accelerator()
    for module in (module for candidate in candidates for module in candidate.modules):
        module.to(accelerator.device).eval()
    evaluated = [task for task in tasks if task.name in data]
    counts = torch.stack(
        [
            _count(candidates, task, tasks, data[task.name], batch_size, accelerator, progress)
            for task in evaluated
        ]
    )
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(counts, reduction="sum")
    counts = counts.cpu()
    for task, samples in zip(evaluated, counts[:, 0, 0].tolist(), strict=True):
        _check_samples(task, samples, len(data[task.name]))
    first = _first_input(data[evaluated[0].name], accelerator.device)
    return Evaluation(
        rows=tuple(
            _row(candidate, evaluated, counts[:, position].tolist(), macs(candidate.answers, first))
            for position, candidate in enumerate(candidates)
        ),
        tasks=tuple(
            EvaluatedTask(t.name, len(data[t.name]), description_of(data[t.name]))
            for t in evaluated
        ),
        skipped=dict(skipped or {}),
    )


def _count(
    candidates: Sequence[Candidate],
    task: Task,
    tasks: Sequence[Task],
    data: Any,
    batch_size: int,
    accelerator: Accelerator,
    progress: bool,
) -> Int[Tensor, "candidates counts"]:
    """Returns this process's counts on one task's data."""
    counts = torch.zeros(len(candidates), 5, dtype=torch.int64, device=accelerator.device)
    loader = make_loader(data, batch_size, accelerator)
    for batch in tqdm(loader, desc=f"evaluation, {task.name}", disable=not progress, leave=False):
        labels, inputs = batch[LABELS], _inputs(batch)
        _check_labels(labels, task)
        for position, candidate in enumerate(candidates):
            counts[position] += _tally(candidate, candidate.answers(inputs), labels, task, tasks)
    return counts


def _tally(
    candidate: Candidate,
    answers: Answers,
    labels: Int[Tensor, "batch"],
    task: Task,
    tasks: Sequence[Task],
) -> Int[Tensor, "5"]:
    """Returns five numbers of samples.

    All; those that the candidate answers for this task; that it answers right; that it answers for
    every task; and that it answers right among the labels of all tasks.
    """
    for answer in answers.values():
        if not answer.isfinite().all():
            raise HfZipError(
                f"{candidate.name!r} gave an answer that is not a number on task {task.name!r}; "
                "check the inputs and the weights"
            )
    counts = torch.zeros(5, dtype=torch.int64, device=labels.device)
    counts[0] = len(labels)
    if task.name in answers:
        counts[1] = len(labels)
        counts[2] = (answers[task.name].argmax(dim=1) == labels).sum()
    if all(other.name in answers and other.kind == "classification" for other in tasks):
        side_by_side = torch.cat([answers[other.name] for other in tasks], dim=1)
        counts[3] = len(labels)
        counts[4] = (side_by_side.argmax(dim=1) == task.start + labels).sum()
    return counts


def _row(
    candidate: Candidate, tasks: Sequence[Task], counts: Sequence[Sequence[int]], cost: int
) -> Row:
    per_task: dict[str, float | None] = {
        task.name: right / samples if answered == samples else None
        for task, (samples, answered, right, _, _) in zip(tasks, counts, strict=True)
    }
    answers = [accuracy for accuracy in per_task.values() if accuracy is not None]
    samples, _, _, all_answered, right = (sum(column) for column in zip(*counts, strict=True))
    return Row(
        name=candidate.name,
        kind=candidate.kind,
        per_task=per_task,
        mean=sum(answers) / len(tasks) if len(answers) == len(tasks) else None,
        joint=right / samples if all_answered == samples else None,
        parameters=parameters(candidate.modules),
        macs=cost,
    )


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key != LABELS}


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


def _check_labels(labels: Int[Tensor, "batch"], task: Task) -> None:
    last = len(task.labels) - 1
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > last:
        raise HfZipError(
            f"the evaluation data of task {task.name!r} has label {low if low < 0 else high}, but "
            f"its labels are numbered from 0 to {last}; map the data's labels to the model's"
        )


def _check_samples(task: Task, counted: int, samples: int) -> None:
    if counted != samples:
        raise HfZipError(
            f"task {task.name!r} has {samples} samples, but {counted} were counted; make the "
            "Accelerator with DataLoaderConfiguration(even_batches=False)"
        )
