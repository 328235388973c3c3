"""Small text classifiers, tokenizers and texts for tests."""

import random

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

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
