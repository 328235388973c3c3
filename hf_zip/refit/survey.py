"""What the teachers' streams and contexts are like, before anything is fitted to them."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from accelerate import Accelerator
from jaxtyping import Float, Float64
from torch import Tensor
from transformers import PreTrainedModel

from hf_zip.adapters import Adapter
from hf_zip.calls import Call, first_call
from hf_zip.collect import capture, reduced
from hf_zip.groups import Block, Tap, base_name
from hf_zip.statistics.covariance import Covariance


def survey(
    teachers: Sequence[PreTrainedModel],
    adapter: Adapter,
    layers: Sequence[Block],
    loader: Iterable[Mapping[str, Tensor]],
    heads: bool,
    accelerator: Accelerator,
) -> tuple[Float64[Tensor, "n n"], list[Float64[Tensor, "m m"]]]:
    """Returns the second moment of all teachers' streams, and the covariances of their contexts.

    The teachers run block by block, so that the activations of one block at a time are held.

    Args:
        teachers: Models in canonical form.
        adapter: Their family's table.
        layers: Names of the blocks' modules.
        loader: The batches of this process.
        heads: Whether the contexts, what all heads attend to, are asked for; there are none if not.
        accelerator: Adds up the sums of all processes.

    Returns:
        The mean of `x xᵀ` over inputs, tokens and positions of the stream (after the embeddings,
        each attention and each MLP), and for each block the covariance of the contexts.
    """
    count, device = len(teachers), accelerator.device
    width = teachers[0].get_submodule(layers[0].mlp_out).out_features
    inner = teachers[0].get_submodule(layers[0].output).in_features
    # Every position has as many rows, so the mean over positions is that over all their rows.
    stream = Covariance(count * width, device)
    contexts = [Covariance(count * inner, device) for _ in layers if heads]
    for inputs in loader:
        streams = embedded(teachers, adapter, inputs)
        stream.update(torch.cat(streams, dim=-1).flatten(0, 1))
        for position, layer in enumerate(layers):
            middle, context = Tap(layer.mlp_norm, "input"), Tap(layer.output, "input")
            streams, seen = run_block(teachers, layer.name, streams, (middle, context))
            stream.update(torch.cat([record[middle] for record in seen], dim=1))
            stream.update(torch.cat(streams, dim=-1).flatten(0, 1))
            if heads:
                contexts[position].update(torch.cat([record[context] for record in seen], dim=1))
    mean = reduced(stream, accelerator).mean()
    moment = stream.covariance() + torch.outer(mean, mean)
    return moment, [reduced(statistic, accelerator).covariance() for statistic in contexts]


def embedded(
    models: Sequence[PreTrainedModel], adapter: Adapter, inputs: Mapping[str, Tensor]
) -> list[Float[Tensor, "inputs tokens _"]]:
    """Returns each model's stream before its first block."""
    first = base_name(models[0], adapter, f"{adapter.layers}.0")
    pixels = {key: x for key, x in inputs.items() if key == models[0].main_input_name}
    return [
        first_call(model, first, {key: x.to(model.dtype) for key, x in pixels.items()})[0]
        for model in models
    ]


def run_block(
    models: Sequence[PreTrainedModel],
    name: str,
    streams: Sequence[Float[Tensor, "inputs tokens _"]],
    taps: Sequence[Tap],
    call: Call | None = None,
    mask: Tensor | None = None,
) -> tuple[list[Float[Tensor, "inputs tokens _"]], list[dict[Tap, Tensor]]]:
    """Returns each model's stream after a block, and what was seen at the taps.

    Args:
        models: The models.
        name: Name of the block.
        streams: Each model's stream before it.
        taps: Where to look.
        call: What the block takes beside the stream; left out, no mask.
        mask: Which tokens are no padding, and seen; left out, all.
    """
    call = call or Call((), {"attention_mask": None})
    after, seen = [], []
    for model, stream in zip(models, streams, strict=True):
        with capture(model, taps, mask) as record:
            after.append(call.again(model.get_submodule(name), stream))
        seen.append(record)
    return after, seen
