"""CLIP's image encoder, alone or as a classifier (transformers' `clip_vision_model`)."""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPForImageClassification, PretrainedConfig

from hf_zip.adapters import clip_text
from hf_zip.adapters.vit import random_images


def example() -> CLIPForImageClassification:
    """Returns a small CLIP classifier whose stream, heads and MLP have different sizes."""
    vision = {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 3,
    }
    return CLIPForImageClassification(CLIPConfig(vision_config=vision, num_labels=5))


def inputs(config: PretrainedConfig, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Returns standard normal pixel values, `[batch, channels, height, width]`."""
    return random_images(getattr(config, "vision_config", config), batch, generator)


# The two encoders of CLIP have blocks of the same names.
ENTRY = replace(
    clip_text.ENTRY,
    name="clip_vision",
    model_types=("clip_vision_model",),
    example=example,
    inputs=inputs,
    base="vision_model",
    config="vision_config",
    embeddings={
        "embeddings.class_embedding": 0,
        "embeddings.patch_embedding.weight": 0,
        "embeddings.position_embedding.weight": 1,
    },
    embedding_norms=("pre_layrnorm",),  # transformers' spelling
    embedding_output="pre_layrnorm",
    norms=("post_layernorm",),
    readers=("visual_projection",),
    heads=("classifier",),
    raw_head=True,
)
