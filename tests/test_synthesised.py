"""Images that a classifier synthesises."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil, ViTModel
from typer.testing import CliRunner

import hf_zip
from hf_zip.calibration import load_inputs
from hf_zip.cli import app
from hf_zip.data import names_data
from hf_zip.errors import HfZipError
from hf_zip.generated import generated_image, parts_of
from hf_zip.generated.inverted import Inversion, invert
from hf_zip.images import ImageReader
from hf_zip.metadata import _hub_data
from hf_zip.recipe import CalibrationSpec, EvaluationSpec
from hf_zip.redact import described_publicly
from hf_zip.report import Report
from hf_zip.synthesised import batch_statistics, synthesised_images
from hf_zip.texts import TextReader
from tests.launch import torchrun
from tests.models import processor, vit
from tests.texts import bert, tokenizer

NAME = "synthesised:"
CHANNELS = (0.2, 0.5, 0.8)


def saved(folder, model, **reading):
    model.save_pretrained(folder)
    processor(**reading).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Two image classifiers, whose processors scale channels apart, and a classifier of texts."""
    folder = tmp_path_factory.mktemp("work")
    reading = {"image_mean": CHANNELS, "image_std": CHANNELS}
    saved(folder / "pets", vit(5, 1), **reading)
    saved(folder / "trees", vit(3, 2), **reading)
    bert(2, 1).save_pretrained(folder / "mood")
    tokenizer().save_pretrained(folder / "mood")
    return folder


def draw(folder, count=32, seed=3):
    return synthesised_images(str(folder), count, seed, progress=False)


def read(images):
    """Images as the models of the workshop take them."""
    mean = torch.tensor(CHANNELS)
    pixels = torch.from_numpy(np.stack(images)) / 255
    return ((pixels - mean) / mean).movedim(3, 1)


# How pixels are changed.


def randomly(seed=0):
    return np.random.default_rng(seed)


def test_pixels_follow_the_loss_and_stay_between_black_and_white():
    images = torch.rand(6, 3, 8, 8, generator=torch.manual_seed(0))
    before, wanted = images.clone(), torch.tensor([0.1, 0.5, 0.9, 0.0, 1.0, 1.5])

    def loss(found):
        return (found.mean(dim=(1, 2, 3)) - wanted).square()

    inversion = Inversion(steps=80, learning_rate=0.05)
    found = invert(loss, images, randomly(), inversion)
    assert torch.equal(images, before)
    assert not found.requires_grad
    assert torch.allclose(found.mean(dim=(1, 2, 3))[:5], wanted[:5], atol=0.02)
    assert (found[5] > 0.9).float().mean() > 0.9
    assert 0 <= found.min() < found.max() <= 1
    with torch.no_grad():
        assert torch.equal(found, invert(loss, images, randomly(), inversion))


def test_other_images_of_a_batch_change_nothing():
    images = torch.rand(4, 1, 6, 6, generator=torch.manual_seed(0))
    kernel = torch.randn(1, 1, 3, 3, generator=torch.manual_seed(1))

    def loss(found):
        return nn.functional.conv2d(found, kernel).square().sum(dim=(1, 2, 3))

    together = invert(loss, images, randomly(), Inversion(steps=5))
    alone = invert(loss, images[2:3], randomly(), Inversion(steps=5))
    assert torch.allclose(together[2], alone[0], atol=1e-6)


def test_images_are_moved_and_mirrored_before_each_step():
    images = torch.arange(64.0).view(1, 1, 8, 8) / 63
    seen = []

    def loss(found):
        seen.append(found.detach().clone())
        return 0 * found.sum(dim=(1, 2, 3))

    invert(loss, images, randomly(), Inversion(steps=60))
    allowed = {
        (down, right, mirrored): images.roll((down, right), (2, 3)).flip((3,) * mirrored)
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        for mirrored in (0, 1)
    }
    found = {name for own in seen for name, other in allowed.items() if torch.equal(own, other)}
    assert len(found) == 18
    assert all(any(torch.equal(own, other) for other in allowed.values()) for own in seen)


# What a model makes of it.


def test_the_model_is_sure_of_all_labels_equally_often(workshop):
    images, notes = draw(workshop / "pets", 40)
    assert all(own.shape == (8, 8, 3) and own.dtype == np.uint8 for own in images)
    model = hf_zip.sources.load_source(str(workshop / "pets")).model
    starts = [generated_image(hf_zip.synthesised._START, 3, n, 8, 8) for n in range(40)]
    labels = np.random.default_rng(3).permutation(5)[np.arange(40) % 5]
    with torch.no_grad():
        logits = [model(pixel_values=read(own)).logits for own in (starts, images)]
    before, after = (nn.functional.cross_entropy(x, torch.tensor(labels)) for x in logits)
    assert after < 0.8 * before  # with random weights and four patches there is not much to gain
    assert notes.pop("model_sha256") == hf_zip.sources.load_source(str(workshop / "pets")).sha256
    assert notes == {"seed": 3, "synthesised_size": [8, 8], **vars(Inversion())}


def test_a_seed_and_a_number_decide_an_image(workshop):
    many, few = (draw(workshop / "trees", count)[0] for count in (40, 5))
    assert np.array_equal(few, many[:5])
    assert len({own.tobytes() for own in many}) == 40
    other = draw(workshop / "trees", 5, seed=4)[0]
    assert not {own.tobytes() for own in few} & {own.tobytes() for own in other}


def test_a_model_runs_on_whole_blocks_whatever_is_asked_for(workshop, monkeypatch):
    sizes = []

    def recorded(loss, images, *more):
        sizes.append(len(images))
        return images

    monkeypatch.setattr(hf_zip.synthesised, "invert", recorded)
    for count, blocks in ((1, 1), (32, 1), (33, 2)):
        assert len(draw(workshop / "pets", count)[0]) == count
        assert sizes == [32] * blocks
        sizes.clear()


def test_one_channel_will_do(tmp_path):
    saved(tmp_path, vit(3, 1, num_channels=1), image_mean=[0.5], image_std=[0.5])
    images, _ = draw(tmp_path, 4)
    assert images[0].shape == (8, 8, 1)


# Running statistics.


def test_statistics_of_a_batch_by_hand():
    model = nn.Sequential(nn.BatchNorm2d(2, eps=0.0), nn.BatchNorm2d(2, track_running_stats=False))
    model[0].running_mean.copy_(torch.tensor([1.0, 2.0]))
    model[0].running_var.copy_(torch.tensor([4.0, 1.0]))
    batch = torch.tensor([[[[3.0]], [[2.0]]], [[[-1.0]], [[6.0]]]])
    with batch_statistics(model.eval()) as found:
        model(batch)
        # Means 1 and 4, standard deviations 2 and 2.
        assert [own.item() for own in found] == pytest.approx([(0 + 0 + 4 + 1) / 2])
    model(batch)
    assert len(found) == 1


def test_images_of_a_model_with_batch_normalisation_have_its_statistics(tmp_path):
    config = ResNetConfig(
        embedding_size=6, hidden_sizes=[8, 10], depths=[1, 1], layer_type="basic", num_labels=3
    )
    torch.manual_seed(0)
    model = ResNetForImageClassification(config)
    seen = torch.rand(64, 3, 16, 16) / 4  # dark images
    model.train()
    with torch.no_grad():
        for _ in range(30):
            model(pixel_values=seen)
    saved(tmp_path, model, size={"height": 16, "width": 16}, image_mean=[0] * 3, image_std=[1] * 3)
    images, notes = draw(tmp_path, 32)
    assert notes["synthesised_size"] == [16, 16]
    starts = [generated_image(hf_zip.synthesised._START, 3, n, 16, 16) for n in range(32)]
    away = []
    for own in (starts, images):
        with torch.no_grad(), batch_statistics(model.eval()) as found:
            model(pixel_values=torch.from_numpy(np.stack(own)).movedim(3, 1) / 255)
        away.append(sum(found).item())
    assert away[1] < 0.5 * away[0]


# As data.


def test_images_are_read_by_the_processor_of_the_merge(workshop):
    name = f"{NAME}{workshop / 'pets'}"
    spec = CalibrationSpec(data=(name,), samples=6)
    found = load_inputs(spec, ImageReader(processor(), 3, 8), 3, progress=False)
    images, notes = draw(workshop / "pets", 6)
    wanted = torch.from_numpy(np.stack(images)).movedim(3, 1) / 127.5 - 1
    got = torch.stack([row["pixel_values"] for row in found])
    assert torch.allclose(got, wanted, atol=1e-5)
    assert found.description == {"data": name, "rows": 6, **notes}


def test_a_merge_by_the_command_line(workshop, tmp_path):
    folders = [str(workshop / name) for name in ("pets", "trees")]
    arguments = ["merge", *folders, "--method", "average", "--samples", "7", "--seed", "4"]
    for folder in folders:
        arguments += ["--calibration", NAME + folder]
    arguments += ["--force", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = Report.from_json((tmp_path / "out" / "hf_zip_report.json").read_text())
    assert [part["rows"] for part in report.calibration["parts"]] == [4, 3]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert f"data: {NAME}pets; " in card.text.replace("\\", "")
    assert str(workshop) not in card.content


def test_a_model_is_rooted_on_its_own_images(workshop, tmp_path):
    arguments = ["root", str(workshop / "trees"), "--root", str(workshop / "pets"), "--data"]
    arguments += [f"{NAME}{workshop / 'trees'}", "--samples", "8", "--seed", "3"]
    arguments += ["--set", "training.steps=1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "out" / "hf_zip_rooting.json").read_text())["data"]
    assert (data["rows"], data["seed"], data["steps"]) == (8, 3, Inversion().steps)
    assert f"{NAME}trees" in (tmp_path / "out" / "README.md").read_text()


def test_the_name_is_known_wherever_names_of_data_are():
    assert parts_of("synthesised:org/pets") == (NAME, "org/pets")
    assert names_data("synthesised:org/pets")
    assert described_publicly({"data": "synthesised:/home/me/pets"}) == {"data": "synthesised:pets"}
    described = {"data": "synthesised:org/pets", "model_revision": "d" * 40}
    assert list(_hub_data(described)) == []


@pytest.mark.slow
def test_two_processes_synthesise_the_same_images(workshop, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys
import numpy as np
from hf_zip.collect import make_accelerator
from hf_zip.synthesised import synthesised_images
found, _ = synthesised_images(sys.argv[1], 70, 3, progress=False)
accelerator = make_accelerator()
np.save(f"{sys.argv[2]}{accelerator.process_index}.npy", np.stack(found))
accelerator.wait_for_everyone()
accelerator.end_training()
"""
    )
    torchrun(script, workshop / "pets", tmp_path / "found", processes=2)
    alone = np.stack(draw(workshop / "pets", 70)[0])
    for process in (0, 1):
        assert np.array_equal(np.load(tmp_path / f"found{process}.npy"), alone)


# What is refused.


def test_models_that_choose_no_label_of_images_are_refused(workshop, tmp_path):
    with pytest.raises(HfZipError, match="takes input_ids, so synthesised: cannot synthesise"):
        draw(workshop / "mood")
    several = vit(3, 1, problem_type="multi_label_classification")
    with pytest.raises(HfZipError, match="is of kind multi-label-classification and does not cho"):
        draw(saved(tmp_path / "several", several))
    with pytest.raises(HfZipError, match="ViTModel, is of kind features and does not choose one"):
        draw(saved(tmp_path / "bare", ViTModel(vit(3, 1).config)))
    with pytest.raises(
        HfZipError, match="is of kind regression and does not choose one of several"
    ):
        draw(saved(tmp_path / "one", vit(1, 1)))
    with pytest.raises(HfZipError, match="nowhere"):
        draw("nowhere")


def test_a_processor_that_does_not_scale_pixels_is_refused(workshop, tmp_path, monkeypatch):
    vit(3, 1).save_pretrained(tmp_path / "alone")
    with pytest.raises(HfZipError, match="hold images, but the models have no image processor"):
        draw(tmp_path / "alone")
    read = ViTImageProcessorPil.__call__

    def framed(self, **given):
        found = read(self, **given)
        found["pixel_values"][0][..., 0] = 7.0
        return found

    with monkeypatch.context() as patched:
        patched.setattr(ViTImageProcessorPil, "__call__", framed)
        with pytest.raises(HfZipError, match="does more to pixels than to scale them, so synthesi"):
            draw(workshop / "pets")
    blind = saved(tmp_path / "blind", vit(3, 1), rescale_factor=0.0)
    with pytest.raises(HfZipError, match="does more to pixels than to scale them, so synthesi"):
        draw(blind)


def test_merges_that_take_no_images_are_refused_before_the_model_is_loaded():
    spec = CalibrationSpec(data=("synthesised:nowhere",))
    with pytest.raises(HfZipError, match="draws images, but the models take texts; name a data"):
        load_inputs(spec, TextReader(tokenizer(), 16, 128), 0)
    with pytest.raises(HfZipError, match="'synthesised:nowhere' hold images, but the models have"):
        load_inputs(spec, ImageReader(None, 3, 8), 0)
    with pytest.raises(HfZipError, match="'synthesised:' names nothing to draw images from; name"):
        CalibrationSpec(data=(NAME,))
    with pytest.raises(HfZipError, match="on 'synthesised:pets', whose images have no labels"):
        EvaluationSpec(task="pets", data="synthesised:pets")
    with pytest.raises(HfZipError, match="'synthesised:pets' is named twice"):
        load_inputs(CalibrationSpec(data=("synthesised:pets",) * 2), ImageReader(processor()), 0)
