"""The published eight-task CLIP protocol, end to end on a Hub on this machine."""

import copy
import json
import string
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer

from hf_zip.adapters import adapters
from hf_zip.data import Table
from hf_zip.errors import HfZipError
from hf_zip.methods import method_named
from hf_zip.plain import build
from tests.data import random_images
from tests.models import randomise
from tests.test_hub_data import hub  # noqa: F401 - a fixture
from tests.test_towers import clip_processor

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import clip8_protocol
import clip8_rows
import clip8_tables
import reproduce_clip8

TASKS = ("eurosat", "svhn", "mnist")
COUNT = 12


def letters():
    """CLIP's tokenizer without merges, one token per letter."""
    known = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    vocabulary = [*known, *(f"{x}</w>" for x in known)]
    ids = {token: i for i, token in enumerate(vocabulary)}
    ids |= {"<|startoftext|>": len(ids), "<|endoftext|>": len(ids) + 1}
    return CLIPTokenizer(vocab=ids, merges=[])


@pytest.fixture(scope="module")
def processor():
    return CLIPProcessor(clip_processor().image_processor, letters())


@pytest.fixture(scope="module")
def clip(processor):
    """A small CLIP whose texts may be as long as the tasks'."""
    tokenizer, config = processor.tokenizer, adapters()["clip"].example().config
    config.text_config.update(
        {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 100,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    )
    torch.manual_seed(0)
    return randomise(CLIPModel(CLIPConfig(**config.to_dict())).eval())


@pytest.fixture(scope="module")
def encoders(clip):
    """A fine-tuned image encoder for each task."""
    found = {}
    for seed, name in enumerate(TASKS):
        found[name] = copy.deepcopy(clip.vision_model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in found[name].parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return found


@torch.no_grad()
def answers(model, processor, name, images):
    """What a whole CLIP says of images, as the published protocol has it, class by class."""
    task, embedded = clip8_protocol.clip_tasks()[name], []
    for label in task.classes:
        texts = [template.replace("{}", label) for template in task.templates]
        inputs = processor.tokenizer(texts, padding=True, return_tensors="pt")
        found = model.get_text_features(**inputs).pooler_output
        mean = (found / found.norm(dim=-1, keepdim=True)).mean(dim=0)
        embedded.append(mean / mean.norm())
    pixels = processor.image_processor(images, return_tensors="pt")
    seen = model.get_image_features(**pixels).pooler_output
    return (seen @ torch.stack(embedded).T).argmax(dim=1).tolist()


def files_of(model, folder, *processors):
    for each in (model, *processors):
        each.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def as_published(folder):
    """Renames an encoder's parameters as transformers did when such checkpoints were written."""
    weights = load_file(folder / "model.safetensors")
    weights = {f"vision_model.{name}": tensor for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def filled(hub, clip, encoders, processor, tmp_path):  # noqa: F811
    """The Hub with everything that three tasks need.

    Labels are what the CLIP itself says of the images of eurosat, and the fine-tuned model of
    those of svhn.
    """
    slug = clip8_protocol.ARCHITECTURES["B-32"]
    hub.add(f"openai/{slug}", files_of(clip, tmp_path / "base", processor))
    for seed, name in enumerate(TASKS):
        folder = tmp_path / name
        files = files_of(encoders[name], folder)
        hub.add(f"tanganke/{slug}_{name}", {**files, "model.safetensors": as_published(folder)})
        model = copy.deepcopy(clip)
        if name != "eurosat":
            model.vision_model.load_state_dict(encoders[name].state_dict())
        images, task = random_images(COUNT, seed), clip8_protocol.clip_tasks()[name]
        labels = answers(model, processor, name, images)
        assert len({*labels}) > 1
        names = [label.title() for label in task.classes]
        features = Features({"image": Image(), "label": ClassLabel(names=names)})
        rows = Dataset.from_dict({"image": images, "label": labels}, features=features)
        rows.to_parquet(folder / "test.parquet")
        place = task.config or "data"
        data = {
            f"{place}/test-00000-of-00001.parquet": (folder / "test.parquet").read_bytes(),
            f"{place}/train-00000-of-00001.parquet": b"nobody should ask for this",
        }
        if task.config:
            splits = [{"split": s, "path": f"{place}/{s}-*"} for s in ("train", "test")]
            configs = [{"config_name": task.config, "data_files": splits}]
            data["README.md"] = f"---\nconfigs: {json.dumps(configs)}\n---\n".encode()
        hub.add(f"datasets/{task.data}", data)
    return hub


@pytest.fixture
def call(monkeypatch, tmp_path):
    def run(*arguments):
        given = ["--tasks", *TASKS, "--out", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr(sys, "argv", ["reproduce_clip8.py", *given])
        reproduce_clip8.main()
        results = json.loads((tmp_path / "out" / "clip8.json").read_text())
        return results, (tmp_path / "out" / "clip8.md").read_text()

    return run


def test_the_protocol_end_to_end(filled, call, monkeypatch, tmp_path, capsys):
    methods = ["zero-shot", "fine-tuned", "average", "ties, sum"]
    results, text = call("--methods", *methods)
    title = "ViT-B/32, 3 tasks (EuroSAT, SVHN, MNIST)"
    record = results[title]
    assert list(record["rows"]) == methods
    per_task = {name: row["per_task"] for name, row in record["rows"].items()}
    assert per_task["zero-shot"]["eurosat"] == 1.0
    assert (per_task["fine-tuned"]["svhn"], per_task["fine-tuned"]["mnist"]) == (1.0, 1.0)
    assert min(per_task["zero-shot"].values()) < 1.0
    assert 0 < record["rows"]["average"]["average"] < 1
    assert record["images"] == dict.fromkeys(TASKS, COUNT)
    assert all(len(revision) == 40 for revision in record["data"].values())
    assert all(len(revision) == 40 for revision in record["models"].values())
    assert not filled.sent("GET", "resolve/.*train")
    # Another setting than the published one: what is published is not comparable.
    assert "published" not in text.partition("## ViT-B/32")[2].partition("- ")[0]
    assert text.count("\n| ") == 6
    assert str(tmp_path) not in text
    shown = capsys.readouterr().out
    assert "EuroSAT: 10 of 10 classes are called in the data what CLIP is told" in shown
    assert "average: " in shown

    monkeypatch.setattr(reproduce_clip8, "each_on_its_own", None)  # they are known
    again, _ = call("--methods", *methods, "iso_c", "--resume")
    assert list(again[title]["rows"]) == [*methods, "iso_c"]
    assert all(again[title]["rows"][name] == record["rows"][name] for name in methods)
    limited, _ = call("--methods", "average", "--limit", "5", "--seed", "3")
    assert list(limited) == [title, f"{title}, 5 images each, seed 3"]
    assert limited[f"{title}, 5 images each, seed 3"]["images"] == dict.fromkeys(TASKS, 5)


@pytest.fixture
def with_training(filled, tmp_path):
    """Training images of other numbers beside the test images, without right labels."""
    for seed, name in enumerate(TASKS):
        task = clip8_protocol.clip_tasks()[name]
        feature = ClassLabel(names=[label.title() for label in task.classes])
        rows = {"image": random_images(8 + seed, seed + 9), "label": [0] * (8 + seed)}
        features = Features({"image": Image(), "label": feature})
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
        files = filled.repos[f"datasets/{task.data}"].files()
        at = f"{task.config or 'data'}/train-00000-of-00001.parquet"
        filled.add(
            f"datasets/{task.data}", {**files, at: (tmp_path / "train.parquet").read_bytes()}
        )
    return filled


def watched(monkeypatch):
    """What merges are given, as they are called."""
    seen, merge = [], reproduce_clip8.hf_zip.merge

    def watch(*arguments, **keys):
        seen.append(keys)
        return merge(*arguments, **keys)

    monkeypatch.setattr(reproduce_clip8.hf_zip, "merge", watch)
    return seen


def test_regressions_see_so_many_training_images_and_no_labels(with_training, call, monkeypatch):
    rows = [replace(row, images=8) if row.images else row for row in clip8_rows.ROWS]
    monkeypatch.setattr(reproduce_clip8, "ROWS", tuple(rows))
    seen = watched(monkeypatch)
    results, text = call("--methods", "average", "regmean")
    (record,) = results.values()
    assert 0 < record["rows"]["regmean"]["average"] < 1
    assert record["images"] == dict.fromkeys(TASKS, COUNT)
    assert with_training.sent("GET", "resolve/.*train")
    assert "- regmean: 256 training images of each task" in text
    assert seen[0]["own_calibration"] is None
    given = seen[1]["own_calibration"]
    assert [inputs.description["data"] for inputs in given] == [
        clip8_protocol.clip_tasks()[name].data for name in TASKS
    ]
    for inputs in given:
        assert (len(inputs), inputs.description["split"], inputs.description["rows"]) == (
            8,
            "train",
            8,
        )
        assert inputs[0].keys() == {"pixel_values"}


@pytest.mark.slow
def test_adamerging_learns_from_the_measured_images(filled, call, monkeypatch):
    few = {"training": {"steps": 2, "batch_size": 2}}
    rows = [replace(r, parameters={**r.parameters, **few}) for r in clip8_rows.ROWS if r.split]
    monkeypatch.setattr(reproduce_clip8, "ROWS", tuple(rows))
    seen = watched(monkeypatch)
    names = ["adamerging, task", "adamerging, layer"]
    results, text = call("--methods", *names, "--limit", "5")
    (record,) = results.values()
    assert list(record["rows"]) == names
    assert not filled.sent("GET", "resolve/.*train")
    for keys in seen:
        assert [len(inputs) for inputs in keys["own_calibration"]] == [5] * 3
        assert {inputs.description["split"] for inputs in keys["own_calibration"]} == {"test"}
        assert keys["own_calibration"][0][0].keys() == {"pixel_values"}
    assert "learnt from the images of the test split, without labels" in text


def test_without_a_hub_it_says_what_is_asked_for(call, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = (
        r"(?s)'openai/clip-vit-base-patch32' .* neither in reach nor .*tanganke/clip-vit-base-"
        r"patch32_mnist and the data sets tanganke/eurosat, .* HF_HUB_OFFLINE is 1 and should be 0"
    )
    with pytest.raises(SystemExit, match=message):
        call()
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_had_are_named_and_nothing_is_written(filled, call, tmp_path):
    test = "data/test-00000-of-00001.parquet"
    filled.add("datasets/ylecun/mnist", {test: b"no parquet"})
    with pytest.raises(SystemExit, match=r"data 'ylecun/mnist' cannot be had: .*\nAsked for are"):
        call()
    filled.add("datasets/ylecun/mnist", {"data/train-00000-of-00001.parquet": b""})
    with pytest.raises(SystemExit, match="data 'ylecun/mnist' have no split 'test'"):
        call()
    del filled.repos["datasets/ylecun/mnist"]
    with pytest.raises(SystemExit, match="data 'ylecun/mnist' are no data set that you may read"):
        call()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "mnist", "imagenet"], "invalid choice: 'imagenet'"),
        (["--methods", "magic"], "invalid choice: 'magic'"),
        (["--tasks", "mnist"], "--tasks names one task, but two or more models are merged"),
        (["--limit", "0"], "--limit is 0; it should be 1 or more"),
    ],
)
def test_unknown_choices_are_refused(arguments, message, call, capsys):
    with pytest.raises(SystemExit):
        call(*arguments)
    assert message in capsys.readouterr().err


def table(names, labels=(0, 1)):
    feature = ClassLabel(names=names) if names else Value("int64")
    rows = {"image": random_images(len(labels)), "label": list(labels)}
    features = Features({"image": Image(), "label": feature})
    return Table("data", Dataset.from_dict(rows, features=features), "test")


def test_classes_are_compared_with_what_the_data_call_them():
    task = clip8_protocol.clip_tasks()["eurosat"]
    own = list(task.classes)
    own[1], own[8], own[0] = own[8], own[1], "AnnualCrop"
    found = clip8_protocol.compare_classes(task, table(own))
    assert found == {"classes": 10, "same": 7, "elsewhere": ["river", "forest"]}
    line = clip8_protocol.comparison_line(task, found)
    assert "7 of 10 classes" in line
    assert "At ANOTHER place stand 'river', 'forest': is the order right?" in line
    assert clip8_protocol.compare_classes(task, table(None)) == {}
    assert "the data name no classes" in clip8_protocol.comparison_line(task, {})
    with pytest.raises(HfZipError, match="have 9 classes, but task 'eurosat' has 10; labels are"):
        clip8_protocol.compare_classes(task, table(own[:9]))


def test_the_tasks_are_those_of_the_protocol():
    tasks = clip8_protocol.clip_tasks()
    sizes = {name: (len(task.classes), len(task.templates)) for name, task in tasks.items()}
    assert sizes == {
        "sun397": (397, 2),
        "stanford-cars": (196, 8),
        "resisc45": (45, 18),
        "eurosat": (10, 3),
        "svhn": (10, 1),
        "gtsrb": (43, 3),
        "mnist": (10, 1),
        "dtd": (47, 8),
    }
    for task in tasks.values():
        assert len({*task.classes}) == len(task.classes)
        assert all("{}" in template for template in task.templates)
    # Simple averaging of ViT-B/32, published with all digits.
    exact = {"svhn": 0.6451674699783325, "stanford-cars": 0.625668466091156}
    for name, accuracy in exact.items():
        right = accuracy * tasks[name].images
        assert right == pytest.approx(round(right), abs=0.01)


def test_published_averages_are_those_of_their_tasks():
    for architecture in clip8_protocol.ARCHITECTURES:
        for row in clip8_protocol.published(architecture).values():
            if "tasks" in row:
                assert sum(row["tasks"]) / 8 == pytest.approx(row["average"], abs=0.11)


def test_rows_are_methods_with_options_that_they_have():
    assert len({*clip8_rows.all_names()}) == len(clip8_rows.all_names())
    for row in clip8_rows.ROWS:
        method = method_named(row.method)
        build(method.options, row.parameters, row.name)
        assert method.requires.calibration == (row.split is not None)
        assert (row.name in clip8_rows.dataless_names()) == (row.split is None)
        assert row.published is None or row.published in clip8_protocol.published("B-32")


def record_of(images, names):
    """Results as if the accuracy of every row were a point above what is published."""
    rows = {}
    for name in names:
        known = clip8_tables.published_row("B-32", name)
        values = [x / 100 + 0.01 for x in (known or {}).get("tasks", [50.0] * 8)]
        rows[name] = {
            "name": name,
            "parameters": {"scaling": 0.3},
            "published": known,
            "note": "a note" if name == "karcher" else "",
            "per_task": dict(zip(images, values, strict=True)),
            "average": (known or {}).get("average", 50.0) / 100 + 0.01,
        }
    return {
        "command": "python x",
        "tasks": list(images),
        "images": images,
        "versions": {"torch": "2"},
        "classes": ["all alike"],
        "rows": rows,
    }


def test_published_accuracies_stand_beside_those_of_the_published_setting():
    images = {name: task.images for name, task in clip8_protocol.clip_tasks().items()}
    names = ["zero-shot", "task_arithmetic", "iso_c", "karcher"]
    record = record_of(images, names)
    text = "\n".join(clip8_tables.report({"ViT-B/32, 8 tasks": record}))
    assert "| task_arithmetic | `scaling=0.3` | 58.1 | 56.7 |" in text
    assert "| 69.0 | 68.0 | +1.0 |" in text
    assert "| 83.8 | 82.8 | +1.0 |" in text
    assert "| karcher | `scaling=0.3` |" + " 51.0 |" * 9 + "  |  |" in text
    # Of iso_c an average alone is published, of karcher nothing.
    differences = text.partition("measured here minus published")[2]
    assert differences.count("\n| ") == 3
    assert "| zero-shot |" + " +1.0 |" * 8 in differences
    assert "- karcher: a note" in text
    assert "- all alike" in text
    row = record["rows"]["task_arithmetic"]
    assert clip8_tables.summary(record, row) == "task_arithmetic: 69.0 (published 68.0, +1.0)"

    fewer = record_of({**images, "dtd": 100}, names)
    text = "\n".join(clip8_tables.tables("ViT-B/32, 8 tasks, 100 images each", fewer))
    assert "published" not in text
    assert clip8_tables.summary(fewer, row) == "task_arithmetic: 69.0"
