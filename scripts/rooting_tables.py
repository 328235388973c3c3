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
        "among those of all tasks. A row with *steps* has so many in every rooting, that is for",
        "every model but the first; what learns from all models at once has as many together.",
        "Nothing has labels. Inputs are of all tasks, or else as the row says. *validation* is the",
        "mean over tasks on validation inputs, on which one may choose; the rest is of test ones.",
        "*seconds* are those of everything that a row needs, on a machine that had other work to",
        "do; *trained* are those of its trainings. *barrier* is how far the loss rises on the way",
        "from the root to a rooted model, as a share of the larger loss at its ends.",
    ]
    for name, record in results.items():
        lines += ["", *table(name, record)]
    return lines


def table(name: str, record: Mapping[str, Any]) -> list[str]:
    """Returns one data set's results as lines of Markdown."""
    groups = record["groups"]
    tasks = list(groups[0]["test"][0]["per_task"])
    head = ["model", *tasks, "mean", "joint", "validation", "seconds", "trained", "barrier"]
    lines = [
        f"## {name}",
        "",
        f"{len(groups)} group(s); {record['samples']} inputs to learn from, "
        f"{record['few']} for what is fitted in closed form.",
        "",
        line(head),
        line(["---", *["---:"] * (len(head) - 1)]),
    ]
    for title in (row["name"] for row in groups[0]["test"]):
        if not all(title in _by_name(group["test"]) for group in groups):
            continue  # added while other groups are yet to be measured
        rows = [_by_name(group["test"])[title] for group in groups]
        cells = [spread(values) for values in zip(*map(accuracies, rows), strict=True)]
        validated = spread([_by_name(group["validation"])[title]["mean"] for group in groups])
        made = [group["made"].get(title) for group in groups]
        lines.append(line([escape(title), *cells, validated, *_cost(made)]))
    return lines


def _cost(made: Sequence[Mapping[str, Any] | None]) -> list[str]:
    known = [own for own in made if own is not None]
    if not known:
        return ["", "", ""]
    seconds, trained = (mean(own[key] for own in known) for key in ("seconds", "training"))
    barriers = [barrier for own in known for barrier in own["barriers"]]
    shown = f"{100 * max(barriers):.0f}" if barriers else ""
    return [f"{seconds:.0f}", f"{trained:.0f}" if trained else "", shown]


def _by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {row["name"]: row for row in rows}
