"""Measure what merges of fine-tunes of one pretrained BERT keep of their accuracy.

    python scripts/benchmark_siblings.py --data ag_news trec sst2 --init MiniLM --cache parents

One model per data set is fine-tuned from `--init` (or taken from the cache folder), and all are
merged by every method for such models. A method's options are chosen on validation texts, by the
mean over tasks of the accuracy relative to the fine-tuned model's; the table has test texts, with
the chosen options and with the defaults. Results are kept in `siblings.json`, and `siblings.md` is
made from it.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from benchmark_text import Data, named, read_data, train_parents
from benchmarking import parse_quietly, read_results, write_results
from merging import measure, shown_command
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
from hf_zip.recipe import Recipe
from hf_zip.report import versions
from hf_zip.request import Request, reader_of
from hf_zip.tables import percent

RESULTS = "siblings"
_SCALINGS = (0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5)


@dataclass(frozen=True)
class Grid:
    """One row of the table: a method, and the options to choose from.

    Args:
        method: The method.
        options: The values of each option; the first combination need not be the defaults, which
            are always measured.
        label: What tells rows of one method apart.
        fixed: Options that are the same in all.
    """

    method: str
    options: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    label: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the row is called."""
        return f"{self.method}, {self.label}" if self.label else self.method

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the defaults, and every other combination."""
        yield dict(self.fixed)
        for values in product(*self.options.values()):
            if values:
                yield {**self.fixed, **dict(zip(self.options, values, strict=True))}


GRIDS = (
    Grid("average"),
    Grid("karcher"),
    Grid("task_arithmetic", {"scaling": _SCALINGS}),
    Grid("ties", {"scaling": _SCALINGS, "density": (0.2, 0.5)}),
    Grid("ties", {"scaling": _SCALINGS}, "every parameter trimmed", {"trim": "tensor"}),
    Grid("dare", {"scaling": _SCALINGS}),
    Grid("della", {"scaling": _SCALINGS}),
    Grid("breadcrumbs", {"scaling": _SCALINGS}),
    Grid("model_stock"),
    Grid("magmax", {"scaling": _SCALINGS}),
    Grid("consensus", {"scaling": _SCALINGS}),
    Grid("pcb", {"scaling": _SCALINGS}),
    Grid("sce", {"scaling": _SCALINGS}),
    Grid("tsv", {"scaling": _SCALINGS}),
    Grid("iso_c", {"scaling": _SCALINGS}),
    Grid("iso_cts", {"scaling": _SCALINGS}),
    Grid("wudi", {"scaling": _SCALINGS}),
    Grid("task_arithmetic", {"scaling": _SCALINGS}, "LiNeS", {"layer_scale": 0.3}),
)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="one folder per task")
    parser.add_argument("--init", type=Path, required=True, help="pretrained BERT of all models")
    parser.add_argument("--texts", type=int, default=500, help="of a part of a task, at most")
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
        "setting": asdict(setting),
        "versions": dict(versions()),
    }
    record = read_record(arguments.out, settled)
    record["command"] = shown_command("benchmark_siblings.py", sys.argv[1:])
    prepared = prepare_siblings(folders, arguments.init)
    parts = {
        part: labelled(prepared, data, part, setting.longest, arguments.texts)
        for part in ("validation", "test")
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


def prepare_siblings(folders: Mapping[str, Path], init: Path) -> Prepared:
    """Returns the models of all tasks with their base, fit to be merged by any method."""
    recipe = Recipe.from_dict(
        {
            "merge_method": "task_arithmetic",
            "models": [{"model": str(at), "task": name} for name, at in folders.items()],
            "base_model": str(init),
            "labels": "apart",
        }
    )
    method = method_named(recipe.merge_method)
    return prepare(Request(recipe), method, False, make_accelerator(), False)


def labelled(
    prepared: Prepared, data: Mapping[str, Data], part: str, longest: int, most: int
) -> dict[str, Any]:
    """Returns the first texts of a part of every task's data."""
    reader = reader_of(prepared.sources[0], longest)
    found = {}
    for task in prepared.tasks:
        texts = getattr(data[task.name], part)
        rows = named(texts.rows(torch.arange(min(most, len(texts)))))
        found[task.name] = labelled_from_memory(rows, reader, task.labels, task.name)
    return found


def measure_parents(
    prepared: Prepared, parts: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Returns the accuracy of each fine-tuned model on its own task, by part."""
    candidates = [
        parent(prepared.sources, position, prepared.tasks)
        for position in range(len(prepared.sources))
    ]
    found: dict[str, dict[str, float]] = {}
    for part, data in parts.items():
        rows = measure(candidates, prepared.tasks, data)
        found[part] = {
            task.name: rows[task.members[0]]["per_task"][task.name] for task in prepared.tasks
        }
    return found


def measure_method(
    grid: Grid,
    prepared: Prepared,
    parts: Mapping[str, Mapping[str, Any]],
    parents: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Returns what a method keeps with the options that do best on validation texts."""
    tried: list[dict[str, Any]] = []
    for options in grid:
        candidate, seconds = merge(grid.method, options, prepared)
        (row,) = measure([candidate], prepared.tasks, parts["validation"])
        kept = relative(row["per_task"], parents["validation"])
        tried.append({"options": options, "relative": kept, "seconds": seconds})
    best = max(tried, key=lambda one: one["relative"])
    answers = [
        replace(merge(grid.method, one["options"], prepared)[0], name=name)
        for name, one in (("chosen", best), ("defaults", tried[0]))
    ]
    chosen, default = measure(answers, prepared.tasks, parts["test"])
    return {
        "validation": tried,
        "options": best["options"],
        "seconds": mean(one["seconds"] for one in tried),
        "per_task": chosen["per_task"],
        "joint": chosen["joint"],
        "relative": relative(chosen["per_task"], parents["test"]),
        "default": relative(default["per_task"], parents["test"]),
    }


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
    head = ["method", "of fine-tuned", "with defaults", *tasks, "joint", "chosen", "seconds"]
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
        f"texts, at most {record['texts']} of each task; *seconds* are those of one merge.",
        "",
        line(head),
        line(["---", *["---:"] * (len(tasks) + 3), "---", "---:"]),
        line(["fine-tuned", "100.0", "", *map(percent, (own[t] for t in tasks)), "", "", ""]),
    ]
    rows: Iterable[tuple[str, Any]] = record["rows"].items()
    for name, row in sorted(rows, key=lambda item: -item[1]["relative"]):
        cells = [percent(row["per_task"][task]) for task in tasks]
        chosen = ", ".join(f"`{key}: {value}`" for key, value in row["options"].items())
        kept = [percent(row[key]) for key in ("relative", "default")]
        joint = percent(row["joint"])
        lines.append(line([name, *kept, *cells, joint, chosen, f"{row['seconds']:.1f}"]))
    return lines


def read_record(folder: Path, settled: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results so far; none if anything was set otherwise."""
    known = read_results(folder, RESULTS)
    if all(known.get(key) == value for key, value in settled.items()):
        return dict(known)
    return {**settled, "parents": {}, "rows": {}}


if __name__ == "__main__":
    main()
