"""A prepared merge → its result, the depth that it shares, and the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_zip.assemble import assemble
from hf_zip.depth import Depth, choose_depth, depth_curve
from hf_zip.groups import blocks
from hf_zip.methods import Merged, MergeMethod
from hf_zip.partial import assemble_partial
from hf_zip.preparation import Prepared, covariances
from hf_zip.recipe import Budget, Recipe, Unmerge


def run_method(method: MergeMethod, prepared: Prepared, options: Any) -> Merged:
    """Returns what a method makes of prepared sources, after gathering the statistics it needs."""
    inputs = prepared.inputs
    if method.requires.covariances:
        inputs = replace(inputs, covariances=covariances(inputs))
    merged = method.run(inputs, options)
    for source in prepared.sources:
        source.model.cpu()
    return merged


def resolve_depth(
    recipe: Recipe, merged: Merged, prepared: Prepared, unmerge: Unmerge
) -> tuple[int | None, tuple[Depth, ...]]:
    """Returns the number of blocks to share, none for all, and the curve it was chosen from.

    Raises:
        HfZipError: The depth is to be chosen, and no depth fits the budget.
    """
    runtime = prepared.inputs.runtime
    count = len(blocks(runtime.models[0], runtime.adapter))
    if recipe.stop_at != "auto":
        return (None if recipe.stop_at == count else recipe.stop_at), ()
    curve = depth_curve(merged, runtime, prepared.tasks, unmerge)
    one_source = sum(p.numel() for p in prepared.sources[0].model.parameters())
    depth = choose_depth(curve, recipe.budget or Budget(), one_source).blocks
    return (None if depth == count else depth), curve


def build_model(
    merged: Merged,
    prepared: Prepared,
    record: Mapping[str, Any],
    depth: int | None,
    unmerge: Unmerge,
    dtype: torch.dtype,
) -> tuple[PreTrainedModel, dict[str, float]]:
    """Returns the merged model, native or partial, and what its tails explain of their sources."""
    if depth is None:
        native = prepared.sources[0].model
        return assemble(merged, native, prepared.tasks, record, dtype), {}
    model, explained = assemble_partial(
        merged, prepared.inputs.runtime, prepared.tasks, record, depth, unmerge, dtype
    )
    # Exact tails have no maps that could explain anything.
    pairs: Sequence[tuple[Any, float]] = list(zip(prepared.sources, explained, strict=False))
    return model, {f"unmerge.{source.name}": share for source, share in pairs}
