"""Train one small BERT on a text classification data set, from scratch or from a checkpoint.

    python scripts/train_bert.py --data trec --tokenizer-data trec snips --seed 0 --out models/trec
    python scripts/train_bert.py --data trec --init MiniLM --learning-rate 1e-4 --out models/trec

The data are folders of parquet files with the columns `text` and `label`. The tokenizer is trained
on the training texts of all folders given for it, so that models of several tasks share one; with
`--init`, configuration, weights and tokenizer are those of a pretrained BERT, and only the head is
new. A fixed part of the training rows is kept apart for validation and never trained on; the model
and its tokenizer are written to the folder, with `training.json` beside them.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, disable_progress_bars
from jaxtyping import Int
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from training import add_setting, one_cycle, read_setting, split_validation, write_record
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    PreTrainedTokenizerBase,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Texts:
    """Labelled texts.

    Args:
        texts: The texts.
        labels: Number of each text's class.
        names: Names of all classes.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: Int[Tensor, "rows"]) -> "Texts":
        """Returns some of the texts."""
        texts = tuple(self.texts[i] for i in chosen)
        return Texts(texts, tuple(self.labels[i] for i in chosen), self.names)


@dataclass(frozen=True)
class Setting:
    """How a model is made and trained.

    Args:
        width: Features of the stream.
        layers: Blocks.
        heads: Attention heads.
        mlp_ratio: Hidden units of an MLP, relative to the width.
        words: Tokens of the vocabulary.
        epochs: Passes over the training texts.
        batch: Texts per step.
        learning_rate: Peak of the warmup and cosine schedule.
        weight_decay: Decay of AdamW.
        longest: Tokens of a text that are kept.
        most: Training texts at most.
    """

    width: int = 128
    layers: int = 3
    heads: int = 4
    mlp_ratio: float = 2.0
    words: int = 4000
    epochs: int = 8
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    longest: int = 48
    most: int = 6000


@dataclass(frozen=True)
class Start:
    """What a model is before it is trained.

    Args:
        init: Folder of a pretrained BERT, which decides shape and tokenizer; none: as set.
        scratch: Take its shape and tokenizer only, and new weights.
    """

    init: Path | None = None
    scratch: bool = False

    def record(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {"init": self.init.name if self.init else None, "scratch": self.scratch}


def main() -> None:
    """Trains and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--tokenizer-data", type=Path, nargs="+", help="folders; from scratch")
    either.add_argument("--init", type=Path, help="pretrained BERT; decides shape and tokenizer")
    parser.add_argument("--scratch", action="store_true", help="new weights in the shape of --init")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add_setting(parser, Setting())
    arguments = parser.parse_args()
    disable_progress_bars()
    torch.set_num_threads(arguments.threads)
    setting = read_setting(arguments, Setting())
    tokenizer, setting = start(setting, arguments.tokenizer_data, arguments.init)
    training, validation = split_validation(read_texts(arguments.data / "train.parquet"))
    start_from = Start(arguments.init, arguments.scratch)
    record = train_and_save(
        training, validation, tokenizer, setting, arguments.seed, arguments.out, start_from
    )
    print(
        f"{arguments.out}: {record['seconds']:.0f} s, "
        f"{record['validation_accuracy']:.1%} on {record['validation_texts']} validation texts"
    )


def read_texts(path: Path) -> Texts:
    """Reads a parquet file."""
    rows = Dataset.from_parquet(str(path))
    texts, labels, feature = tuple(map(str, rows["text"])), rows["label"][:], rows.features["label"]
    if isinstance(feature, ClassLabel):
        return Texts(texts, tuple(map(int, labels)), tuple(feature.names))
    names = sorted(map(str, set(labels)))
    return Texts(texts, tuple(names.index(str(label)) for label in labels), tuple(names))


def make_tokenizer(folders: Sequence[Path], words: int) -> BertTokenizer:
    """Returns a WordPiece tokenizer of the training texts of all folders."""
    trained = BertWordPieceTokenizer(lowercase=True)
    texts = [t for f in folders for t in split_validation(read_texts(f / "train.parquet"))[0].texts]
    trained.train_from_iterator(
        texts, vocab_size=words, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
    )
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=True)


def start(
    setting: Setting, folders: Sequence[Path], init: Path | None
) -> tuple[PreTrainedTokenizerBase, Setting]:
    """Returns the tokenizer and the setting of models, in the shape of a pretrained BERT if given.

    Args:
        setting: How the models are made and trained.
        folders: The data that a tokenizer is trained on, where there is no pretrained BERT.
        init: Folder of a pretrained BERT.
    """
    if init is None:
        return make_tokenizer(folders, setting.words), setting
    config = BertConfig.from_pretrained(init)
    shaped = replace(
        setting,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        words=config.vocab_size,
    )
    return AutoTokenizer.from_pretrained(init), shaped


def train_and_save(
    training: Texts,
    validation: Texts,
    tokenizer: PreTrainedTokenizerBase,
    setting: Setting,
    seed: int,
    folder: Path,
    start_from: Start | None = None,
) -> dict[str, Any]:
    """Trains a model, writes it with its tokenizer, and returns how it went.

    Args:
        training: Texts to train on.
        validation: Texts to measure the accuracy on.
        tokenizer: Prepares the texts.
        setting: How to make and train the model.
        seed: Decides initialisation, order, and which texts where there are too many.
        folder: Folder to write.
        start_from: What the model is before; left out, of new weights in the shape that is set.
    """
    start_from = start_from or Start()
    started = time.perf_counter()
    order = torch.Generator().manual_seed(seed)
    training = training.rows(torch.randperm(len(training), generator=order)[: setting.most])
    torch.manual_seed(seed)
    model = make_model(training.names, len(tokenizer), setting, start_from)
    _train(model, training, tokenizer, setting, order)
    record = {
        "setting": asdict(setting),
        **start_from.record(),
        "seed": seed,
        "training_texts": len(training),
        "validation_texts": len(validation),
        "validation_accuracy": accuracy(model, validation, tokenizer, setting),
        "seconds": time.perf_counter() - started,
    }
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_record(folder, record)
    return record


def make_model(
    names: Sequence[str], words: int, setting: Setting, start_from: Start
) -> BertForSequenceClassification:
    """Returns a classifier with a new head, on a pretrained BERT where one is given."""
    labels = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    if start_from.init is not None:
        config = BertConfig.from_pretrained(start_from.init, **labels)
        model = BertForSequenceClassification(config)
        if not start_from.scratch:
            model.bert = BertModel.from_pretrained(start_from.init, dtype=torch.float32)
        return model
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=words,
            hidden_size=setting.width,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.heads,
            intermediate_size=round(setting.mlp_ratio * setting.width),
            max_position_embeddings=setting.longest,
            **labels,
        )
    )


def _train(
    model: BertForSequenceClassification,
    data: Texts,
    tokenizer: PreTrainedTokenizerBase,
    setting: Setting,
    order: torch.Generator,
) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay
    )
    steps = setting.epochs * -(-len(data) // setting.batch)
    schedule = one_cycle(optimizer, setting.learning_rate, steps)
    model.train()
    for _ in range(setting.epochs):
        for chosen in torch.randperm(len(data), generator=order).split(setting.batch):
            own = data.rows(chosen)
            answers = model(**_batch(own, tokenizer, setting)).logits
            loss = cross_entropy(answers, torch.tensor(own.labels))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(
    model: BertForSequenceClassification,
    data: Texts,
    tokenizer: PreTrainedTokenizerBase,
    setting: Setting,
) -> float:
    """Returns the share of texts whose best label is theirs."""
    right = 0
    for chosen in torch.arange(len(data)).split(256):
        own = data.rows(chosen)
        best = model(**_batch(own, tokenizer, setting)).logits.argmax(dim=1)
        right += int((best == torch.tensor(own.labels)).sum())
    return right / len(data)


def _batch(data: Texts, tokenizer: PreTrainedTokenizerBase, setting: Setting) -> Any:
    return tokenizer(
        list(data.texts),
        padding=True,
        truncation=True,
        max_length=setting.longest,
        return_tensors="pt",
    )


if __name__ == "__main__":
    main()
