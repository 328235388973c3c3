"""Text classifiers from their folders to a merge that was measured, saved and described."""

import re

import datasets
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from typer.testing import CliRunner

import hf_zip
from hf_zip import cli
from hf_zip.pipeline import export, reevaluate
from hf_zip.sources import load_source
from tests.test_vocabulary import SHUFFLED, reordered
from tests.texts import bert, sentences, tokenizer

NAMES = {"intent": ["question", "order"], "mood": ["calm", "keen", "cross"]}


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """Two models, unlabelled texts, and labelled test files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    for seed, (name, labels) in enumerate(NAMES.items()):
        bert(seed=seed, names=labels).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        found = [labels[i % len(labels)] for i in range(12)]
        rows = {"text": sentences(12, seed), "label": found}
        Dataset.from_dict(rows).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "texts.txt").write_text("\n\n".join(sentences(30, seed=7)))
    return tmp_path


def merge(**options):
    options = {
        "calibration": "texts.txt",
        "evaluation": {name: f"{name}.parquet" for name in NAMES},
        **options,
    }
    models = options.pop("models", list(NAMES))
    return hf_zip.merge(models, method="average", tasks=list(NAMES), force=True, progress=False,
                        **options)  # fmt: skip


def test_two_text_classifiers_become_one(workshop, monkeypatch, capsys):
    report = merge(out="merged").report
    assert report.calibration["column"] == "text"
    assert [task.data["labels_matched_by"] for task in report.evaluation.tasks] == ["name"] * 2
    kinds = [row.kind for row in report.evaluation.rows]
    assert kinds == ["parent", "parent", "ensemble", "control", "control", "merge"]
    assert all(row.macs > 0 for row in report.evaluation.rows)

    model = AutoModelForSequenceClassification.from_pretrained("merged")
    words = AutoTokenizer.from_pretrained("merged")
    assert [model.config.id2label[i] for i in range(5)] == [*NAMES["intent"], *NAMES["mood"]]
    parts = [AutoModelForSequenceClassification.from_pretrained(name) for name in NAMES]
    mean = sum(part.bert.encoder.layer[1].output.dense.weight for part in parts) / 2
    torch.testing.assert_close(model.bert.encoder.layer[1].output.dense.weight, mean)
    # What was measured is what the saved model answers.
    rows = Dataset.from_parquet("mood.parquet")
    batch = words(rows["text"][:], padding=True, return_tensors="pt")
    answers = model(**batch).logits[:, 2:].argmax(dim=1).tolist()
    right = sum(NAMES["mood"][a] == label for a, label in zip(answers, rows["label"], strict=True))
    assert report.evaluation.rows[-1].per_task["mood"] == right / 12

    export("merged", "mood", "mood_only")
    assert pipeline("text-classification", "mood_only")("play a song")[0]["label"] in NAMES["mood"]
    again = reevaluate("merged", [{"task": "mood", "data": "mood.parquet"}], force=True)
    assert again.evaluation.rows[-1].per_task == {"mood": right / 12}

    card = ModelCard.load("merged/README.md")
    assert card.data.pipeline_tag == "text-classification"
    monkeypatch.chdir("merged")
    capsys.readouterr()
    for block in re.findall(r"^```python\n(.*?)^```$", card.text, re.DOTALL | re.MULTILINE):
        exec(block, {})
    shown = capsys.readouterr().out
    assert shown.count("label") == 1
    assert re.findall(r"^(\w+) \w+$", shown, re.MULTILINE) == list(NAMES)
    assert "the longest text of the first task's data" in card.text


def test_a_card_of_texts_without_a_tokenizer_runs(workshop, monkeypatch, capsys):
    models = [bert(seed=i, names=names) for i, names in enumerate(NAMES.values())]
    result = merge(models=models, calibration=None, evaluation=None)
    result.save_pretrained("merged")
    card = ModelCard.load("merged/README.md").text
    assert "No tokenizer is saved with the model" in card
    (block,) = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir("merged")
    capsys.readouterr()
    exec(block, {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(NAMES)


def test_data_in_memory_give_the_same_as_files(workshop):
    texts = [line for line in (workshop / "texts.txt").read_text().splitlines() if line]
    evaluation = {name: Dataset.from_parquet(f"{name}.parquet") for name in NAMES}
    models = [bert(seed=seed, names=names) for seed, names in enumerate(NAMES.values())]
    files = merge()
    memory = merge(models=models, calibration=texts, evaluation=evaluation, processor=tokenizer())
    values = [[row.per_task for row in r.report.evaluation.rows] for r in (files, memory)]
    assert values[0] == values[1]


def test_evaluation_data_of_an_unknown_task(workshop):
    with pytest.raises(
        hf_zip.HfZipError, match=r"unknown task under 'evaluation' 'moods'. Did you"
    ):
        merge(evaluation={"moods": Dataset.from_parquet("mood.parquet")})


def test_words_in_another_order_change_nothing(workshop):
    expected = merge()
    reordered(bert(seed=1, names=NAMES["mood"])).save_pretrained("mood")
    tokenizer(SHUFFLED).save_pretrained("mood")
    found = merge()
    for name, parameter in expected.model.named_parameters():
        assert torch.equal(found.model.get_parameter(name), parameter), name
    tables = [[row.per_task for row in r.report.evaluation.rows] for r in (expected, found)]
    assert tables[0] == tables[1]
    told = "the word embeddings of 'mood' are put into the order of the first's"
    assert sum(told in finding for finding in found.report.findings) == 1
    assert not any(told in finding for finding in expected.report.findings)


def test_the_command_line_takes_texts(workshop):
    arguments = ["merge", *NAMES, "--method", "average", "--calibration", "texts.txt", "--force"]
    arguments += ["--evaluation", "mood=mood.parquet:text", "--out", "merged"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.exception
    assert "one trunk (intent)" in result.output


def test_a_folder_with_nothing_but_a_vocabulary_has_a_tokenizer(workshop):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (workshop / "mood" / file).unlink()
    (workshop / "mood" / "vocab.txt").write_text("\n".join(tokenizer().get_vocab()))
    assert type(load_source("mood").processor).__name__.startswith("BertTokenizer")
