"""What is fitted before anything is learnt: maps between two models' features, and heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.align import State
from hf_zip.collect import capture, check_seen, make_loader, reduced
from hf_zip.groups import Tap
from hf_zip.refit.moments import RegressionMoments
from hf_zip.refit.readout import split_heads
from hf_zip.refit.ridge import ridge
from hf_zip.rooting.streams import StreamMap, run_with_streams
from hf_zip.statistics.variance import Variance
from hf_zip.weighing.feed import Feed


@dataclass(frozen=True)
class FirstFit:
    """What is fitted to what two models show on the same inputs.

    Args:
        maps: What tells the one's features after each block from the root's.
        heads: Parameters of heads that give the one's answers on the root's features, by name.
    """

    maps: tuple[StreamMap, ...]
    heads: State


@torch.no_grad()
def first_fit(
    root: PreTrainedModel,
    model: PreTrainedModel,
    inputs: Any,
    blocks: Sequence[int],
    heads: Sequence[str],
    penalty: float,
    batch_size: int,
    accelerator: Accelerator,
    progress: bool = True,
) -> FirstFit:
    """Returns ridge regressions of what a model shows on what the root does.

    Each model runs once on every input, whatever is fitted.

    Args:
        root: The root, on the accelerator's device; what its heads answer does not matter.
        model: The model, likewise.
        inputs: A map-style data set of keyword arguments for the models.
        blocks: Numbers of the blocks after which features are mapped.
        heads: Names of the linear layers that are fitted anew for the root: soft targets, no
            labels.
        penalty: Ridge, as a share of the mean diagonal of the Gram.
        batch_size: Inputs per forward.
        accelerator: Adds up the sums of all processes.
        progress: Show a progress bar, on the main process.
    """
    read, told = ([Tap(name, side) for name in heads] for side in ("input", "output"))
    # A process may get no batch at all, and still has to add up what others have.
    one = Feed(inputs, batch_size).one(accelerator)
    widths = [
        [states.shape[-1] for states in run_with_streams(own, one, blocks)[1]]
        for own in (root, model)
    ]
    device = accelerator.device
    sums = [RegressionMoments(own, theirs, device) for own, theirs in zip(*widths, strict=True)]
    spreads = [Variance(width, device) for width in widths[1]]
    sizes = {name: model.get_submodule(name).out_features for name in heads}
    answers = [
        RegressionMoments(root.get_submodule(name).in_features, size, device)
        for name, size in sizes.items()
    ]
    loader = make_loader(inputs, batch_size, accelerator) if blocks or heads else ()
    for batch in tqdm(loader, desc="first fit", disable=not progress, leave=False):
        (own, features), (theirs, logits) = (
            _shown(*side, batch, blocks) for side in ((root, read), (model, told))
        )
        for total, spread, x, y in zip(sums, spreads, own, theirs, strict=True):
            total.update(x, y)
            spread.update(y)
        for total, x, y in zip(answers, features, logits, strict=True):
            total.update(x, y)
    fits = [_fit(reduced(total, accelerator), penalty) for total in sums]
    maps = tuple(
        StreamMap(
            weight.to(device, root.dtype),
            bias.to(device, root.dtype),
            reduced(spread, accelerator).variance().sum().item(),
        )
        for (weight, bias), spread in zip(fits, spreads, strict=True)
    )
    found = {
        name: _fit(reduced(total, accelerator), penalty)
        for name, total in zip(heads, answers, strict=True)
    }
    own_sizes = {name: [size] for name, size in sizes.items()}
    return FirstFit(maps, next(iter(split_heads(found, own_sizes, root.dtype)), {}))


def _shown(
    model: PreTrainedModel, taps: Sequence[Tap], batch: Any, blocks: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """What one forward shows after the blocks and at the taps, as rows without padding."""
    mask = batch.get("attention_mask")
    with capture(model, taps, mask) as seen:
        _, streams = run_with_streams(model, batch, blocks)
    check_seen(model, taps, seen)
    rows = [own.flatten(0, 1) if mask is None else own[mask.bool()] for own in streams]
    return rows, [seen[tap] for tap in taps]


def _fit(found: RegressionMoments, penalty: float) -> tuple[Tensor, Tensor]:
    moments = found.moments()
    return ridge(moments.covariance, moments.cross, moments.mean_x, moments.mean_y, penalty)
