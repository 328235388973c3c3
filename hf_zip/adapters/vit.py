"""ViT: a pre-norm encoder with a class token (transformers' `vit`)."""

import torch
from torch import Tensor
from transformers import PretrainedConfig, ViTConfig, ViTForImageClassification

from hf_zip.adapters import Adapter


def example() -> ViTForImageClassification:
    """Returns a small ViT classifier whose stream, heads and MLP have pairwise different sizes."""
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
        num_channels=3,
        num_labels=5,
    )
    return ViTForImageClassification(config)


def random_images(
    config: PretrainedConfig, batch: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Returns standard normal pixel values, `[batch, channels, height, width]`."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (batch, config.num_channels, height, width)
    return {"pixel_values": torch.randn(shape, generator=generator)}


ENTRY = Adapter(
    name="vit",
    model_types=("vit",),
    example=example,
    inputs=random_images,
    embeddings={
        "embeddings.cls_token": 2,
        "embeddings.mask_token": 2,
        "embeddings.position_embeddings": 2,
        "embeddings.patch_embeddings.projection.weight": 0,
        "embeddings.patch_embeddings.projection.bias": 0,
    },
    norms=("layernorm",),
    readers=("pooler.dense",),
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    output="attention.o_proj",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
    block_norms=("layernorm_before", "layernorm_after"),
    heads=("classifier",),
    partial=True,
)
