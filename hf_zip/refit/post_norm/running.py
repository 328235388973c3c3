"""Post-norm models run block by block on padded inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.calls import Call, first_call
from hf_zip.groups import Block


@dataclass(frozen=True)
class Batch:
    """Inputs of one forward, and what every block is called with because of them.

    Args:
        inputs: Arguments of the models.
        real: Where the tokens are no padding.
        call: What a block takes beside the stream.
    """

    inputs: Mapping[str, Tensor]
    real: Bool[Tensor, "inputs tokens"]
    call: Call


def make_batch(model: PreTrainedModel, first: Block, inputs: Mapping[str, Tensor]) -> Batch:
    """Returns a batch that blocks can be run on.

    Args:
        model: Any of the models.
        first: Its first block.
        inputs: Arguments of the models.
    """
    mask = inputs.get("attention_mask")
    real = torch.ones_like(inputs["input_ids"]).bool() if mask is None else mask.bool()
    return Batch(inputs, real, first_call(model, first.name, inputs)[1])


def embedded(
    models: Sequence[PreTrainedModel], first: Block, batch: Batch
) -> list[Float[Tensor, "inputs tokens _"]]:
    """Returns each model's stream before its first block."""
    return [first_call(model, first.name, batch.inputs)[0] for model in models]
