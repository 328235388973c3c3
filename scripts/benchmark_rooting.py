"""Measure rooting with a merge of siblings against distillation and ZipFit, by time.

    python scripts/benchmark_rooting.py --data cifar100 --classes 0-49 50-99 --cache parents

For several groups of seeds, models of different initialisations and tasks are trained (or taken
from the cache folder): with `--classes` ViTs on classes of one image data set, else BERTs, each on
one of several data sets of texts. Then some are rooted in others and merged, by several methods,
and the same steps, or as `--seconds` says the same time, are spent on distillation; all of that on
inputs of the tasks without labels and, as `--proxy` and `--generated` say, on others; `--generated
synthesised:parents` takes images that each of the models synthesises, in turn. With `--init` BERTs
start from a pretrained one, but for those of the data sets of `--scratch`; where it has its
masked-language-model head, `--generated sampled:FOLDER` takes texts that it draws. Results are kept
in `rooting.json` after every row, so that a run that was stopped goes on, and `rooting.md` is made
from it.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import benchmark_text
import benchmark_zip
import torch
import train_bert
import train_vit
from benchmarking import parse_quietly, read_results, write_results
from merging import ALL, measure, named_sources, references, shown_command
from rooting_rows import Budget, Group, Made, Unit, rows
from rooting_tables import report, table
from text_tables import title
from torch import Tensor
from training import read_setting

from hf_zip.calibration import labelled_from_memory, load_inputs
from hf_zip.generated import SAMPLED, SYNTHESISED
from hf_zip.readers import reader_of
from hf_zip.recipe import CalibrationSpec
from hf_zip.report import versions
from hf_zip.sampled import sampled_texts
from hf_zip.sources import Source
from hf_zip.tasks import Task, resolve_tasks

RESULTS = "rooting"
OF_PARENTS = f"{SYNTHESISED}parents"
Parts = Mapping[str, Mapping[str, Any]]  # evaluation data by part and task


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of data sets")
    parser.add_argument("--classes", nargs="+", help="of each ViT, as 0-4; left out, for texts")
    parser.add_argument("--proxy", type=Path, nargs="*", default=[], help="other data, unrelated")
    parser.add_argument("--generated", nargs="*", default=[], help="generators of inputs")
    parser.add_argument("--groups", type=int, default=3, help="groups of seeds (default: 3)")
    parser.add_argument("--samples", type=int, default=4096, help="inputs to learn from")
    parser.add_argument("--few", type=int, default=1024, help="inputs for closed forms")
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="budgets; default: 1000")
    parser.add_argument("--seconds", type=float, nargs="*", default=[], help="others, in seconds")
    parser.add_argument("--rooting-rate", type=float, default=1e-3, help="default: 0.001")
    parser.add_argument("--rows", nargs="*", help="how rows to measure begin; default: all")
    benchmark_text.add_starts(parser)
    images = any(word.startswith("--classes") for word in sys.argv)
    arguments = parse_quietly(parser, train_vit.Setting() if images else train_bert.Setting())
    make, name, setting = (of_images if images else of_texts)(arguments)
    budgets = budgets_of(arguments)
    settled: dict[str, Any] = {
        "samples": arguments.samples,
        "few": arguments.few,
        "training": {"learning_rate": arguments.rooting_rate},
        "setting": setting,
        "versions": dict(versions()),
    }
    record = read_results(arguments.out, RESULTS).get(name, {})
    if any(record.get(key) != value for key, value in settled.items()):
        record = {**settled, "groups": []}
    record["command"] = shown_command("benchmark_rooting.py", sys.argv[1:])
    for position in range(arguments.groups):
        with TemporaryDirectory() as scratch:
            group, parts, compared = make(position, settled["training"], Path(scratch))
            if position == len(record["groups"]):
                record["groups"].append({"made": {}, "test": [], "validation": []})
            known = record["groups"][position]
            wanted = {**compared, **chosen(rows(group, budgets), arguments.rows)}
            for row in run(known, wanted, group.tasks, parts):
                results = {**read_results(arguments.out, RESULTS), name: record}
                write_results(arguments.out, RESULTS, results, report(results))
                print(f"{name}, group {position}: {row}", flush=True)
    print("\n".join(table(name, record)))


def budgets_of(arguments: argparse.Namespace) -> list[Budget]:
    """Returns the budgets: the largest of each unit on all data, the rest on that of the tasks."""
    steps = arguments.steps or ([] if arguments.seconds else [1000])
    units: dict[Unit, list[float]] = {"steps": steps, "seconds": arguments.seconds}
    found, every = [], (ALL, *others(arguments))
    for unit, amounts in units.items():
        found += [Budget(max(amounts), data, unit) for data in every if amounts]
        found += [Budget(amount, ALL, unit) for amount in sorted(amounts)[:-1]]
    return found


def others(arguments: argparse.Namespace) -> list[str]:
    """Returns the names of data that are not those of the tasks."""
    return [*(proxy.name for proxy in arguments.proxy), *map(_short, arguments.generated)]


def chosen(
    every: Mapping[str, Callable[[], Made]], starts: Sequence[str] | None
) -> dict[str, Callable[[], Made]]:
    """Returns the rows whose names begin as one of the starts; all where there are none."""
    return {
        name: make
        for name, make in every.items()
        if starts is None or any(name.startswith(start) for start in starts)
    }


def run(
    known: dict[str, Any],
    wanted: Mapping[str, Callable[[], Made]],
    tasks: Sequence[Task],
    parts: Parts,
) -> Iterator[str]:
    """Makes and measures the rows that are not known yet, and yields the name of each.

    Args:
        known: What was found of a group so far; it grows.
        wanted: What makes the rows, by name.
        tasks: The tasks of the models.
        parts: Evaluation data, `test` and `validation`.
    """
    done = {row["name"] for row in known["test"]}
    for name, make in wanted.items():
        if name in done:
            continue
        made = make()
        if made.notes:
            known["made"][name] = dict(made.notes)
        for part, data in parts.items():
            known[part] += measure([made.candidate], tasks, data)
        yield name


# A group, its evaluation data, and what its merges are compared with.
Ready = tuple[Group, Parts, dict[str, Callable[[], Made]]]
Makes = Callable[[int, Mapping[str, Any], Path], Ready]


def of_images(arguments: argparse.Namespace) -> tuple[Makes, str, dict[str, Any]]:
    """Returns what makes a group of ViTs, the title of the results, and how ViTs are trained."""
    (folder,), classes = arguments.data, arguments.classes
    data = benchmark_zip.read_data(folder, arguments.proxy, arguments.samples)
    setting = asdict(read_setting(arguments, train_vit.Setting()))
    names = [f"classes {text}" for text in classes]
    numbers = [train_vit.parse_classes(text) for text in classes]

    def make(position: int, training: Mapping[str, Any], scratch: Path) -> Ready:
        folders = {
            name: benchmark_zip.parent_folder(
                data, text, len(classes) * position + k, setting, arguments.cache
            )
            for k, (name, text) in enumerate(zip(names, classes, strict=True))
        }
        own = dict(zip(names, numbers, strict=True))
        inputs = benchmark_zip.calibration_images(data, own, arguments.samples, position)
        inputs = {name: given[: arguments.samples] for name, given in inputs.items()}
        parts = {
            part: benchmark_zip.labelled(getattr(data, part), names, numbers)
            for part in ("test", "validation")
        }
        return _group(arguments, folders, inputs, training, scratch, position, parts)

    return make, f"{data.name}, {len(classes)} tasks", setting


def of_texts(arguments: argparse.Namespace) -> tuple[Makes, str, dict[str, Any]]:
    """Returns what makes a group of BERTs, the title of the results, and how they are trained."""
    data = {folder.name: benchmark_text.read_data(folder) for folder in arguments.data}
    proxies = {at.name: train_bert.read_texts(at / "train.parquet").texts for at in arguments.proxy}
    tokenizer, setting = train_bert.start(
        read_setting(arguments, train_bert.Setting()), arguments.data, arguments.init
    )
    ways = benchmark_text.ways_of(arguments, setting, list(data))
    starts = {"init": arguments.init and arguments.init.name, "scratch": arguments.scratch}

    def make(position: int, training: Mapping[str, Any], scratch: Path) -> Ready:
        folders = benchmark_text.train_parents(data, tokenizer, ways, position, arguments.cache)
        inputs = training_texts(data, proxies, arguments.samples, position)
        labelled = {
            part: {name: benchmark_text.named(getattr(own, part)) for name, own in data.items()}
            for part in ("test", "validation")
        }
        return _group(
            arguments, folders, inputs, training, scratch, position, labelled, setting.longest
        )

    differing = {name: asdict(own) for name, (_, own) in ways.items() if own != setting}
    return make, title(starts, list(data)), {**asdict(setting), **differing}


def training_texts(
    data: Mapping[str, benchmark_text.Data],
    proxies: Mapping[str, Sequence[str]],
    samples: int,
    seed: int,
) -> dict[str, list[str]]:
    """Returns texts without labels by whose they are; of all tasks in turn.

    Args:
        data: The data by task.
        proxies: Unrelated texts, by the name of their data set.
        samples: How many at most; of every task the same number.
        seed: Decides which.
    """
    draw, every = random.Random(seed), [own.training.texts for own in data.values()]
    share = min(samples // len(every), *map(len, every))
    drawn = [draw.sample(texts, share) for texts in every]
    others = {name: draw.sample(own, min(samples, len(own))) for name, own in proxies.items()}
    return {ALL: [text for row in zip(*drawn, strict=True) for text in row], **others}


def _group(
    arguments: argparse.Namespace,
    folders: Mapping[str, Path],
    inputs: Mapping[str, Any],
    training: Mapping[str, Any],
    scratch: Path,
    position: int,
    parts: Parts,
    longest: int | None = None,
) -> Ready:
    sources = named_sources(folders)
    tasks = resolve_tasks(sources)
    reader = reader_of(sources[0], longest or 1)
    drawn = {
        _short(name): drawn_from(name, sources, arguments.samples, position, longest or 1)
        for name in arguments.generated
    }
    every = {**inputs, **drawn}
    group = Group(sources, tasks, every, arguments.few, training, scratch, position)
    if longest:
        parts = {
            part: {
                task.name: labelled_from_memory(data[task.name], reader, task.labels, task.name)
                for task in tasks
            }
            for part, data in parts.items()
        }
    compared: dict[str, Callable[[], Made]] = {
        candidate.name: partial(Made, candidate, {})
        for candidate in references(sources, tasks, group.few_of(ALL), reader)
    }
    return group, parts, compared


def drawn_from(name: str, sources: Sequence[Source], samples: int, seed: int, longest: int) -> Any:
    """Returns inputs of a generator as `hf_zip.merge` takes them; what costs most is drawn once.

    Args:
        name: The generator.
        sources: The models.
        samples: How many inputs.
        seed: Decides them.
        longest: Tokens of a text at most.
    """
    if name == OF_PARENTS:
        return of_parents(sources, samples, seed)
    if name.startswith(SAMPLED):
        model = name.removeprefix(SAMPLED)
        return sampled_texts(model, samples, seed, longest, progress=False)[0]
    return {"data": [name], "samples": samples}


def of_parents(sources: Sequence[Source], samples: int, seed: int) -> Tensor:
    """Returns pixel values of images that models synthesise, of all of them in turn.

    Args:
        sources: The models.
        samples: How many images in all.
        seed: Decides them.
    """
    found, share = [], samples // len(sources)
    for source in sources:
        spec = CalibrationSpec((f"{SYNTHESISED}{source.reference}",), samples=share)
        own = load_inputs(spec, reader_of(source, 1), seed, progress=False)
        found.append(torch.stack([own[k]["pixel_values"] for k in range(share)]))
    return torch.stack(found, dim=1).flatten(0, 1)


def _short(name: str) -> str:
    """The name of a generator without the folder that it reads from."""
    kind, _, what = name.partition(":")
    return f"{kind}:{Path(what).name}"


if __name__ == "__main__":
    main()
