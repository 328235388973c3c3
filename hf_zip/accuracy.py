"""Labelled data that decide how deep to share, apart from those that the result is reported on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from hf_zip.candidates import Candidate, ensemble, merged
from hf_zip.errors import HfZipError
from hf_zip.evaluate import Evaluation, description_of, evaluate
from hf_zip.method import Runtime
from hf_zip.recipe import IN_MEMORY
from hf_zip.report_records import Validation
from hf_zip.sources import Source
from hf_zip.tasks import Task

Built = tuple[PreTrainedModel, Mapping[str, float]]
Accuracies = Mapping[str, float | None]

# Accuracies are ratios of counts, whose difference may exceed a whole number of points by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Deepest:
    """The deepest sharing that keeps enough.

    Args:
        blocks: Number of shared blocks.
        built: What was built with that many.
        accuracies: For every measured number of shared blocks, the accuracy on each task.
        validation: What they are compared with.
    """

    blocks: int
    built: Built
    accuracies: Mapping[int, Accuracies]
    validation: Validation


def deepest_sharing(
    points: float,
    allowed: Sequence[int],
    build: Callable[[int], Built],
    sources: Sequence[Source],
    tasks: Sequence[Task],
    data: Mapping[str, Any],
    batch_size: int,
    runtime: Runtime,
) -> Deepest:
    """Returns the deepest sharing that on no task loses more accuracy than allowed.

    The deepest is built and measured first, then the next, until one keeps enough: what is left out
    is shallower than what is returned.

    Args:
        points: How many percent points of accuracy, or of a task's other metric times 100, may be
            lost against the ensemble.
        allowed: Numbers of shared blocks to choose among, ascending.
        build: Returns the merge with a number of shared blocks.
        sources: The sources of the merge.
        tasks: Its tasks.
        data: Labelled data of every task, which decide.
        batch_size: Inputs per forward.
        runtime: What the models run on.

    Raises:
        HfZipError: None keeps enough.
    """

    def measure(candidate: Candidate) -> Evaluation:
        accelerator, progress = runtime.accelerator, runtime.progress
        return evaluate([candidate], tasks, data, batch_size, accelerator, progress)

    reference = measure(ensemble(sources, tasks))
    best = reference.rows[0].per_task
    validation = Validation(points, reference.tasks, best)
    measured: dict[int, Accuracies] = {}
    for blocks in reversed(allowed):
        built = build(blocks)
        measured[blocks] = measure(merged(built[0], tasks, f"{blocks} blocks")).rows[0].per_task
        if _lost(measured[blocks], best) <= points + _ROUNDING:
            return Deepest(blocks, built, measured, validation)
    rows = "; ".join(f"{n} blocks: {_lost(found, best):.2f}" for n, found in measured.items())
    raise HfZipError(
        f"no depth within the budget loses at most {points:g} points on every task; on the worst "
        f"task they lose {rows}. Allow more points, or less in the rest of the budget"
    )


def check_apart(reported: Mapping[str, Any], decided: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that no task's result is reported on the data that its depth was chosen on.

    Args:
        reported: Evaluation data by task.
        decided: Descriptions of the validation data by task.

    Raises:
        HfZipError: A task has the same rows or the same split of the same data in both.
    """
    for task, data in reported.items():
        own, other = description_of(data), decided.get(task, {})
        rows = own.get("fingerprint")
        named = own.get("data") not in (None, IN_MEMORY) and all(
            own.get(key) == other.get(key) for key in ("data", "split", "revision")
        )
        if named or (rows is not None and rows == other.get("fingerprint")):
            raise same_data(task)


def same_data(task: str) -> HfZipError:
    """Returns the error that a task has the same data for validation and evaluation."""
    return HfZipError(
        f"task {task!r} has the same data and split for validation and for evaluation, but the "
        "choice of the depth must not see what the result is reported on; give another split"
    )


def _lost(found: Accuracies, best: Accuracies) -> float:
    """The percent points of accuracy, or of another metric, that are lost on the worst task."""
    return max(100 * ((best[task] or 0.0) - (found[task] or 0.0)) for task in best)
