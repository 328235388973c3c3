"""What a merge's pictures show, as numbers: every chart is a table before it is drawn."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hf_zip.evaluate import EvaluatedTask, Evaluation, Row
from hf_zip.report import Report
from hf_zip.report_records import SimilarityRecord
from hf_zip.tables import titled

Form = Literal["lines", "bars", "cells", "points"]
Numbers = tuple[float | None, ...]

OUTSIDE = "outside the blocks"
MOST_TASKS = 12
MOST_CONTROLS = 3
_LEAST_TASKS = 10
_IN_BLOCK = re.compile(r"(?:(?P<tower>.+)\.)?layers\.(?P<block>\d+)\.(?P<part>.+)")


@dataclass(frozen=True)
class Chart:
    """A picture, as the table that it is drawn from.

    Args:
        name: One word, for names of files.
        form: How it is drawn: a line or a bar per column and its rows side by side; a cell per
            value; or, of `pareto`, points.
        title: What it shows.
        corner: What the rows are.
        columns: Names of the columns.
        rows: Names and values of the rows; nothing where there is no value.
        axis: What the values are.
        low: Where the axis of the values begins, unless a value lies below.
        high: Where it ends, unless a value lies above.
        decimals: Decimals worth showing.
        emphasised: Columns that the others are compared with.
    """

    name: str
    form: Form
    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, Numbers], ...]
    axis: str
    low: float = 0.0
    high: float = 1.0
    decimals: int = 2
    emphasised: tuple[str, ...] = ()

    @property
    def head(self) -> tuple[str, ...]:
        """The first line of the table."""
        return (self.corner, *self.columns)

    @property
    def cells(self) -> tuple[tuple[str, ...], ...]:
        """The other lines of the table."""
        return tuple((name, *map(self.shown, values)) for name, values in self.rows)

    @property
    def text(self) -> str:
        """What it shows in words: the title, and the range of every column."""
        ranges = []
        for position, column in enumerate(self.columns):
            found = [v for _, values in self.rows if (v := values[position]) is not None]
            if found:
                low, high = self.shown(min(found)), self.shown(max(found))
                ranges.append(f"{column} {low if low == high else f'{low} to {high}'}")
        return f"{self.title}, {self.axis}: {'; '.join(ranges)}."

    def shown(self, value: float | None) -> str:
        """Returns a value of it as text."""
        if value is None:
            return "-"
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.{self.decimals}f}"


def charts(report: Report) -> tuple[Chart, ...]:
    """Returns all that can be drawn of a merge, in the order in which a reader asks for it."""
    return tuple(_charts(report))


def _charts(report: Report) -> Iterator[Chart]:
    if report.evaluation is not None:
        yield _accuracy(report.evaluation)
    if report.depths:
        yield _depths(report)
    if report.explained:
        title = "Explained by the merged features"
        yield _by_block("explained", title, "share explained", _shared(report, report.explained))
    if report.matching:
        title = "How well the merged features match"
        yield _by_block("matching", title, "mean correlation", _shared(report, report.matching))
    # Of unrelated models all cosines are near 0 and half of the signs differ.
    if report.shared_init is not False:
        yield from _similarity(report.similarities)


def pareto(evaluation: Evaluation) -> Chart:
    """Returns what every merge of a sweep costs and keeps, beside ensemble and controls."""
    rows = [
        row
        for row in (
            *evaluation.of_kind("merge"),
            *evaluation.of_kind("ensemble"),
            *_controls(evaluation),
        )
        if row.mean is not None
    ]
    merges = {row.name for row in evaluation.of_kind("merge")}
    return Chart(
        name="pareto",
        form="points",
        title="What every merge costs and keeps",
        corner="model",
        columns=("parameters", "MACs per input", "mean", "joint"),
        rows=tuple(
            (
                row.name,
                (float(row.parameters), float(row.macs), _percent(row.mean), _percent(row.joint)),
            )
            for row in rows
        ),
        axis=_axis(evaluation.tasks),
        high=100.0,
        decimals=1,
        emphasised=tuple(row.name for row in rows if row.name in merges),
    )


def _accuracy(evaluation: Evaluation) -> Chart:
    tasks, left_out = _telling(evaluation)
    others = (
        *evaluation.of_kind("ensemble"),
        *evaluation.of_kind("average"),
        *_controls(evaluation),
    )
    merges = evaluation.of_kind("merge")
    compared = (*others, *merges)
    parents = evaluation.of_kind("parent")
    rows: list[tuple[str, Numbers]] = []
    for task in tasks:
        own = [v for row in parents if (v := row.per_task.get(task.name)) is not None]
        values = (max(own, default=None), *(row.per_task.get(task.name) for row in compared))
        rows.append((titled(task), tuple(map(_percent, values))))
    if len(evaluation.tasks) > 1:
        rows.append(("mean", (None, *(_percent(row.mean) for row in compared))))
    if any(row.joint is not None for row in compared):
        rows.append(("joint", (None, *(_percent(row.joint) for row in compared))))
    best = "best parent" if len(parents) > len(evaluation.tasks) else "parent"
    title = "The merge beside its parents and controls"
    return Chart(
        name="accuracy",
        form="bars",
        title=f"{title}; of the tasks the {len(tasks)} that lose most" if left_out else title,
        corner="task",
        columns=(best, *(row.name for row in compared)),
        rows=tuple(rows),
        axis=_axis(evaluation.tasks),
        high=100.0,
        decimals=1,
        emphasised=tuple(row.name for row in merges),
    )


def _telling(evaluation: Evaluation) -> tuple[Sequence[EvaluatedTask], bool]:
    """The tasks to show, in order, and whether others are left out."""
    tasks = evaluation.tasks
    if len(tasks) <= MOST_TASKS:
        return tasks, False
    merges, ensembles = evaluation.of_kind("merge"), evaluation.of_kind("ensemble")

    def kept(task: EvaluatedTask) -> float:
        """What the last merge has more than the ensemble."""
        return sum(
            sign * (row.per_task.get(task.name) or 0)
            for sign, rows in ((1, merges[-1:]), (-1, ensembles[-1:]))
            for row in rows
        )

    chosen = sorted(tasks, key=kept)[:_LEAST_TASKS]
    return [task for task in tasks if task in chosen], True


def _controls(evaluation: Evaluation) -> Sequence[Row]:
    """All controls, or of many the one that does best in the mean."""
    found = evaluation.of_kind("control")
    if len(found) <= MOST_CONTROLS:
        return found
    return (max(found, key=lambda row: -1.0 if row.mean is None else row.mean),)


def _depths(report: Report) -> Chart:
    depths = report.depths
    shares = [depth["explained"] for depth in depths]
    return Chart(
        name="depths",
        form="lines",
        title="Explained on held-out inputs, by depth",
        corner="shared blocks",
        columns=tuple(source.name for source in report.sources),
        rows=tuple(
            (str(depth["blocks"]), tuple(map(float, shared)))
            for depth, shared in zip(depths, shares, strict=True)
        ),
        axis="share explained",
        decimals=3,
    )


def _shared(report: Report, values: Mapping[str, float]) -> dict[str, float]:
    """Values by place, without the blocks that a partial zip does not share."""
    depth = report.recipe.get("stop_at")
    return {
        place: value
        for place, value in values.items()
        if not isinstance(depth, int)
        or not (found := _IN_BLOCK.fullmatch(place))
        or int(found["block"]) < depth
    }


def _by_block(name: str, title: str, axis: str, values: Mapping[str, float]) -> Chart:
    """A row for every block and everything outside, a column for every part of a block."""
    columns: dict[str, None] = {}
    rows: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        found = _IN_BLOCK.fullmatch(key)
        row, column = (found["block"], _part(found)) if found else (key, OUTSIDE)
        columns[column] = None
        rows.setdefault(row, {})[column] = float(value)
    blocks = any(row.isdigit() for row in rows)
    return Chart(
        name=name,
        form="lines" if blocks else "bars",
        title=title,
        corner="block" if blocks else "place",
        columns=tuple(columns),
        rows=tuple((row, tuple(map(cells.get, columns))) for row, cells in rows.items()),
        axis=axis,
        emphasised=() if blocks else (OUTSIDE,),
    )


def _part(found: re.Match[str]) -> str:
    return f"{found['tower']} {found['part']}" if found["tower"] else found["part"]


def _similarity(pairs: Sequence[SimilarityRecord]) -> Iterator[Chart]:
    compared = "task vectors" if any(p.compared == "task vectors" for p in pairs) else "weights"
    shown = [pair for pair in pairs if pair.compared == compared]
    roles = tuple(dict.fromkeys(role for pair in shown for role in pair.cosines))
    if not roles:
        return
    cosines = [pair.cosines for pair in shown]
    conflicts = [pair.sign_conflicts for pair in shown]
    share = min(pair.share for pair in shown)
    part = "" if share == 1 else f", of {100 * share:.0f} % of them"
    for name, title, axis, low, values in (
        ("similarity", f"Cosines of the sources' {compared}{part}", "cosine", -1.0, cosines),
        ("signs", f"Opposite signs in the sources' {compared}{part}", "share", 0.0, conflicts),
    ):
        if any(values):
            yield Chart(
                name=name,
                form="cells",
                title=title,
                corner="pair",
                columns=roles,
                rows=tuple(
                    (f"{pair.first} / {pair.second}", tuple(map(found.get, roles)))
                    for pair, found in zip(shown, values, strict=True)
                ),
                axis=axis,
                low=low,
            )


def _axis(tasks: Sequence[EvaluatedTask]) -> str:
    return (
        "accuracy, %" if all(task.metric == "accuracy" for task in tasks) else "metrics, times 100"
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
