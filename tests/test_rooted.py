import json

import pytest
import torch
from transformers import AutoModelForImageClassification
from typer.testing import CliRunner

import hf_zip
from hf_zip.cli import app
from hf_zip.errors import HfZipError
from hf_zip.rooted import rooting_card
from tests.models import processor, random_inputs, vit
from tests.texts import bert

SHORT = {"training": {"steps": 2, "batch_size": 4, "held_out": 0.0}}


def pixels(count=12):
    return random_inputs(vit(), count, seed=5)["pixel_values"]


def saved(folder, model):
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """A folder of images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    from PIL import Image

    for i, image in enumerate(torch.randint(0, 255, (8, 8, 8, 3), dtype=torch.uint8)):
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
    return folder


def test_the_command_writes_a_model_that_is_a_sibling_of_its_root(tmp_path, pictures):
    model = saved(tmp_path / "trees", vit(3, 1))
    root = saved(tmp_path / "pets", vit(2, 2))
    out = tmp_path / "rooted"
    arguments = ["root", model, "--root", root, "--data", pictures, "--out", out, "--samples", 8]
    arguments += ["--set", "training.steps=2", "--set", "training.batch_size=4", "--seed", 3]
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "rooting, 2 steps" in result.output
    assert "loss barrier" in result.output
    rooted = AutoModelForImageClassification.from_pretrained(out)
    assert list(rooted.config.id2label.values()) == [f"class 1.{i}" for i in range(3)]
    report = json.loads((out / "hf_zip_rooting.json").read_text())
    assert (report["seed"], report["trained"]["steps"], report["data"]["rows"]) == (3, 2, 8)
    card = (out / "README.md").read_text()
    assert "# trees, rooted in pets" in card
    assert str(tmp_path) not in card
    assert not list(tmp_path.glob("*.checkpoints"))
    merged = hf_zip.merge([str(root), str(out)], method="average", progress=False)
    assert merged.report.shared_init
    with pytest.raises(HfZipError, match="is not empty and holds no"):
        hf_zip.root(str(model), str(root), str(pictures), out=out)


def test_a_run_that_died_goes_on(tmp_path, monkeypatch):
    models, out = (vit(3, 1), vit(2, 2)), tmp_path / "rooted"
    keys = {"parameters": SHORT, "progress": False}
    expected = hf_zip.root(*models, pixels(), **keys).model

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hf_zip.rooting.root.loss_barrier", die)
        with pytest.raises(KeyboardInterrupt):
            hf_zip.root(*models, pixels(), out=out, **keys)
    assert (tmp_path / "rooted.checkpoints" / "checkpoint-2").is_dir()
    assert not out.exists()
    found = hf_zip.root(*models, pixels(), out=out, **keys)
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, found.model.get_parameter(name)), name
    assert out.is_dir()
    assert not (tmp_path / "rooted.checkpoints").exists()
    assert found.report.parameters["training"]["checkpoints"] is None


def test_the_card_warns_of_a_barrier():
    report = hf_zip.root(vit(3, 1), vit(2, 2), pixels(), parameters=SHORT, progress=False).report
    assert "above the tolerance" not in rooting_card(report)
    high = type(report)(**{**vars(report), "barrier": 0.25})
    assert "25.0 % of the larger loss at the ends, which is above the tolerance of 10.0 %" in (
        rooting_card(high)
    )


def test_a_root_of_another_family_is_refused():
    with pytest.raises(HfZipError, match="'model' has a ViTConfig, but its root 'root' a BertConf"):
        hf_zip.root(vit(3, 1), bert(2, 2), pixels(), parameters=SHORT)


def test_a_root_of_another_kind_is_refused():
    with pytest.raises(HfZipError, match="hidden_act"):
        hf_zip.root(vit(3, 1), vit(2, 2, hidden_act="relu"), pixels(), parameters=SHORT)


@pytest.mark.parametrize("size", [1.0, 0.5])
def test_a_root_may_have_widths_of_its_own(size):
    models = [vit(3, 1), vit(2, 2)]
    keys = {"calibration": pixels(24), "progress": False}
    root = hf_zip.merge(models, method="zipfit", parameters={"size": size}, **keys).model
    assert root.config.num_attention_heads != models[0].config.num_attention_heads or size != 1
    still = {"training": {"steps": 0, "held_out": 0.0}}
    found = hf_zip.root(models[1], root, pixels(24), parameters=still, progress=False).model
    assert found.config.num_labels == 2
    with torch.no_grad():
        features = [own.vit(pixels()).last_hidden_state for own in (found, root)]
    torch.testing.assert_close(*features)
    loss = hf_zip.root(models[1], root, pixels(24), parameters=SHORT, progress=False).report
    assert loss.trained.steps == 2


def test_a_root_of_other_blocks_is_refused():
    with pytest.raises(HfZipError, match="differ in num_hidden_layers, 2 and 3; a model can only"):
        hf_zip.root(vit(3, 1), vit(2, 2, num_hidden_layers=3), pixels(), parameters=SHORT)
