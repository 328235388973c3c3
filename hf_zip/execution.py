"""A prepared merge → its result, the depth that it shares, and the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_zip.accuracy import Built, deepest_sharing
from hf_zip.assemble import assemble
from hf_zip.depth import Assembled, affordable, choose_depth, depth_curve
from hf_zip.groups import blocks
from hf_zip.members import assemble_kept
from hf_zip.method import MergeMethod
from hf_zip.multi_head import assemble_multi_head
from hf_zip.nested import run_gathered
from hf_zip.outcome import Merged
from hf_zip.partial import assemble_partial
from hf_zip.preparation import Prepared
from hf_zip.recipe import Budget, Recipe, Unmerge


def run_method(method: MergeMethod, prepared: Prepared, options: Any) -> Merged:
    """Returns what a method makes of prepared sources, after gathering the statistics it needs."""
    merged = run_gathered(method, prepared.inputs, options)
    for source in prepared.sources:
        source.model.cpu()
    return merged


def assemble_merge(
    recipe: Recipe,
    merged: Merged,
    prepared: Prepared,
    record: Mapping[str, Any],
    unmerge: Unmerge,
) -> Assembled:
    """Returns the model of a recipe, at the depth that it names or that its budget allows.

    Args:
        recipe: What was asked for.
        merged: The result of its method.
        prepared: The sources.
        record: What else the model's config should keep, as plain values.
        unmerge: How the tails of a partial zip read what is shared.

    Raises:
        HfZipError: The depth is to be chosen, and no depth fits the budget.
    """
    runtime, sources, tasks = prepared.inputs.runtime, prepared.sources, prepared.tasks
    # What a LoRA leaves out is told before anything is cast.
    wide = recipe.output == "lora" and recipe.dtype != "float64"
    dtype = torch.float32 if wide else getattr(torch, recipe.dtype)
    if recipe.stop_at is None:
        return Assembled(*build_model(merged, prepared, record, None, dtype, unmerge), None)
    count = len(blocks(runtime.models[0], runtime.adapter))

    def some(depth: int) -> int | None:
        return None if depth == count else depth

    def build(depth: int) -> Built:
        return build_model(merged, prepared, record, some(depth), dtype, unmerge)

    if recipe.stop_at != "auto":
        return Assembled(*build(recipe.stop_at), some(recipe.stop_at))
    curve, budget = depth_curve(merged, runtime, tasks, unmerge), recipe.budget or Budget()
    one_source = sum(p.numel() for p in sources[0].model.parameters())
    if budget.points is None:
        depth = choose_depth(curve, budget, one_source).blocks
        return Assembled(*build(depth), some(depth), curve)
    found = deepest_sharing(
        budget.points,
        [depth.blocks for depth in affordable(curve, budget, one_source)],
        build,
        sources,
        tasks,
        prepared.validation,
        max((spec.batch_size for spec in recipe.validation), default=64),
        runtime,
    )
    curve = tuple(replace(d, validation=found.accuracies.get(d.blocks, {})) for d in curve)
    return Assembled(*found.built, some(found.blocks), curve, found.validation)


def build_model(
    merged: Merged,
    prepared: Prepared,
    record: Mapping[str, Any],
    depth: int | None,
    dtype: torch.dtype,
    unmerge: Unmerge = "ridge",
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Returns the merged model, and what the maps of its tails or heads explain of the sources."""
    runtime, tasks = prepared.inputs.runtime, prepared.tasks
    if merged.kept is not None:
        return assemble_kept(merged, prepared.sources, tasks, record, dtype), {}
    if prepared.apart:
        model, explained = assemble_multi_head(
            merged, runtime, prepared.sources, tasks, record, unmerge, dtype
        )
        return model, _by_source(prepared, explained)
    if depth is None:
        native = prepared.sources[0].model
        return assemble(merged, native, tasks, record, dtype), {}
    model, explained = assemble_partial(merged, runtime, tasks, record, depth, unmerge, dtype)
    return model, _by_source(prepared, explained)


def _by_source(prepared: Prepared, explained: Sequence[float]) -> dict[str, float]:
    # Exact tails have no maps that could explain anything.
    pairs: Sequence[tuple[Any, float]] = list(zip(prepared.sources, explained, strict=False))
    return {f"unmerge.{source.name}": share for source, share in pairs}
