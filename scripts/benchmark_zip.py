"""Measure what merges of ViTs from different initialisations and tasks keep of their accuracy.

    python scripts/benchmark_zip.py --data fashion_mnist --proxy mnist --cache parents

For several groups of seeds, models are trained on disjoint classes (or taken from the cache folder)
and merged by every method; one table per data set and number of tasks has the mean and the standard
deviation over the groups. Every method runs with its defaults. `--choices` also varies the options
of zipfit, on the validation part of the training images only. Results are kept in `zip.json`, and
`zip.md` is made from it.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarking import parse_quietly, read_results, write_results
from merging import (
    ALL,
    Merge,
    measure_missing,
    named_sources,
    references,
    refitted,
    run_merge,
    shown_command,
)
from torch import Tensor
from train_vit import (
    Images,
    Setting,
    data_files,
    parse_classes,
    pixel_values,
    read_images,
    train_and_save,
)
from training import read_record, read_setting, split_validation
from zip_tables import report, tables

from hf_zip.images import ImageReader
from hf_zip.report import versions
from hf_zip.tasks import resolve_tasks

RESULTS = "zip"


MERGES = (
    Merge("weight average", "average"),
    Merge("permute", "permute"),
    Merge("rotate", "rotate"),
    Merge("zipit", "zipit"),
    *refitted("average", "permute", "rotate", "zipit"),
    *(Merge(f"pleas {size}", "pleas", {"size": size}) for size in (1.0, 1.5)),
    Merge("permute, half of the blocks", "permute", shared=0.5),
    Merge("permute, half of the blocks, exact tails", "permute", shared=0.5, unmerge="exact"),
    Merge("zipfit 1.0, half of the blocks", "zipfit", shared=0.5),
    *(Merge(f"zipfit {size}", "zipfit", {"size": size}) for size in (0.5, 1.0, 1.5)),
)
CHOICES = (
    Merge("zipfit 1.0", "zipfit"),
    *(Merge(f"penalty {x:g}", "zipfit", {"penalty": x}) for x in (1e-1, 1e-2, 1e-4)),
    *(Merge(f"head_penalty {x:g}", "zipfit", {"head_penalty": x}) for x in (1e-2, 1e-4)),
    *(Merge(f"heads: {x}", "zipfit", {"heads": x}) for x in ("all", "select")),
    *(Merge(f"{x} times the images", "zipfit", samples=x) for x in (2, 4)),
)


@dataclass(frozen=True)
class Data:
    """One data set, split, and images of others.

    Args:
        name: Its name.
        training: Images for training and calibration.
        validation: Images for choices.
        test: Images for the table.
        proxies: Unrelated images, by the name of their data set.
    """

    name: str
    training: Images
    validation: Images
    test: Images
    proxies: Mapping[str, Images]


def main() -> None:
    """Runs the benchmark on one data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train, test parquet")
    parser.add_argument("--proxy", type=Path, nargs="*", default=[], help="other data, unrelated")
    parser.add_argument("--classes", nargs="+", default=["0-4", "5-9"], help="default: 0-4 5-9")
    parser.add_argument("--groups", type=int, default=3, help="groups of seeds (default: 3)")
    parser.add_argument("--samples", type=int, default=1024, help="calibration images")
    parser.add_argument("--choices", action="store_true", help="vary zipfit on validation images")
    parser.add_argument("--resume", action="store_true", help="measure only what is missing")
    arguments = parse_quietly(parser, Setting())

    started, count = time.perf_counter(), len(arguments.classes)
    data = read_data(arguments.data, arguments.proxy, arguments.samples)
    title = f"{data.name}, {count} tasks"
    settled: dict[str, Any] = {
        "classes": arguments.classes,
        "samples": arguments.samples,
        "images": {s: len(getattr(data, s)) for s in ("training", "validation", "test")},
        "setting": asdict(read_setting(arguments, Setting())),
        "threads": arguments.threads,
        "versions": dict(versions()),
    }
    record = read_results(arguments.out, RESULTS).get(title, {}) if arguments.resume else {}
    if any(record.get(key) != value for key, value in settled.items()):
        record = {**settled, "seconds": 0.0, "groups": []}
    record["command"], before = shown_command("benchmark_zip.py", sys.argv[1:]), record["seconds"]
    for position in range(arguments.groups):
        folders = [
            parent_folder(data, classes, count * position + k, record["setting"], arguments.cache)
            for k, classes in enumerate(arguments.classes)
        ]
        chosen = CHOICES if arguments.choices else ()
        known = record["groups"][position] if position < len(record["groups"]) else {}
        found = run_group(
            data, arguments.classes, folders, arguments.samples, position, chosen, known
        )
        record["groups"][position : position + 1] = [found]
        record["seconds"] = before + time.perf_counter() - started
        write(arguments.out, title, record)
        print(f"{title}: {position + 1} of {arguments.groups} groups, {record['seconds']:.0f} s")
    print("\n".join(tables(title, record)))


def read_data(folder: Path, proxies: Sequence[Path], samples: int) -> Data:
    """Reads a data set and images of others, brought to its size and channels."""
    images = read_images(data_files([folder], "train"))
    channels, size = images.pixels.shape[1:3]
    training, validation = split_validation(images)
    return Data(
        folder.name,
        training,
        validation,
        read_images(data_files([folder], "test")),
        {
            proxy.name: read_images(data_files([proxy], "train"), channels, size, samples)
            for proxy in proxies
        },
    )


def parent_folder(
    data: Data, classes: str, seed: int, setting: Mapping[str, Any], cache: Path
) -> Path:
    """Returns the folder of a model, trained now unless the cache has it in the same setting."""
    folder = cache / data.name / f"{classes}_seed{seed}"
    if read_record(folder).get("setting") != setting:
        record = train_and_save(
            data.training, data.validation, parse_classes(classes), Setting(**setting), seed, folder
        )
        print(f"{data.name}, {classes}, seed {seed}: {record['seconds']:.0f} s")
    return folder


def run_group(
    data: Data,
    classes: Sequence[str],
    folders: Sequence[Path],
    samples: int,
    seed: int,
    choices: Sequence[Merge] = (),
    known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Merges one group of parents in every way and measures everything.

    Args:
        data: The data.
        classes: The classes of each model, as text.
        folders: The models.
        samples: Calibration images.
        seed: Decides which.
        choices: Further merges, measured on the validation images only.
        known: What an earlier run returned; what it measured is not measured again.
    """
    names = [f"classes {text}" for text in classes]
    sources = named_sources(dict(zip(names, folders, strict=True)))
    tasks = resolve_tasks(sources)
    numbers = [parse_classes(text) for text in classes]
    variants = [
        *MERGES,
        *(
            Merge(f"zipfit 1.0, calibrated on {name}", "zipfit", calibration=name)
            for name in (*names, *data.proxies)
        ),
    ]
    images = calibration_images(data, dict(zip(names, numbers, strict=True)), samples, seed)
    earlier, merge_them = known or {}, partial(run_merge, sources, tasks, images, samples)
    made: dict[str, Any] = dict(earlier.get("merges", {}))
    others = references(sources, tasks, images[ALL][:samples], ImageReader())
    compared = {candidate.name: lambda c=candidate: c for candidate in others}
    merges = {merge.name: partial(merge_them, merge, made) for merge in variants}
    varied = {"ensemble": compared["ensemble"]} if choices else {}
    varied |= {merge.name: partial(merge_them, merge, {}) for merge in choices}
    validation, test = (labelled(part, names, numbers) for part in (data.validation, data.test))
    return {
        "parents": [read_record(folder) for folder in folders],
        "merges": made,
        "choices": measure_missing(earlier.get("choices", []), varied, tasks, validation),
        "test": measure_missing(earlier.get("test", []), {**compared, **merges}, tasks, test),
    }


def calibration_images(
    data: Data, tasks: Mapping[str, Sequence[int]], samples: int, seed: int
) -> dict[str, Tensor]:
    """Returns pixel values to calibrate on, by whose they are; of all tasks in turn."""
    found = {}
    for position, (name, numbers) in enumerate(tasks.items()):
        pixels = data.training.of_classes(numbers).pixels
        generator = torch.Generator().manual_seed(len(tasks) * seed + position)
        found[name] = pixel_values(pixels[torch.randperm(len(pixels), generator=generator)])
    shortest = min(map(len, found.values()))
    together = torch.stack([values[:shortest] for values in found.values()], dim=1).flatten(0, 1)
    proxies = {name: pixel_values(images.pixels) for name, images in data.proxies.items()}
    return {ALL: together, **found, **proxies}


def labelled(
    images: Images, names: Sequence[str], classes: Sequence[Sequence[int]]
) -> dict[str, list[dict[str, Any]]]:
    """Returns the images of each task as evaluation data."""
    data = {}
    for name, numbers in zip(names, classes, strict=True):
        own = images.of_classes(numbers)
        pairs = zip(pixel_values(own.pixels), own.labels.tolist(), strict=True)
        data[name] = [{"pixel_values": pixels, "labels": label} for pixels, label in pairs]
    return data


def write(folder: Path, title: str, record: Mapping[str, Any]) -> None:
    """Puts one table's results into `zip.json` and makes `zip.md` anew."""
    results = {**read_results(folder, RESULTS), title: dict(record)}
    write_results(folder, RESULTS, results, report(results))


if __name__ == "__main__":
    main()
