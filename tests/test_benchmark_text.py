"""The accuracy benchmark of texts, on sentences that are made here."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel

from tests.texts import WORDS, bert, tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import benchmark_text
import train_bert
import training

TINY = train_bert.Setting(
    width=16, layers=1, heads=2, words=80, epochs=8, batch=16, learning_rate=1e-2, longest=12
)


def write_parquet(path, count, seed, keys):
    """Random words and, somewhere among them, the one that is the class."""
    draw = random.Random(seed)
    others = [word for word in WORDS[:-1] if word not in keys]
    labels = [i % len(keys) for i in range(count)]
    texts = []
    for label in labels:
        words = [keys[label], *draw.choices(others, k=draw.randint(1, 5))]
        texts.append(" ".join(draw.sample(words, len(words))))
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(keys))})
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({"text": texts, "label": labels}, features=features).to_parquet(path)


@pytest.fixture
def folder(tmp_path):
    for seed, (name, keys) in enumerate(
        {"asked": ("who", "what"), "named": ("book", "song", "movie")}.items()
    ):
        write_parquet(tmp_path / name / "train.parquet", 120, seed, keys)
        write_parquet(tmp_path / name / "test.parquet", 24, 10 + seed, keys)
    return tmp_path


@pytest.fixture
def pretrained(folder):
    bert(labels=3, seed=4).half().save_pretrained(folder / "pretrained")
    tokenizer().save_pretrained(folder / "pretrained")
    return folder / "pretrained"


def call(main, monkeypatch, options, setting=TINY):
    """Calls a script with options, those of the setting included."""
    pairs = {**options, **{f"--{k.replace('_', '-')}": v for k, v in vars(setting).items()}}
    flat = [str(x) for k, v in pairs.items() for x in (k, *(v if isinstance(v, list) else [v]))]
    monkeypatch.setattr(sys, "argv", ["x", *flat])
    main()


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 19, 20, 50])
def test_a_schedule_takes_any_number_of_steps(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    schedule = training.one_cycle(optimizer, 1e-2, steps)
    rates = []
    for _ in range(steps):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1e-2 / 25)
    assert all(0 < rate <= 1e-2 for rate in rates)
    assert steps < 20 or rates[-1] < 1e-6


def test_training_learns_and_follows_its_seed(folder, monkeypatch, capsys):
    options = {"--data": folder / "asked", "--tokenizer-data": [folder / "asked", folder / "named"]}
    call(train_bert.main, monkeypatch, {**options, "--seed": 3, "--out": folder / "one"})
    assert "on 12 validation texts" in capsys.readouterr().out
    record = training.read_record(folder / "one")
    assert record["validation_accuracy"] > 0.9
    assert (record["init"], record["setting"]) == (None, vars(TINY))
    parts = training.split_validation(train_bert.read_texts(folder / "asked" / "train.parquet"))
    same = AutoTokenizer.from_pretrained(folder / "one")  # another one might number tokens anew
    train_bert.train_and_save(*parts, same, TINY, 3, folder / "two")
    one, two = (BertForSequenceClassification.from_pretrained(folder / n) for n in ("one", "two"))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, two.get_parameter(name)), name
    assert one.config.id2label == {0: "who", 1: "what"}
    assert "movie" in same.get_vocab()


def test_training_starts_from_a_checkpoint_with_a_new_head(folder, pretrained, monkeypatch):
    still = train_bert.Setting(epochs=1, batch=200, learning_rate=0, longest=12)
    options = {"--data": folder / "named", "--init": pretrained, "--out": folder / "model"}
    call(train_bert.main, monkeypatch, options, still)
    trained = BertForSequenceClassification.from_pretrained(folder / "model", dtype="auto")
    known = BertForSequenceClassification.from_pretrained(pretrained, dtype=torch.float32)
    for name, tensor in known.bert.state_dict().items():
        assert torch.equal(trained.bert.state_dict()[name], tensor), name
    assert not torch.equal(trained.classifier.weight, known.classifier.weight)
    assert trained.config.id2label == {0: "book", 1: "song", 2: "movie"}
    assert AutoTokenizer.from_pretrained(folder / "model").get_vocab() == tokenizer().get_vocab()
    record = training.read_record(folder / "model")
    found = {name: record["setting"][name] for name in ("width", "layers", "heads", "words")}
    assert found == {"width": 12, "layers": 2, "heads": 3, "words": len(tokenizer())}
    assert round(record["setting"]["mlp_ratio"] * 12) == known.config.intermediate_size
    assert record["init"] == "pretrained"


def test_a_checkpoint_and_a_new_tokenizer_exclude_each_other(folder, monkeypatch, capsys):
    options = {"--data": folder, "--out": folder, "--init": folder, "--tokenizer-data": [folder]}
    with pytest.raises(SystemExit):
        call(train_bert.main, monkeypatch, options)
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize(("samples", "kept"), [(512, [{"test": []}]), (1024, [])])
def test_groups_of_another_setting_are_not_known(samples, kept):
    record = {"samples": 512, "init": None, "groups": [{"test": []}]}
    assert benchmark_text.known_groups(record, {"samples": samples, "init": None}) == kept
    assert benchmark_text.known_groups({}, {"samples": samples}) == []


def test_calibration_texts_are_of_those_whose_they_are_called():
    asked, named = (
        train_bert.Texts(tuple(f"{x}{i}" for i in range(5)), (0,) * 5, ("",)) for x in "an"
    )
    data = {
        "asked": benchmark_text.Data(asked, named, named),
        "named": benchmark_text.Data(named, asked, asked),
    }
    alone = benchmark_text.calibration_texts(data, {}, 2, 0)
    found = benchmark_text.calibration_texts(data, {"other": ("o1", "o2", "o3")}, 2, 0)
    assert list(alone) == ["all tasks"]
    assert list(found) == ["all tasks", "asked", "named", "other"]
    assert found["all tasks"][:2] == alone["all tasks"][:2]  # whatever else is measured
    assert all(len(set(texts)) == len(texts) for texts in found.values())
    kinds = {name: [text[0] for text in texts] for name, texts in found.items()}
    assert kinds["all tasks"] == ["a", "n", *"aaa", *"nnn"]
    assert (kinds["asked"], kinds["named"], kinds["other"]) == (["a"] * 2, ["n"] * 2, ["o"] * 2)


@pytest.mark.slow
def test_the_benchmark_writes_every_row_and_no_folder(folder, pretrained, monkeypatch):
    options = {"--data": [folder / "asked", folder / "named"], "--cache": folder / "cache"}
    write_parquet(folder / "other" / "train.parquet", 60, 7, ("play", "best"))
    options |= {"--out": folder / "out", "--samples": 40, "--choices": []}
    options["--proxy"] = [folder / "other"]
    few = ("average, least-squares head", "zipfit 1.0")
    chosen = tuple(merge for merge in benchmark_text.MERGES if merge.name in few)
    monkeypatch.setattr(benchmark_text, "MERGES", chosen)
    monkeypatch.setattr(benchmark_text, "CHOICES", benchmark_text.CHOICES[:1])
    trained, train = [], benchmark_text.train_and_save
    monkeypatch.setattr(
        benchmark_text, "train_and_save", lambda *a: trained.append(a[5].name) or train(*a)
    )
    for _ in range(2):
        call(benchmark_text.main, monkeypatch, options)
    assert trained == ["asked_seed0", "named_seed1"]  # then the cache is used
    text = (folder / "out" / "text.md").read_text()
    results = json.loads((folder / "out" / "text.json").read_text())
    assert str(folder) not in text + json.dumps(results)
    record = results["asked + named"]
    assert record["command"].startswith("python scripts/benchmark_text.py --data asked named ")
    (group,) = record["groups"]
    names = [row["name"] for row in group["test"]]
    assert names[:3] == ["asked", "named", "ensemble"]
    alone = [f"zipfit 1.0, calibrated on {name}" for name in ("asked", "named", "other")]
    assert names[5:] == ["average, least-squares head", "zipfit 1.0", *alone]
    assert {row["samples"] for row in group["merges"].values()} == {40}
    assert [row["name"] for row in group["validation"]] == [*names, "head_penalty 0.01"]
    own = [row["per_task"] for row in group["test"][:3]]
    assert own[2] == {"asked": own[0]["asked"], "named": own[1]["named"]}
    assert all(text.count(f"\n| {name} |") >= 2 for name in names)

    lost = group["test"].pop(6)
    (folder / "out" / "text.json").write_text(json.dumps(results))
    made, merge = [], benchmark_text.run_merge
    monkeypatch.setattr(
        benchmark_text,
        "run_merge",
        lambda *a, **options: made.append(a[4].name) or merge(*a, **options),
    )
    call(benchmark_text.main, monkeypatch, {**options, "--resume": []})
    assert made == [lost["name"]]  # only what is missing is made
    again = json.loads((folder / "out" / "text.json").read_text())["asked + named"]["groups"]
    assert again[0]["test"][6] == lost
    del options["--proxy"]
    half = {"--init": pretrained, "--scratch": ["named"], "--scratch-epochs": 2}
    for names in (["asked", "named"], ["named", "asked"]):
        own = {"--data": [folder / name for name in names], "--cache": folder / names[0]}
        call(benchmark_text.main, monkeypatch, {**options, **half, **own})
    starts = [training.read_record(folder / "asked" / name) for name in trained[:2]]
    assert [(s["init"], s["scratch"]) for s in starts] == [("pretrained", x) for x in (False, True)]
    assert [s["setting"]["epochs"] for s in starts] == [TINY.epochs, 2]
    text = (folder / "out" / "text.md").read_text()
    assert "## asked (pretrained) + named (new weights)" in text
    assert "## Mean of 2 pairs" in text
    assert text.count("| better one trunk |") == 1
    bodies = [BertModel.from_pretrained(folder / "asked" / n) for n in trained[:2]]
    assert bodies[0].config.hidden_size == bodies[1].config.hidden_size == 12
