"""Pictures of charts, and what becomes of a merge without them."""

import io
import logging
import re
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from PIL import Image

from hf_zip import drawing, figures
from hf_zip.charts import Chart, charts, pareto
from hf_zip.drawing import picture_name, pictures, png, svg
from hf_zip.report_records import SimilarityRecord
from tests.test_report import EVALUATION, REPORT

NASTY = '</text><script>alert(1)</script> $x_1$ --> & "q" \'é {{ 7 }}'
FULL = replace(
    REPORT,
    shared_init=True,
    explained={"stream": 0.9, "layers.0.mlp": -0.1, "layers.1.mlp": 0.8},
    depths=tuple(
        {"blocks": b, "explained": (1.0, 0.9 - 0.1 * b), "parameters": 9 - b} for b in range(3)
    ),
    similarities=(
        SimilarityRecord("cars", NASTY, "weights", {"key": -1.0, "mlp_in": 1.0}, {"key": 0.5}),
    ),
)
ALL = (*charts(FULL), pareto(EVALUATION))


def chart_named(name):
    return next(chart for chart in ALL if chart.name == name)


def test_every_form_is_drawn():
    assert {chart.form for chart in ALL} == {*figures._FORMS}
    assert len(ALL) == 7


@pytest.mark.parametrize("chart", ALL, ids=[chart.name for chart in ALL])
def test_a_picture_of_every_chart(chart):
    picture = Image.open(io.BytesIO(png(chart)))
    assert picture.format == "PNG"
    assert 600 < picture.width < 800
    assert len(picture.convert("RGB").getcolors(100_000)) > 10
    element = ElementTree.fromstring(svg(chart))
    assert element.tag == "{http://www.w3.org/2000/svg}svg"
    assert "viewBox" in element.attrib
    assert "width" not in element.attrib


def test_the_pictures_of_a_merge_by_name():
    found = pictures(FULL)
    assert [*found] == [picture_name(chart) for chart in charts(FULL)]
    assert "hf_zip_accuracy.png" in found
    assert found == pictures(FULL), "the same report gives the same bytes"


def test_a_page_decides_ink_and_size_and_no_identifier_is_in_its_way():
    text = svg(chart_named("matching"))
    assert "currentColor" in text
    assert drawing._STAND_IN not in text
    assert "figure_1" not in text
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert set(re.findall(r' id="([^"]+)"', text)) <= used
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)


def test_lines_near_their_end_are_shown_from_the_lowest_value():
    def drawn_range(*values):
        rows = tuple((str(i), (value,)) for i, value in enumerate(values))
        chart = Chart("m", "lines", "t", "block", ("mlp",), rows, "v")
        return figures._zoomed(*figures._range(chart), chart)

    assert drawn_range(0.9, 1.0) == pytest.approx((0.896, 1.004))
    assert drawn_range(1.0, 1.0) == pytest.approx((0.9896, 1.0004))
    assert drawn_range(0.4, 1.0) == pytest.approx((-0.04, 1.04))
    assert drawn_range(-0.5, 1.0) == pytest.approx((-0.56, 1.06))


def test_names_are_text_and_neither_markup_nor_mathematics():
    element = ElementTree.fromstring(svg(chart_named("similarity")))
    tags = {child.tag.rpartition("}")[2] for child in element.iter()}
    assert tags <= {"svg", "g", "path", "text", "tspan", "defs", "style", "use", "clipPath", "rect"}
    texts = [child.text or "" for child in element.iter() if child.tag.endswith("text")]
    assert any(text.startswith("cars / </te") for text in texts)
    mathematics = Chart("m", "cells", "$x^2$", "p", ("$y$",), (("$z_1$", (0.5,)),), "v")
    assert {"$x^2$", "$y$", "$z_1$"} <= {
        child.text
        for child in ElementTree.fromstring(svg(mathematics)).iter()
        if child.tag.endswith("text")
    }


def test_names_that_look_like_attributes_stay_as_they_are():
    name = f'a id="b" {drawing._STAND_IN}'
    element = ElementTree.fromstring(
        svg(Chart("m", "cells", "t", "p", (name,), (("r", (0.5,)),), "v"))
    )
    assert name in [child.text for child in element.iter()]


def test_letters_that_the_font_lacks_are_no_warning():
    assert png(Chart("m", "cells", "任务", "p", ("k",), (("任务", (0.5,)),), "v")) is not None


def test_without_matplotlib_there_are_no_pictures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert pictures(FULL) == {}
    assert svg(ALL[0]) is None


def test_a_picture_that_cannot_be_drawn_is_told_of_and_left_out(monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no pen\nat all")

    monkeypatch.setitem(figures._FORMS, "lines", broken)
    with caplog.at_level(logging.WARNING, "hf_zip"):
        assert [*pictures(FULL)] == [
            f"hf_zip_{name}.png" for name in ("accuracy", "similarity", "signs")
        ]
    assert "no picture of matching is drawn: no pen" in caplog.text


def test_too_many_rows_are_no_picture(caplog):
    rows = tuple((f"pair {i}", (0.5,)) for i in range(drawing._MOST_ROWS + 1))
    chart = Chart("many", "cells", "t", "p", ("k",), rows, "v")
    with caplog.at_level(logging.INFO, "hf_zip"):
        assert png(chart) is None
    assert "61 rows of many are too many for a picture" in caplog.text
    assert png(replace(chart, rows=rows[:-1])) is not None


def test_settings_of_matplotlib_are_left_as_they_were():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    png(ALL[0])
    assert dict(mpl.rcParams) == before
