"""Measure what merges of fine-tunes of one pretrained BERT keep of their accuracy.

    python scripts/benchmark_siblings.py --data ag_news trec sst2 --init MiniLM --cache parents

One model per data set is fine-tuned from `--init` (or taken from the cache folder), and all are
merged by every method for such models. A method's options are chosen on validation texts, by the
mean over tasks of the accuracy relative to the fine-tuned model's; the table has test texts, with
the chosen options and with the defaults. Results are kept in `siblings.json`, and `siblings.md` is
made from it.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from benchmark_text import Data, named, read_data, train_parents
from benchmarking import parse_quietly, read_results, write_results
from merging import measure, shown_command
from sibling_grids import GRIDS, Grid
from torch import nn
from train_bert import Setting, Start, start
from training import read_setting
from zip_tables import line

from hf_zip.calibration import labelled_from_memory
from hf_zip.candidates import Candidate, merged, parent
from hf_zip.collect import make_accelerator
from hf_zip.execution import build_model, run_method
from hf_zip.methods import method_named
from hf_zip.plain import build
from hf_zip.preparation import Prepared, prepare
from hf_zip.readers import reader_of
from hf_zip.recipe import Recipe
from hf_zip.report import versions
from hf_zip.request import Request
from hf_zip.tables import percent

RESULTS = "siblings"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="one folder per task")
    parser.add_argument("--init", type=Path, required=True, help="pretrained BERT of all models")
    parser.add_argument("--texts", type=int, default=500, help="test texts of a task at most")
    parser.add_argument(
        "--validation-texts", type=int, default=200, help="validation texts of a task at most"
    )
    parser.add_argument("--samples", type=int, default=2048, help="calibration texts")
    parser.add_argument("--methods", nargs="*", help="rows to measure again; default: all missing")
    arguments = parse_quietly(parser, Setting())
    data = {folder.name: read_data(folder) for folder in arguments.data}
    tokenizer, setting = start(read_setting(arguments, Setting()), arguments.data, arguments.init)
    ways = dict.fromkeys(data, (Start(arguments.init), setting))
    folders = train_parents(data, tokenizer, ways, 0, arguments.cache)
    settled: dict[str, Any] = {
        "data": list(data),
        "init": arguments.init.name,
        "texts": arguments.texts,
        "validation_texts": arguments.validation_texts,
        "samples": arguments.samples,
        "setting": asdict(setting),
        "versions": dict(versions()),
    }
    record = read_record(arguments.out, settled)
    record["command"] = shown_command("benchmark_siblings.py", sys.argv[1:])
    texts = calibration_texts(data, arguments.samples)
    prepared = prepare_siblings(folders, arguments.init, texts)
    sizes = {"validation": arguments.validation_texts, "test": arguments.texts}
    parts = {
        part: labelled(prepared, data, part, setting.longest, most) for part, most in sizes.items()
    }
    if not record["parents"]:
        record["parents"] = measure_parents(prepared, parts)
    for grid in GRIDS:
        wanted = grid.name in arguments.methods if arguments.methods else True
        if wanted and (arguments.methods or grid.name not in record["rows"]):
            record["rows"][grid.name] = measure_method(grid, prepared, parts, record["parents"])
            write_results(arguments.out, RESULTS, record, report(record))
            print(f"{grid.name}: {record['rows'][grid.name]['relative']:.1%}")
    print("\n".join(report(record)))


def calibration_texts(data: Mapping[str, Data], samples: int) -> dict[str, list[str]]:
    """Returns training texts without their labels, the same number of every task."""
    draw, share = random.Random(0), samples // len(data)
    return {
        name: draw.sample(own.training.texts, min(share, len(own.training)))
        for name, own in data.items()
    }


def prepare_siblings(
    folders: Mapping[str, Path], init: Path, texts: Mapping[str, Sequence[str]]
) -> Prepared:
    """Returns the models of all tasks with their base, fit to be merged by any method.

    Args:
        folders: The models by task.
        init: The base.
        texts: Texts without labels, by task, that some methods are calibrated on: those that run
            each model by itself on the texts of its task, others on all.
    """
    recipe = Recipe.from_dict(
        {
            "merge_method": "task_arithmetic",
            "models": [{"model": str(at), "task": name} for name, at in folders.items()],
            "base_model": str(init),
            "labels": "apart",
        }
    )
    method = method_named(recipe.merge_method)
    every = [text for own in texts.values() for text in own]
    own = dict(enumerate(texts.values()))
    request = Request(recipe, calibration=every, own_calibration=own)
    return prepare(request, method, False, make_accelerator(), False)


def labelled(
    prepared: Prepared, data: Mapping[str, Data], part: str, longest: int, most: int
) -> dict[str, Any]:
    """Returns the first texts of a part of every task's data, from short to long.

    Texts of about one length need little padding, and the accuracy is the same in any order.
    """
    reader = reader_of(prepared.sources[0], longest)
    found = {}
    for task in prepared.tasks:
        texts = getattr(data[task.name], part)
        chosen = sorted(range(min(most, len(texts))), key=lambda row: len(texts.texts[row]))
        rows = named(texts.rows(torch.tensor(chosen)))
        found[task.name] = labelled_from_memory(rows, reader, task.labels, task.name)
    return found


def measure_parents(
    prepared: Prepared, parts: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Returns the accuracy of each fine-tuned model on its own task, by part."""
    found: dict[str, dict[str, float]] = {}
    for part, data in parts.items():
        found[part] = {}
        for task in prepared.tasks:
            own = parent(prepared.sources, task.members[0], prepared.tasks)
            (row,) = measure([own], prepared.tasks, {task.name: data[task.name]})
            found[part][task.name] = row["per_task"][task.name]
    return found


def measure_method(
    grid: Grid,
    prepared: Prepared,
    parts: Mapping[str, Mapping[str, Any]],
    parents: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Returns what a method keeps with the options that do best on validation texts."""
    tried: list[dict[str, Any]] = []
    best, answers = 0, list[Candidate]()
    for options in grid:
        candidate, seconds = merge(grid.method, options, prepared)
        (row,) = measure([candidate], prepared.tasks, parts["validation"])
        kept = relative(row["per_task"], parents["validation"])
        tried.append({"options": options, "relative": kept, "seconds": seconds})
        if not answers:
            answers = [replace(candidate, name="defaults")]
        elif kept > tried[best]["relative"]:
            best, answers = len(tried) - 1, [replace(candidate, name="chosen"), answers[-1]]
    rows = measure(answers, prepared.tasks, parts["test"])
    chosen, default = rows[0], rows[-1]
    return {
        "texts": grid.needs_texts,
        "validation": tried,
        "options": tried[best]["options"],
        "seconds": mean(one["seconds"] for one in tried),
        "per_task": chosen["per_task"],
        "joint": chosen["joint"],
        "size": _bytes(answers[0].modules[0]) / _bytes(prepared.sources[0].model),
        "relative": relative(chosen["per_task"], parents["test"]),
        "default": relative(default["per_task"], parents["test"]),
    }


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def merge(name: str, options: Mapping[str, Any], prepared: Prepared) -> tuple[Candidate, float]:
    """Returns a merge of the prepared models, and the seconds that it took."""
    method, started = method_named(name), time.perf_counter()
    each = build(method.model_options, {}, "models")
    inputs = replace(
        prepared.inputs,
        model_options=(each,) * len(prepared.sources),
        base=prepared.inputs.base if method.requires.base else None,
    )
    prepared = replace(prepared, inputs=inputs)
    found = run_method(method, prepared, build(method.options, options, "parameters"))
    model, _ = build_model(found, prepared, {}, None, torch.float32)
    return merged(model, prepared.tasks, name), time.perf_counter() - started


def relative(accuracies: Mapping[str, float], parents: Mapping[str, float]) -> float:
    """Returns the mean over tasks of the accuracy relative to the fine-tuned model's."""
    return mean(accuracies[task] / own for task, own in parents.items())


def report(record: Mapping[str, Any]) -> list[str]:
    """Returns the results as lines of Markdown."""
    tasks, own = record["data"], record["parents"]["test"]
    head = ["method", "texts", "size", "of fine-tuned", "with defaults", *tasks, "joint", "chosen"]
    lines = [
        "# Merges of fine-tunes of one pretrained BERT",
        "",
        "```sh",
        record["command"],
        "```",
        "",
        f"{len(tasks)} models fine-tuned from {record['init']}, one seed; accuracy in %. *of",
        "fine-tuned* is the mean over tasks of the accuracy relative to the model that was fine-",
        "tuned on it. Options are chosen on validation texts and everything is reported on test",
        f"texts, at most {record['validation_texts']} and {record['texts']} of each task. Methods",
        f"with *texts* are calibrated on {record['samples']} training texts of all tasks, without",
        "labels; those that run each model by itself have texts of its task only. *size* is that",
        "of the weights, relative to one model; `emr` and `tall_masks` are told the task,",
        "`twin`, `gated` and `wemoe` are not. *seconds* are those of one merge, on a machine that",
        "had other work.",
        "",
        line([*head, "seconds"]),
        line(["---", "---", *["---:"] * (len(tasks) + 4), "---", "---:"]),
        line(
            [
                "fine-tuned",
                "",
                f"{len(tasks)}.0",
                "100.0",
                "",
                *map(percent, (own[t] for t in tasks)),
                *[""] * 3,
            ]
        ),
    ]
    rows: Iterable[tuple[str, Any]] = record["rows"].items()
    for name, row in sorted(rows, key=lambda item: -item[1]["relative"]):
        cells = [percent(row["per_task"][task]) for task in tasks]
        chosen = ", ".join(f"`{key}: {value}`" for key, value in row["options"].items())
        kept = [percent(row[key]) for key in ("relative", "default")]
        joint = percent(row["joint"])
        texts = "yes" if row["texts"] else "no"
        size = f"{row['size']:.1f}"
        lines.append(
            line([name, texts, size, *kept, *cells, joint, chosen, f"{row['seconds']:.1f}"])
        )
    return lines


def read_record(folder: Path, settled: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results so far; none if anything was set otherwise."""
    known = read_results(folder, RESULTS)
    if all(known.get(key) == value for key, value in settled.items()):
        return dict(known)
    return {**settled, "parents": {}, "rows": {}}


if __name__ == "__main__":
    main()
