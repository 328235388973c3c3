"""Fine-tunes of one base model merged parameter by parameter, in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hf_zip.align import State, mean, shares
from hf_zip.aligned import check_refit, completed, fit_after, split_heads
from hf_zip.combining.combination import Combination, Parameter, Setting
from hf_zip.layer_depth import layer_depths
from hf_zip.mapped import note_read
from hf_zip.method import MergeInputs
from hf_zip.outcome import Merged
from hf_zip.parallel import in_order, own_threads
from hf_zip.weighing.feed import Run
from hf_zip.weighing.regmean import check_shares

# Numbers of all models together that are merged at once: what a processor's cache holds.
_AT_ONCE = 1 << 18

Piece = tuple[str, int, Tensor]
SiblingRefit = Literal["none", "head", "repair"]


@dataclass(frozen=True)
class ScaledOptions:
    """How much of the merged task vector is added.

    Args:
        scaling: Factor of the merged task vector, the papers' α or λ.
        layer_scale: Share of this factor for the first block; the last has all of it (LiNeS).
        refit: "head" fits the task heads anew, by least squares on the calibration inputs; "repair"
            restores mean and deviation of what every layer gives.
    """

    scaling: float = 1.0
    layer_scale: float = 1.0
    refit: SiblingRefit = "none"


@torch.no_grad()
def merge_siblings(inputs: MergeInputs, combination: Combination, options: Any) -> Merged:
    """Returns models whose features mean the same merged parameter by parameter.

    The arithmetic is in float32, or float64 where a model is, and the result is cast once. What the
    combination is not for is averaged: parameters that the base model lacks, which have no task
    vector, and running statistics, of which some must stay positive. Heads stay apart.

    Args:
        inputs: What the method works on.
        combination: What becomes of one parameter.
        options: The method's options; their `refit` says what follows the merge.

    Raises:
        HfZipError: Something is to be fitted that cannot be, see `merge_aligned`.
    """
    check_refit(inputs, options.refit)
    heads, trunks = split_heads(inputs, inputs.states)
    trunk = {name: torch.empty(own.shape, dtype=own.dtype) for name, own in trunks[0].items()}
    for name, start, piece in merged_pieces(inputs, combination, options):
        trunk[name].view(-1)[start : start + piece.numel()] = piece.flatten().to(trunk[name])
    return after_siblings(inputs, trunk, heads, options.refit)


def after_siblings(
    inputs: MergeInputs,
    trunk: dict[str, Tensor],
    heads: tuple[dict[str, Tensor], ...],
    refit: SiblingRefit,
    weights: tuple[float, ...] | None = None,
) -> Merged:
    """Returns a merged trunk and its heads after what may follow a merge of fine-tunes.

    Args:
        inputs: What the method works on.
        trunk: The merged parameters, heads left out.
        heads: The parameters of each model's head.
        refit: What follows, and is known to be possible.
        weights: Share of each model in rows that several heads have; left out, all are equal.
    """
    found = fit_after(inputs, trunk, heads, refit, weights=weights)
    return replace(found, aligned=completed(inputs.states, found.state))


@torch.no_grad()
def with_matrices(
    inputs: MergeInputs,
    method: str,
    solve: Callable[..., Iterator[tuple[str, Tensor]]],
    refit: SiblingRefit,
) -> Merged:
    """Returns the weighted mean of models, in which a method puts matrices of its own.

    Args:
        inputs: What the method works on.
        method: Its name.
        solve: Yields names and matrices; takes the arguments of
            `hf_zip.weighing.regmean.merged_matrices`, but for the options.
        refit: What follows, see `ScaledOptions`.

    Raises:
        HfZipError: A weight is negative, or something is to be fitted that cannot be.
    """
    check_refit(inputs, refit)
    check_shares(method, inputs.weights)
    heads, trunks = split_heads(inputs, inputs.states)
    runtime, trunk = inputs.runtime, mean(trunks, inputs.weights)
    found = solve(
        models=runtime.models,
        states=trunks,
        mean=dict(trunk),
        feeds=runtime.feeds,
        shares=shares(len(trunks), inputs.weights),
        run=Run(runtime.accelerator, runtime.progress),
    )
    for name, matrix in found:
        trunk[name] = matrix.to(trunk[name])
    return after_siblings(inputs, trunk, heads, refit, inputs.weights)


def merged_pieces(
    inputs: MergeInputs,
    combination: Combination,
    options: Any,
    check: Callable[[Parameter], None] = lambda parameter: None,
) -> Iterator[tuple[str, int, Tensor]]:
    """Yields what is shared of a merge by and by, in the order of the first model's parameters.

    Args:
        inputs: What the method works on.
        combination: What becomes of one parameter.
        options: The method's options.
        check: Looks at everything that was read, before it is merged.

    Yields:
        The name of a parameter, how many of its numbers came before, and rows of it in the
        precision of the arithmetic.
    """
    parts = _parts(inputs)
    learned = {name for name, _ in inputs.runtime.models[0].named_parameters()}
    merged = learned.intersection(parts.trunks[0])
    if parts.base is not None:
        merged &= {*parts.base}
    whole = Setting(options, inputs.model_options, inputs.seed, varied=inputs.varied)

    def of(name: str) -> Iterator[Callable[[], Parameter]]:
        by_rows = name not in merged or combination.by_rows(options, name in parts.matrices)
        return parts.reads(name, by_rows)

    def merge(read: Callable[[], Parameter], setting: Setting, found: Any) -> Piece:
        part = read()
        check(part)
        if part.name in merged:
            return part.name, part.start, combination.combine(replace(part, found=found), setting)
        weights = setting.of_models("weight") if combination.weighted else None
        averaged = mean([{part.name: tensor} for tensor in part.tensors], weights)
        return part.name, part.start, averaged[part.name]

    with own_threads() as threads:
        workers = threads if parts.device.type == "cpu" else 1

        def passes(names: Sequence[str]) -> Iterator[Parameter]:
            return in_order(chain.from_iterable(map(of, names)), workers)

        chosen = [name for name in parts.trunks[0] if name in merged]
        surveys = _surveys(combination, whole, chosen, passes)

        def merges() -> Iterator[Callable[[], Piece]]:
            for name in parts.trunks[0]:
                setting, found = replace(whole.at(name), found=surveys.get(name)), None
                if name in merged and combination.look is not None:
                    looks = partial(_again, of, name, workers)
                    found = combination.look(looks, setting)
                yield from (partial(merge, read, setting, found) for read in of(name))

        yield from in_order(merges(), workers)


def _surveys(
    combination: Combination,
    setting: Setting,
    names: Sequence[str],
    passes: Callable[[Sequence[str]], Iterator[Parameter]],
) -> dict[str, Any]:
    """What is to be known before of all parameters, by name: of those of the same options apart."""
    if combination.survey is None:
        return {}
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name in names:
        groups.setdefault(setting.at(name).values(combination.surveyed), []).append(name)
    found = dict[str, Any]()
    for group in groups.values():
        of_group = combination.survey(partial(passes, group), setting.at(group[0]))
        found |= dict.fromkeys(group, of_group)
    return found


def _again(
    of: Callable[[str], Iterator[Callable[[], Parameter]]], name: str, workers: int
) -> Iterator[Parameter]:
    return in_order(of(name), workers)


@dataclass(frozen=True)
class _Parts:
    """The parameters of all models, to be read a few rows at a time.

    Args:
        trunks: What is shared of each model.
        base: The base model's parameters, where the method needs them.
        matrices: Which parameters are matrices of linear layers.
        depths: How deep in the model each lies.
        device: Where the arithmetic is done.
    """

    trunks: Sequence[State]
    base: State | None
    matrices: frozenset[str]
    depths: Mapping[str, float]
    device: torch.device

    def reads(self, name: str, by_rows: bool) -> Iterator[Callable[[], Parameter]]:
        """Yields what reads a parameter, in parts where it may come by rows."""
        for rows, start in _rows(self.trunks[0][name], len(self.trunks) + 1, by_rows):
            yield partial(self.read, name, rows, start)

    def read(self, name: str, rows: Any, start: int) -> Parameter:
        """Returns rows of a parameter in the precision of the arithmetic."""
        own = [trunk[name][rows] for trunk in self.trunks]
        dtype = torch.promote_types(own[0].dtype, torch.float32)
        tensors = torch.empty(len(own), *own[0].shape, dtype=dtype, device=self.device)
        for place, tensor in zip(tensors, own, strict=True):
            place.copy_(tensor)
        base = None if self.base is None else self.base.get(name)
        origin = None if base is None else base[rows].to(self.device, dtype)
        note_read((len(own) + 1) * own[0].nbytes)
        depth = self.depths.get(name, 1.0)
        return Parameter(name, tensors, origin, name in self.matrices, depth, start)


def _parts(inputs: MergeInputs) -> _Parts:
    model, device = inputs.runtime.models[0], inputs.runtime.accelerator.device
    return _Parts(
        trunks=split_heads(inputs, inputs.states)[1],
        base=inputs.base,
        matrices=frozenset(
            f"{name}.weight" for name, x in model.named_modules() if isinstance(x, nn.Linear)
        ),
        depths=layer_depths(model),
        # mps has no float64, as some methods need.
        device=torch.device("cpu") if device.type == "mps" else device,
    )


def _rows(tensor: Tensor, count: int, by_rows: bool) -> Iterator[tuple[Any, int]]:
    """Ranges of rows of a tensor with what comes before; all at once where it is not by rows."""
    if not by_rows or tensor.dim() < 2:
        yield ..., 0
        return
    width = tensor[0].numel()
    step = max(1, _AT_ONCE // count // max(width, 1))
    for first in range(0, len(tensor), step):
        yield slice(first, first + step), first * width
