"""Measure what merges of BERTs from different initialisations and tasks keep of their accuracy.

    python scripts/benchmark_text.py --data trec snips --cache parents

For several groups of seeds, one model is trained per data set (or taken from the cache folder) and
all are merged in every way; one table has the mean and the standard deviation over the groups. With
`--init` the models start from one pretrained BERT instead of from different initialisations.
Every method runs with its defaults. Small models of texts are close to bags of words, so a plain
average with a least-squares head is a control as important as one trunk with such a head. Results
are kept in `text.json`, and `text.md` is made from it.
"""

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from merging import ALL, Merge, measure, named_sources, references, run_merge, shown_command
from train_bert import Setting, Texts, read_texts, start, train_and_save
from training import add_setting, read_record, read_setting, split_validation
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar
from zip_tables import accuracy_table

from hf_zip.calibration import labelled_from_memory
from hf_zip.report import versions
from hf_zip.request import reader_of
from hf_zip.tasks import resolve_tasks

MERGES = (
    Merge("weight average", "average"),
    Merge("average, least-squares head", "average", {"refit": "head"}),
    Merge("permute", "permute"),
    Merge("permute, least-squares head", "permute", {"refit": "head"}),
    Merge("zipfit 0.5", "zipfit", {"size": 0.5}),
    Merge("zipfit 1.0", "zipfit"),
)
CHOICES = (
    Merge("head_penalty 0.01", "zipfit", {"head_penalty": 1e-2}),
    *(Merge(f"penalty {x:g}", "zipfit", {"penalty": x}) for x in (1e-2, 1e-4)),
    Merge("heads: select", "zipfit", {"heads": "select"}),
)


@dataclass(frozen=True)
class Data:
    """One data set, split."""

    training: Texts
    validation: Texts
    test: Texts


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="one folder per task")
    parser.add_argument("--groups", type=int, default=1, help="groups of seeds (default: 1)")
    parser.add_argument("--samples", type=int, default=512, help="calibration texts")
    parser.add_argument("--choices", action="store_true", help="vary zipfit on validation texts")
    parser.add_argument("--init", type=Path, help="pretrained BERT that all models start from")
    parser.add_argument("--cache", type=Path, required=True, help="folder of trained parents")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add_setting(parser, Setting())
    arguments = parser.parse_args()
    disable_progress_bars()
    disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    data = {folder.name: read_data(folder) for folder in arguments.data}
    setting = read_setting(arguments, Setting())
    tokenizer, setting = start(setting, arguments.data, arguments.init)
    record: dict[str, Any] = {
        "command": shown_command("benchmark_text.py", sys.argv[1:]),
        "samples": arguments.samples,
        "init": arguments.init.name if arguments.init else None,
        "setting": asdict(setting),
        "versions": dict(versions()),
        "groups": [],
    }
    for group in range(arguments.groups):
        folders = train_parents(data, tokenizer, setting, group, arguments.cache, arguments.init)
        choices = CHOICES if arguments.choices else ()
        found = run_group(data, folders, setting.longest, arguments.samples, group, choices)
        record["groups"].append(found)
        write(arguments.out, record)
    print("\n".join(table(record)))


def read_data(folder: Path) -> Data:
    """Reads a data set."""
    training, validation = split_validation(read_texts(folder / "train.parquet"))
    return Data(training, validation, read_texts(folder / "test.parquet"))


def train_parents(
    data: Mapping[str, Data],
    tokenizer: PreTrainedTokenizerBase,
    setting: Setting,
    group: int,
    cache: Path,
    init: Path | None,
) -> dict[str, Path]:
    """Returns the folders of one model per task, trained now unless the cache has them."""
    found = {}
    for position, (name, own) in enumerate(data.items()):
        seed = group * len(data) + position
        found[name] = folder = cache / f"{name}_seed{seed}"
        known, called = read_record(folder), init.name if init else None
        if (known.get("setting"), known.get("init")) != (asdict(setting), called):
            train_and_save(own.training, own.validation, tokenizer, setting, seed, folder, init)
    return found


def run_group(
    data: Mapping[str, Data],
    folders: Mapping[str, Path],
    longest: int,
    samples: int,
    seed: int,
    choices: Sequence[Merge],
) -> dict[str, Any]:
    """Merges one group of parents in every way and measures everything.

    Args:
        data: The data by task.
        folders: The models by task.
        longest: Tokens of a text that are kept.
        samples: Calibration texts, of all tasks together.
        seed: Decides which.
        choices: Further merges, measured on the validation texts only.
    """
    sources = named_sources(folders)
    tasks, draw = resolve_tasks(sources), random.Random(seed)
    reader = reader_of(sources[0], longest)
    texts = [
        text
        for own in data.values()
        for text in draw.sample(own.training.texts, samples // len(data))
    ]
    made: dict[str, Any] = {}
    run = partial(run_merge, sources, tasks, {ALL: texts}, samples, made=made)
    test, validation = (
        {
            task.name: labelled_from_memory(
                named(getattr(data[task.name], split)), reader, task.labels, task.name
            )
            for task in tasks
        }
        for split in ("test", "validation")
    )
    candidates = [*references(sources, tasks, texts, reader), *map(run, MERGES)]
    return {
        "parents": [read_record(folder) for folder in folders.values()],
        "merges": made,
        "test": measure(candidates, tasks, test),
        "validation": measure([*candidates, *map(run, choices)], tasks, validation),
    }


def named(texts: Texts) -> Dataset:
    """Returns texts with the names of their labels."""
    labels = [texts.names[label] for label in texts.labels]
    return Dataset.from_dict({"text": list(texts.texts), "label": labels})


def table(record: Mapping[str, Any]) -> list[str]:
    """Returns the results as lines of Markdown."""
    groups, setting = record["groups"], record["setting"]
    init = record.get("init")
    origin = f"one checkpoint, {init}, and different" if init else "different initialisations and"
    return [
        f"# Merges of BERTs from {origin} tasks",
        "",
        "```sh",
        record["command"],
        "```",
        "",
        f"{len(groups)} group(s) of parents; width {setting['width']}, {setting['layers']} blocks, "
        f"{setting['heads']} heads; {record['samples']} unlabelled training texts of all tasks "
        "together for calibration. Accuracies in %; *joint* is among the labels of all tasks.",
        "",
        *accuracy_table("model, on test texts", [g["test"] for g in groups], groups),
        "",
        *accuracy_table("model, on validation texts", [g["validation"] for g in groups]),
    ]


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes the results to `text.json` and `text.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "text.md").write_text("\n".join(table(record)) + "\n")


if __name__ == "__main__":
    main()
