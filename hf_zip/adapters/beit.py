"""BEiT: ViT with scaled blocks and biases by relative position (transformers' `beit`)."""

from dataclasses import replace

from transformers import BeitConfig, BeitForImageClassification

from hf_zip.adapters import vit


def example() -> BeitForImageClassification:
    """Returns a small BEiT classifier whose stream, heads and MLP have different sizes."""
    config = BeitConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=20,
        image_size=12,
        patch_size=4,
        num_channels=3,
        use_relative_position_bias=True,
        num_labels=5,
    )
    return BeitForImageClassification(config)


ENTRY = replace(
    vit.ENTRY,
    name="beit",
    model_types=("beit",),
    example=example,
    # Which of them there are depends on the config: what is pooled, and what is predicted.
    norms=("layernorm", "pooler.layernorm"),
    readers=("lm_head",),
    # A table that all blocks share is not among them: it would tie the heads of all blocks.
    score_biases={"relative_position_bias.relative_position_bias_table": 1},
    block_scales=("lambda_1", "lambda_2"),
    key_bias=False,
    # The head reads the mean of the patches.
    partial=False,
)
