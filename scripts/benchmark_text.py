"""Measure what merges of BERTs from different initialisations and tasks keep of their accuracy.

    python scripts/benchmark_text.py --data trec snips --cache parents

For several groups of seeds, one model is trained per data set (or taken from the cache folder) and
all are merged in every way; one table has the mean and the standard deviation over the groups. With
`--init` the models start from one pretrained BERT instead of from different initialisations; those
of `--scratch` have its shape and tokenizer only. Runs on other data sets add tables, and the last
one has the mean over all runs with the same `--init` and `--scratch` or none.
Every method runs with its defaults, calibrated on texts of all tasks; `--proxy` adds rows of what
texts of one task, or of other data, make of zipfit. Small models of texts are close to bags of
words, so a plain average with a least-squares head is a control as important as one trunk with such
a head. Results are kept in `text.json`, and `text.md` is made from it.
"""

import argparse
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarking import parse_quietly, read_results, write_results
from datasets import Dataset
from merging import (
    ALL,
    Merge,
    measure_missing,
    named_sources,
    references,
    run_merge,
    shown_command,
)
from text_tables import report, table, title
from train_bert import Setting, Start, Texts, read_texts, start, train_and_save
from training import read_record, read_setting, split_validation
from transformers import PreTrainedTokenizerBase

from hf_zip.calibration import labelled_from_memory
from hf_zip.candidates import Candidate
from hf_zip.readers import reader_of
from hf_zip.report import versions
from hf_zip.tasks import resolve_tasks

RESULTS = "text"

MERGES = (
    Merge("weight average", "average"),
    Merge("average, least-squares head", "average", {"refit": "head"}),
    Merge("permute", "permute"),
    Merge("permute, least-squares head", "permute", {"refit": "head"}),
    Merge("zipit", "zipit"),
    Merge("zipit, least-squares head", "zipit", {"refit": "head"}),
    Merge("zipfit 0.5", "zipfit", {"size": 0.5}),
    Merge("zipfit 1.0", "zipfit"),
    *(
        Merge(f"{name}, 4 times the texts", method, options, samples=4)
        for name, method, options in (
            ("average, least-squares head", "average", {"refit": "head"}),
            ("permute, least-squares head", "permute", {"refit": "head"}),
            ("zipfit 1.0", "zipfit", {}),
        )
    ),
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
    parser.add_argument("--proxy", type=Path, nargs="*", default=[], help="other data, unrelated")
    parser.add_argument("--choices", action="store_true", help="vary zipfit on validation texts")
    parser.add_argument("--resume", action="store_true", help="measure only what is missing")
    add_starts(parser)
    arguments = parse_quietly(parser, Setting())
    data = {folder.name: read_data(folder) for folder in arguments.data}
    proxies = {at.name: read_texts(at / "train.parquet").texts for at in arguments.proxy}
    setting = read_setting(arguments, Setting())
    tokenizer, setting = start(setting, arguments.data, arguments.init)
    ways = ways_of(arguments, setting, list(data))
    settled: dict[str, Any] = {
        "samples": arguments.samples,
        "init": arguments.init.name if arguments.init else None,
        "scratch": arguments.scratch,
        "setting": asdict(setting),
        "versions": dict(versions()),
    }
    name = title(settled, list(data))
    known = read_results(arguments.out, RESULTS).get(name, {}) if arguments.resume else {}
    command = shown_command("benchmark_text.py", sys.argv[1:])
    record = {"command": command, **settled, "groups": known_groups(known, settled)}
    for group in range(arguments.groups):
        folders = train_parents(data, tokenizer, ways, group, arguments.cache)
        choices = CHOICES if arguments.choices else ()
        earlier = record["groups"][group] if group < len(record["groups"]) else {}
        record["groups"][group : group + 1] = [
            run_group(
                data, proxies, folders, setting.longest, arguments.samples, group, choices, earlier
            )
        ]
        write(arguments.out, name, record)
    print("\n".join(table(name, record)))


def add_starts(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where models start."""
    parser.add_argument("--init", type=Path, help="pretrained BERT that models start from")
    parser.add_argument("--scratch", nargs="*", default=[], help="data sets of models that do not")
    parser.add_argument("--scratch-epochs", type=int, help="for these; default: as for others")
    parser.add_argument("--scratch-learning-rate", type=float, help="the same")


def ways_of(
    arguments: argparse.Namespace, setting: Setting, names: Sequence[str]
) -> dict[str, tuple[Start, Setting]]:
    """Returns for each data set where its model starts, and how it is trained.

    Args:
        arguments: What was given of `add_starts`.
        setting: How models are trained if nothing else is said.
        names: The data sets.
    """
    scratch = replace(
        setting,
        epochs=arguments.scratch_epochs or setting.epochs,
        learning_rate=arguments.scratch_learning_rate or setting.learning_rate,
    )
    return {
        name: (Start(arguments.init, True), scratch)
        if name in arguments.scratch
        else (Start(arguments.init), setting)
        for name in names
    }


def known_groups(record: Mapping[str, Any], settled: Mapping[str, Any]) -> list[Any]:
    """Returns the groups of an earlier run; none if anything was set otherwise."""
    same = all(record.get(key) == value for key, value in settled.items())
    return list(record["groups"]) if same else []


def read_data(folder: Path) -> Data:
    """Reads a data set."""
    training, validation = split_validation(read_texts(folder / "train.parquet"))
    return Data(training, validation, read_texts(folder / "test.parquet"))


def train_parents(
    data: Mapping[str, Data],
    tokenizer: PreTrainedTokenizerBase,
    ways: Mapping[str, tuple[Start, Setting]],
    group: int,
    cache: Path,
) -> dict[str, Path]:
    """Returns the folders of one model per task, trained now unless the cache has them."""
    found = {}
    for position, (name, own) in enumerate(data.items()):
        seed, (start_from, setting) = group * len(data) + position, ways[name]
        found[name] = folder = cache / f"{name}_seed{seed}"
        wanted = {"setting": asdict(setting), **start_from.record()}
        if not wanted.items() <= read_record(folder).items():
            train_and_save(
                own.training, own.validation, tokenizer, setting, seed, folder, start_from
            )
    return found


def run_group(
    data: Mapping[str, Data],
    proxies: Mapping[str, Sequence[str]],
    folders: Mapping[str, Path],
    longest: int,
    samples: int,
    seed: int,
    choices: Sequence[Merge],
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """Merges one group of parents in every way and measures everything.

    Args:
        data: The data by task.
        proxies: Unrelated texts, by the name of their data set; where there are some, zipfit is
            also calibrated on them, and on the texts of each task alone.
        folders: The models by task.
        longest: Tokens of a text that are kept.
        samples: Calibration texts, of all tasks together.
        seed: Decides which.
        choices: Further merges, measured on the validation texts only.
        known: What an earlier run returned; what it measured is not measured again.
    """
    sources = named_sources(folders)
    tasks, reader = resolve_tasks(sources), reader_of(sources[0], longest)
    texts = calibration_texts(data, proxies, samples, seed)
    alone = [
        Merge(f"zipfit 1.0, calibrated on {name}", "zipfit", calibration=name)
        for name in texts
        if name != ALL
    ]
    made: dict[str, Any] = dict(known.get("merges", {}))
    run = partial(run_merge, sources, tasks, texts, samples, made=made)
    test, validation = (
        {
            task.name: labelled_from_memory(
                named(getattr(data[task.name], split)), reader, task.labels, task.name
            )
            for task in tasks
        }
        for split in ("test", "validation")
    )
    compared: dict[str, Callable[[], Candidate]] = {
        candidate.name: partial(lambda c: c, candidate)
        for candidate in references(sources, tasks, texts[ALL][:samples], reader)
    }
    # Once made, a merge is measured on both parts.
    compared |= {merge.name: cache(partial(run, merge)) for merge in (*MERGES, *alone)}
    varied = dict(compared)
    varied |= {merge.name: partial(run, merge) for merge in choices}
    return {
        "parents": [read_record(folder) for folder in folders.values()],
        "merges": made,
        "test": measure_missing(known.get("test", []), compared, tasks, test),
        "validation": measure_missing(known.get("validation", []), varied, tasks, validation),
    }


def calibration_texts(
    data: Mapping[str, Data], proxies: Mapping[str, Sequence[str]], samples: int, seed: int
) -> dict[str, list[str]]:
    """Returns texts to calibrate on, by whose they are; without proxies only those of all tasks."""
    draw, share = random.Random(seed), samples // len(data)
    own = {name: part.training.texts for name, part in data.items()}
    usual = {name: draw.sample(texts, share) for name, texts in own.items()}
    found = {ALL: [text for texts in usual.values() for text in texts]}
    if proxies:
        found |= {name: draw.sample(texts, samples) for name, texts in {**own, **proxies}.items()}
    more = share * (max(merge.samples for merge in MERGES) - 1)
    for name, texts in own.items():
        others = set(usual[name])
        found[ALL] += draw.sample([text for text in texts if text not in others], more)
    return found


def named(texts: Texts) -> Dataset:
    """Returns texts with the names of their labels."""
    labels = [texts.names[label] for label in texts.labels]
    return Dataset.from_dict({"text": list(texts.texts), "label": labels})


def write(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Adds the results of a run to `text.json`, and writes `text.md` anew."""
    results = {**read_results(folder, RESULTS), name: dict(record)}
    write_results(folder, RESULTS, results, report(results))


if __name__ == "__main__":
    main()
