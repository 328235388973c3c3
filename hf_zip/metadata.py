"""What the card of a merge tells the Hub: base models, data, licence, results."""

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_zip.candidates import Kind
from hf_zip.evaluate import EvaluatedTask, Evaluation, Row
from hf_zip.generated import parts_of
from hf_zip.metrics import hub_metric
from hf_zip.report import Report
from hf_zip.report_records import SourceRecord
from hf_zip.sources import AdapterBase


def card_metadata(report: Report, title: str, pipeline: str | None) -> ModelCardData:
    """Returns what stands at the head of a card.

    Args:
        report: What is known about the merge.
        title: The model's name.
        pipeline: Task tag of its pipeline on the Hub, if it has one.
    """
    models: list[SourceRecord | AdapterBase] = list(report.sources)
    models += [s.adapter_base for s in report.sources if s.adapter_base]
    base_models = list(dict.fromkeys(filter(None, map(hub_id, models))))
    adapter = report.adapter
    if adapter is not None:  # the Hub lists it under the one model that it is an adapter of
        base_models = [adapter.base] if adapter.revision else []
    data_sets = list(
        dict.fromkeys(_hub_data([report.calibration, *report.own_calibration.values()]))
    )
    results = list(_results(report, pipeline or "other"))
    stated, name, link = _license(report)
    return ModelCardData(
        base_model=base_models or None,
        base_model_relation="merge" if adapter is None else "adapter",
        library_name="transformers" if adapter is None else "peft",
        pipeline_tag=pipeline,
        tags=[
            *("merge", "hf_zip", report.method.name),
            *(["lora"] if adapter else []),
            *([pipeline] if pipeline else []),
        ],
        license=stated,
        license_name=name,
        license_link=link,
        datasets=data_sets or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _license(report: Report) -> tuple[str | None, str | None, str | None]:
    """Name in the Hub's list, own name and link of the recipe's licence, or that of all sources."""
    common = report.common_license
    chosen = report.recipe.get("license")
    if chosen is not None or common is None:
        return chosen, None, None
    own = None if common.listed else common.name
    return "other" if own else common.name, own, common.link


def _results(report: Report, task_type: str) -> Iterator[EvalResult]:
    """What was measured of the merged model, as the Hub's model-index holds it."""
    row = last_row(report.evaluation, "merge")
    if row is None or report.evaluation is None:
        return
    tasks = report.evaluation.tasks
    for task in tasks:
        yield EvalResult(
            task_type=task_type,
            dataset_type=_data_name(task),
            dataset_name=_data_name(task),
            dataset_split=task.data.get("split"),
            dataset_revision=task.data.get("revision"),
            metric_type=hub_metric(task.metric),
            metric_name=f"{task.metric} on task {task.name}",
            metric_value=row.per_task[task.name],
        )
    if row.joint is not None:
        names = ", ".join(dict.fromkeys(_data_name(task) for task in tasks))
        yield EvalResult(
            task_type=task_type,
            dataset_type="evaluated-tasks",
            dataset_name=f"evaluated tasks: {names}",
            metric_type="accuracy",
            metric_name="joint accuracy over the labels of all tasks",
            metric_value=row.joint,
        )


def _data_name(task: EvaluatedTask) -> str:
    """The Hub id of a task's data; files are told apart by their task, as their names may agree."""
    data = task.data.get("data")
    if isinstance(data, str) and task.data.get("revision"):
        return data.partition("@")[0]
    return f"{data if isinstance(data, str) else 'data'} of task {task.name}"


def hub_id(source: SourceRecord | AdapterBase) -> str | None:
    """The Hub id of a model; only what was resolved to a commit there has one."""
    return source.reference.partition("@")[0] if source.revision is not None else None


def _hub_data(description: Any) -> Iterator[str]:
    """The data sets in a description that were resolved to a commit on the Hub."""
    if isinstance(description, Mapping):
        data = description.get("data")
        if isinstance(data, str) and description.get("revision"):
            yield parts_of(data)[1].partition("@")[0]
        for value in description.values():
            yield from _hub_data(value)
    elif isinstance(description, list | tuple):
        for value in description:
            yield from _hub_data(value)


def last_row(evaluation: Evaluation | None, kind: Kind) -> Row | None:
    """The last row of a kind: this merge comes after any other merges of the same sources."""
    rows = evaluation.of_kind(kind) if evaluation else ()
    return rows[-1] if rows else None
