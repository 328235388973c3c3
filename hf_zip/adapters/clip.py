"""CLIP whole: an image and a text encoder with a joint space (transformers' `clip`)."""

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PretrainedConfig

from hf_zip.adapters import Adapter, clip_text, clip_vision


def example() -> CLIPModel:
    """Returns a small CLIP whose towers have different sizes."""
    text, vision = clip_text.example().config, clip_vision.example().config.vision_config
    vision.projection_dim = text.projection_dim
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=text.projection_dim)
    )


def inputs(config: PretrainedConfig, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Returns random images and as many random texts."""
    return {
        **clip_vision.inputs(config.vision_config, batch, generator),
        **clip_text.inputs(config.text_config, batch, generator),
    }


ENTRY = Adapter(
    name="clip",
    model_types=("clip",),
    example=example,
    inputs=inputs,
    outputs=("logit_scale",),
    towers={"vision": clip_vision.ENTRY, "text": clip_text.ENTRY},
)
