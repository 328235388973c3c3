"""Charts as figures of matplotlib (the extra `plots`), which is imported where one is drawn."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from hf_zip.charts import Chart

_WIDTH = 4.2  # inches: narrow enough to be read on a phone
_LONGEST_NAME = 26

# Told apart on light and dark ground, and by those who see no red or no green.
_COLOURS = ("#3b7dd8", "#e08214", "#1b9e77", "#a06cd5", "#d6604d", "#c2a000", "#17a2b8")
_QUIET = ("#b4bcc6", "#7d8894", "#d9b26f", "#8fbcae", "#c79bb5", "#a8b87a")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")


def settings(chart: Chart, ink: str, ground: str) -> Any:
    """Returns the settings of matplotlib under which a chart is drawn and written.

    Args:
        chart: The chart.
        ink: Colour of texts, axes and grids.
        ground: Colour behind them.
    """
    drawn = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(drawn, ink),
        "figure.facecolor": ground,
        "axes.facecolor": ground,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.family": "sans-serif",
        "font.size": 9,
        "text.parse_math": False,  # names are names
        "svg.fonttype": "none",
        "svg.hashsalt": chart.name,
    }


def draw(chart: Chart, ink: str) -> Any:
    """Returns a chart as a figure; to be called, and the figure written, under its `settings`.

    Args:
        chart: The chart.
        ink: Colour of its grid.

    Raises:
        ImportError: There is no matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _height(chart)), layout="constrained")
    _FORMS[chart.form](figure, chart, ink)
    figure.suptitle("\n".join(_lines(chart.title, 44)), fontsize=10.5)
    return figure


def _height(chart: Chart) -> float:
    rows = len(chart.rows)
    if chart.form == "bars":
        bars = sum(value is not None for _, values in chart.rows for value in values)
        return 1.2 + 0.16 * bars + 0.12 * rows + 0.1 * len(chart.columns)
    if chart.form == "cells":
        return 1.6 + 0.28 * rows
    if chart.form == "points":
        return 5.4
    slanted = max(len(_short(name)) for name, _ in chart.rows)
    return 3.0 + 0.05 * slanted + 0.09 * len(chart.columns)


def _bars(figure: Any, chart: Chart, ink: str) -> None:
    """A group per row, from the top, with a bar for each of its values."""
    axes = figure.subplots()
    quiet = cycle(_QUIET)
    colours = [_COLOURS[0] if c in chart.emphasised else next(quiet) for c in chart.columns]
    place, ticks = 0.0, []
    for _, values in chart.rows:
        start = place
        for column, value in enumerate(values):
            if value is None:
                continue
            axes.barh(place, value, 0.9, color=colours[column])
            axes.annotate(
                chart.shown(value),
                (max(value, 0), place),
                xytext=(2, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
            )
            place += 1
        ticks.append((start + place - 1) / 2)
        place += 0.8
    axes.set_yticks(ticks, [_short(name) for name, _ in chart.rows])
    axes.set_ylim(place - 1.2, -0.6)
    axes.set_xlim(*_range(chart))
    axes.set_xlabel(chart.axis)
    axes.tick_params(axis="y", length=0)
    _grid(axes, "x", ink)
    handles = [axes.barh(0, 0, color=colour) for colour in colours]
    _legend(figure, handles, chart.columns)


def _lines(text: str, width: int) -> list[str]:
    """The text in lines of at most so many letters, broken between words."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _curves(figure: Any, chart: Chart, ink: str) -> None:
    """A line per column; what lies outside the blocks is not joined."""
    axes = figure.subplots()
    handles = []
    for column in range(len(chart.columns)):
        points = [
            (row, v[column]) for row, (_, v) in enumerate(chart.rows) if v[column] is not None
        ]
        number = [chart.rows[row][0].isdigit() for row, _ in points]
        (handle,) = axes.plot(
            *zip(*points, strict=True),
            marker=_MARKERS[column % len(_MARKERS)],
            linestyle=_DASHES[column % len(_DASHES)] if all(number) else "none",
            color=_COLOURS[column % len(_COLOURS)],
            markersize=4,
            linewidth=1.3,
        )
        handles.append(handle)
    names = [name for name, _ in chart.rows]
    step = 1 + len(names) // 14
    shown = [i for i, n in enumerate(names) if not n.isdigit() or int(n) % step == 0]
    slanted = any(len(names[i]) > 3 for i in shown)
    turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(shown, [_short(names[i]) for i in shown], **(turned if slanted else {}))
    axes.set_xlabel(chart.corner)
    axes.set_ylabel(chart.axis)
    axes.set_ylim(*_zoomed(*_range(chart), chart))
    _grid(axes, "both", ink)
    _legend(figure, handles, chart.columns)


def _cells(figure: Any, chart: Chart, ink: str) -> None:
    """A coloured cell per value, with the value in it."""
    axes = figure.subplots()
    nothing = float("nan")
    values = [[nothing if v is None else v for v in row] for _, row in chart.rows]
    mesh = axes.pcolormesh(
        values,
        cmap="PuOr" if chart.low < 0 else "Oranges",
        vmin=chart.low,
        vmax=chart.high,
        edgecolors="white",
        linewidth=1,
    )
    for row, found in enumerate(values):
        for column, value in enumerate(found):
            if value == value:  # a number
                red, green, blue, _ = mesh.cmap(mesh.norm(value))
                light = 0.3 * red + 0.59 * green + 0.11 * blue > 0.55
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    chart.shown(value).replace("0.", "."),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="#111111" if light else "#fefefe",
                    in_layout=False,  # within its cell, as many of them would be measured long
                )
    turned: dict[str, Any] = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"}
    axes.set_xticks([c + 0.5 for c in range(len(chart.columns))], chart.columns, **turned)
    axes.set_yticks(
        [r + 0.5 for r in range(len(chart.rows))], [_short(name) for name, _ in chart.rows]
    )
    axes.invert_yaxis()
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _points(figure: Any, chart: Chart, ink: str) -> None:
    """The last two columns against each of the first two: merges joined, the others beside."""
    *costs, mean, joint = range(len(chart.columns))
    panels = figure.subplots(len(costs), 1, sharey=True)
    merges = [values for name, values in chart.rows if name in chart.emphasised]
    others = [(name, values) for name, values in chart.rows if name not in chart.emphasised]
    for cost, axes in zip(costs, panels, strict=True):
        handles = []
        for style, kept in enumerate((mean, joint)):
            points = sorted((v[cost], v[kept]) for v in merges if v[kept] is not None)
            (handle,) = axes.plot(
                *zip(*points, strict=True) if points else ((), ()),
                marker=_MARKERS[style],
                linestyle=_DASHES[style],
                color=_COLOURS[style],
                markersize=4,
            )
            handles.append(handle)
        for style, (_, values) in enumerate(others):
            marker, colour = _MARKERS[(style + 2) % 7], _COLOURS[(style + 2) % 7]
            (handle,) = axes.plot(values[cost], values[mean], marker, color=colour, markersize=6)
            handles.append(handle)
        axes.set_xlabel(chart.columns[cost])
        axes.set_ylabel(chart.axis)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(_engineering())
        _grid(axes, "both", ink)
    measured = [f"merges, {chart.columns[kept]}" for kept in (mean, joint)]
    _legend(figure, handles, [*measured, *(f"{name}, {chart.columns[mean]}" for name, _ in others)])


_FORMS: dict[str, Callable[[Any, Chart, str], None]] = {
    "bars": _bars,
    "lines": _curves,
    "cells": _cells,
    "points": _points,
}


def _engineering() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter()


def _grid(axes: Any, which: str, ink: str) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis=which, color=ink, alpha=0.18, linewidth=0.6)


def _legend(figure: Any, handles: Sequence[Any], names: Sequence[str]) -> None:
    if len(handles) == 1:
        return
    names = [_short(name) for name in names]
    across = max(1, min(4, 52 // (5 + max(map(len, names)))))
    figure.legend(
        handles, names, loc="outside lower center", ncols=across, frameon=False, fontsize=8.5
    )


def _range(chart: Chart) -> tuple[float, float]:
    found = _values(chart)
    return min([chart.low, *found]), max([chart.high, *found])


def _zoomed(low: float, high: float, chart: Chart) -> tuple[float, float]:
    """The range of lines: from its end to the lowest value, where all lie near that end."""
    lowest = min(_values(chart))
    if lowest > (low + high) / 2:
        low = min(lowest, high - 10**-chart.decimals)
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _values(chart: Chart) -> list[float]:
    return [value for _, values in chart.rows for value in values if value is not None]


def _short(name: str) -> str:
    """A name on one line; of a long one its beginning and its end."""
    name = " ".join(name.split())
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
