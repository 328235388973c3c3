import json
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from hf_zip.card import render_card
from hf_zip.evaluate import EvaluatedTask, Evaluation, Row
from hf_zip.licenses import License
from hf_zip.recipe import Recipe
from hf_zip.redact import published
from hf_zip.report_records import SourceRecord, TaskRecord
from tests.models import processor, vit
from tests.test_report import EVALUATION, REPORT

NASTY = "a|b `c` *d* [e](f) <g> # h: - {i}\n---\n```\n$j$ \"k\" 'l' {{ m }} é✓"


def section(card, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)[1]


def blocks(card, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


def on_the_hub(*licenses):
    return tuple(
        SourceRecord(
            f"org/m{i}@main",
            f"m{i}",
            revision="c0ffee",
            license=License(stated) if stated else None,
        )
        for i, stated in enumerate(licenses)
    )


def test_metadata_say_what_was_merged_and_measured():
    data = ModelCard(render_card(REPORT, "me/zipped")).data.to_dict()
    assert data["base_model"] == ["org/birds"]
    assert data["base_model_relation"] == "merge"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-classification"
    assert data["tags"] == ["merge", "hf_zip", "zipit", "image-classification"]
    assert "license" not in data
    assert "datasets" not in data
    (index,) = data["model-index"]
    assert index["name"] == "zipped"
    measured = [
        (result["dataset"]["name"], metric["name"], metric["value"])
        for result in index["results"]
        for metric in result["metrics"]
    ]
    assert measured == [
        ("cars.parquet of task cars", "accuracy on task cars", 0.75),
        ("data of task birds", "accuracy on task birds", 1.0),
        (
            "evaluated tasks: cars.parquet of task cars, data of task birds",
            "joint accuracy over the labels of all tasks",
            0.5,
        ),
    ]


def test_split_and_revision_of_the_data_are_in_the_metadata():
    task = EvaluatedTask("cars", 4, {"data": "org/cars@v1", "split": "test", "revision": "c0ffee"})
    report = replace(REPORT, evaluation=replace(EVALUATION, tasks=(task,)))
    (index,) = ModelCard(render_card(report)).data.to_dict()["model-index"]
    assert index["results"][0]["dataset"] == {
        "name": "org/cars",
        "type": "org/cars",
        "split": "test",
        "revision": "c0ffee",
    }


def test_tasks_on_the_same_data_keep_their_own_results():
    data = {"data": "org/all", "revision": "c0ffee"}
    tasks = tuple(EvaluatedTask(name, 4, data) for name in ("cars", "birds"))
    report = replace(REPORT, evaluation=replace(EVALUATION, tasks=tasks))
    (index,) = ModelCard(render_card(report)).data.to_dict()["model-index"]
    assert [metric["value"] for metric in index["results"][0]["metrics"]] == [0.75, 1.0]


def test_several_merges_the_last_is_this_one():
    other = replace(EVALUATION.rows[1], name="other", per_task={"cars": 0.1, "birds": 0.1})
    rows = (other, *EVALUATION.rows)
    card = ModelCard(render_card(replace(REPORT, evaluation=replace(EVALUATION, rows=rows))))
    assert card.data.eval_results[0].metric_value == 0.75


def test_calibration_data_on_the_hub_are_in_the_metadata():
    parts = {"data": ["x"], "parts": [{"data": "org/images@v1", "revision": "c0ffee"}]}
    card = render_card(replace(REPORT, calibration=parts))
    assert ModelCard(card).data.datasets == ["org/images"]
    assert "\n- data: org/images@v1; revision: c0ffee\n" in section(card, "Method")


def test_the_hub_reads_back_what_was_rendered():
    card = ModelCard(render_card(REPORT))
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()
    assert again.text == card.text


@pytest.mark.parametrize(
    ("licenses", "inherited"),
    [
        (("mit", "MIT"), "mit"),
        (("mit", "apache-2.0"), None),
        (("mit", None), None),
        ((None, None), None),
        (("other", "other"), None),
    ],
)
def test_a_licence_is_inherited_if_all_state_it(licenses, inherited):
    text = render_card(replace(REPORT, sources=on_the_hub(*licenses)))
    assert ModelCard(text).data.license == inherited
    assert text.endswith("float32\n")
    if inherited:
        assert "All sources state the licence mit" in text
    else:
        for i, stated in enumerate(licenses):
            assert f"- m{i} states {stated or 'none'}." in text


def test_a_licence_of_its_own_is_named_and_linked():
    own = License("llama3", listed=False, link="https://example.org/<b>")
    sources = tuple(replace(source, license=own) for source in on_the_hub(None, None))
    data = ModelCard(render_card(replace(REPORT, sources=sources))).data
    assert (data.license, data.license_name, data.license_link) == ("other", "llama3", own.link)
    text = render_card(replace(REPORT, sources=sources))
    assert "All sources state the licence llama3, and so does this card." in text
    assert "| llama3 (https://example.org/\\<b\\>) |" in text
    other = (sources[0], replace(sources[1], license=License("llama3", False, "elsewhere")))
    assert ModelCard(render_card(replace(REPORT, sources=other))).data.license is None


def test_a_licence_in_the_recipe_is_the_cards():
    recipe = {**REPORT.recipe, "license": "cc0-1.0"}
    report = replace(REPORT, recipe=recipe, sources=on_the_hub("mit", "apache-2.0"))
    text = render_card(report)
    assert ModelCard(text).data.license == "cc0-1.0"
    assert "This card states the licence cc0-1.0, which whoever made the merge gave it." in text
    assert "The sources do not all state" not in text


def saved(folder, dtype=None, image_processor=True):
    model = vit(names=["audi", "bmw", "crow", "jay", "owl"])
    (model.to(dtype) if dtype else model).save_pretrained(folder)
    if image_processor:
        processor().save_pretrained(folder)
    Image.new("RGB", (10, 9), (200, 30, 60)).save(folder / "image.png")
    return model


@pytest.mark.parametrize(("repo_id", "below"), [(None, "."), ("me/zipped", "me/zipped")])
def test_usage_runs_as_printed(tmp_path, monkeypatch, capsys, repo_id, below):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    saved(folder)
    (folder / "image.png").rename(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    whole, per_task = blocks(render_card(REPORT, repo_id), "python")
    exec(whole, {})
    assert {"audi", "bmw", "crow", "jay", "owl"} == set(
        re.findall(r"'label': '(\w+)'", output(capsys))
    )
    exec(per_task, {})
    first, second = output(capsys).splitlines()
    assert re.fullmatch("cars (audi|bmw)", first)
    assert re.fullmatch("birds (crow|jay|owl)", second)


def output(capsys):
    return capsys.readouterr().out


def test_usage_runs_without_a_processor(tmp_path, monkeypatch, capsys):
    saved(tmp_path, image_processor=False)
    monkeypatch.chdir(tmp_path)
    card = render_card(replace(REPORT, processor=None))
    (per_task,) = blocks(card, "python")
    exec(per_task, {})
    assert [line.split()[0] for line in output(capsys).splitlines()] == ["cars", "birds"]
    assert "No image processor is saved" in card


def test_usage_of_a_model_without_a_head():
    card = render_card(replace(REPORT, architecture="ViTModel", tasks=(), evaluation=None))
    assert "AutoModel.from_pretrained" in blocks(card, "python")[0]
    assert ModelCard(card).data.pipeline_tag is None
    assert "## Labels" not in card


def test_local_folders_are_named_and_nothing_else():
    recipe = Recipe.from_dict(
        {
            "merge_method": "zipit",
            "models": [{"model": "/home/jane doe/runs/cars"}, {"model": "org/birds@main"}],
            "base_model": "C:\\Users\\jane\\base",
            "calibration": {"data": ["/secret/place/cal.parquet:image", "org/images"]},
            "evaluation": [{"task": "/m/0k4j", "data": "~/place/cars/*.parquet"}],
        }
    )
    local = SourceRecord("/home/jane doe/runs/cars", "cars", "/m/0k4j", sha256="ab12")
    report = replace(
        REPORT,
        recipe=recipe.to_dict(),
        sources=(local, REPORT.sources[1]),
        tasks=(TaskRecord("/m/0k4j", ("/m/01", "/m/02"), 0, (0,)), REPORT.tasks[1]),
        findings=(
            "/home/jane doe/runs/cars has no model card, nor has '/home/jane doe/other one'",
            "see /secret/place/log.txt, or https://example.org/a/b",
        ),
        calibration={"data": ["/secret/place/cal.parquet"], "split": None},
        evaluation=Evaluation(
            (Row("zipit", "merge", {"/m/0k4j": 0.5}, 0.5, 0.5, 1, 1),),
            (EvaluatedTask("/m/0k4j", 2, {"data": "~/place/cars/*.parquet"}),),
            {"one trunk": "'/secret/place/cal.parquet' is gone"},
        ),
    )
    for text in (render_card(report), published(report).to_json()):
        for part in ("jane", "secret", "place", "Users"):
            assert part not in text, part
        assert "cal.parquet" in text
        assert "https://example.org/a/b" in text
        assert "/m/0k4j" in text
        assert "/m/01" in text
    data = ModelCard(render_card(report)).data.to_dict()
    assert data["base_model"] == ["org/birds"]
    shown = yaml.safe_load(blocks(render_card(report), "yaml")[-1])
    assert [model["model"] for model in shown["models"]] == ["cars", "org/birds@main"]
    assert shown["base_model"] == "base"
    assert shown["calibration"]["data"] == ["cal.parquet:image", "org/images"]
    assert shown["evaluation"][0]["task"] == "/m/0k4j"


def test_a_model_in_memory_is_named():
    report = replace(REPORT, sources=(SourceRecord("model_0", "model_0"),) * 2)
    assert "base_model" not in ModelCard(render_card(report)).data.to_dict()


def test_names_with_special_characters_break_nothing(tmp_path, monkeypatch):
    report = replace(
        REPORT,
        sources=(replace(REPORT.sources[0], name=NASTY, task=NASTY), REPORT.sources[1]),
        tasks=(TaskRecord(NASTY, (NASTY, "x: y"), 0, (0,)), REPORT.tasks[1]),
        recipe={"merge_method": "zipit", "models": [{"model": "m", "task": NASTY}]},
        findings=(NASTY,),
        evaluation=Evaluation(
            (Row(NASTY, "merge", {NASTY: 0.5}, 0.5, 0.5, 1, 1),),
            (EvaluatedTask(NASTY, 2, {"data": NASTY, "split": "test"}),),
            {NASTY: NASTY},
        ),
    )
    text = render_card(report)
    card = ModelCard(text)
    assert card.data.to_dict()["model-index"][0]["results"][0]["dataset"]["name"].startswith(NASTY)
    code = re.compile(r"^(`{3,})\w+\n.*?^\1$", re.DOTALL | re.MULTILINE)
    assert "a|b" not in code.sub("", card.text)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {title}"
        for title in (
            "Usage",
            "Labels",
            "Results",
            "Method",
            "Sources",
            "Diagnosis",
            "Limits",
            "Environment",
        )
    ]
    labels, recipe = (
        yaml.safe_load(found)
        for found in re.findall(r"^(`{4,})yaml\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)
        for found in found[1:]
    )
    assert labels == {0: NASTY, 1: "x: y"}
    assert recipe == report.recipe
    for line in section(text, "Results").splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (8, 4)
    saved(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks(text, "python")[1], names)
    assert list(names["rows"]) == [NASTY, "birds"]


def test_labels_are_listed_by_row():
    found = [
        yaml.safe_load(block) for block in blocks(section(render_card(REPORT), "Labels"), "yaml")
    ]
    assert found == [{0: "audi", 1: "bmw"}, {2: "crow", 3: "jay", 4: "owl"}]


def test_recipe_is_verbatim():
    assert yaml.safe_load(blocks(render_card(REPORT), "yaml")[-1]) == {
        "merge_method": "zipit",
        "models": [{"model": "cars"}, {"model": "org/birds"}],
    }


def test_limits_name_what_does_better_and_what_is_missing():
    rows = (
        *EVALUATION.rows,
        Row("ensemble", "ensemble", {"cars": 1.0}, 0.95, 0.9, 1, 1),
        Row("one trunk (cars)", "control", {"cars": 1.0}, 0.5, 0.51, 1, 1),
        Row("weight average", "average", {"cars": 0.0}, 0.875, 0.5, 1, 1),
    )
    evaluation = Evaluation(
        tuple(replace(row, per_task={"cars": row.per_task["cars"]}) for row in rows),
        EVALUATION.tasks[:1],
    )
    report = replace(REPORT, evaluation=evaluation)
    limits = section(render_card(report), "Limits")
    assert "sources: mean 87.5 beside 95.0, joint 50.0 beside 90.0." in limits
    assert "one trunk (cars) (control) does better" in limits
    assert "weight average" not in limits
    assert "- Not evaluated: task birds." in limits
    said = replace(evaluation, skipped={"task birds": "no evaluation data were given"})
    limits = section(render_card(replace(report, evaluation=said)), "Limits")
    assert "Not evaluated" not in limits
    assert "- Not measured: task birds, because no evaluation data were given." in limits


def test_nothing_measured_is_said():
    card = render_card(replace(REPORT, evaluation=None, calibration=None, matching={}))
    assert "the accuracy of this model is not known" in card
    assert "- Not evaluated: task cars and task birds." in card
    assert "Calibration data: none." in card
    assert "model-index" not in card
    assert "correlate" not in card


@pytest.mark.parametrize(
    ("shared", "sentence"),
    [
        (True, "- The sources share an initialisation"),
        (False, "- The sources do not share an initialisation"),
        (None, "- Whether the sources share an initialisation was not checked."),
    ],
)
def test_diagnosis(shared, sentence):
    diagnosis = section(render_card(replace(REPORT, shared_init=shared)), "Diagnosis")
    assert sentence in diagnosis
    assert "- the models do not share an initialisation" in diagnosis
    assert "by 0.38 on the calibration data, a mean over 2 groups" in diagnosis
    assert "least in layers.0.mlp, by 0.25" in diagnosis


def test_sources_are_listed_with_revision_or_digest():
    rows = section(render_card(REPORT), "Sources").splitlines()
    assert "| cars | a local model | cars | sha256 `ab12` | mit |" in rows
    assert "| birds | <https://huggingface.co/org/birds> | birds | `c0ffee` | not stated |" in rows


def test_rendering_leaves_the_report_and_repeats():
    before = json.loads(REPORT.to_json())
    assert render_card(REPORT, "me/x") == render_card(REPORT, "me/x")
    assert json.loads(REPORT.to_json()) == before
    assert published(published(REPORT)) == published(REPORT)
