"""A model's parameters rewritten for the residual stream of another, by least squares."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.align import State, align
from hf_zip.collect import Observation, collect
from hf_zip.groups import MergeGroup
from hf_zip.matching.merge_map import MergeMap
from hf_zip.refit.ridge import ridge
from hf_zip.statistics.covariance import Covariance


def in_stream_of(
    first: PreTrainedModel,
    model: PreTrainedModel,
    state: State,
    groups: Sequence[MergeGroup],
    inputs: Any,
    penalty: float,
    batch_size: int,
    accelerator: Accelerator,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Returns the parameters of a model with its stream's features told from those of another.

    What writes to the stream receives the ridge regression of the other's features on its own,
    what reads it the reverse, both without a bias and over all places where the stream is
    observed. That is no exact rewrite: it is where maps begin that are learnt.

    Args:
        first: The model whose features they become.
        model: The other one, of the same shape.
        state: Its parameters by name.
        groups: The merge groups of both.
        inputs: A map-style data set of keyword arguments for the models.
        penalty: Ridge, as a share of the mean diagonal of the Gram.
        batch_size: Inputs per forward.
        accelerator: The accelerator to run under.
        progress: Show a progress bar, on the main process.
    """
    stream = next(group for group in groups if group.role == "stream")
    places = [Observation(2 * stream.size, ((0, tap), (1, tap))) for tap in stream.taps]
    running = (batch_size, accelerator, progress)
    found = collect([first, model], inputs, places, Covariance, *running)
    moments = sum(found[1:], start=found[0]).second_moment()
    one, two = slice(0, stream.size), slice(stream.size, None)
    none = torch.zeros_like(moments[0, one])
    merge, _ = ridge(moments[two, two], moments[one, two], none, none, penalty)
    unmerge, _ = ridge(moments[one, one], moments[two, one], none, none, penalty)
    maps = MergeMap(merge[None].cpu(), unmerge[None].cpu())
    return align(state, groups, {stream.name: maps}, 0)
