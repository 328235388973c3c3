"""What every merge is measured beside: its parents, ensemble, plain average and controls."""

from collections.abc import Mapping
from dataclasses import replace

from transformers import PreTrainedModel

from hf_zip.assemble import assemble
from hf_zip.candidates import Candidate, ensemble, merged, one_trunks, parent
from hf_zip.evaluate import Evaluation, evaluate
from hf_zip.method import WeightOptions
from hf_zip.methods import method_named
from hf_zip.multi_head import assemble_multi_head, stream_moments
from hf_zip.outcome import Merged
from hf_zip.preparation import Prepared
from hf_zip.recipe import Unmerge
from hf_zip.request import Request
from hf_zip.statistics.covariance import Covariance


def measure(
    model: PreTrainedModel,
    request: Request,
    prepared: Prepared,
    others: Mapping[str, PreTrainedModel] | None = None,
    name: str = "",
) -> Evaluation:
    """Returns the accuracies and costs of a merge and of everything it should be compared with.

    Args:
        model: The merged model.
        request: What was asked for, and the batch size of its evaluation.
        prepared: Its sources, their tasks and the labelled data.
        others: More merges of the same sources, by name, for a common table.
        name: What the merge is called; left out, by its method.
    """
    sources, tasks, data = prepared.sources, prepared.tasks, prepared.evaluation
    method, runtime = request.recipe.merge_method, prepared.inputs.runtime
    missing = [task.name for task in tasks if task.name not in data]
    skipped = {f"task {name}": "no evaluation data were given" for name in missing}
    candidates = [parent(sources, position, tasks) for position in range(len(sources))]
    candidates.append(ensemble(sources, tasks))
    if (name or method) != "average":
        candidates.append(_average(prepared))
    hindrance = _no_one_trunk(prepared)
    if hindrance:
        skipped["one trunk"] = hindrance
    elif prepared.apart:
        candidates += _trunks_with_heads(prepared)
    else:
        candidates += one_trunks(sources, tasks, runtime.calibration, **runtime.running)
    candidates += [merged(other, tasks, called) for called, other in (others or {}).items()]
    candidates.append(merged(model, tasks, name or method))
    batch_size = max((spec.batch_size for spec in request.recipe.evaluation), default=64)
    return evaluate(
        candidates, tasks, data, batch_size, runtime.accelerator, runtime.progress, skipped
    )


def _no_one_trunk(prepared: Prepared) -> str:
    """Why no trunk can be given a least-squares head; nothing where it can.

    Where heads are stacked, all of them answer one kind of question.
    """
    if prepared.inputs.runtime.calibration is None:
        return "its least-squares head needs calibration data, and none were given"
    if prepared.apart:
        return ""
    if not prepared.inputs.heads:
        return "the models share a head, whose rows are no labels of a task"
    return ""


def _average(prepared: Prepared) -> Candidate:
    method, inputs = method_named("average"), prepared.inputs
    options = tuple(WeightOptions() for _ in prepared.sources)
    averaged = method.run(replace(inputs, model_options=options, varied={}), method.options())
    if prepared.apart:
        model = _with_heads(prepared, averaged)
    else:
        model = assemble(averaged, prepared.sources[0].model, prepared.tasks, {})
    return merged(model, prepared.tasks, "weight average", "average")


def _trunks_with_heads(prepared: Prepared) -> list[Candidate]:
    """Each source's trunk, unmerged, with all heads behind maps fitted as the merge's are."""
    found = stream_moments(prepared.inputs.runtime)
    trunks = zip(prepared.sources, prepared.inputs.states, found, strict=True)
    return [
        merged(
            _with_heads(prepared, Merged(dict(state), heads=()), moments),
            prepared.tasks,
            f"one trunk ({source.name})",
            "control",
        )
        for source, state, moments in trunks
    ]


def _with_heads(
    prepared: Prepared, trunk: Merged, moments: Covariance | None = None
) -> PreTrainedModel:
    runtime = prepared.inputs.runtime
    unmerge: Unmerge = "exact" if runtime.calibration is None else "ridge"
    model, _ = assemble_multi_head(
        trunk, runtime, prepared.sources, prepared.tasks, {}, unmerge, moments=moments
    )
    return model
