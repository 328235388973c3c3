import pytest
import torch

import hf_zip
from hf_zip.card import render_card
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.plain import build
from hf_zip.rooting.distil import Start, distil
from hf_zip.rooting.options import DistillTraining, RootingOptions
from hf_zip.weighing.feed import Feed
from tests.models import random_inputs, rows, vit

SHORT = {"steps": 2, "batch_size": 8, "held_out": 0.0}


def merge(models, inputs, **parameters):
    """A rooting on some inputs."""
    return hf_zip.merge(
        models,
        method="rooting",
        tasks=["one", "two"],
        calibration=inputs,
        parameters={"training": SHORT, **parameters},
        progress=False,
    )


def test_a_merge_of_rooted_models_goes_on_to_learn_from_all():
    models = [vit(2, 1), vit(3, 2)]
    inputs = rows(random_inputs(models[0], 16, seed=5))
    first = merge(models, inputs).model
    result = merge(models, inputs, second_stage={**SHORT, "learning_rate": 1e-3})
    state = {name: own.detach() for name, own in first.named_parameters()}
    head = {name: state.pop(name) for name in list(state) if name.startswith("classifier")}
    heads = tuple(
        {name: own[part] for name, own in head.items()} for part in (slice(2), slice(2, 5))
    )
    training = build(DistillTraining, {**SHORT, "learning_rate": 1e-3}, "training")
    found, trained = distil(
        models,
        [Feed(inputs, 32)] * 2,
        [1.0, 1.0],
        Start(state, heads),
        RootingOptions(),
        training,
        make_accelerator(),
        progress=False,
    )
    name = "vit.layers.1.mlp.fc1.weight"
    assert not torch.allclose(state[name], found.trunk[name], atol=1e-4)
    for name, tensor in found.trunk.items():
        assert torch.allclose(result.model.get_parameter(name), tensor, atol=1e-6), name
    rows_of_heads = torch.cat([own["classifier.weight"] for own in found.heads])
    assert torch.allclose(result.model.classifier.weight, rows_of_heads, atol=1e-6)
    assert not torch.allclose(rows_of_heads, head["classifier.weight"], atol=1e-4)
    trainings = result.report.trainings
    assert [own.name for own in trainings] == ["rooting of model 1", "second stage"]
    assert trainings[1].losses == trained.losses
    assert "Trained without labels: second stage, 2 steps" in render_card(result.report)


def test_a_merge_with_weights_of_every_task_is_not_trained_further():
    with pytest.raises(
        HfZipError, match="second_stage trains one model for all tasks, but then is"
    ):
        merge([vit(2, 1), vit(3, 2)], [], then="emr", second_stage=SHORT)
