"""Writes random models for `bench_merge.py`, in a process of its own that takes their memory."""

import sys
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

SPREAD = 2e-3  # standard deviation of what fine-tuning adds to every weight


def write_models(layers: str, family: str, dtype: str, *wanted: str) -> None:
    """Writes random models by their numbers: 0 is the base, others are near it.

    Those of 0 layers have one, and are tiny.
    """
    kinds = {
        "bert": (BertConfig, BertForSequenceClassification),
        "vit": (ViTConfig, ViTForImageClassification),
    }
    shape: dict[str, Any] = {"num_hidden_layers": int(layers) or 1}
    if family == "llama":
        config, cls = LlamaConfig, LlamaForCausalLM
        shape |= {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32}
        shape |= {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}
    else:
        config, cls = kinds[family]
        shape["num_labels"] = 2
    if layers == "0":
        shape |= {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
        shape |= {"num_key_value_heads": 4} if family == "llama" else {}
        shape |= {"image_size": 32} if family == "vit" else {"vocab_size": 64}
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    base = cls(config(**shape))
    origin = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for entry in wanted:
        number, place = entry.split(":", 1)
        generator = torch.Generator().manual_seed(int(number))
        with torch.no_grad():
            for name, parameter in base.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(origin[name] + (SPREAD * noise if int(number) else 0))
        if family != "llama":
            base.config.id2label = {i: f"task {number}, label {i}" for i in range(2)}
            base.config.label2id = {label: i for i, label in base.config.id2label.items()}
        base.save_pretrained(place)


if __name__ == "__main__":
    write_models(*sys.argv[1:])
