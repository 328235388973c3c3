"""DINOv2: ViT whose attention and MLP are scaled feature by feature (transformers' `dinov2`)."""

from dataclasses import replace

from transformers import Dinov2Config, Dinov2ForImageClassification

from hf_zip.adapters import vit


def example() -> Dinov2ForImageClassification:
    """Returns a small DINOv2 classifier whose stream, heads and MLP have different sizes."""
    config = Dinov2Config(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=3,
        image_size=8,
        patch_size=4,
        num_channels=3,
        num_labels=5,
    )
    return Dinov2ForImageClassification(config)


ENTRY = replace(
    vit.ENTRY,
    name="dinov2",
    model_types=("dinov2",),
    example=example,
    embeddings={**vit.ENTRY.embeddings, "embeddings.mask_token": 1},
    layers="encoder.layer",
    readers=(),
    block_norms=("norm1", "norm2"),
    block_scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    # The head reads the class token and the mean of the patches, side by side.
    head_parts=2,
    partial=False,
)
