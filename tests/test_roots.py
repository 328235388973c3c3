import pytest
import torch

import hf_zip
from hf_zip.card import render_card
from hf_zip.errors import HfZipError
from tests.models import random_inputs, rows, vit
from tests.siblings import near
from tests.test_rooting import root_in
from tests.texts import bert

SHORT = {"steps": 2, "batch_size": 8, "held_out": 0.0}


def merge(models, parameters, **keys):
    """A rooting on random inputs."""
    return hf_zip.merge(
        models,
        method="rooting",
        tasks=[f"task {k}" for k in range(len(models))],
        calibration=rows(random_inputs(models[0], 24, seed=5)),
        parameters={"training": SHORT, **parameters},
        progress=False,
        **keys,
    )


def test_models_are_rooted_in_the_base_model_which_is_no_part_of_the_merge():
    root = vit(5, 9)
    models = [vit(2, 1), near(root, 4, 3)]
    parameters = {"root": "base", "then": "task_arithmetic", "then_parameters": {"scaling": 0.3}}
    result = merge(models, parameters, base_model=root)
    assert list(result.report.barriers) == ["model_0"]
    inputs = rows(random_inputs(root, 24, seed=5))
    brought = root_in(models[0], root, inputs, training=SHORT).model
    for name, own in root.named_parameters():
        if not name.startswith("classifier"):
            both = (brought.get_parameter(name), models[1].get_parameter(name))
            wanted = own + 0.3 * sum(other - own for other in both)
            assert torch.allclose(result.model.get_parameter(name), wanted, atol=1e-6), name
    assert not {own.compared for own in result.report.similarities} - {"weights"}
    card = render_card(result.report)
    assert "All were rooted in base\\_model" in card
    assert "fine-tuned from" not in card


def zipfitted(models, **parameters):
    """ZipFit's merge of the models."""
    return hf_zip.merge(
        models,
        method="zipfit",
        tasks=[f"task {k}" for k in range(len(models))],
        calibration=rows(random_inputs(models[0], 24, seed=5)),
        parameters=parameters,
        progress=False,
    ).model


def test_models_are_rooted_in_a_merge_of_them():
    models = [vit(2, 1, hidden_size=24), vit(3, 2, hidden_size=24)]
    keys = {"root": "merge", "root_parameters": {"size": 1.5}}
    keys |= {"then": "task_arithmetic", "then_parameters": {"scaling": 0.3}}
    root = zipfitted(models, size=1.5)
    assert root.config.hidden_size == 36
    before = merge(models, {**keys, "training": {"steps": 0}})
    for name, parameter in root.named_parameters():
        assert torch.allclose(parameter, before.model.get_parameter(name), atol=1e-6), name
    result = merge(models, keys)
    assert list(result.report.barriers) == ["model_0", "model_1"]
    assert result.model.config.hidden_size == 36
    alone = merge(models, {**keys, "then_parameters": {"scaling": 0.0}}).model
    name = "vit.layers.1.mlp.fc1.weight"
    assert torch.equal(alone.get_parameter(name), root.get_parameter(name))
    assert not torch.equal(result.model.get_parameter(name), root.get_parameter(name))


def test_a_method_that_makes_no_root_is_refused():
    models = [vit(2, 1), vit(3, 2)]
    with pytest.raises(HfZipError, match="root_parameters are given, but root is 0, which is not"):
        merge(models, {"root_parameters": {"size": 1.0}})
    with pytest.raises(HfZipError, match="root_method is 'emr', which keeps weights of every task"):
        merge(models, {"root": "merge", "root_method": "emr"})
    with pytest.raises(HfZipError, match=r"unknown key in parameters\.root_parameters 'alpha'"):
        merge(models, {"root": "merge", "root_parameters": {"alpha": 1.0}})
    with pytest.raises(HfZipError, match="rooting: average is for models that were fine-tuned"):
        merge(models, {"root": "merge", "root_method": "average"})


def test_a_base_that_cannot_be_a_root_is_refused():
    models = [vit(2, 1), vit(3, 2)]
    with pytest.raises(HfZipError, match="is to take base_model as the root, but there is none"):
        merge(models, {"root": "base"})
    with pytest.raises(HfZipError, match="is of type bert, but"):
        merge(models, {"root": "base"}, base_model=bert(2, 1))
    with pytest.raises(HfZipError, match="differ in 6 parameters outside their heads"):
        merge(models, {"root": "base"}, base_model=vit(2, 1, intermediate_size=24))
    with pytest.raises(HfZipError, match=r"parameters\.root"):
        merge(models, {"root": "first"})
