"""RoBERTa, XLM-RoBERTa and CamemBERT: BERT whose heads bring their own hidden layers."""

from dataclasses import replace

from transformers import RobertaConfig, RobertaForSequenceClassification

from hf_zip.adapters import Pooler, bert


def example() -> RobertaForSequenceClassification:
    """Returns a small RoBERTa classifier whose stream, heads and MLP have different sizes."""
    config = RobertaConfig(
        vocab_size=31,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=28,
        max_position_embeddings=16,
        type_vocab_size=1,
        num_labels=4,
        pad_token_id=1,
    )
    return RobertaForSequenceClassification(config)


ENTRY = replace(
    bert.ENTRY,
    name="roberta",
    model_types=("roberta", "xlm-roberta", "camembert"),
    example=example,
    poolers=(
        Pooler("pooler.dense", readers=("classifier",)),
        Pooler("classifier.dense", readers=("classifier.out_proj",)),
        Pooler("lm_head.dense", readers=("lm_head.decoder",), norms=("lm_head.layer_norm",)),
    ),
    outputs=("lm_head.bias",),
    heads=("classifier", "classifier.out_proj"),
)
