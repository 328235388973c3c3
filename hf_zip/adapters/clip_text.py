"""CLIP's text encoder, alone (transformers' `clip_text_model`)."""

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PretrainedConfig

from hf_zip.adapters import Adapter
from hf_zip.adapters.bert import random_text


def example() -> CLIPTextModelWithProjection:
    """Returns a small CLIP text encoder whose stream, heads and MLP have different sizes."""
    return CLIPTextModelWithProjection(small_config())


def small_config() -> CLIPTextConfig:
    """Returns the config of the example."""
    return CLIPTextConfig(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=28,
        max_position_embeddings=14,
        projection_dim=10,
        bos_token_id=29,
        eos_token_id=30,
    )


def inputs(config: PretrainedConfig, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Returns random tokens of random lengths with an end, padded on the right, `[batch, 7]`."""
    found = random_text(config, batch, generator)
    last = found["attention_mask"].sum(dim=1) - 1
    # Configs of older checkpoints name the wrong end, 2; then it is the largest id that ends.
    end = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id
    found["input_ids"][torch.arange(batch), last] = end
    return found


ENTRY = Adapter(
    name="clip_text",
    model_types=("clip_text_model",),
    example=example,
    inputs=inputs,
    base="text_model",
    embeddings={
        "embeddings.token_embedding.weight": 1,
        "embeddings.position_embedding.weight": 1,
    },
    layers="encoder.layers",
    norms=("final_layer_norm",),
    readers=("text_projection",),
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
    block_norms=("layer_norm1", "layer_norm2"),
)
