"""Measure merges of CLIP's image encoders on the eight tasks that papers report.

    python scripts/reproduce_clip8.py --arch B-32

Fetches from the Hub the CLIP, the image encoder that was fine-tuned on each task, and the test
images; embeds what is said of every class by CLIP's text encoder; merges the image encoders by
every method that needs no data, with the options that are published; and measures the accuracy on
each task. Rows that need images are asked for by name, such as `--methods regmean`: those by
regression fetch the training images too, and adamerging trains for 1000 steps. Results are kept in
`clip8.json`, and `clip8.md`, made from it, has the published accuracies beside them. Where the
CLIP's weights are pickles, give --allow-pickle, or by --base a revision that has others. Memory
holds all models of a merge in float32: 4 GB for B-32, 13 for L-14.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarking import read_results, write_results
from clip8_protocol import (
    ARCHITECTURES,
    ClipTask,
    base_of,
    clip_tasks,
    compare_classes,
    comparison_line,
    encoder_of,
    images_of,
    open_split,
    tasks_of_merge,
)
from clip8_rows import REFERENCES, ROWS, Row, all_names, dataless_names
from clip8_tables import published_row, report, summary, tables
from datasets import disable_progress_bars
from merging import shown_command
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

import hf_zip
from hf_zip.candidates import merged
from hf_zip.checkout import checkout
from hf_zip.data import Table
from hf_zip.errors import HfZipError
from hf_zip.evaluate import evaluate
from hf_zip.inputs import Inputs
from hf_zip.processors import image_processor
from hf_zip.report import versions
from hf_zip.sources import Source, load_source
from hf_zip.tasks import Task
from hf_zip.zero_shot import write_zero_shot

RESULTS = "clip8"


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Args:
        tasks: The tasks, in the order of the published tables.
        base: The CLIP that the image encoders were fine-tuned from.
        data: Test images of each task.
        unlabelled: Returns images of each task, without labels, for a row that needs some.
        folder: Where the classifiers lie: one named after each task, and `base`.
        seed: Decides what methods draw at random.
        batch: Images per forward.
    """

    tasks: tuple[ClipTask, ...]
    base: Source
    data: Mapping[str, Inputs]
    unlabelled: Callable[[Row], list[Inputs] | None]
    folder: Path
    seed: int
    batch: int


def main() -> None:
    """Measures what is missing."""
    arguments = parse()
    chosen = tuple(task for task in clip_tasks().values() if task.name in arguments.tasks)
    base_name = arguments.base or base_of(arguments.arch)
    encoders = [encoder_of(arguments.arch, task.name) for task in chosen]
    needed = {row.split for row in ROWS if row.name in arguments.methods and row.split}
    folders, base, splits = fetch(
        base_name, encoders, chosen, ["test", *sorted(needed - {"test"})], arguments.allow_pickle
    )
    rows = splits["test"]
    found = {task: compare_classes(task, rows[task.name]) for task in chosen}
    size = base.model.config.vision_config.image_size
    processor = image_processor(base.processor)
    data = {
        task.name: images_of(
            task, rows[task.name], processor, size, arguments.limit, arguments.seed
        )
        for task in chosen
    }

    def unlabelled(row: Row) -> list[Inputs] | None:
        if row.split is None:
            return None
        limit = arguments.limit if row.split == "test" else row.images
        return [
            images_of(
                task, splits[row.split][task.name], processor, size, limit, arguments.seed, False
            )
            for task in chosen
        ]

    title = title_of(arguments, chosen)
    settled: dict[str, Any] = {
        "architecture": arguments.arch,
        "tasks": [task.name for task in chosen],
        "limit": arguments.limit,
        "seed": arguments.seed,
        "models": {name: folder.name for name, folder in folders.items()},
        "data": {task.data: rows[task.name].revision for task in chosen},
        "images": {name: len(inputs) for name, inputs in data.items()},
        "classes": [comparison_line(task, compared) for task, compared in found.items()],
        "versions": dict(versions()),
    }
    print("\n".join(settled["classes"]), flush=True)
    record = read_results(arguments.out, RESULTS).get(title, {}) if arguments.resume else {}
    if any(record.get(key) != value for key, value in settled.items()):
        record = {**settled, "rows": {}}
    record["command"] = shown_command("reproduce_clip8.py", sys.argv[1:])
    missing = [name for name in arguments.methods if name not in record["rows"]]
    with tempfile.TemporaryDirectory() as place:
        setting = Setting(
            chosen, base, data, unlabelled, Path(place), arguments.seed, arguments.batch
        )
        if missing:
            write_classifiers(setting, *folders.values(), allow_pickle=arguments.allow_pickle)
        for row in measured(missing, setting):
            row["published"] = published_row(arguments.arch, row["published"])
            rows_so_far = {**record["rows"], row["name"]: row}
            record["rows"] = {n: rows_so_far[n] for n in all_names() if n in rows_so_far}
            results = {**read_results(arguments.out, RESULTS), title: record}
            write_results(arguments.out, RESULTS, results, report(results))
            print(summary(record, row), flush=True)
    print("\n".join(tables(title, record)))


def parse() -> argparse.Namespace:
    """Returns the arguments, and settles progress bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    tasks, names = [*clip_tasks()], all_names()
    parser.add_argument("--arch", choices=ARCHITECTURES, default="B-32", help="default: B-32")
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks, metavar="TASK")
    parser.add_argument(
        "--methods", nargs="+", choices=names, default=dataless_names(), metavar="ROW"
    )
    parser.add_argument("--limit", type=int, help="test images per task, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--batch", type=int, default=128, help="images per forward (default: 128)")
    parser.add_argument("--base", help="folder or Hub id of the CLIP (default: OpenAI's)")
    parser.add_argument("--allow-pickle", action="store_true", help="read weights in pickles")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--resume", action="store_true", help="measure only what is missing")
    arguments = parser.parse_args()
    if len({*arguments.tasks}) < 2:
        parser.error("--tasks names one task, but two or more models are merged")
    if arguments.limit is not None and arguments.limit < 1:
        parser.error(f"--limit is {arguments.limit}; it should be 1 or more")
    disable_progress_bars()
    disable_progress_bar()
    return arguments


def title_of(arguments: argparse.Namespace, chosen: Sequence[ClipTask]) -> str:
    """Returns what the results of a setting are called."""
    title = f"ViT-{arguments.arch.replace('-', '/')}, {len(chosen)} tasks"
    if len(chosen) < len(clip_tasks()):
        title += f" ({', '.join(task.title for task in chosen)})"
    title += "" if arguments.limit is None else f", {arguments.limit} images each"
    return title + (f", seed {arguments.seed}" if arguments.seed else "")


def fetch(
    base: str,
    encoders: Sequence[str],
    chosen: Sequence[ClipTask],
    splits: Sequence[str],
    allow_pickle: bool,
) -> tuple[dict[str, Path], Source, dict[str, dict[str, Table]]]:
    """Returns the folders of all models by name, the CLIP, and some splits of all data by task.

    Raises:
        SystemExit: Something is not in reach; the message says what is asked for.
    """
    try:
        names = (base, *encoders)
        folders = {name: checkout(name, allow_pickle=allow_pickle)[0] for name in names}
        source = load_source(str(folders[base]), allow_pickle=allow_pickle)
        tables = {s: {task.name: open_split(task, s) for task in chosen} for s in splits}
        return folders, source, tables
    except HfZipError as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "0")
        raise SystemExit(
            f"{error}.\nAsked for are the models {', '.join((base, *encoders))} and the data sets "
            f"{', '.join(task.data for task in chosen)}, from a Hub in reach or its cache. "
            f"HF_HUB_OFFLINE is {offline} and should be 0 or unset to reach a Hub; HF_ENDPOINT "
            "names another one than https://huggingface.co, HF_HOME is where the cache lies, and "
            "`hf auth login` or HF_TOKEN gives access to what is private. Nothing was written."
        ) from error


def write_classifiers(setting: Setting, base: Path, *encoders: Path, allow_pickle: bool) -> None:
    """Writes the classifier of each task's image encoder, and one of the CLIP as base model."""
    write = partial(write_zero_shot, allow_pickle=allow_pickle)
    first = setting.tasks[0]
    write(str(base), first.classes, setting.folder / "base", first.templates)
    for task, encoder in zip(setting.tasks, encoders, strict=True):
        out = setting.folder / task.name
        write(str(encoder), task.classes, out, task.templates, clip=str(base))


def measured(names: Sequence[str], setting: Setting) -> Iterator[dict[str, Any]]:
    """Yields the rows that are asked for, as plain values."""
    rows = {row.name: row for row in ROWS}
    for name in names:
        row, started = rows.get(name, Row(name, name, published=name)), time.perf_counter()
        if name in REFERENCES:
            models = zero_shot(setting) if name == "zero-shot" else fine_tuned(setting)
            per_task, seconds = each_on_its_own(models, setting), 0.0
        else:
            model = merge(row, setting)
            seconds = time.perf_counter() - started
            tasks = tasks_of_merge(setting.tasks)
            per_task = accuracies(model, tasks, setting.data, setting.batch)
        yield {
            "name": name,
            "method": row.method,
            "parameters": dict(row.parameters),
            "published": row.published,
            "note": row.note,
            "per_task": per_task,
            "average": sum(per_task.values()) / len(per_task),
            "seconds": seconds,
        }


def merge(row: Row, setting: Setting) -> PreTrainedModel:
    """Returns the model that a row is about, with the heads of all tasks."""
    return hf_zip.merge(
        [str(setting.folder / task.name) for task in setting.tasks],
        method=row.method,
        tasks=[task.name for task in setting.tasks],
        base_model=str(setting.folder / "base"),
        parameters=dict(row.parameters),
        labels="apart",  # two of the tasks are about digits
        own_calibration=setting.unlabelled(row),
        seed=setting.seed,
    ).model


def zero_shot(setting: Setting) -> Iterator[PreTrainedModel]:
    """Yields the CLIP as a classifier for each task."""
    for task in setting.tasks:
        base = setting.base
        yield hf_zip.zero_shot_classifier(base.model, base.processor, task.classes, task.templates)


def fine_tuned(setting: Setting) -> Iterator[PreTrainedModel]:
    """Yields the classifier of each task's own image encoder."""
    for task in setting.tasks:
        yield load_source(str(setting.folder / task.name)).model


def each_on_its_own(models: Iterable[PreTrainedModel], setting: Setting) -> dict[str, float]:
    """Returns the accuracy of each model on its own task."""
    found: dict[str, float] = {}
    for task, model in zip(setting.tasks, models, strict=True):
        data = {task.name: setting.data[task.name]}
        found |= accuracies(model, [task.task()], data, setting.batch)
    return found


def accuracies(
    model: PreTrainedModel, tasks: Sequence[Task], data: Mapping[str, Inputs], batch: int
) -> dict[str, float]:
    """Returns the accuracy of a model on each task, in [0, 1]."""
    (row,) = evaluate([merged(model, tasks, "model")], tasks, data, batch).rows
    return {name: value for name, value in row.per_task.items() if value is not None}


if __name__ == "__main__":
    main()
