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
        "among those of all tasks. A row with *steps* has so many in every rooting: of every model",
        "but the first, or of every model where they are rooted in their merge by zipfit; what",
        "learns from all models at once has as many as the rootings in the first together.",
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
    head = ["model", "groups", *tasks, "mean", "joint", "validation", "seconds", "trained"]
    head.append("barrier")
    lines = [
        f"## {name}",
        "",
        f"{record['samples']} inputs to learn from, {record['few']} for what is fitted in closed "
        "form.",
        "",
        line(head),
        line(["---", *["---:"] * (len(head) - 1)]),
    ]
    for title in dict.fromkeys(row["name"] for group in groups for row in group["test"]):
        known = [group for group in groups if title in _by_name(group["validation"])]
        rows = [_by_name(group["test"])[title] for group in known]
        cells = [spread(values) for values in zip(*map(accuracies, rows), strict=True)]
        validated = spread([_by_name(group["validation"])[title]["mean"] for group in known])
        cost = _cost([group["made"].get(title) for group in known])
        lines.append(line([escape(title), str(len(known)), *cells, validated, *cost]))
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
