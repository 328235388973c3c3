"""The results of `benchmark_zip.py` in Markdown."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from hf_zip.tables import amount, escape


def report(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the results of all data sets as lines of Markdown."""
    lines = [
        "# Merges of ViTs from different initialisations and tasks",
        "",
        "```sh",
        *(record["command"] for record in results.values()),
        "```",
        "",
        "Accuracies in %, mean ± standard deviation over groups of parents of different seeds.",
        "For a task, the best label is taken among its own; *joint*, among those of all tasks.",
        "Every method runs with its defaults, and nothing was chosen on the test images. *one",
        "trunk* is a parent without merging, with a least-squares head for all tasks; the best",
        "one is that of the highest mean. Merges are calibrated on images of all tasks unless the",
        "row says otherwise; those of other data sets are brought to the same size and channels.",
        "*seconds* are those of the merge, on a machine that had other work to do as well.",
    ]
    for name, record in results.items():
        lines += ["", *tables(name, record)]
    return lines


def tables(name: str, record: Mapping[str, Any]) -> list[str]:
    """Returns one data set's results as lines of Markdown."""
    groups, setting, images = record["groups"], record["setting"], record["images"]
    seconds = mean(trained["seconds"] for group in groups for trained in group["parents"])
    parents = "1 group" if len(groups) == 1 else f"{len(groups)} groups"
    used = ", ".join(f"{library} {version}" for library, version in record["versions"].items())
    lines = [
        f"## {name}",
        "",
        f"{parents} of parents; width {setting['width']}, {setting['layers']} blocks, "
        f"{setting['heads']} heads, patches of {setting['patch']} pixels; {setting['epochs']} "
        f"epochs, {seconds:.0f} seconds per parent; {images['training']} training, "
        f"{images['validation']} validation and {images['test']} test images of all tasks "
        f"together; {record['samples']} unlabelled training images for calibration. {used}.",
        "",
        *accuracy_table("model, on test images", [group["test"] for group in groups], groups),
        "",
        *difference_table([group["test"] for group in groups]),
    ]
    if all(group["choices"] for group in groups):
        rows = [group["choices"] for group in groups]
        lines += ["", *accuracy_table("zipfit 1.0, on validation images", rows)]
    return lines


def accuracy_table(
    head: str, measured: Sequence[Sequence[dict[str, Any]]], groups: Sequence[dict[str, Any]] = ()
) -> list[str]:
    """Returns one line per candidate, with the merge's seconds where groups are given."""
    tasks = list(measured[0][0]["per_task"])
    titles = [head, *tasks, "mean", "joint", "parameters", *(["seconds"] if groups else [])]
    lines = [line(titles), line(["---", *["---:"] * (len(titles) - 1)])]
    by_name = [{row["name"]: row for row in rows} for rows in measured]
    for name in by_name[0]:
        if not all(name in rows for rows in by_name):
            continue  # added while other groups are yet to be measured
        rows = [found[name] for found in by_name]
        made = [group["merges"].get(rows[0]["name"]) for group in groups]
        seconds = f"{mean(m['seconds'] for m in made):.1f}" if made and all(made) else ""
        cells = [spread(values) for values in zip(*map(accuracies, rows), strict=True)]
        shown = [escape(rows[0]["name"]), *cells, amount(rows[0]["parameters"])]
        lines.append(line([*shown, *([seconds] if groups else [])]))
    return lines


def difference_table(measured: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """Returns how far zipfit 1.0 is from the ensemble and from the best one-trunk control."""
    # Groups may be without it while it is being measured anew.
    measured = [rows for rows in measured if any(row["name"] == "zipfit 1.0" for row in rows)]
    if not measured:
        return []
    tasks = list(measured[0][0]["per_task"])
    lines = [
        line(["zipfit 1.0 minus, in points (lowest group)", *tasks, "mean", "joint"]),
        line(["---", *["---:"] * (len(tasks) + 2)]),
    ]
    for title, kind in (("ensemble", "ensemble"), ("best one-trunk control", "control")):
        differences = []
        for rows in measured:
            (fitted,) = (row for row in rows if row["name"] == "zipfit 1.0")
            best = max((r for r in rows if r["kind"] == kind), key=lambda row: row["mean"])
            both = zip(accuracies(fitted), accuracies(best), strict=True)
            differences.append([a - b for a, b in both])
        columns = list(zip(*differences, strict=True))
        cells = [f"{spread(values)} ({100 * min(values):.1f})" for values in columns]
        lines.append(line([title, *cells]))
    return lines


def accuracies(row: Mapping[str, Any]) -> list[Any]:
    """Returns the accuracy on each task, their mean and the joint one."""
    return [*row["per_task"].values(), row["mean"], row["joint"]]


def spread(values: Sequence[float | None]) -> str:
    """Returns mean and standard deviation of shares, in percent."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    return f"{mean(known):.1f}" + (f" ± {stdev(known):.1f}" if len(known) > 1 else "")


def line(cells: Sequence[str]) -> str:
    """Returns a line of a table."""
    return f"| {' | '.join(cells)} |"
