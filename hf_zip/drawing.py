"""Charts as files, drawn by matplotlib (the extra `plots`); without it there are none."""

import io
import logging
import re
import warnings
from collections.abc import Callable
from typing import Any

from hf_zip.charts import Chart, charts
from hf_zip.errors import first_line
from hf_zip.figures import draw, settings
from hf_zip.report import Report

logger = logging.getLogger(__name__)

PICTURES = "hf_zip_*.png"  # what `pictures` calls its files
_MOST_ROWS = 60
# In a page the ink takes the colour of the text around it, so it is drawn as one to be replaced.
_INK, _STAND_IN = "#24292f", "#010203"


def pictures(report: Report) -> dict[str, bytes]:
    """Returns the pictures of a merge as PNG files by name; none without matplotlib."""
    drawn = ((picture_name(chart), png(chart)) for chart in charts(report))
    return {name: picture for name, picture in drawn if picture is not None}


def picture_name(chart: Chart) -> str:
    """Returns the name of a chart's file in the folder of a merge."""
    return f"hf_zip_{chart.name}.png"


def png(chart: Chart) -> bytes | None:
    """Returns a chart as a PNG file; nothing if it cannot be drawn, which is logged."""

    def save(figure: Any) -> bytes:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=160)
        return file.getvalue()

    return _drawn(chart, save, _INK, "white")


def svg(chart: Chart) -> str | None:
    """Returns a chart as an SVG element for a page, in the colour of the text around it.

    It holds no identifiers but those that it refers to itself, and its size is left to the page.
    Nothing if it cannot be drawn, which is logged.
    """

    def save(figure: Any) -> str:
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        return _element(file.getvalue().decode("utf-8"))

    return _drawn(chart, save, _STAND_IN, "none")


def _drawn(chart: Chart, save: Callable[[Any], Any], ink: str, ground: str) -> Any:
    if len(chart.rows) > _MOST_ROWS:
        logger.info("%d rows of %s are too many for a picture", len(chart.rows), chart.name)
        return None
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    try:
        with mpl.rc_context(settings(chart, ink, ground)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of letters that the font lacks, which become boxes
            return save(draw(chart, ink))
    except Exception as error:  # a merge is no worse for a picture that cannot be drawn
        logger.warning("no picture of %s is drawn: %s", chart.name, first_line(error))
        return None


def _element(text: str) -> str:
    """The element of an SVG file, its ink that of the page, without identifiers nobody uses."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))

    def tag(found: re.Match[str]) -> str:
        kept = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in used else "", found[0])
        if kept.startswith("<svg"):
            kept = re.sub(r' (?:width|height)="[^"]*"', "", kept)
        return kept.replace(_STAND_IN, "currentColor")

    return re.sub(r"<[^>]*>", tag, text)  # names are outside of tags
