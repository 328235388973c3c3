"""How deep a merge should share: what each depth costs, and how much of the sources it keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.data import Subset
from transformers import PreTrainedModel

from hf_zip.assemble import assemble
from hf_zip.collect import Observation, collect
from hf_zip.errors import HfZipError
from hf_zip.groups import Tap, base_name
from hf_zip.method import Runtime
from hf_zip.modeling import HfZipForImageClassification
from hf_zip.outcome import Merged
from hf_zip.partial import partial_config
from hf_zip.recipe import Budget, Unmerge
from hf_zip.refit import regress
from hf_zip.report_records import Validation
from hf_zip.statistics.covariance import Covariance
from hf_zip.tasks import Task
from hf_zip.unmerge import explained_shares

HELD_OUT = 5  # every fifth calibration input judges what the others fitted


@dataclass(frozen=True)
class Depth:
    """One way to share.

    Args:
        blocks: Number of shared blocks.
        explained: For each source, the share of its stream's variance after that many blocks that a
            linear map of the merged stream explains on inputs it was not fitted to; 1 at most.
        parameters: Number of parameters of the merged model.
        validation: Its accuracy on each task's validation data, where it was measured.
    """

    blocks: int
    explained: tuple[float, ...]
    parameters: int
    validation: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Assembled:
    """A merge as a model, and how its depth was chosen.

    Args:
        model: The model, native or partial.
        explained: What the tails explain of their sources.
        depth: Number of shared blocks; nothing where all are.
        curve: The depths that it was chosen from; none where it was given.
        validation: What it was chosen on by accuracy; nothing where it was not.
    """

    model: PreTrainedModel
    explained: Mapping[str, float]
    depth: int | None
    curve: tuple[Depth, ...] = ()
    validation: Validation | None = None


def depth_curve(
    merged: Merged,
    runtime: Runtime,
    tasks: Sequence[Task],
    unmerge: Unmerge,
    penalty: float = 1e-3,
) -> tuple[Depth, ...]:
    """Returns every depth from sharing nothing to sharing all blocks.

    Four fifths of the calibration inputs fit the maps from the merged stream to each source's, and
    the rest judges them. Exact tails read the merged stream as it is, so for them it is compared
    with the sources' streams in the merged features.

    Args:
        merged: The result of a method, over all blocks.
        runtime: The sources and their calibration inputs.
        tasks: The tasks.
        unmerge: How tails read the merged stream.
        penalty: Ridge of the maps, as a share of the mean diagonal of the Gram.

    Raises:
        HfZipError: There are too few calibration inputs to hold some out.
    """
    inputs = runtime.calibration
    if inputs is None or len(inputs) < HELD_OUT:
        raise HfZipError(
            "choosing the depth needs calibration inputs, at least five; give more, or a number "
            "for stop_at"
        )
    full = assemble(merged, runtime.models[0], tasks, {}, runtime.models[0].dtype)
    held_out = range(0, len(inputs), HELD_OUT)
    fitted = [i for i in range(len(inputs)) if i % HELD_OUT]
    width = runtime.models[0].config.hidden_size
    count, blocks = len(runtime.models), full.config.num_hidden_layers
    if unmerge == "exact":
        judged = _moments(full, _aligned(merged, runtime), Subset(inputs, held_out))
        maps = [(torch.eye(width).repeat(count, 1), torch.zeros(count * width))] * blocks
    else:
        moments, judged = (_moments(full, runtime, Subset(inputs, x)) for x in (fitted, held_out))
        maps = [regress(found, full.config.hidden_size, penalty) for found in moments]
    curve = [Depth(0, (1.0,) * count, _parameters(merged, runtime, tasks, 0, unmerge))]
    for depth, (found, (weight, bias)) in enumerate(zip(judged, maps, strict=True), start=1):
        explained = explained_shares(
            weight.to(found.mean()), bias.to(found.mean()), found, count, width
        )
        parameters = (
            sum(p.numel() for p in full.parameters())
            if depth == blocks
            else _parameters(merged, runtime, tasks, depth, unmerge)
        )
        curve.append(Depth(depth, explained, parameters))
    return tuple(curve)


def affordable(curve: Sequence[Depth], budget: Budget, one_source: int) -> tuple[Depth, ...]:
    """Returns the depths that fit a budget's `parameters` and `explained`, in order.

    Args:
        curve: All depths, in order.
        budget: What the merge may cost, or what it must keep.
        one_source: Number of parameters of one source.

    Raises:
        HfZipError: None fits.
    """
    fit = tuple(
        depth
        for depth in curve
        if (budget.parameters is None or depth.parameters <= budget.parameters * one_source)
        and (budget.explained is None or min(depth.explained) >= budget.explained)
    )
    if not fit:
        rows = "; ".join(
            f"{d.blocks} blocks: {d.parameters / one_source:.2f} times the parameters, explained "
            f"{min(d.explained):.3f}"
            for d in curve
        )
        raise HfZipError(f"no depth fits the budget; there are {rows}")
    return fit


def choose_depth(curve: Sequence[Depth], budget: Budget, one_source: int) -> Depth:
    """Returns the depth that a budget allows: the shallowest that is small enough, or the deepest.

    Its `points` are not looked at: `hf_zip.accuracy.deepest_sharing` does.

    Args:
        curve: All depths, in order.
        budget: What the merge may cost, or what it must keep.
        one_source: Number of parameters of one source.

    Raises:
        HfZipError: No depth fits the budget.
    """
    fit = affordable(curve, budget, one_source)
    # Less sharing keeps more, so a limit on size asks for the shallowest depth that meets it.
    return fit[-1] if budget.parameters is None else fit[0]


def _parameters(
    merged: Merged, runtime: Runtime, tasks: Sequence[Task], depth: int, unmerge: Unmerge
) -> int:
    config = partial_config(merged, runtime, tasks, {}, depth, unmerge, torch.float32)
    with torch.device("meta"):
        return sum(p.numel() for p in HfZipForImageClassification(config).parameters())


def _aligned(merged: Merged, runtime: Runtime) -> Runtime:
    """The sources, each of which computes the same in the merged features."""
    models = tuple(
        assemble(
            Merged(state=dict(own), heads=(), config=merged.config), model, (), {}, model.dtype
        )
        for own, model in zip(merged.aligned, runtime.models, strict=True)
    )
    return replace(runtime, models=models)


def _block(runtime: Runtime, model: Any, layer: int) -> str:
    return base_name(model, runtime.adapter, f"{runtime.adapter.layers}.{layer}")


def _moments(full: Any, runtime: Runtime, inputs: Any) -> list[Covariance]:
    """For every block the moments of the merged stream and of all sources', side by side."""
    models = (full, *runtime.models)
    sizes = [model.config.hidden_size for model in models]
    observations = [
        Observation(
            sum(sizes),
            tuple((k, Tap(_block(runtime, m, layer), "output")) for k, m in enumerate(models)),
        )
        for layer in range(full.config.num_hidden_layers)
    ]
    return collect(
        models,
        inputs,
        observations,
        Covariance,
        **runtime.running,
    )
