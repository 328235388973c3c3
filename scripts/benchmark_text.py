"""Measure what merges of BERTs from different initialisations and tasks keep of their accuracy.

    python scripts/benchmark_text.py --data trec snips --cache parents

For several groups of seeds, one model is trained per data set (or taken from the cache folder) and
all are merged in every way; one table has the mean and the standard deviation over the groups.
Every method runs with its defaults. Small models of texts are close to bags of words, so a plain
average with a least-squares head is a control as important as one trunk with such a head. Results
are kept in `text.json`, and `text.md` is made from it.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from benchmark_zip import shown_command
from datasets import Dataset, disable_progress_bars
from train_bert import (
    TRAINING,
    Setting,
    Texts,
    add_setting,
    make_tokenizer,
    read_setting,
    read_texts,
    split_validation,
    train_and_save,
)
from transformers.utils.logging import disable_progress_bar
from zip_tables import accuracy_table

import hf_zip
from hf_zip.calibration import from_memory, labelled_from_memory
from hf_zip.candidates import Candidate, ensemble, merged, one_trunks, parent
from hf_zip.evaluate import evaluate
from hf_zip.recipe import ModelSpec
from hf_zip.report import versions
from hf_zip.request import reader_of
from hf_zip.sources import load_sources
from hf_zip.tasks import resolve_tasks

BATCH = 128


@dataclass(frozen=True)
class Merge:
    """One row of the table.

    Args:
        name: What the row is called.
        method: The merge method.
        parameters: Its options.
    """

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


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
    parser.add_argument("--cache", type=Path, required=True, help="folder of trained parents")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add_setting(parser)
    arguments = parser.parse_args()
    disable_progress_bars()
    disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    data = {folder.name: read_data(folder) for folder in arguments.data}
    setting = read_setting(arguments)
    record: dict[str, Any] = {
        "command": shown_command(sys.argv[1:]).replace("benchmark_zip", "benchmark_text"),
        "samples": arguments.samples,
        "setting": asdict(setting),
        "versions": dict(versions()),
        "groups": [],
    }
    for group in range(arguments.groups):
        folders = train_parents(arguments.data, data, setting, group, arguments.cache)
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
    folders: Sequence[Path], data: Mapping[str, Data], setting: Setting, group: int, cache: Path
) -> dict[str, Path]:
    """Returns the folders of one model per task, trained now unless the cache has them."""
    tokenizer, found = make_tokenizer(folders, setting.words), {}
    for position, (name, own) in enumerate(data.items()):
        seed = group * len(data) + position
        found[name] = cache / f"{name}_seed{seed}"
        known = found[name] / TRAINING
        if not known.exists() or json.loads(known.read_text())["setting"] != asdict(setting):
            train_and_save(own.training, own.validation, tokenizer, setting, seed, found[name])
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
    specs = [ModelSpec(str(folder), name) for name, folder in folders.items()]
    sources = [
        replace(source, name=name)
        for source, name in zip(load_sources(specs), folders, strict=True)
    ]
    tasks, draw = resolve_tasks(sources), random.Random(seed)
    reader = reader_of(sources[0], longest)
    texts = [
        text
        for own in data.values()
        for text in draw.sample(own.training.texts, samples // len(data))
    ]
    made: dict[str, Any] = {}

    def run(merge: Merge) -> Candidate:
        started = time.perf_counter()
        result = hf_zip.merge(
            list(folders.values()),
            method=merge.method,
            tasks=list(folders),
            calibration=texts,
            parameters=dict(merge.parameters),
            force=True,  # the plain average of different initialisations is one of the rows
            progress=False,
        )
        made[merge.name] = {"seconds": time.perf_counter() - started}
        return merged(result.model, tasks, merge.name)

    def measure(candidates: Sequence[Candidate], split: str) -> list[dict[str, Any]]:
        labelled = {
            task.name: labelled_from_memory(
                named(getattr(data[task.name], split)), reader, task.labels, task.name
            )
            for task in tasks
        }
        rows = evaluate(candidates, tasks, labelled, BATCH, progress=False).rows
        return [asdict(row) for row in rows]

    inputs = from_memory(texts, reader)
    candidates = [
        *(parent(sources, k, tasks) for k in range(len(sources))),
        ensemble(sources, tasks),
        *one_trunks(sources, tasks, inputs, BATCH, progress=False),
        *map(run, MERGES),
    ]
    return {
        "parents": [json.loads((folder / TRAINING).read_text()) for folder in folders.values()],
        "merges": made,
        "test": measure(candidates, "test"),
        "validation": measure([*candidates, *map(run, choices)], "validation"),
    }


def named(texts: Texts) -> Dataset:
    """Returns texts with the names of their labels."""
    labels = [texts.names[label] for label in texts.labels]
    return Dataset.from_dict({"text": list(texts.texts), "label": labels})


def table(record: Mapping[str, Any]) -> list[str]:
    """Returns the results as lines of Markdown."""
    groups, setting = record["groups"], record["setting"]
    return [
        "# Merges of BERTs from different initialisations and tasks",
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
