"""The results of `benchmark_text.py` in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from zip_tables import accuracy_table, difference_table, line, spread


def title(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """Returns what a run is called: its data sets, and where their models start."""
    init = record["init"]
    starts = {name: init if name not in record["scratch"] else "new weights" for name in names}
    return " + ".join(f"{name} ({start})" if init else name for name, start in starts.items())


def report(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the results of all runs as lines of Markdown."""
    lines = [
        "# Merges of BERTs",
        "",
        "```sh",
        *(record["command"] for record in results.values()),
        "```",
        "",
        "Accuracies in %, mean ± standard deviation over groups of parents of other seeds where",
        "there are several; *joint* is among the labels of all tasks. Every method runs with its",
        "defaults, and nothing was chosen on the test texts. *one trunk* is a parent without",
        "merging, with a least-squares head for all tasks. Models have new weights, and merges are",
        "calibrated on texts of all tasks, unless title or row say otherwise. *seconds* are those",
        "of the merge, on a machine that had other work.",
    ]
    for name, record in results.items():
        lines += ["", *table(name, record)]
    mixed = [record for record in results.values() if record["init"] and record["scratch"]]
    return [*lines, *(["", *mean_table(mixed)] if len(mixed) > 1 else [])]


def table(name: str, record: Mapping[str, Any]) -> list[str]:
    """Returns the results of one run as lines of Markdown."""
    groups, setting = record["groups"], record["setting"]
    return [
        f"## {name}",
        "",
        f"{len(groups)} group(s) of parents; width {setting['width']}, {setting['layers']} blocks, "
        f"{setting['heads']} heads; {record['samples']} unlabelled training texts of all tasks "
        "together for calibration.",
        "",
        *accuracy_table("model, on test texts", [g["test"] for g in groups], groups),
        "",
        *difference_table([g["test"] for g in groups]),
        "",
        *accuracy_table("model, on validation texts", [g["validation"] for g in groups]),
    ]


def mean_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the mean over runs of what answers all tasks, the better one-trunk control once."""
    runs = [rows for record in records for rows in (g["test"] for g in record["groups"])]
    named = [{row["name"]: row for row in rows if row["mean"] is not None} for rows in runs]
    for rows in named:
        controls = [name for name, row in rows.items() if row["kind"] == "control"]
        best = max((rows.pop(name) for name in controls), key=lambda row: row["mean"])
        rows["better one trunk"] = best
    lines = [
        f"## Mean of {len(runs)} pairs of a pretrained model and one of new weights",
        "",
        line(["model, on test texts", "mean", "joint"]),
        line(["---", "---:", "---:"]),
    ]
    for name in named[0]:
        if not all(name in rows for rows in named):
            continue  # what only some were calibrated on
        values = zip(*((rows[name]["mean"], rows[name]["joint"]) for rows in named), strict=True)
        lines.append(line([name, *map(spread, values)]))
    return lines
