"""DistilBERT: a smaller BERT with names of its own, no token types and no pooler."""

from transformers import DistilBertConfig, DistilBertForSequenceClassification

from hf_zip.adapters import Adapter, Pooler
from hf_zip.adapters.bert import random_text


def example() -> DistilBertForSequenceClassification:
    """Returns a small DistilBERT classifier whose stream, heads and MLP have different sizes."""
    config = DistilBertConfig(
        vocab_size=31,
        dim=12,
        n_layers=2,
        n_heads=3,
        hidden_dim=20,
        max_position_embeddings=16,
        num_labels=4,
    )
    return DistilBertForSequenceClassification(config)


ENTRY = Adapter(
    name="distilbert",
    model_types=("distilbert",),
    example=example,
    inputs=random_text,
    embeddings={
        "embeddings.word_embeddings.weight": 1,
        "embeddings.position_embeddings.weight": 1,
    },
    embedding_norms=("embeddings.LayerNorm",),
    layers="transformer.layer",
    # The rows of a span's start and end mean the same in every model.
    readers=("qa_outputs",),
    poolers=(
        Pooler("pre_classifier", readers=("classifier",)),
        Pooler("vocab_transform", readers=("vocab_projector",), norms=("vocab_layer_norm",)),
    ),
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    output="attention.out_lin",
    mlp_in="ffn.lin1",
    mlp_out="ffn.lin2",
    units="hidden_dim",
    block_norms=("sa_layer_norm", "output_layer_norm"),
    pre_norm=False,
    heads=("classifier",),
)
