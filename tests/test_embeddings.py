"""Embeddings that are normalised: what goes into the normalisation, and its gain and bias."""

import pytest
import torch

from hf_zip.adapters import adapters
from hf_zip.canonical import canonical
from hf_zip.collect import make_accelerator, observe
from hf_zip.groups import Tap
from hf_zip.refit.embeddings import set_embeddings
from hf_zip.refit.walk import plain_student
from tests.models import random_inputs
from tests.test_zipfit import clip

ADAPTER = adapters()["clip_vision"]
OUTPUT = Tap("vision_model.pre_layrnorm", "output")


def prepared(models, matrix, batches=1):
    """The merged model with its embeddings set, what they explain, and the mapped streams."""
    teachers = [canonical(model.double(), ADAPTER) for model in models]
    inputs = random_inputs(teachers[0], 24)
    loader = [{"pixel_values": part} for part in inputs["pixel_values"].chunk(batches)]
    with torch.no_grad():
        student = plain_student(teachers[0], ADAPTER, {})
        found = set_embeddings(student, teachers, ADAPTER, loader, matrix, make_accelerator())
    streams = [observe(teacher, [OUTPUT], inputs)[OUTPUT] for teacher in teachers]
    return student, found, torch.cat(streams, dim=1) @ matrix.T, inputs


@pytest.mark.parametrize("batches", [1, 5])
def test_gain_and_bias_are_the_best_of_every_feature(batches):
    matrix = torch.randn(12, 24, dtype=torch.float64)
    student, found, wanted, inputs = prepared([clip(seed=1), clip(seed=2)], matrix, batches)
    norm = student.vision_model.pre_layrnorm
    output = observe(student, [OUTPUT], inputs)[OUTPUT]
    with torch.no_grad():
        plain = (output - norm.bias) / norm.weight
    for feature in range(12):
        design = torch.stack([plain[:, feature], torch.ones(len(plain)).double()], dim=1)
        best = torch.linalg.lstsq(design, wanted[:, feature]).solution
        torch.testing.assert_close(best, torch.stack([norm.weight[feature], norm.bias[feature]]))
    share = 1 - (wanted - output).square().sum() / wanted.square().sum()
    assert found == {"embeddings": pytest.approx(float(share), abs=1e-10)}


def test_one_model_keeps_embeddings_gains_and_bias():
    model = clip().double()
    student, found, _, inputs = prepared([model], torch.eye(12).double())
    assert found["embeddings"] == pytest.approx(1, abs=1e-12)
    own, norm = model.vision_model.pre_layrnorm, student.vision_model.pre_layrnorm
    torch.testing.assert_close(norm.weight, own.weight)
    torch.testing.assert_close(norm.bias, own.bias)
    outputs = [observe(m, [OUTPUT], inputs)[OUTPUT] for m in (model, student)]
    torch.testing.assert_close(*outputs)


def test_a_feature_to_which_nothing_is_mapped_is_constant():
    matrix = torch.eye(12).double()
    matrix[5] = 0
    student, _, _, _ = prepared([clip()], matrix)
    norm = student.vision_model.pre_layrnorm
    assert norm.weight[5].abs() <= 1e-12
    assert norm.bias[5].abs() <= 1e-12
    assert all(torch.isfinite(p).all() for p in student.vision_model.embeddings.parameters())
