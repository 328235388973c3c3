"""One merge at several depths or sizes: what each costs and keeps, as a table, data and a plot."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_zip.charts import pareto
from hf_zip.choices import method_options
from hf_zip.collect import make_accelerator
from hf_zip.comparison import measure
from hf_zip.drawing import png
from hf_zip.errors import HfZipError
from hf_zip.evaluate import Evaluation
from hf_zip.execution import build_model, run_method
from hf_zip.groups import blocks
from hf_zip.method import MergeMethod
from hf_zip.methods import method_named
from hf_zip.needs import check_needs, resolve_unmerge
from hf_zip.partial import check_partial
from hf_zip.plain import build
from hf_zip.preparation import Prepared, prepare
from hf_zip.recipe import Recipe, Unmerge
from hf_zip.report import versions
from hf_zip.request import Request
from hf_zip.save import write_file
from hf_zip.sweep_report import SWEEP_NAME, SweepReport
from hf_zip.tables import markdown_table


def sweep(
    recipe: Recipe,
    out: str | Path,
    depths: Sequence[int] | None = None,
    sizes: Sequence[float] | None = None,
    force: bool = False,
    progress: bool = True,
    allow_pickle: bool = False,
) -> Evaluation:
    """Measures a merge at several depths or sizes and writes `sweep.json`, `.md` and `.png`.

    The method runs once for all depths, over all blocks, and once for every size.

    Args:
        recipe: The merge; its `stop_at`, and what would choose it, are not used.
        out: Folder for the results; made if there is none.
        depths: Numbers of shared blocks; left out with `sizes` left out, all of them.
        sizes: Values of the method's `size`.
        force: Go on despite findings that may be forced.
        progress: Show progress bars, on the main process.
        allow_pickle: See `hf_zip.merge`.

    Raises:
        HfZipError: The recipe names no evaluation data, a depth is out of range, both depths and
            sizes are given, or the method has no size.
    """
    recipe = replace(recipe, stop_at=None, budget=None, validation=())
    method, request = method_named(recipe.merge_method), Request(recipe, allow_pickle=allow_pickle)
    if method.needs_base(method_options(method, recipe.parameters)):
        request = request.with_shared_base()
        recipe = request.recipe
    check_needs(method, request)
    if method.per_task:
        raise HfZipError(
            f"{method.name!r} gives every task weights of its own in all blocks, so there are "
            "neither depths nor sizes to sweep over; use hf_zip.merge"
        )
    if not request.evaluates:
        raise HfZipError("a sweep compares accuracies, but the recipe names no evaluation data")
    if depths and sizes:
        raise HfZipError("give depths or sizes to sweep over, not both")
    accelerator = make_accelerator()
    prepared = prepare(request, method, force, accelerator, progress)
    if sizes:
        models = _by_size(recipe, method, prepared, sizes)
    else:
        unmerge = resolve_unmerge(method, request)
        models = _by_depth(method, prepared, depths, unmerge)
    *others, (last, model) = models.items()
    evaluation = measure(model, request, prepared, dict(others), last)
    if accelerator.is_main_process:
        _write(Path(out), recipe, evaluation)
    accelerator.wait_for_everyone()
    return evaluation


def _by_depth(
    method: MergeMethod,
    prepared: Prepared,
    depths: Sequence[int] | None,
    unmerge: Unmerge,
) -> dict[str, PreTrainedModel]:
    runtime = prepared.inputs.runtime
    count = len(blocks(runtime.models[0], runtime.adapter))
    chosen = sorted(set(range(count + 1) if depths is None else depths))
    outside = [depth for depth in chosen if not 0 <= depth <= count]
    if outside or not chosen:
        raise HfZipError(
            f"the depths {outside or chosen} cannot be swept over; the models have {count} "
            f"blocks, so give numbers from 0 to {count}"
        )
    if chosen[0] < count:
        check_partial(runtime.models[0], runtime.adapter)
    merged = run_method(method, prepared, prepared.options)
    return {
        f"{method.name}, {depth} of {count} blocks": build_model(
            merged, prepared, {}, None if depth == count else depth, torch.float32, unmerge
        )[0]
        for depth in chosen
    }


def _by_size(
    recipe: Recipe, method: MergeMethod, prepared: Prepared, sizes: Sequence[float]
) -> dict[str, PreTrainedModel]:
    models = {}
    for size in sorted(set(sizes)):
        options = build(method.options, {**recipe.parameters, "size": size}, "parameters")
        merged = run_method(method, prepared, options)
        models[f"{method.name}, size {size:g}"] = build_model(
            merged, prepared, {}, None, torch.float32
        )[0]
    return models


def _write(folder: Path, recipe: Recipe, evaluation: Evaluation) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = SweepReport(recipe.to_dict(), versions(), evaluation)
    picture = png(pareto(evaluation))
    write_file(folder / SWEEP_NAME, found.to_json())
    write_file(folder / "sweep.md", markdown_table(evaluation) + "\n")
    if picture is None:
        (folder / "sweep.png").unlink(missing_ok=True)
    else:
        write_file(folder / "sweep.png", picture)
