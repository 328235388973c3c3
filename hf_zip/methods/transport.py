"""Transport: fine-tunes of other pretrained models brought to one base, then merged as siblings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from hf_zip.aligned import check_refit
from hf_zip.canonical import canonical_entries
from hf_zip.errors import HfZipError
from hf_zip.groups import merge_groups
from hf_zip.learned import learned
from hf_zip.match import Matching
from hf_zip.method import MergeInputs, MergeMethod, Requires, WeightOptions
from hf_zip.methods import method_named, methods
from hf_zip.nested import run_nested
from hf_zip.outcome import Merged
from hf_zip.plain import build
from hf_zip.refit.head import refit_heads
from hf_zip.transport import Alignment, Pretrained, bring, in_form, pretrained, rotates_stream

_WHERE = "parameters.then_parameters"


@dataclass(frozen=True)
class TransportOptions:
    """How task vectors are brought to the base model, and merged then.

    Args:
        alignment: What maps the features of a model's own base to those of the base model. "rotate"
            is any orthogonal map of the stream where that is exact, else a reordering, and any
            orthogonal map inside each head; "permute" reorders everywhere. Heads move as wholes,
            hidden units are reordered.
        scaling: Factor of every task vector that is brought.
        rescale: Multiply it, parameter by parameter, by the norm of the base model's parameter
            divided by that of the model's own base.
        then: The method that merges the models once they are siblings.
        then_parameters: Its options.
        refit: "head" fits the task heads to what each model itself answers, by least squares on the
            calibration inputs.
    """

    alignment: Alignment = "rotate"
    scaling: float = 1.0
    rescale: bool = False
    then: str = "task_arithmetic"
    then_parameters: Mapping[str, Any] = field(default_factory=dict)
    refit: Literal["none", "head"] = "none"

    def __post_init__(self) -> None:
        """Checks the method that follows."""
        method = method_named(self.then)
        if not _merges_siblings(method):
            able = ", ".join(repr(name) for name, own in methods().items() if _merges_siblings(own))
            raise HfZipError(
                f"then is {self.then!r}, which does not merge fine-tunes of one base into one "
                f"model; use one of {able}"
            )
        after = getattr(build(method.options, self.then_parameters, _WHERE), "refit", "none")
        if self.refit != "none" and after != "none":
            raise HfZipError(
                f"refit is {self.refit!r} and {_WHERE}.refit is {after!r}, but only one of them "
                "can come last; leave one out"
            )


@torch.no_grad()
def run(inputs: MergeInputs, options: TransportOptions) -> Merged:
    """Returns a merge of siblings: of fine-tunes of the base model, and of those brought to it.

    A model without a base of its own is a sibling and stays as it is. Where the stream is rotated,
    all models are first brought to their canonical form, and so is the merge.

    Source: see `hf_zip.transport`.
    """
    runtime, adapter, how = inputs.runtime, inputs.runtime.adapter, options.alignment
    method = method_named(options.then)
    _check(inputs, method, options)
    first = runtime.models[0].cpu()
    target = pretrained(first, inputs.base or {}, adapter, how)
    models = tuple(in_form(model.cpu(), adapter, how) for model in runtime.models)
    brought, matchings = _brought(inputs, models, target, options)
    siblings = replace(
        inputs,
        states=tuple(learned(model) for model in brought),
        groups=merge_groups(target.model, adapter),
        own_bases=(),
        runtime=replace(runtime, models=brought, whole=()),
    )
    then = build(method.options, options.then_parameters, _WHERE)
    siblings = replace(siblings, base=target.state if method.needs_base(then) else None)
    merged = run_nested(method, siblings, then)
    if options.refit == "head":
        given = (models, adapter, runtime.calibration)
        merged = replace(merged, heads=refit_heads(merged.state, *given, **runtime.running))
    entries = canonical_entries(first, adapter) if rotates_stream(first, adapter, how) else {}
    return replace(
        merged,
        config={**merged.config, **entries},
        aligned=(),
        provenance={**merged.provenance, "matched_correlation": _mean_correlations(matchings)},
    )


def _check(inputs: MergeInputs, method: MergeMethod, options: TransportOptions) -> None:
    """Checks what can be told before the models run."""
    check_refit(inputs, options.refit)
    models = len(inputs.runtime.models)
    if method.requires.models not in (None, models):
        raise HfZipError(
            f"then is {options.then!r}, which merges {method.requires.models} models, but there "
            f"are {models}; use a method for any number, such as 'task_arithmetic'"
        )


def _brought(
    inputs: MergeInputs,
    models: Sequence[PreTrainedModel],
    target: Pretrained,
    options: TransportOptions,
) -> tuple[tuple[PreTrainedModel, ...], Sequence[Matching]]:
    """All models as siblings, and the maps that were found; once for models of the same base."""
    runtime, found = inputs.runtime, dict[tuple[int, int], Matching]()
    bases = inputs.own_bases or (None,) * len(models)
    brought = []
    for model, own, feed, whole in zip(models, bases, runtime.feeds, runtime.models, strict=True):
        if own is None:
            brought.append(model)
            continue
        key = (id(own), id(feed.inputs))
        moved = bring(
            whole,
            own,
            target,
            runtime.adapter,
            feed.inputs,
            alignment=options.alignment,
            scaling=options.scaling,
            rescale=options.rescale,
            matching=found.get(key),
            **{**runtime.running, "batch_size": feed.batch_size},
        )
        found[key] = moved.matching
        brought.append(moved.model)
    return tuple(brought), [*found.values()]


def _mean_correlations(matchings: Sequence[Matching]) -> dict[str, float]:
    """How well the features of each group correlate, as the mean over the bases."""
    names = dict.fromkeys(name for found in matchings for name in found.correlations)
    return {
        name: sum(found.correlations[name] for found in matchings) / len(matchings)
        for name in names
        if all(name in found.correlations for found in matchings)
    }


def _merges_siblings(method: MergeMethod) -> bool:
    return method.requires.shared_init and not method.per_task


ENTRY = MergeMethod(
    name="transport",
    title="Task vectors of other pretrained models, mapped to one base by what both see",
    reference="https://arxiv.org/abs/2505.22697",
    requires=Requires(base=True, own_bases=True, calibration=True, own_inputs=True),
    run=run,
    options=TransportOptions,
    model_options=WeightOptions,
)
