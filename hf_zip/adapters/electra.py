"""ELECTRA: BERT whose embeddings may be narrower than the stream."""

from dataclasses import replace

from transformers import ElectraConfig, ElectraForSequenceClassification

from hf_zip.adapters import Pooler, bert


def example() -> ElectraForSequenceClassification:
    """Returns a small ELECTRA classifier whose embeddings, stream, heads and MLP differ in size."""
    config = ElectraConfig(
        vocab_size=31,
        embedding_size=8,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
        num_labels=5,
    )
    return ElectraForSequenceClassification(config)


ENTRY = replace(
    bert.ENTRY,
    name="electra",
    model_types=("electra",),
    example=example,
    embedding_projection="embeddings_project",
    widths=("embedding_size",),  # only where the embeddings are not projected are they fitted
    poolers=(
        Pooler("classifier.dense", readers=("classifier.out_proj",)),
        Pooler("sequence_summary.summary", readers=("classifier",)),
        Pooler("discriminator_predictions.dense", ("discriminator_predictions.dense_prediction",)),
        Pooler(
            "generator_predictions.dense",
            readers=("generator_lm_head",),
            norms=("generator_predictions.LayerNorm",),
        ),
    ),
    heads=("classifier", "classifier.out_proj"),
)
