"""The web page of a merge or a sweep."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

import hf_zip
from hf_zip import cli
from hf_zip.charts import charts
from hf_zip.errors import HfZipError
from hf_zip.evaluate import EvaluatedTask, Evaluation
from hf_zip.licenses import License
from hf_zip.lineage import Ancestor
from hf_zip.page import PAGE_NAME, render_page, report_page
from hf_zip.report import REPORT_NAME
from hf_zip.report_records import MethodRecord, SimilarityRecord, SourceRecord, Validation
from hf_zip.sweep_report import SWEEP_NAME, SweepReport, read_sweep
from hf_zip.tables import table_cells
from tests.test_drawing import FULL
from tests.test_report import EVALUATION, REPORT

NASTY = "</td><script>alert('1')</script>{{ 7 * 7 }}{% raw %}--><b onclick=\"x\">&amp; $x$"
VOID = {"meta", "link", "br", "img", "input"}


class Seen(HTMLParser):
    """What a browser sees: elements, attributes, texts; refuses what is not closed."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def renamed(name):
    """A report in which everything that comes from elsewhere is called so."""
    source = SourceRecord(
        name, name, name, sha256=name, license=License(name, False, name), architecture=name
    )
    hub = SourceRecord(f"org/{name}", f"x {name}", name, revision=name, license=License(name))
    task = EvaluatedTask(name, 4, {name: name}, metric=name)
    rows = tuple(
        replace(row, name=f"{row.name} {name}", per_task={name: 0.5}) for row in EVALUATION.rows
    )
    return replace(
        REPORT,
        architecture=name,
        recipe={name: [name]},
        sources=(source, hub),
        tasks=(replace(REPORT.tasks[0], name=name, labels=(name,)),),
        method=MethodRecord(name, name, name),
        versions={name: name},
        dtype=name,
        shared_init=None,
        findings=(name,),
        similarities=(SimilarityRecord(name, name, "weights", {name: 0.5}, {name: 0.5}),),
        matching={name: 0.5, f"layers.0.{name}": 0.5},
        explained={f"unmerge.{name}": 0.5},
        base=source,
        family=(Ancestor(name, name, name, 1.0, name, (Ancestor(name),)),),
        depths=(
            {"blocks": 0, "explained": [1.0, 0.5], "parameters": 5, "validation": {name: 0.5}},
        ),
        validation=Validation(1.0, (task,), {name: 0.5}),
        calibration={"parts": [{name: name}]},
        evaluation=Evaluation(rows, (task,), {name: name}),
    )


def test_everything_that_is_known_is_on_the_page():
    seen = Seen(render_page(FULL))
    for row in table_cells(EVALUATION):
        for cell in row:
            assert cell in seen.texts
    for chart in charts(FULL):
        assert chart.text in [value for key, value in seen.attributes if key == "aria-label"]
        for row in (chart.head, *chart.cells):
            assert {*row} <= {*seen.texts}
    for text in (
        "cars and birds",
        "the models do not share an initialisation",
        "Not measured: one trunk, because there were no calibration data.",
        "They share an initialisation",
        "torch 2.13.0",
        "2 processes, 1.5 seconds",
        'data: ["images"]; samples: 64',
        "merge_method: zipit",
        "sha256 ab12",
        "revision c0ffee",
        "mlp_in 1.000 -",
        "key -1.000 50.0 %",
    ):
        assert text in seen.text, text
    assert ("href", "https://huggingface.co/org/birds") in seen.attributes
    assert ("href", "https://arxiv.org/abs/2305.03053") in seen.attributes
    assert seen.tags.count("svg") == len(charts(FULL))


@pytest.mark.parametrize(
    ("depth", "said"),
    [
        (0, "No block is shared."),
        (1, "The first block is shared."),
        (3, "The first 3 blocks are shared."),
        (None, None),
    ],
)
def test_the_depth_of_a_partial_zip_is_said(depth, said):
    text = Seen(render_page(replace(REPORT, recipe={"stop_at": depth}))).text
    assert said in text if said else "shared." not in text


def test_the_page_needs_no_network_no_scripts_and_no_files():
    page = render_page(FULL)
    seen = Seen(page)
    assert not {*seen.tags} & {"script", "link", "img", "iframe", "object", "form"}
    assert [value for key, value in seen.attributes if key == "src" or key.startswith("on")] == []
    for key, value in seen.attributes:
        if key.endswith("href"):
            assert value.startswith(("#", "https://")), value
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in seen.attributes
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)", page)) <= set(re.findall(r"url\((#[^)]*)", page))
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


@pytest.mark.parametrize("pictured", [True, False])
def test_names_are_never_markup(monkeypatch, pictured):
    if not pictured:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    plain, nasty = (Seen(render_page(renamed(name))) for name in ("plain", NASTY))
    assert nasty.tags == plain.tags
    assert [key for key, _ in nasty.attributes] == [key for key, _ in plain.attributes]
    assert seen_times(nasty, "alert('1')") >= 25
    assert "49" not in nasty.text
    addresses = [value for key, value in nasty.attributes if key == "href"]
    assert [
        value for value in addresses if "<" in value or not value.startswith(("https", "#"))
    ] == []


def seen_times(seen, text):
    return sum(text in found for found in seen.texts)


@pytest.mark.parametrize("reference", ["javascript:alert(1)", "http://x", "", "//x"])
def test_only_what_is_an_address_is_a_link(reference):
    method = replace(REPORT.method, reference=reference)
    assert "reference</a>" not in render_page(replace(REPORT, method=method))


def test_without_matplotlib_there_are_tables(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    seen = Seen(render_page(FULL))
    assert "svg" not in seen.tags
    assert "drawing them takes matplotlib" in seen.text
    for chart in charts(FULL):
        assert f"{chart.title}, {chart.axis}" in seen.texts
        assert {*chart.cells[-1]} <= {*seen.texts}


def test_local_paths_are_not_on_the_page():
    found = EvaluatedTask("cars", 4, {"data": "/home/jane/cars.parquet"})
    recipe = {"models": [{"model": "/home/jane/cars"}], "calibration": {"data": ["~/jane/x"]}}
    evaluation = replace(EVALUATION, tasks=(found, EVALUATION.tasks[1]))
    report = replace(
        REPORT,
        recipe=recipe,
        sources=(replace(REPORT.sources[0], reference="/home/jane/cars"), REPORT.sources[1]),
        findings=("'/home/jane/cars' has no licence",),
        evaluation=evaluation,
    )
    sweep = SweepReport(recipe, {}, replace(evaluation, skipped={"x": "no /home/jane/y"}))
    for page in (render_page(report), render_page(sweep)):
        assert "jane" not in page
        assert "cars.parquet" in page


def test_a_merge_of_which_little_is_known():
    bare = replace(
        REPORT, evaluation=None, calibration=None, matching={}, findings=(), similarities=(),
        tasks=(), shared_init=None,
    )  # fmt: skip
    seen = Seen(render_page(bare))
    assert "Nothing was measured: the accuracy of this model is not known." in seen.text
    assert "Pictures" not in seen.text
    assert "Whether they share an initialisation was not checked" in seen.text


@pytest.fixture
def merge(tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / REPORT_NAME).write_text(REPORT.to_json(), encoding="utf-8")
    return tmp_path / "merged"


def sweep_of(folder, **changes):
    report = SweepReport({"merge_method": NASTY}, {"torch": "2"}, EVALUATION)
    (folder / SWEEP_NAME).write_text(replace(report, **changes).to_json(), encoding="utf-8")


def test_the_page_is_written_into_the_folder_or_elsewhere(merge, tmp_path):
    path = hf_zip.report_page(merge)
    assert path == merge / PAGE_NAME
    assert path.read_text(encoding="utf-8") == render_page(REPORT)
    assert report_page(str(merge), tmp_path / "deep" / "x.HTML").is_file()
    assert sorted(path.name for path in merge.iterdir()) == [PAGE_NAME, REPORT_NAME]


def test_a_sweep_has_a_page(tmp_path):
    sweep_of(tmp_path)
    seen = Seen(report_page(tmp_path).read_text())
    assert f"Sweep of {NASTY}" in " ".join(seen.texts)
    for text in ("Not measured: one trunk, because", "What every merge costs and keeps", "torch 2"):
        assert text in seen.text or any(text in (v or "") for _, v in seen.attributes), text
    assert seen.tags.count("svg") == 1
    assert "script" not in seen.tags


def test_the_command(merge, tmp_path):
    result = CliRunner().invoke(cli.app, ["report", str(merge), "--out", str(tmp_path / "x.html")])
    assert result.output == f"wrote {tmp_path / 'x.html'}\n"
    assert (tmp_path / "x.html").read_text() == render_page(REPORT)


def test_what_is_no_merge_is_refused(tmp_path):
    message = f"holds neither {REPORT_NAME} nor {SWEEP_NAME}; give a folder that `hf-zip merge`"
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(HfZipError, match=message):
            report_page(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"sweep.json' is not valid JSON"),
        ("\udcff", r"sweep.json' is not valid JSON"),
        ("[]", "sweep should be a mapping"),
        ('{"recipe": {}}', "sweep lacks the key 'versions'"),
    ],
)
def test_a_damaged_sweep_is_refused(tmp_path, text, message):
    (tmp_path / SWEEP_NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(HfZipError, match=message):
        report_page(tmp_path)


def test_what_holds_no_sweep_is_refused_by_name(tmp_path):
    with pytest.raises(HfZipError, match=r"holds no sweep.json; give a folder of a sweep"):
        read_sweep(tmp_path)


def test_a_merge_is_not_overwritten_by_its_page(merge):
    with pytest.raises(HfZipError, match=r"README.md' is no name of a web page; give one that"):
        report_page(merge, merge / "README.md")


def test_a_page_that_cannot_be_written_is_one_error(merge):
    (merge / "taken").write_text("")
    with pytest.raises(HfZipError, match=r"cannot write '.*x.html': .*give another --out"):
        report_page(merge, merge / "taken" / "x.html")
    (merge / "folder.html").mkdir()
    with pytest.raises(HfZipError, match=r"cannot write '.*folder.html'"):
        report_page(merge, merge / "folder.html")
    assert not [path.name for path in merge.iterdir() if path.name.startswith(".")]


def test_a_sweep_goes_through_json(tmp_path):
    sweep_of(tmp_path, recipe={"merge_method": "zipit"})
    values = json.loads((tmp_path / SWEEP_NAME).read_text())
    assert list(values) == ["recipe", "versions", "evaluation"]
    found = read_sweep(tmp_path)
    assert found == SweepReport({"merge_method": "zipit"}, {"torch": "2"}, EVALUATION)
