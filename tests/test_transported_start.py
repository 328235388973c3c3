"""Rootings that begin as the root with a model's task vector brought to it."""

import copy
import json

import pytest
import torch
from transformers import BertForMaskedLM
from typer.testing import CliRunner

import hf_zip
from hf_zip.adapters import adapter_of
from hf_zip.card import render_card
from hf_zip.cli import app
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.plain import build
from hf_zip.refit.head import trunk_of
from hf_zip.rooted import rooting_card
from hf_zip.rooting.options import RootingOptions
from hf_zip.rooting.root import root_model
from hf_zip.transport import bring, pretrained
from tests.models import outputs, permuted, processor, random_inputs, rows, vit
from tests.test_transport import error, moved, trunk_state
from tests.texts import bert

STILL = {"steps": 0, "held_out": 0.0}
SHORT = {"steps": 2, "batch_size": 8, "held_out": 0.0}


def inputs_of(model, count=48):
    return rows(random_inputs(model, count, seed=7))


def rooted(model, root, own_base, **options):
    """A rooting that begins as a transport, of models in memory."""
    training = {"training": options.pop("training", STILL)}
    return hf_zip.root(
        model,
        root,
        inputs_of(model),
        parameters={"start": "transport", **training, **options},
        own_base=own_base,
        progress=False,
    )


@pytest.mark.parametrize("make", [vit, bert])
def test_a_fine_tune_of_a_permuted_root_begins_as_itself(make):
    root = make(3, 1).double()
    model = moved(root)
    found = rooted(permuted(model, 5), root, permuted(root, 5))
    assert error(model, found.model) <= 1e-8
    for name, parameter in found.model.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name), rtol=0, atol=1e-8)
    assert found.report.own_base.name == "own_base"
    # From the root alone the head can only be fitted.
    inputs = inputs_of(model)
    plain = hf_zip.root(
        permuted(model, 5), root, inputs, parameters={"training": STILL}, progress=False
    )
    assert error(model, plain.model) > 0.01


def test_of_an_unrelated_base_the_trunk_is_the_transport_and_the_head_is_fitted():
    root, own_base = vit(2, 1).double(), vit(2, 9).double()
    model, table = moved(own_base), adapter_of(root)
    found = rooted(model, root, own_base).model
    target = pretrained(model, trunk_state(root, table), table, "permute")
    running = {"batch_size": 32, "accelerator": make_accelerator(), "progress": False}
    given = (model, trunk_state(own_base, table), target, table, inputs_of(model))
    brought = bring(*given, alignment="permute", **running).model
    for name, tensor in trunk_of(brought, table).items():
        torch.testing.assert_close(found.get_parameter(name), tensor, rtol=0, atol=1e-12)
    inputs = random_inputs(model, 48, seed=7)
    with torch.no_grad():
        wanted, *got = (outputs(m, inputs) for m in (model, found, brought))
    fitted, along = ((own - wanted).square().mean().item() for own in got)
    assert fitted < 0.5 * along


def test_it_is_trained_from_there_and_the_root_is_one_end_of_the_way():
    root, own_base = vit(2, 1), vit(2, 9)
    model = moved(own_base)
    before = rooted(model, root, own_base)
    after = rooted(model, root, own_base, training=SHORT)
    name = "vit.layers.1.mlp.fc1.weight"
    own = [m.get_parameter(name) for m in (root, before.model, after.model)]
    assert 0 < (own[2] - own[1]).norm() < 0.1 * (own[1] - own[0]).norm()
    assert before.report.barrier >= 0
    card = rooting_card(after.report)
    assert "It began as the root with what model was fine-tuned to do beyond own\\_base" in card
    assert "| its own base | own\\_base |" in card


def merge(models, own_bases, method="rooting", base=None, **parameters):
    return hf_zip.merge(
        models,
        method=method,
        tasks=[f"task {k}" for k in range(len(models))],
        base_model=base,
        own_bases=own_bases,
        calibration=inputs_of(models[0]),
        parameters={"start": "transport", "training": STILL, **parameters},
        dtype="float64",
        labels="apart",
        progress=False,
    )


@pytest.mark.parametrize("root", [0, "base"])
def test_models_that_are_merged_begin_there(root):
    base = vit(2, 1).double()
    models = [moved(base, 3), permuted(moved(base, 4), 5)]
    then = {"then": "average", "root": root}
    given = base if root == "base" else None
    result = merge(models, [None, permuted(base, 5)], base=given, **then)
    assert list(result.report.barriers) == ["model_1"]
    origin = base if root == "base" else models[0]
    for name, tensor in trunk_state(moved(base, 4), adapter_of(base)).items():
        brought = origin.get_parameter(name) + tensor - base.get_parameter(name)
        wanted = (models[0].get_parameter(name) + brought) / 2
        torch.testing.assert_close(result.model.get_parameter(name), wanted, rtol=0, atol=1e-8)
    what = "base model" if root == "base" else "root"
    assert f"What it changed there was brought to the {what}." in render_card(result.report)
    assert [own.source for own in result.report.own_bases] == ["model_1"]


def test_a_student_may_begin_as_a_merge_of_what_was_brought():
    base = vit(2, 1).double()
    models, own_base = [moved(base, 3), permuted(moved(base, 4), 5)], permuted(base, 5)
    given = {"then_parameters": {"scaling": 0.4}}
    student = merge(models, [None, own_base], "distill", base, start_parameters=given).model
    wanted = hf_zip.merge(
        models,
        method="transport",
        tasks=["task 0", "task 1"],
        base_model=base,
        own_bases=[None, own_base],
        calibration=inputs_of(base),
        parameters=given,
        dtype="float64",
        labels="apart",
        progress=False,
    ).model
    assert error(wanted, student) <= 1e-8


def test_the_command_takes_the_own_base(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    from PIL import Image

    for i, image in enumerate(torch.randint(0, 255, (8, 8, 8, 3), dtype=torch.uint8)):
        Image.fromarray(image.numpy()).save(pictures / f"{i}.png")
    own_base = vit(2, 9)
    saved = {"pets": vit(2, 1), "base": own_base, "trees": moved(own_base)}
    for name, model in saved.items():
        model.save_pretrained(tmp_path / name)
        processor().save_pretrained(tmp_path / name)
    arguments = ["root", tmp_path / "trees", "--root", tmp_path / "pets", "--data", pictures]
    arguments += ["--own-base", tmp_path / "base", "--set", "start=transport"]
    arguments += ["--set", "training.steps=0", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "hf_zip_rooting.json").read_text())
    assert report["own_base"]["name"] == "base"
    assert report["parameters"]["start"] == "transport"
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be_brought_is_refused():
    root, own_base = vit(2, 1), vit(2, 9)
    model = moved(own_base)
    with pytest.raises(HfZipError, match="takes what the model was fine-tuned from; give own_base"):
        rooted(model, root, None)
    with pytest.raises(HfZipError, match="own_base is given, but start is 'root', which does not"):
        rooted(model, root, own_base, start="root")
    with pytest.raises(HfZipError, match="'own_base' and of 'model' are unrelated"):
        rooted(model, root, vit(2, 8))
    with pytest.raises(HfZipError, match="differ in intermediate_size, and only to models of the"):
        rooted(model, vit(2, 1, intermediate_size=24), own_base)
    with pytest.raises(HfZipError, match=r"models\.1 has no base_model of its own, so what it"):
        merge([root, model], None)
    with pytest.raises(HfZipError, match="'base_1' and of 'model_1' are unrelated"):
        merge([root, model], [None, vit(2, 8)])
    with pytest.raises(HfZipError, match=r"models\.1 has its own 'base_model', but 'rooting' bri"):
        merge([root, model], [None, own_base], start="root")
    keys = {"root": "merge", "root_parameters": {"size": 1.5}, "then": "average"}
    with pytest.raises(HfZipError, match=r"the root has .* of its own, and only to models of the"):
        merge([moved(own_base, 4), model], [own_base, own_base], **keys)


@pytest.mark.parametrize(
    ("table", "own_base", "message"),
    [
        (None, {}, "no table says what the features of ViTForImageClassification are"),
        (
            adapter_of(vit()),
            None,
            "what ViTForImageClassification was fine-tuned from is not given",
        ),
    ],
)
def test_a_start_that_is_not_known_is_refused(table, own_base, message):
    model = vit(2, 1)
    options = build(RootingOptions, {"start": "transport"}, "parameters")
    given = (model, {}, inputs_of(model, 8), options, 8, make_accelerator(), table)
    with pytest.raises(HfZipError, match=message):
        root_model(*given, own_base=own_base)


def test_a_masked_language_model_is_a_base_too():
    """It lacks the pooler and the head, which are rewritten to read the root's features."""
    root = bert(3, 1).double()
    model = moved(root)
    own_base = bert(seed=3, cls=BertForMaskedLM).double()
    whole = permuted(root, 5).bert.state_dict()
    own_base.bert.load_state_dict({k: v for k, v in whole.items() if not k.startswith("pooler")})
    bare = copy.deepcopy(own_base)
    mine = root.bert.state_dict()
    bare.bert.load_state_dict({k: v for k, v in mine.items() if not k.startswith("pooler")})
    assert error(model, rooted(permuted(model, 5), bare, own_base).model) <= 1e-8
