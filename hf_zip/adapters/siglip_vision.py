"""SigLIP's image encoder, alone or as a classifier (transformers' `siglip_vision_model`)."""

from dataclasses import replace

from transformers import SiglipConfig, SiglipForImageClassification

from hf_zip.adapters import AttentionPool, clip_vision


def example() -> SiglipForImageClassification:
    """Returns a small SigLIP classifier whose stream, heads and MLP have different sizes."""
    vision = {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 3,
    }
    text = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    return SiglipForImageClassification(
        SiglipConfig(vision_config=vision, text_config=text, num_labels=5)
    )


ENTRY = replace(
    clip_vision.ENTRY,
    name="siglip_vision",
    model_types=("siglip_vision_model",),
    example=example,
    embeddings={
        "embeddings.patch_embedding.weight": 0,
        "embeddings.patch_embedding.bias": 0,
        "embeddings.position_embedding.weight": 1,
    },
    embedding_norms=(),
    embedding_output="embeddings",
    readers=(),
    raw_head=False,
    attention_pool=AttentionPool(
        module="head",
        probe="probe",
        attention="attention",
        norm="layernorm",
        mlp_in="mlp.fc1",
        mlp_out="mlp.fc2",
        switch="vision_use_head",
    ),
)
