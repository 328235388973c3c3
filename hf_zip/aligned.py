"""The mean of models in common features, and what may be fitted after it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from hf_zip.align import State, align, mean
from hf_zip.canonical import obstacle
from hf_zip.errors import HfZipError
from hf_zip.match import Matching
from hf_zip.method import MergeInputs
from hf_zip.outcome import Merged
from hf_zip.refit.head import refit_heads
from hf_zip.refit.mapped import refit_mapped
from hf_zip.refit.repair import repair
from hf_zip.refit.walk import RidgeOptions

Refit = Literal["none", "head", "repair", "all"]
NOTHING_MOVED = Matching({}, {})


def merge_aligned(
    inputs: MergeInputs,
    matching: Matching,
    weights: tuple[float, ...] | None = None,
    refit: Refit = "none",
) -> Merged:
    """Returns the mean of all models after each is rewritten by the maps of a matching.

    Args:
        inputs: What the method works on.
        matching: Merge maps by group.
        weights: Share of each model in the mean.
        refit: "none" rewrites the heads by the maps. "head" fits them anew to each model's logits
            on the merged features, by least squares on the calibration inputs. "repair" scales
            and shifts what every layer gives, as REPAIR does. "all" fits every layer, in place of
            the mean: see `refit_aligned`.

    Raises:
        HfZipError: Something is to be fitted, and there are no calibration inputs; heads are, and
            the models have none; or every layer is, and the models have no canonical form.
    """
    check_refit(inputs, refit)
    aligned = [
        align(state, inputs.groups, matching.maps, model)
        for model, state in enumerate(inputs.states)
    ]
    if refit == "all":
        merged = refit_aligned(inputs, matching, weights)
        merged = replace(merged, weights=weights or ())
        return replace(merged, aligned=completed(aligned, merged.state))
    heads, trunks = split_heads(inputs, aligned)
    trunk = mean(trunks, weights)
    merged = fit_after(inputs, trunk, heads, refit, matching, weights)
    return replace(merged, aligned=completed(aligned, merged.state))


def fit_after(
    inputs: MergeInputs,
    trunk: dict[str, Tensor],
    heads: tuple[dict[str, Tensor], ...],
    refit: Refit,
    matching: Matching = NOTHING_MOVED,
    weights: tuple[float, ...] | None = None,
) -> Merged:
    """Returns a merged trunk and its heads after what may follow a merge of parameters.

    Args:
        inputs: What the method works on.
        trunk: The merged parameters, heads left out.
        heads: The parameters of each model's head.
        refit: What follows, see `merge_aligned`, and is known to be possible; not "all", which is
            in the place of a merge.
        matching: Merge maps by group; left out, features were left where they are.
        weights: Share of each model in the mean of what "repair" restores.
    """
    runtime, config = inputs.runtime, dict[str, Any]()
    if refit in ("head", "repair"):
        given = (runtime.models, runtime.adapter, runtime.calibration)
        if refit == "repair":
            trunk, config = repair(trunk, *given, matching.maps, weights, **runtime.running)
        else:
            heads = refit_heads(trunk, *given, **runtime.running)
    return Merged(
        state=trunk,
        heads=heads,
        provenance={"matched_correlation": dict(matching.correlations)},
        config=config,
        weights=weights or (),
    )


def split_heads(
    inputs: MergeInputs, states: Sequence[State]
) -> tuple[tuple[dict[str, Tensor], ...], list[dict[str, Tensor]]]:
    """Returns the parameters of the heads of all models, and of what is shared of them."""
    prefixes = tuple(f"{head}." for head in inputs.heads)
    heads = tuple(
        {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}
        if prefixes
        else {}
        for state in states
    )
    trunks = [
        {name: tensor for name, tensor in state.items() if name not in head}
        for state, head in zip(states, heads, strict=True)
    ]
    return heads, trunks


def check_refit(inputs: MergeInputs, refit: Refit) -> None:
    """Checks that what should follow the mean can be fitted."""
    if refit == "none":
        return
    runtime = inputs.runtime
    if runtime.calibration is None:
        raise HfZipError(f"refit: {refit} needs calibration inputs; give them, or refit: none")
    if runtime.table is None:
        raise HfZipError(
            f"refit: {refit} needs a table of the models' family, and there is none of "
            f"{type(runtime.models[0]).__name__}; use refit: none"
        )
    if refit == "head" and not inputs.heads:
        raise HfZipError(
            f"refit: head fits the rows of each model's task head anew, but "
            f"{type(runtime.models[0]).__name__} has no head with rows of its own labels; use "
            "refit: none or repair"
        )
    towers = runtime.table.towers
    if refit in ("repair", "all") and towers:
        raise HfZipError(
            f"models of {runtime.table.name!r} have {len(towers)} towers ({', '.join(towers)}), "
            f"and refit: {refit} is for models with one; use refit: none"
        )
    hindrance = obstacle(runtime.table) if refit == "all" else ""
    if hindrance:
        raise HfZipError(f"{hindrance}; use refit: none, head or repair")


def completed(states: Sequence[State], trunk: State) -> tuple[State, ...]:
    """States with the biases that only a refitted trunk has, which for them are zero."""
    return tuple(
        {**{name: torch.zeros_like(trunk[name]) for name in trunk if name not in state}, **state}
        for state in states
    )


def refit_aligned(
    inputs: MergeInputs,
    matching: Matching,
    weights: tuple[float, ...] | None = None,
    options: RidgeOptions | None = None,
) -> Merged:
    """Returns one model whose every layer is fitted to the features that a matching gives.

    Args:
        inputs: What the method works on.
        matching: Merge maps by group; their merged sizes are those of the merged model.
        weights: Share of each model in the mean of the features.
        options: How to fit; the defaults where left out.
    """
    runtime = inputs.runtime
    fitted = refit_mapped(
        runtime.models,
        runtime.adapter,
        runtime.calibration,
        matching.maps,
        weights,
        options,
        **runtime.running,
    )
    return Merged(
        state=fitted.state,
        heads=fitted.heads,
        provenance={
            "matched_correlation": dict(matching.correlations),
            "explained": dict(fitted.explained),
        },
        config=fitted.config,
    )
