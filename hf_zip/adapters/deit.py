"""DeiT: ViT with a distillation token, and optionally a second head that reads it."""

from dataclasses import replace

from transformers import DeiTConfig, DeiTForImageClassification

from hf_zip.adapters import vit


def example() -> DeiTForImageClassification:
    """Returns a small DeiT classifier whose stream, heads and MLP have different sizes."""
    config = DeiTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=28,
        image_size=8,
        patch_size=4,
        num_channels=3,
        num_labels=4,
    )
    return DeiTForImageClassification(config)


ENTRY = replace(
    vit.ENTRY,
    name="deit",
    model_types=("deit",),
    example=example,
    embeddings={**vit.ENTRY.embeddings, "embeddings.distillation_token": 2},
    heads=("classifier", "cls_classifier", "distillation_classifier"),
)
