"""Small text classifiers, tokenizers and texts for tests."""

import random

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

import hf_zip.adapters
from hf_zip.adapters import Adapter
from tests.models import randomise

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("who", "what", "book", "play", "a", "table", "song", "is", "the", "best", "movie", "##s")
VOCABULARY = (*SPECIAL, *WORDS)


def tokenizer(vocabulary=VOCABULARY, **options):
    return BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, **options)


def bert(labels=3, seed=0, names=None, cls=BertForSequenceClassification, **overrides):
    """A tiny BERT with every parameter random, so that no symmetry hides a mistake."""
    torch.manual_seed(seed)
    names = names or [f"class {seed}.{i}" for i in range(labels)]
    values = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "max_position_embeddings": 16,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    return randomise(cls(BertConfig(**{**values, **overrides})).eval(), seed)


def sentences(count, seed=0, longest=9):
    """Texts of one to `longest` words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS[:-1], k=draw.randint(1, longest))) for _ in range(count)]


def random_texts(config, batch, generator):
    shape = (batch, 8)
    ids = torch.randint(len(SPECIAL), config.vocab_size, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.int64)
    mask[-1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


BERT = Adapter(
    name="bert",
    model_types=("bert",),
    example=bert,
    inputs=random_texts,
    embeddings={
        "embeddings.word_embeddings.weight": 1,
        "embeddings.position_embeddings.weight": 1,
        "embeddings.token_type_embeddings.weight": 1,
    },
    layers="encoder.layer",
    norms=("embeddings.LayerNorm",),
    readers=("pooler.dense",),
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


def with_bert():
    """All adapters, with one for BERT where there is none."""
    known = hf_zip.adapters.adapters()
    there = any("bert" in adapter.model_types for adapter in known.values())
    return known if there else {**known, "bert": BERT}
