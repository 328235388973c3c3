"""The accuracy benchmark, on images that are made here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoImageProcessor, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import benchmark_zip
import train_vit
import training
import zip_tables

NAMES = ["north", "east", "south", "west"]
TINY = train_vit.Setting(
    width=16, layers=1, heads=2, patch=4, epochs=3, batch=16, shift=1, learning_rate=1e-2
)


def write_parquet(path, count, seed, mode="L", size=8):
    """Noise with one bright quarter, which is the class."""
    noise = np.random.default_rng(seed)
    images, labels = [], []
    for i in range(count):
        pixels = noise.integers(0, 100, (size, size), dtype=np.uint8)
        row, column = divmod(i % 4, 2)
        half = size // 2
        pixels[row * half : (row + 1) * half, column * half : (column + 1) * half] += 150
        images.append(Image.fromarray(pixels).convert(mode))
        labels.append(i % 4)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=NAMES)})
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(path)


@pytest.fixture
def folder(tmp_path):
    write_parquet(tmp_path / "shapes" / "train.parquet", 160, 0)
    write_parquet(tmp_path / "shapes" / "test.parquet", 40, 1)
    write_parquet(tmp_path / "colours" / "train.parquet", 30, 2, mode="RGB", size=10)
    return tmp_path


@pytest.fixture
def images(folder):
    return train_vit.read_images(train_vit.data_files([folder / "shapes"], "train"))


@pytest.mark.parametrize(
    ("text", "classes"), [("0-4", (0, 1, 2, 3, 4)), ("7", (7,)), ("3,0-1", (3, 0, 1))]
)
def test_classes_are_lists_with_ranges(text, classes):
    assert train_vit.parse_classes(text) == classes


def test_a_folder_without_the_split_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"no train\*\.parquet"):
        train_vit.data_files([tmp_path], "train")


def test_classes_are_renumbered_in_the_order_given(images):
    chosen = images.of_classes([3, 1])
    assert chosen.names == ("west", "east")
    assert len(chosen) == 80
    quarter = chosen.pixels[chosen.labels == 0][:, 0, 4:, 4:]  # "west" lights the last quarter
    assert quarter.min() >= 150


def test_validation_rows_are_apart_and_always_the_same(images):
    kept, validation = training.split_validation(images)
    assert (len(kept), len(validation)) == (144, 16)
    known = {tuple(pixels.flatten().tolist()) for pixels in kept.pixels}
    assert not known & {tuple(pixels.flatten().tolist()) for pixels in validation.pixels}
    assert torch.equal(training.split_validation(images)[1].pixels, validation.pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_values_are_those_of_the_processor(folder, channels):
    files = [folder / "colours" / "train.parquet"]
    images = train_vit.read_images(files, channels, limit=7)
    assert images.pixels.shape == (7, channels, 10, 10)
    first = images.pixels[0].permute(1, 2, 0).numpy()
    picture = Image.fromarray(first if channels == 3 else first[..., 0])
    found = train_vit.processor_for(images)(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(train_vit.pixel_values(images.pixels[0]), found)


def test_augmentation_moves_and_mirrors():
    pixels = torch.arange(36.0).reshape(1, 1, 6, 6).expand(200, 1, 6, 6)
    still = train_vit.augment(pixels, 0)
    kept = (still == pixels).flatten(1).all(dim=1)
    mirrored = (still == pixels.flip(3)).flatten(1).all(dim=1)
    assert (kept ^ mirrored).all()
    assert 50 < kept.sum() < 150
    corners = {
        tuple(image[0, 2:4, 2:4].flatten().tolist()) for image in train_vit.augment(pixels, 1)
    }
    assert len(corners) == 3 * 3 * 2


def test_training_learns_and_follows_its_seed(images, tmp_path):
    parts = training.split_validation(images)
    setting = train_vit.Setting(**{**vars(TINY), "epochs": 20})
    record = train_vit.train_and_save(*parts, (0, 2), setting, 5, tmp_path / "model")
    assert record["validation_accuracy"] > 0.9
    again = train_vit.train(parts[0].of_classes([0, 2]), setting, 5)
    saved = ViTForImageClassification.from_pretrained(tmp_path / "model")
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert saved.config.id2label == {0: "north", 1: "south"}
    assert AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil").size["height"] == 8
    assert train_vit.accuracy(saved, parts[1].of_classes([0, 2])) == record["validation_accuracy"]


def test_training_from_the_command_line(folder, monkeypatch, capsys):
    where = {"--data": folder / "shapes", "--classes": "1-3", "--out": folder / "model"}
    options = {"--width": 8, "--layers": 1, "--heads": 1, "--patch": 4, "--epochs": 1}
    flat = [str(x) for pair in [*where.items(), *options.items()] for x in pair]
    monkeypatch.setattr(sys, "argv", ["x", *flat])
    train_vit.main()
    record = training.read_record(folder / "model")
    assert 0 < record["validation_images"] < 16
    assert f"on {record['validation_images']} validation images" in capsys.readouterr().out
    assert (record["classes"], record["setting"]["width"]) == ([1, 2, 3], 8)


def test_calibration_alternates_between_the_tasks(folder):
    data = benchmark_zip.read_data(folder / "shapes", [folder / "colours"], 12)
    found = benchmark_zip.calibration_images(data, {"a": (0, 1), "b": (2, 3)}, 12, 0)
    assert list(found) == [benchmark_zip.ALL, "a", "b", "colours"]
    assert torch.equal(found[benchmark_zip.ALL][:6:2], found["a"][:3])
    assert torch.equal(found[benchmark_zip.ALL][1:6:2], found["b"][:3])
    assert found["colours"].shape == (12, 1, 8, 8)
    other = benchmark_zip.calibration_images(data, {"a": (0, 1), "b": (2, 3)}, 12, 1)
    assert not torch.equal(found["a"], other["a"])


def test_the_benchmark_writes_every_row_and_no_folder(folder, monkeypatch, capsys):
    options = {f"--{name.replace('_', '-')}": str(value) for name, value in vars(TINY).items()}
    where = {"--data": folder / "shapes", "--cache": folder / "cache", "--out": folder / "out"}
    arguments = [*where.items(), ("--classes", "0,1"), ("--groups", "1"), ("--samples", "32")]
    flat = [str(x) for pair in [*arguments, *options.items()] for x in pair]
    flat.insert(flat.index("0,1") + 1, "2,3")
    monkeypatch.setattr(sys, "argv", ["x", *flat, "--proxy", str(folder / "colours")])
    monkeypatch.setattr(benchmark_zip, "CHOICES", benchmark_zip.CHOICES[:2])
    benchmark_zip.main()
    trained = capsys.readouterr().out.count(", seed ")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--choices"])
    benchmark_zip.main()
    assert (trained, capsys.readouterr().out.count(", seed ")) == (2, 0)  # the cache is used
    path = folder / "out" / "zip.json"
    known = json.loads(path.read_text())
    lost = known["shapes, 2 tasks"]["groups"][0]["test"].pop(7)
    path.write_text(json.dumps(known))
    made, merge = [], benchmark_zip.run_merge
    monkeypatch.setattr(benchmark_zip, "run_merge", lambda *a: made.append(a[4].name) or merge(*a))
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--resume"])
    benchmark_zip.main()
    assert made == [lost["name"]]  # only what is missing is made
    again = json.loads(path.read_text())["shapes, 2 tasks"]["groups"][0]["test"]
    assert again[7] == lost

    text = (folder / "out" / "zip.md").read_text()
    record = json.loads((folder / "out" / "zip.json").read_text())["shapes, 2 tasks"]
    assert str(folder) not in text + json.dumps(record)
    assert "--data shapes --cache cache" in record["command"]
    for group in record["groups"]:
        names = [row["name"] for row in group["test"]]
        assert names[:3] == ["classes 0,1", "classes 2,3", "ensemble"]
        assert names[-1] == "zipfit 1.0, calibrated on colours"
        assert len(names) == 5 + len(benchmark_zip.MERGES) + 3
        chosen = [row["name"] for row in group["choices"]]
        assert chosen == ["ensemble", "zipfit 1.0", "penalty 0.1"]
        own = [row["per_task"] for row in group["test"][:3]]
        assert own[2] == {
            "classes 0,1": own[0]["classes 0,1"],
            "classes 2,3": own[1]["classes 2,3"],
        }
        for name in names:
            assert f"\n| {name.replace('#', '')} |" in text


def test_spread_is_mean_and_standard_deviation():
    assert zip_tables.spread([0.5, 0.6]) == "55.0 ± 7.1"
    assert zip_tables.spread([0.5]) == "50.0"
    assert zip_tables.spread([None, None]) == ""


def test_differences_are_taken_group_by_group_from_the_best_control():
    def row(name, kind, left, right):
        mean = (left + right) / 2
        return {"name": name, "kind": kind, "per_task": {"l": left, "r": right}} | {
            "mean": mean,
            "joint": mean,
        }

    measured = [
        [
            row("ensemble", "ensemble", 0.9, 0.8),
            row("one trunk (l)", "control", 0.9, 0.1),
            row("one trunk (r)", "control", 0.6, 0.7),
            row("zipfit 1.0", "merge", 0.8, 0.8),
        ]
    ]
    _, _, to_ensemble, to_control = zip_tables.difference_table(measured)
    assert to_ensemble == "| ensemble | -10.0 (-10.0) | 0.0 (0.0) | -5.0 (-5.0) | -5.0 (-5.0) |"
    assert to_control.startswith("| best one-trunk control | 20.0 (20.0) | 10.0 (10.0) |")
