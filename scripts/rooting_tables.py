"""The results of `benchmark_rooting.py` in Markdown."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from zip_tables import accuracies, line, spread

from hf_zip.tables import escape


def report(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the results of all data sets as lines of Markdown."""
    lines = [
        "# Rooting against distillation and ZipFit",
        "",
        "```sh",
        *(record["command"] for record in results.values()),
        "```",
        "",
        "Accuracies in %, mean ± standard deviation over groups of models of different seeds, from",
        "different initialisations. For a task, the best label is taken among its own; *joint*,",
        "among those of all tasks. A row of so many *steps* or *seconds* has as many in every",
        "rooting: of every model but the first, or of every model where they are rooted in their",
        "merge by zipfit; what learns from all models at once has as many as the rootings in the",
        "first together. Seconds are those of training alone, looks at held-out inputs included,",
        "which leaves out what is fitted before and the last look; how many steps they suffice for",
        "depends on the machine. The anchor of a rooting is 10 if nothing is said.",
        "Nothing has labels. Inputs are of all tasks, or else as the row says. *validation* is the",
        "mean over tasks on validation inputs, on which one may choose; the rest is of test ones.",
        "*seconds* are those of everything that a row needs, on a machine that had other work to",
        "do; *trained* are those of its trainings. Beside budgets in seconds, *steps* are those",
        "that all trainings of a row made together. Of more than two models, *processors* are the",
        "seconds of processors of all, and *last* those of adding the last model where the others",
        "have been rooted and merged before. *barrier* is how far the loss rises on the way from",
        "the root to a rooted model, as a share of the larger loss at its ends.",
    ]
    for name, record in results.items():
        lines += ["", *table(name, record)]
    return lines


def table(name: str, record: Mapping[str, Any]) -> list[str]:
    """Returns one data set's results as lines of Markdown."""
    groups = record["groups"]
    tasks = list(groups[0]["test"][0]["per_task"])
    titles = list(dict.fromkeys(row["name"] for group in groups for row in group["test"]))
    costs = ["seconds", "trained"]
    costs += ["steps"] if any(" seconds" in title for title in titles) else []
    costs += ["processors", "last"] if len(tasks) > 2 else []
    head = ["model", "groups", *tasks, "mean", "joint", "validation", *costs, "barrier"]
    lines = [
        f"## {name}",
        "",
        f"{record['samples']} inputs to learn from, {record['few']} for what is fitted in closed "
        "form.",
        "",
        line(head),
        line(["---", *["---:"] * (len(head) - 1)]),
    ]
    for title in titles:
        known = [group for group in groups if title in _by_name(group["validation"])]
        rows = [_by_name(group["test"])[title] for group in known]
        cells = [spread(values) for values in zip(*map(accuracies, rows), strict=True)]
        validated = spread([_by_name(group["validation"])[title]["mean"] for group in known])
        made = [group["made"][title] for group in known if title in group["made"]]
        cost = [_cost(made, key) for key in costs] + [_barrier(made)]
        lines.append(line([escape(title), str(len(known)), *cells, validated, *cost]))
    return lines


def _cost(made: Sequence[Mapping[str, Any]], column: str) -> str:
    key = {"trained": "training"}.get(column, column)
    known = [own[key] for own in made if key in own]
    return f"{mean(known):.0f}" if any(known) else ""


def _barrier(made: Sequence[Mapping[str, Any]]) -> str:
    barriers = [barrier for own in made for barrier in own["barriers"]]
    return f"{100 * max(barriers):.0f}" if barriers else ""


def _by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {row["name"]: row for row in rows}
