"""Random inputs for a model of any class, from what its forward takes."""

import inspect

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

_SAMPLES, _TOKENS, _PIXELS = 2000, 7, 64


def random_inputs(
    model: PreTrainedModel, batch: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Returns random inputs for a model; none where it takes what is not known here.

    Known are pixel values, token ids (all attended to) and sounds, as spectrograms or samples.

    Args:
        model: The model.
        batch: Number of inputs.
        generator: Draws them.
    """
    takes, inputs = inspect.signature(model.forward).parameters, dict[str, Tensor]()
    if "pixel_values" in takes:
        config = _part(model.config, "vision_config")
        size = getattr(config, "image_size", None) or _PIXELS
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch, getattr(config, "num_channels", 3), height, width)
        inputs["pixel_values"] = torch.randn(shape, generator=generator)
    if "input_ids" in takes:
        config = _part(model.config, "text_config")
        ids = torch.randint(0, config.vocab_size, (batch, _TOKENS), generator=generator)
        # Padding is another token: some families count positions from those that are not.
        padding = getattr(config, "pad_token_id", None)
        inputs["input_ids"] = ids if padding is None else _without(ids, padding, config.vocab_size)
    if "input_values" in takes:
        config = model.config
        bins = getattr(config, "num_mel_bins", None)
        values = (batch, config.max_length, bins) if bins else (batch, _SAMPLES)
        inputs["input_values"] = torch.randn(values, generator=generator)
    return inputs


def _without(ids: Tensor, token: int, count: int) -> Tensor:
    return torch.where(ids == token, (ids + 1) % count, ids)


def _part(config: PretrainedConfig, name: str) -> PretrainedConfig:
    """The config of a part that a model has, else its own."""
    part = getattr(config, name, None)
    return part if isinstance(part, PretrainedConfig) else config
