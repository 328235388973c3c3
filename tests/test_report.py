import json
import re
from dataclasses import replace

import pytest

from hf_zip.errors import HfZipError
from hf_zip.evaluate import EvaluatedTask, Evaluation, Row
from hf_zip.licenses import License
from hf_zip.report import REPORT_NAME, Report, read, table, versions
from hf_zip.report_records import MethodRecord, SimilarityRecord, SourceRecord, TaskRecord
from hf_zip.sources import Source
from hf_zip.tables import amount, escape, markdown_table, percent
from hf_zip.tasks import Task
from tests.models import vit

EVALUATION = Evaluation(
    rows=(
        Row("cars", "parent", {"cars": 0.9, "birds": None}, None, None, 85_800_000, 17_560_000_000),
        Row("zipit", "merge", {"cars": 0.75, "birds": 1.0}, 0.875, 0.5, 31_250, 28_248),
    ),
    tasks=(EvaluatedTask("cars", 4, {"data": "cars.parquet"}), EvaluatedTask("birds", 2)),
    skipped={"one trunk": "there were no calibration data"},
)

REPORT = Report(
    architecture="ViTForImageClassification",
    recipe={"merge_method": "zipit", "models": [{"model": "runs/cars"}, {"model": "org/birds"}]},
    sources=(
        SourceRecord("runs/cars", "cars", "cars", sha256="ab12", license=License("mit")),
        SourceRecord("org/birds", "birds", "birds", revision="c0ffee"),
    ),
    tasks=(
        TaskRecord("cars", ("audi", "bmw"), 0, (0,)),
        TaskRecord("birds", ("crow", "jay", "owl"), 2, (1,)),
    ),
    method=MethodRecord("zipit", "ZipIt!", "https://arxiv.org/abs/2305.03053"),
    versions={"python": "3.11.7", "torch": "2.13.0"},
    seconds=1.5,
    num_processes=2,
    processor="ViTImageProcessorPil",
    shared_init=False,
    similarities=(
        SimilarityRecord(
            "cars", "birds", "weights", {"query": 0.02, "mlp_in": -0.01}, {"query": 0.5}
        ),
    ),
    findings=("the models do not share an initialisation",),
    matching={"stream": 0.5, "layers.0.mlp": 0.25},
    calibration={"data": ["images"], "samples": 64},
    evaluation=EVALUATION,
)


def test_report_goes_through_json():
    assert Report.from_json(REPORT.to_json()) == REPORT
    bare = replace(REPORT, evaluation=None, calibration=None, shared_init=None, matching={})
    assert Report.from_json(bare.to_json()) == bare


def test_a_report_from_before_similarities_were_kept_is_read():
    values = json.loads(REPORT.to_json())
    del values["similarities"]
    assert Report.from_dict(values) == replace(REPORT, similarities=())


def test_json_has_one_order_and_is_readable():
    text = REPORT.to_json()
    assert list(json.loads(text))[:3] == ["schema_version", "architecture", "recipe"]
    assert Report.from_json(text).to_json() == text
    named = replace(REPORT, findings=("Bäume",))
    assert "Bäume" in named.to_json()


def test_report_is_read_from_the_folder_of_a_merge(tmp_path):
    (tmp_path / REPORT_NAME).write_text(REPORT.to_json(), encoding="utf-8")
    assert read(tmp_path) == REPORT


def test_records_are_taken_from_what_was_merged():
    source = Source("org/a@main", vit(), "pets", "a", revision="c0ffee", license=License("mit"))
    assert SourceRecord.of(source) == SourceRecord(
        "org/a@main",
        "a",
        "pets",
        revision="c0ffee",
        license=License("mit"),
        architecture="ViTForImageClassification",
    )
    record = TaskRecord.of(Task("b", ("x", "y"), 3, (1, 2), ((0, 1), (1, 0))))
    assert record == TaskRecord("b", ("x", "y"), 3, (1, 2))
    assert record.stop == 5


def test_versions_are_those_that_ran():
    import torch
    import transformers

    found = versions()
    assert found["torch"] == torch.__version__
    assert found["transformers"] == transformers.__version__
    assert {"python", "hf_zip"} <= set(found)


def test_a_report_of_another_version_is_refused():
    values = {**REPORT.to_dict(), "schema_version": 2}
    with pytest.raises(HfZipError, match="schema version 2, but this hf_zip reads 1"):
        Report.from_dict(values)


def test_a_report_with_a_wrong_key_is_refused():
    with pytest.raises(HfZipError, match=r"key in report 'sorces'\. Did you mean 'sources'"):
        Report.from_dict({**REPORT.to_dict(), "sorces": []})


def test_text_that_is_not_json_is_refused():
    with pytest.raises(HfZipError, match="the report is not valid JSON"):
        Report.from_json("{")


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_values_without_a_place_in_json_are_refused(value):
    with pytest.raises(HfZipError, match="the report cannot be written as JSON"):
        replace(REPORT, calibration={"data": value}).to_json()


def test_a_folder_without_a_report_is_refused(tmp_path):
    with pytest.raises(HfZipError, match=f"holds no {REPORT_NAME}"):
        read(tmp_path)


def words(line):
    return re.split(r"\s{2,}", line.strip())


def test_terminal_table_by_hand():
    head, _, parent, merge = table(EVALUATION).splitlines()
    assert words(head) == ["model", "kind", "cars", "birds", "mean", "joint", "parameters", "MACs"]
    assert words(parent) == ["cars", "parent", "90.0", "-", "-", "-", "85.8 M", "17.6 G"]
    assert words(merge) == ["zipit", "merge", "75.0", "100.0", "87.5", "50.0", "31.2 k", "28.2 k"]


def test_markdown_table_by_hand():
    head, rule, parent, merge = markdown_table(EVALUATION).splitlines()
    assert head == "| model | kind | cars | birds | mean | joint | parameters | MACs |"
    assert rule == "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert parent == "| cars | parent | 90.0 | - | - | - | 85.8 M | 17.6 G |"
    assert merge == "| zipit | merge | 75.0 | 100.0 | 87.5 | 50.0 | 31.2 k | 28.2 k |"


def test_names_stay_whole_and_on_one_line():
    name = "a|b [bold]c[/bold]\n" + "long " * 60
    row = Row(name, "merge", {name: 1.0}, 1.0, 1.0, 1, 1)
    evaluation = Evaluation((row,), (EvaluatedTask(name, 1),))
    shown = " ".join(name.split())
    assert [shown in line for line in table(evaluation).splitlines()] == [True, False, True]
    lines = markdown_table(evaluation).splitlines()
    assert len(lines) == 3
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [8, 8, 8]


def test_table_ignores_the_terminal_it_is_printed_in(monkeypatch):
    plain = table(EVALUATION)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    assert table(EVALUATION) == plain


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (12_345, "12.3 k"),
        (345_678_901, "346 M"),
        (17_560_000_000, "17.6 G"),
        (4 * 10**12, "4000 G"),
    ],
)
def test_amounts(number, shown):
    assert amount(number) == shown


def test_small_texts():
    assert [percent(share) for share in (None, 0.0, 0.12345, 1.0)] == ["-", "0.0", "12.3", "100.0"]
    assert escape("a_b*c|d`e\nf<g>") == r"a\_b\*c\|d\`e f\<g\>"
