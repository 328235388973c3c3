"""SigLIP's text encoder, alone (transformers' `siglip_text_model`)."""

from dataclasses import replace

from transformers import SiglipTextConfig, SiglipTextModel

from hf_zip.adapters import clip_text
from hf_zip.adapters.bert import random_text


def example() -> SiglipTextModel:
    """Returns a small SigLIP text encoder whose stream, heads and MLP have different sizes."""
    config = SiglipTextConfig(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=28,
        max_position_embeddings=14,
        projection_size=12,
        bos_token_id=29,
        eos_token_id=30,
    )
    return SiglipTextModel(config)


ENTRY = replace(
    clip_text.ENTRY,
    name="siglip_text",
    model_types=("siglip_text_model",),
    example=example,
    inputs=random_text,
    readers=("head",),
)
