"""What every merge is measured beside: its parents, ensemble, plain average and controls."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_zip.assemble import assemble
from hf_zip.candidates import Candidate, ensemble, merged, one_trunk, parent
from hf_zip.evaluate import Evaluation, evaluate
from hf_zip.methods import MergeInputs, WeightOptions, method_named
from hf_zip.preparation import Prepared
from hf_zip.request import Request
from hf_zip.sources import Source
from hf_zip.tasks import Task


def compare(
    model: PreTrainedModel,
    method: str,
    sources: Sequence[Source],
    tasks: Sequence[Task],
    inputs: MergeInputs,
    data: Mapping[str, Any],
    calibration: Any = None,
    calibration_batch: int = 32,
    batch_size: int = 64,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    others: Mapping[str, PreTrainedModel] | None = None,
) -> Evaluation:
    """Returns the accuracies and costs of a merge and of everything it should be compared with.

    Args:
        model: The merged model.
        method: The name of its method, or what else it should be called.
        sources: Its sources.
        tasks: Its tasks.
        inputs: What its method worked on, for the plain average of the same parameters.
        data: Labelled data by task.
        calibration: Unlabelled inputs for the least-squares heads of the controls.
        calibration_batch: Calibration inputs per forward.
        batch_size: Evaluation inputs per forward.
        accelerator: The accelerator to run under.
        progress: Show progress bars, on the main process.
        others: More merges of the same sources, by name, for a common table.
    """
    missing = [task.name for task in tasks if task.name not in data]
    skipped = {f"task {name}": "no evaluation data were given" for name in missing}
    candidates = [parent(sources, position, tasks) for position in range(len(sources))]
    candidates.append(ensemble(sources, tasks))
    if method != "average":
        candidates.append(_average(sources, tasks, inputs))
    if calibration is None:
        skipped["one trunk"] = "its least-squares head needs calibration data, and none were given"
    else:
        candidates += [
            one_trunk(
                sources, position, tasks, calibration, calibration_batch, accelerator, progress
            )
            for position in range(len(sources))
        ]
    for name, other in (others or {}).items():
        candidates.append(merged(other, tasks, name))
    candidates.append(merged(model, tasks, method))
    return evaluate(candidates, tasks, data, batch_size, accelerator, progress, skipped)


def measure(
    model: PreTrainedModel,
    request: Request,
    prepared: Prepared,
    others: Mapping[str, PreTrainedModel] | None = None,
    name: str = "",
) -> Evaluation:
    """Returns what `compare` finds for a prepared merge, on the evaluation data of its request."""
    runtime = prepared.inputs.runtime
    sizes = [spec.batch_size for spec in request.recipe.evaluation]
    return compare(
        model,
        name or request.recipe.merge_method,
        prepared.sources,
        prepared.tasks,
        prepared.inputs,
        prepared.evaluation,
        runtime.calibration,
        runtime.batch_size,
        max(sizes, default=64),
        runtime.accelerator,
        runtime.progress,
        others,
    )


def _average(sources: Sequence[Source], tasks: Sequence[Task], inputs: MergeInputs) -> Candidate:
    method = method_named("average")
    plain = replace(inputs, model_options=tuple(WeightOptions() for _ in sources))
    model = assemble(method.run(plain, method.options()), sources[0].model, tasks, {})
    return merged(model, tasks, "weight average", "average")
