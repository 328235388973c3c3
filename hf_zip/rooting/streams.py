"""The features after each block, and how far they are from those of another model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from hf_zip.errors import HfZipError

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class StreamMap:
    """What a model's features are after a block, told from those of the root.

    Args:
        weight: A row for each of the model's features.
        bias: Likewise.
        spread: Variance of all the model's features together, in which errors are measured.
    """

    weight: Float[Tensor, "theirs own"]
    bias: Float[Tensor, " theirs"]
    spread: float


def run_with_streams(
    model: Any, batch: Batch, blocks: Sequence[int]
) -> tuple[Any, list[Float[Tensor, "inputs tokens features"]]]:
    """Returns a model's output, and its features after some blocks.

    Args:
        model: The model.
        batch: Its inputs.
        blocks: Numbers of blocks; 0 is what comes before the first.
    """
    output = model(**batch, **({"output_hidden_states": True} if blocks else {}))
    return output, [output.hidden_states[block] for block in blocks]


@torch.no_grad()
def checked_blocks(
    root: PreTrainedModel, model: PreTrainedModel, batch: Batch, blocks: Sequence[int] | None
) -> tuple[int, ...]:
    """Returns the numbers of the blocks after which two models can be compared.

    Args:
        root: The root.
        model: The model to be rooted.
        batch: Some inputs.
        blocks: The numbers that were asked for; left out, all.

    Raises:
        HfZipError: A model gives no features of tokens, there is no such block, or the models do
            not have the same tokens.
    """
    found = []
    for own in (root, model):
        states = getattr(own(**batch, output_hidden_states=True), "hidden_states", None)
        if not states or any(state.dim() != 3 for state in states):
            raise HfZipError(
                f"{type(own).__name__} gives no features of tokens after its blocks to compare; "
                "set feature_weight: 0 to compare answers alone"
            )
        found.append(states)
    last = min(map(len, found)) - 1
    chosen = tuple(range(1, last + 1)) if blocks is None else tuple(blocks)
    for block in chosen:
        if not 0 <= block <= last:
            raise HfZipError(f"there is no block {block} to compare; give numbers from 0 to {last}")
        shapes = [tuple(states[block].shape[:2]) for states in found]
        if shapes[0] != shapes[1]:
            raise HfZipError(
                f"the root has {shapes[0][1]} tokens of an input and the model {shapes[1][1]}, so "
                "their features cannot be compared; set feature_weight: 0"
            )
    return chosen


def stream_error(
    own: Sequence[Float[Tensor, "inputs tokens own"]],
    theirs: Sequence[Float[Tensor, "inputs tokens theirs"]],
    maps: Sequence[StreamMap],
    mask: Tensor | None,
) -> Float[Tensor, " inputs"]:
    """Returns what the maps leave unexplained of a model's features, on average over blocks.

    Args:
        own: Features of the root's copy after each block.
        theirs: Features of the model.
        maps: The maps from the ones to the others.
        mask: Zero at tokens that count nowhere.
    """
    told = [linear(mine, known.weight, known.bias) for mine, known in zip(own, maps, strict=True)]
    return unexplained(told, theirs, [known.spread for known in maps], mask)


def unexplained(
    told: Sequence[Float[Tensor, "inputs tokens features"]],
    wanted: Sequence[Float[Tensor, "inputs tokens features"]],
    spreads: Sequence[float],
    mask: Tensor | None,
) -> Float[Tensor, " inputs"]:
    """Returns how far features are from those that are wanted, on average over blocks.

    Args:
        told: Features after each block.
        wanted: Those that are wanted there.
        spreads: For each block the variance of these, in which errors are measured.
        mask: Zero at tokens that count nowhere.
    """
    errors = []
    for own, right, spread in zip(told, wanted, spreads, strict=True):
        error = (own - right).square().sum(dim=-1)
        share = torch.ones_like(error) if mask is None else mask.to(error)
        errors.append((error * share).sum(dim=1) / share.sum(dim=1) / spread)
    return torch.stack(errors).mean(dim=0)
