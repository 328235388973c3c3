"""Train one small BERT from scratch on a text classification data set.

    python scripts/train_bert.py --data trec --tokenizer-data trec snips --seed 0 --out models/trec

The data are folders of parquet files with the columns `text` and `label`. The tokenizer is trained
on the training texts of all folders given for it, so that models of several tasks share one. A
fixed part of the training rows is kept apart for validation and never trained on; the model and its
tokenizer are written to the folder, with `training.json` beside them.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, disable_progress_bars
from tokenizers import BertWordPieceTokenizer
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

TRAINING = "training.json"
VALIDATION_SHARE = 0.1
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

    def rows(self, chosen: Sequence[int]) -> "Texts":
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


def main() -> None:
    """Trains and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet")
    parser.add_argument("--tokenizer-data", type=Path, nargs="+", required=True, help="folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add_setting(parser)
    arguments = parser.parse_args()
    disable_progress_bars()
    torch.set_num_threads(arguments.threads)
    setting = read_setting(arguments)
    training, validation = split_validation(read_texts(arguments.data / "train.parquet"))
    tokenizer = make_tokenizer(arguments.tokenizer_data, setting.words)
    record = train_and_save(training, validation, tokenizer, setting, arguments.seed, arguments.out)
    print(
        f"{arguments.out}: {record['seconds']:.0f} s, "
        f"{record['validation_accuracy']:.1%} on {record['validation_texts']} validation texts"
    )


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Adds one option for every field of `Setting`."""
    for name, value in asdict(Setting()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help=f"default: {value}")


def read_setting(arguments: argparse.Namespace) -> Setting:
    """Returns the setting that the options describe."""
    return Setting(**{name: getattr(arguments, name) for name in asdict(Setting())})


def read_texts(path: Path) -> Texts:
    """Reads a parquet file."""
    rows = Dataset.from_parquet(str(path))
    texts, labels, feature = tuple(map(str, rows["text"])), rows["label"][:], rows.features["label"]
    if isinstance(feature, ClassLabel):
        return Texts(texts, tuple(map(int, labels)), tuple(feature.names))
    names = sorted(map(str, set(labels)))
    return Texts(texts, tuple(names.index(str(label)) for label in labels), tuple(names))


def split_validation(texts: Texts) -> tuple[Texts, Texts]:
    """Returns the texts to train on, and those kept apart for validation, always the same."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    held = round(VALIDATION_SHARE * len(texts))
    return texts.rows(order[held:]), texts.rows(order[:held])


def make_tokenizer(folders: Sequence[Path], words: int) -> BertTokenizer:
    """Returns a WordPiece tokenizer of the training texts of all folders."""
    trained = BertWordPieceTokenizer(lowercase=True)
    texts = [t for f in folders for t in split_validation(read_texts(f / "train.parquet"))[0].texts]
    trained.train_from_iterator(
        texts, vocab_size=words, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
    )
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=True)


def train_and_save(
    training: Texts,
    validation: Texts,
    tokenizer: BertTokenizer,
    setting: Setting,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Trains a model, writes it with its tokenizer, and returns how it went."""
    started = time.perf_counter()
    order = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(training), generator=order)[: setting.most].tolist()
    training = training.rows(chosen)
    torch.manual_seed(seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=setting.width,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.heads,
            intermediate_size=round(setting.mlp_ratio * setting.width),
            max_position_embeddings=setting.longest,
            id2label=dict(enumerate(training.names)),
            label2id={name: i for i, name in enumerate(training.names)},
        )
    )
    _train(model, training, tokenizer, setting, order)
    record = {
        "setting": asdict(setting),
        "seed": seed,
        "training_texts": len(training),
        "validation_texts": len(validation),
        "validation_accuracy": accuracy(model, validation, tokenizer, setting),
        "seconds": time.perf_counter() - started,
    }
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / TRAINING).write_text(json.dumps(record, indent=1) + "\n")
    return record


def _train(
    model: BertForSequenceClassification,
    data: Texts,
    tokenizer: BertTokenizer,
    setting: Setting,
    order: torch.Generator,
) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay
    )
    steps = setting.epochs * -(-len(data) // setting.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, setting.learning_rate, total_steps=steps, pct_start=0.1
    )
    model.train()
    for _ in range(setting.epochs):
        for chosen in torch.randperm(len(data), generator=order).split(setting.batch):
            own = data.rows(chosen.tolist())
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
    model: BertForSequenceClassification, data: Texts, tokenizer: BertTokenizer, setting: Setting
) -> float:
    """Returns the share of texts whose best label is theirs."""
    right = 0
    for chosen in torch.arange(len(data)).split(256):
        own = data.rows(chosen.tolist())
        best = model(**_batch(own, tokenizer, setting)).logits.argmax(dim=1)
        right += int((best == torch.tensor(own.labels)).sum())
    return right / len(data)


def _batch(data: Texts, tokenizer: BertTokenizer, setting: Setting) -> Any:
    return tokenizer(
        list(data.texts),
        padding=True,
        truncation=True,
        max_length=setting.longest,
        return_tensors="pt",
    )


if __name__ == "__main__":
    main()
