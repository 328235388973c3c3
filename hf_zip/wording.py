"""What a report says in sentences: its kinds of candidates, its limits, its data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_zip.candidates import Kind
from hf_zip.evaluate import Evaluation, Row
from hf_zip.licenses import License
from hf_zip.metadata import last_row
from hf_zip.report import Report
from hf_zip.report_records import SourceRecord
from hf_zip.tables import percent
from hf_zip.training.trained import Trained

_KINDS: dict[Kind, str] = {
    "parent": "one source, on its own task",
    "ensemble": "every source runs on every input, and their logits stand side by side",
    "average": "the mean of the sources' weights, their heads stacked as in the merge",
    "control": "one source's trunk as it is, with a new head fitted by least squares to the "
    "ensemble's logits on the calibration inputs, without labels",
    "merge": "the merged model",
}
# What they are where the heads stay apart.
_APART: dict[Kind, str] = {
    "ensemble": "every source runs on every input, and answers its own task",
    "average": "the mean of the sources' trunks, with their heads as in the merge",
    "control": "one source's trunk as it is, with all heads as in the merge",
}

# What a training says of its end.
_ENDS = {
    "steps": "",
    "seconds": " until its seconds were spent",
    "patience": " until held-out inputs gained nothing more",
}

_JOINT = (
    "Joint and per-task accuracy differ: the second supposes that the task of an input is known."
)


def answered(report: Report, source: SourceRecord) -> str:
    """Returns the tasks of a source, which may be several of a merge."""
    position = report.sources.index(source)
    names = [task.name for task in report.tasks if position in task.members]
    return ", ".join(names) or source.task or "not named"


def licence(source: SourceRecord) -> str:
    """Returns the licence that a source states, and where its text is."""
    own = _stated(source.license)
    base = source.adapter_base
    return own if base is None else f"{own}; its base: {_stated(base.license)}"


def _stated(found: License | None) -> str:
    if found is None:
        return "not stated"
    return found.name + (f" ({found.link})" if found.link else "")


def meanings(evaluation: Evaluation | None, apart: bool = False) -> dict[Kind, str]:
    """Returns what the kinds of an evaluation's candidates are.

    Args:
        evaluation: What was measured, if anything.
        apart: Whether the heads of the merge stay apart.
    """
    if evaluation is None:
        return {}
    known = {**_KINDS, **(_APART if apart else {})}
    return {kind: meaning for kind, meaning in known.items() if evaluation.of_kind(kind)}


def metrics(evaluation: Evaluation | None) -> list[str]:
    """Returns what was measured, each metric once."""
    return list(dict.fromkeys(task.metric for task in evaluation.tasks)) if evaluation else []


def limits(report: Report) -> list[str]:
    """Returns what a reader of a merge's results should know of their limits."""
    return [
        *_beside(report.evaluation),
        *([_JOINT] if _has_joint(report) else []),
        *_not_measured(report),
        *_sampled(report),
        "Nothing else was measured: not other data, not shifts of the data, not whether "
        "probabilities are calibrated.",
    ]


def described(data: Mapping[str, Any]) -> str:
    """Returns a description of data on one line."""
    parts = (
        f"{key}: {value if isinstance(value, str) else json.dumps(value, default=str)}"
        for key, value in data.items()
        if value is not None
    )
    return "; ".join(parts) or "not recorded"


def trained(found: Trained) -> str:
    """Returns what is known of a training on one line."""
    taken = "" if found.best_step == found.steps else f", those of step {found.best_step} taken"
    curve = found.held_out or found.losses
    where = "on held-out inputs " if found.held_out else ""
    # The first, the last, and the one that was taken, which may be another.
    shown = (curve[0][0], curve[-1][0], found.best_step) if curve else ()
    looks = [f"{loss:.4g} after step {step:g}" for step, loss in curve if step in shown]
    losses = f"; loss {where}{', '.join(looks)}" if looks else ""
    steps = f"{found.steps} steps{_ENDS[found.ended]}{taken}"
    return f"{found.name}, {steps}, {found.seconds:.0f} s{losses}"


def joined(texts: Sequence[str]) -> str:
    """Returns texts as a list in a sentence."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


def _beside(evaluation: Evaluation | None) -> Iterator[str]:
    """The merge beside the ensemble, and averages and controls that do better than it."""
    merge, ensemble = last_row(evaluation, "merge"), last_row(evaluation, "ensemble")
    if evaluation is None or merge is None:
        return
    if ensemble is not None:
        measured = "Accuracy" if metrics(evaluation) == ["accuracy"] else "The metrics"
        yield f"{measured} relative to the ensemble of the sources: {_compared(merge, ensemble)}."
    for row in (*evaluation.of_kind("average"), *evaluation.of_kind("control")):
        if _exceeds(row.mean, merge.mean) or _exceeds(row.joint, merge.joint):
            yield f"{row.name} ({row.kind}) does better than the merge: {_compared(row, merge)}."


def _compared(row: Row, other: Row) -> str:
    means = f"mean {percent(row.mean)} beside {percent(other.mean)}"
    if row.joint is None and other.joint is None:
        return means
    return f"{means}, joint {percent(row.joint)} beside {percent(other.joint)}"


def _exceeds(accuracy: float | None, other: float | None) -> bool:
    return accuracy is not None and other is not None and accuracy > other


def _has_joint(report: Report) -> bool:
    merge = last_row(report.evaluation, "merge")
    return merge is not None and merge.joint is not None and len(report.tasks) > 1


def _sampled(report: Report) -> Iterator[str]:
    """What part of the weights the sources were compared by, where it is not all of them."""
    share = min((pair.share for pair in report.similarities), default=1.0)
    if share < 1:
        yield (
            f"The weights of the sources were compared by {percent(share)} % of them, spread "
            "evenly over every large tensor: cosines and shares of opposite signs are estimates."
        )


def _not_measured(report: Report) -> Iterator[str]:
    """The tasks without data, then what the evaluation itself gives a reason for."""
    tasks = [f"task {task.name}" for task in report.tasks]
    skipped: Mapping[str, str] = {}
    if report.evaluation:
        skipped = report.evaluation.skipped
        done = [f"task {task.name}" for task in report.evaluation.tasks]
        tasks = [task for task in tasks if task not in (*done, *skipped)]
    if tasks:
        yield f"Not evaluated: {joined(tasks)}."
    for name, reason in skipped.items():
        yield f"Not measured: {name}, because {reason}."
