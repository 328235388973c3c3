"""Measure what merges of CLIPs' zero-shot classifiers keep of their accuracy.

    python scripts/benchmark_clip.py --data fashion_mnist --cache parents

For every group of seeds one small CLIP per set of classes is trained from its own initialisation on
images and what is said of their classes (or taken from the cache folder), turned into a classifier
by its texts, and merged in every way with its defaults. Results are kept in `clip.json`, and
`clip.md` is made from it.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from benchmark_zip import Data, calibration_images, labelled, read_data
from benchmarking import parse_quietly, read_results, write_results
from merging import (
    ALL,
    Merge,
    measure,
    named_sources,
    references,
    refitted,
    run_merge,
    shown_command,
)
from train_clip import Setting, train_and_save
from train_vit import parse_classes
from training import read_record, read_setting
from zip_tables import accuracy_table, difference_table

from hf_zip.images import ImageReader
from hf_zip.report import versions
from hf_zip.tasks import resolve_tasks

RESULTS = "clip"

MERGES = (
    Merge("weight average", "average"),
    Merge("permute", "permute"),
    Merge("zipit", "zipit"),
    *refitted("average", "permute", "zipit"),
    Merge("pleas", "pleas"),
    *(Merge(f"zipfit {size}", "zipfit", {"size": size}) for size in (0.5, 1.0)),
)


def main() -> None:
    """Runs the benchmark on one data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, test parquet")
    parser.add_argument("--classes", nargs="+", default=["0-4", "5-9"], help="default: 0-4 5-9")
    parser.add_argument("--groups", type=int, default=1, help="groups of seeds (default: 1)")
    parser.add_argument("--samples", type=int, default=1024, help="calibration images")
    arguments = parse_quietly(parser, Setting())
    data, setting = read_data(arguments.data, [], 0), read_setting(arguments, Setting())
    record: dict[str, Any] = {
        "command": shown_command("benchmark_clip.py", sys.argv[1:]),
        "samples": arguments.samples,
        "images": {s: len(getattr(data, s)) for s in ("training", "validation", "test")},
        "setting": asdict(setting),
        "versions": dict(versions()),
        "groups": [],
    }
    for group in range(arguments.groups):
        folders = {
            f"classes {classes}": parent_folder(
                data, classes, group * len(arguments.classes) + k, setting, arguments.cache
            )
            for k, classes in enumerate(arguments.classes)
        }
        record["groups"].append(run_group(data, folders, arguments.samples, group))
        write(arguments.out, data.name, record)
    print("\n".join(table(data.name, record)))


def parent_folder(data: Data, classes: str, seed: int, setting: Setting, cache: Path) -> Path:
    """Returns the folder of a model, trained now unless the cache has it in the same setting."""
    folder = cache / data.name / f"{classes}_seed{seed}"
    if read_record(folder).get("setting") != asdict(setting):
        numbers = parse_classes(classes)
        train_and_save(data.training, data.validation, numbers, setting, seed, folder)
    return folder


def run_group(data: Data, folders: Mapping[str, Path], samples: int, seed: int) -> dict[str, Any]:
    """Merges one group of parents in every way and measures everything.

    Args:
        data: The data.
        folders: The models by task.
        samples: Calibration images, of all tasks together.
        seed: Decides which.
    """
    sources = named_sources(folders)
    tasks = resolve_tasks(sources)
    numbers = {name: read_record(folder)["classes"] for name, folder in folders.items()}
    images = calibration_images(data, numbers, samples, seed)
    made: dict[str, Any] = {}
    run = partial(run_merge, sources, tasks, images, samples, made=made)
    candidates = [
        *references(sources, tasks, images[ALL][:samples], ImageReader()),
        *map(run, MERGES),
    ]
    return {
        "parents": [read_record(folder) for folder in folders.values()],
        "merges": made,
        "test": measure(candidates, tasks, labelled(data.test, list(numbers), [*numbers.values()])),
    }


def report(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the results of all data sets as lines of Markdown."""
    lines = [
        "# Merges of CLIPs' zero-shot classifiers",
        "",
        "```sh",
        *(record["command"] for record in results.values()),
        "```",
        "",
        "Accuracies in %, mean ± standard deviation over groups of parents where there are",
        "several; *joint* is among the labels of all tasks. Parents are CLIPs of different",
        "initialisations, trained on images of their own classes and what is said of these, and",
        "turned into classifiers by three templates. Every method runs with its defaults, and",
        "nothing was chosen on the test images. *one trunk* is a parent without merging, with a",
        "least-squares head for all tasks on its normalised embeddings. *seconds* are those of the",
        "merge, on a machine that had other work.",
    ]
    for name, record in results.items():
        lines += ["", *table(name, record)]
    return lines


def table(name: str, record: Mapping[str, Any]) -> list[str]:
    """Returns the results on one data set as lines of Markdown."""
    groups, setting, images = record["groups"], record["setting"], record["images"]
    seconds = mean(parent["seconds"] for group in groups for parent in group["parents"])
    return [
        f"## {name}",
        "",
        f"{len(groups)} group(s) of parents; image encoder of width {setting['width']}, "
        f"{setting['layers']} blocks, {setting['heads']} heads, patches of {setting['patch']} "
        f"pixels; text encoder of width {setting['text_width']}, {setting['text_layers']} blocks; "
        f"joint space of {setting['projection']} features; {setting['epochs']} epochs, "
        f"{seconds:.0f} seconds per parent; {images['training']} training and {images['test']} "
        f"test images of all tasks together; {record['samples']} unlabelled training images for "
        "calibration.",
        "",
        *accuracy_table("model, on test images", [group["test"] for group in groups], groups),
        "",
        *difference_table([group["test"] for group in groups]),
    ]


def write(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Adds the results on a data set to `clip.json`, and writes `clip.md` anew."""
    results = {**read_results(folder, RESULTS), name: record}
    write_results(folder, RESULTS, results, report(results))


if __name__ == "__main__":
    main()
