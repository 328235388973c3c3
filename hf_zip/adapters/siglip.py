"""SigLIP whole: an image and a text encoder with a joint space (transformers' `siglip`)."""

import torch
from torch import Tensor
from transformers import PretrainedConfig, SiglipConfig, SiglipModel

from hf_zip.adapters import Adapter, siglip_text, siglip_vision


def example() -> SiglipModel:
    """Returns a small SigLIP whose towers have different sizes."""
    text, vision = siglip_text.example().config, siglip_vision.example().config.vision_config
    return SiglipModel(SiglipConfig(text_config=text, vision_config=vision))


def inputs(config: PretrainedConfig, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Returns random images and as many random texts."""
    return {
        **siglip_vision.ENTRY.inputs(config.vision_config, batch, generator),
        **siglip_text.ENTRY.inputs(config.text_config, batch, generator),
    }


ENTRY = Adapter(
    name="siglip",
    model_types=("siglip",),
    example=example,
    inputs=inputs,
    outputs=("logit_scale", "logit_bias"),
    towers={"vision": siglip_vision.ENTRY, "text": siglip_text.ENTRY},
)
