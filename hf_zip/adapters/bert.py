"""BERT: a post-norm text encoder with a pooler (transformers' `bert`)."""

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PretrainedConfig

from hf_zip.adapters import Adapter, Pooler


def example() -> BertForSequenceClassification:
    """Returns a small BERT classifier whose stream, heads and MLP have different sizes."""
    config = BertConfig(
        vocab_size=31,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
        num_labels=5,
    )
    return BertForSequenceClassification(config)


def random_text(
    config: PretrainedConfig, batch: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Returns random tokens of random lengths, padded on the right, `[batch, 7]`."""
    tokens, padding = 7, config.pad_token_id or 0
    lengths = torch.randint(2, tokens + 1, (batch, 1), generator=generator)
    mask = (torch.arange(tokens) < lengths).long()
    # Stepping over the padding's id keeps it out of the text.
    ids = torch.randint(1, config.vocab_size, (batch, tokens), generator=generator) + padding
    inputs = {
        "input_ids": torch.where(mask == 1, ids % config.vocab_size, padding),
        "attention_mask": mask,
    }
    types = getattr(config, "type_vocab_size", 0)
    if types:
        inputs["token_type_ids"] = torch.randint(0, types, (batch, tokens), generator=generator)
    return inputs


ENTRY = Adapter(
    name="bert",
    model_types=("bert",),
    example=example,
    inputs=random_text,
    embeddings={
        "embeddings.word_embeddings.weight": 1,
        "embeddings.position_embeddings.weight": 1,
        "embeddings.token_type_embeddings.weight": 1,
    },
    embedding_norms=("embeddings.LayerNorm",),
    layers="encoder.layer",
    # The rows of a span's start and end mean the same in every model.
    readers=("qa_outputs",),
    poolers=(
        Pooler("pooler.dense", readers=("classifier", "cls.seq_relationship")),
        Pooler(
            "cls.predictions.transform.dense",
            readers=("cls.predictions.decoder",),
            norms=("cls.predictions.transform.LayerNorm",),
        ),
    ),
    outputs=("cls.predictions.bias",),
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    mlp_in="intermediate.dense",
    mlp_out="output.dense",
    block_norms=("attention.output.LayerNorm", "output.LayerNorm"),
    pre_norm=False,
    heads=("classifier",),
)
