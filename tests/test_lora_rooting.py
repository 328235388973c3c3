import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import hf_zip
from hf_zip.adapters import adapter_of
from hf_zip.cli import app
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.plain import build
from hf_zip.rooting.options import RootingOptions
from hf_zip.rooting.root import root_model
from tests.models import random_inputs, rows, vit
from tests.test_rooted import saved
from tests.test_rooting import SHORT, root_in, trunk_state
from tests.texts import bert


@pytest.mark.parametrize("make", [vit, bert])
def test_what_is_changed_of_a_linear_layer_has_the_rank_and_all_else_is_the_roots(make):
    model, root = make(3, 1).double(), make(4, 2).double()
    training = {**SHORT, "learning_rate": 1e-2}
    inputs = rows(random_inputs(model, 24, seed=5))
    rooted = root_in(model, root, inputs, lora_rank=2, training=training).model
    assert [n for n, _ in rooted.named_parameters()] == [n for n, _ in model.named_parameters()]
    linear = {n for n, m in root.named_modules() if isinstance(m, nn.Linear)}
    for name, before in trunk_state(root).items():
        change = (rooted.get_parameter(name) - before).detach()
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight" and layer in linear:
            values = torch.linalg.svdvals(change)
            assert values[0] > 1e-4, name
            assert values[2] < 1e-10 * values[0], name
        else:
            assert not change.any(), name
    untrained = root_in(model, root, inputs, training={**SHORT, "steps": 0}, lora_rank=2).model
    assert not torch.equal(rooted.classifier.weight, untrained.classifier.weight)
    assert all(parameter.requires_grad for parameter in rooted.parameters())


def test_a_killed_rooting_by_lora_goes_on_to_the_same_weights(tmp_path):
    model, root = vit(3, 1), vit(3, 2)
    keys = {"inputs": rows(random_inputs(model, 20, seed=5)), "lora_rank": 2}
    expected = root_in(model, root, **keys)
    training = {**SHORT, "checkpoints": str(tmp_path)}
    root_in(model, root, **keys, training=training)
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()  # as if killed while writing it
    again = {**training, "checkpoint_activations": True}
    found = root_in(model, root, **keys, training=again)
    for name, parameter in expected.model.named_parameters():
        assert torch.equal(parameter, found.model.get_parameter(name)), name
    assert found.barrier == expected.barrier
    with pytest.raises(HfZipError, match=r"of another training: .*lora_rank"):
        root_in(model, root, **{**keys, "lora_rank": 3}, training=training)


def test_the_command_takes_a_rank(tmp_path):
    model = saved(tmp_path / "trees", vit(3, 1))
    root = saved(tmp_path / "pets", vit(2, 2))
    out = tmp_path / "rooted"
    arguments = ["root", model, "--root", root, "--data", "generated:noise", "--out", out]
    arguments += ["--samples", 8, "--set", "training.steps=2", "--set", "training.batch_size=4"]
    arguments += ["--set", "lora_rank=1"]
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads((out / "hf_zip_rooting.json").read_text())
    assert report["parameters"]["lora_rank"] == 1
    found = type(vit()).from_pretrained(out)
    change = found.vit.layers[0].mlp.fc1.weight - vit(2, 2).vit.layers[0].mlp.fc1.weight
    values = torch.linalg.svdvals(change.detach())
    assert values[1] < 1e-3 * values[0]


def test_a_rank_that_cannot_be_meant_is_refused():
    with pytest.raises(HfZipError, match=r"lora_rank is -1; it should be in"):
        RootingOptions(lora_rank=-1)
    model = vit(3, 1)
    options = build(RootingOptions, {"lora_rank": 2, "training": SHORT}, "options")
    given = (rows(random_inputs(model, 8)), options, 8, make_accelerator(), adapter_of(model))
    with pytest.raises(HfZipError, match="has no linear layers to adapt; set lora_rank: 0"):
        root_model(model, {}, *given, progress=False)


def test_rooted_models_are_merged_with_a_rank():
    models = [vit(2, 1), vit(3, 2)]
    result = hf_zip.merge(
        models,
        method="rooting",
        tasks=["one", "two"],
        calibration=rows(random_inputs(models[0], 24, seed=5)),
        parameters={"training": SHORT, "lora_rank": 2, "then": "regmean"},
        progress=False,
    )
    assert torch.equal(result.model.vit.layernorm.weight, models[0].vit.layernorm.weight)
    name = "vit.layers.0.mlp.fc1.weight"
    assert not torch.equal(result.model.get_parameter(name), models[0].get_parameter(name))
