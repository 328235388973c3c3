"""Fisher merging against gradients of one input at a time."""

import math

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
)

import hf_zip
from hf_zip.adapters import adapters
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.methods.fisher import FisherOptions
from hf_zip.weighing import draws
from hf_zip.weighing.draws import Numbered, drawn_loss
from hf_zip.weighing.feed import Feed, Run
from hf_zip.weighing.fisher import Squares, fisher
from tests.models import random_inputs, randomise, rows
from tests.siblings import family, finetuned
from tests.test_regmean import siblings, texts
from tests.texts import bert, tokenizer
from tests.weighing import run

RUN = Run(make_accelerator(), progress=False)
HEADS = {
    "classification": {},
    "multi-label": {"problem_type": "multi_label_classification"},
    "regression": {"problem_type": "regression"},
    "tokens": {"cls": BertForTokenClassification},
    "spans": {"cls": BertForQuestionAnswering, "num_labels": 2},
    "features": {"cls": BertModel},
}


def model_of(head, seed=1):
    options = dict(HEADS[head])
    if "num_labels" in options:
        options = {"cls": options["cls"], "labels": options["num_labels"]}
    return bert(seed=seed, **options).double()


def test_labels_are_drawn_by_their_probability():
    logits = torch.tensor([[0.0, math.log(3.0), -40.0]]).repeat(4000, 1)
    found = draws._labels(logits, torch.Generator().manual_seed(0)).bincount(minlength=3)
    assert found[2] == 0
    assert found[0] / 4000 == pytest.approx(0.25, abs=0.03)


def test_the_information_is_that_of_all_labels_in_the_mean():
    model, inputs = model_of("classification"), texts(1, 1)
    name, expected = "bert.encoder.layer.1.output.dense.weight", 0.0
    logits = model(**inputs.collate([inputs[0]])).logits[0].log_softmax(dim=-1)
    for share, likelihood in zip(logits.exp(), logits, strict=True):
        (gradient,) = torch.autograd.grad(likelihood, model.get_parameter(name), retain_graph=True)
        expected = expected + share.detach() * gradient.square()
    draws_of = [fisher(model, Feed(inputs, 1), (seed,), RUN, "")[name] for seed in range(300)]
    mean = torch.stack(draws_of).mean(dim=0)
    assert ((mean - expected).norm() / expected.norm()).item() < 0.15


@pytest.mark.parametrize("head", HEADS)
def test_the_squares_are_of_single_inputs_not_of_batches(head):
    model, inputs = model_of(head), texts(1, 3)
    found = fisher(model, Feed(inputs, 3), (0, 5), RUN, "")
    numbered = Numbered(inputs)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for position in range(3):
        model.zero_grad()
        drawn_loss(model, numbered.collate([numbered[position]]), (0, 5)).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                expected[name] += parameter.grad.square() / 3
    assert sum(values.sum() for values in expected.values()) > 0
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values.detach())


@pytest.mark.parametrize("head", HEADS)
def test_what_is_drawn_does_not_depend_on_the_batch_or_its_padding(head):
    model, inputs = model_of(head), texts(1, 4)
    numbered = Numbered(inputs)
    with torch.no_grad():
        batch = drawn_loss(model, numbered.collate([numbered[i] for i in range(4)]), (3,))
        single = [drawn_loss(model, numbered.collate([numbered[i]]), (3,)) for i in (2, 0, 3, 1)]
    assert batch.item() == pytest.approx(sum(loss.item() for loss in single))


@pytest.mark.parametrize("normalise", ["none", "model", "tensor"])
def test_numbers_count_by_the_information_of_their_model(normalise):
    models, feeds = siblings(), [texts(1), texts(2)]
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    counts = []
    for position, (model, feed) in enumerate(zip(models, feeds, strict=True)):
        own = fisher(model, Feed(feed, 1), (4, position), RUN, "")
        trunk = [f.flatten() for full, f in own.items() if not full.startswith("classifier")]
        mean = own[name].mean() if normalise == "tensor" else torch.cat(trunk).mean()
        scale = 1.0 if normalise == "none" else 1 / mean
        counts.append((1.0, 3.0)[position] * scale * own[name].clamp(min=0.3 * mean))
    values = [model.get_parameter(name).detach() for model in models]
    expected = sum(c * v for c, v in zip(counts, values, strict=True)) / sum(counts)
    options = {"weights": [1.0, 3.0], "seed": 4, "floor": 0.3, "normalise": normalise}
    found = run("fisher", models, feeds, **options)
    torch.testing.assert_close(found[name], expected)


def test_above_all_information_the_floor_gives_the_weighted_mean():
    models, feeds = siblings(), [texts(1), texts(2)]
    found = run("fisher", models, feeds, weights=[1.0, 3.0], floor=1e12)
    for name, parameter in found.items():
        one, two = (model.get_parameter(name).detach() for model in models)
        torch.testing.assert_close(parameter, (one + 3 * two) / 4)


@pytest.mark.parametrize("adapter", adapters().values(), ids=lambda adapter: adapter.name)
def test_models_of_every_family_have_information(adapter):
    torch.manual_seed(0)
    model = randomise(adapter.example().eval())
    found = fisher(model, Feed(rows(random_inputs(model, 2, 1)), 1), (0,), RUN, "")
    assert all(values.isfinite().all() for values in found.values())
    weights = [name for name in found if ".layer." in name or ".layers." in name]
    assert weights
    assert all(found[name].any() for name in weights if name.endswith("weight"))


def test_heads_that_stay_apart_have_a_say():
    base, (model, _) = family(2)
    other = finetuned(base, 5, cls=BertForTokenClassification)
    own = [texts(seed) for seed in (1, 2)]
    keys = {"method": "fisher", "tasks": ["intent", "tags"], "force": True, "progress": False}
    result = hf_zip.merge([model, other], own_calibration=own, processor=tokenizer(), **keys)
    name = "encoder.layer.0.output.dense.weight"
    merged = dict(result.model.named_parameters())
    (found,) = [value for full, value in merged.items() if full.endswith(name)]
    one, two = (m.bert.get_parameter(name) for m in (model, other))
    share = (found - one) / (two - one)
    assert (share.min(), share.max()) != (0.5, 0.5)
    assert -1e-4 < share.nanmedian() < 1 + 1e-4


def test_parameters_that_were_frozen_stay_so():
    model = model_of("classification")
    model.bert.embeddings.requires_grad_(False)
    found = fisher(model, Feed(texts(1, 2), 1), (0,), RUN, "")
    assert found["bert.embeddings.word_embeddings.weight"].sum() > 0
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad
    assert model.classifier.weight.requires_grad


def test_masked_words_unknown_answers_and_wrong_options_are_refused():
    words = [bert(seed=seed, cls=BertForMaskedLM) for seed in (1, 2)]
    with pytest.raises(HfZipError, match="BertForMaskedLM answers for masked words"):
        run("fisher", words, [texts(1), texts(2)])
    with pytest.raises(HfZipError, match="has no answer to draw from: it has loss, but should"):
        draws._features(type("Other", (dict,), {})(loss=1.0))
    with pytest.raises(HfZipError, match="'fisher' weighs what each model does"):
        run("fisher", siblings(), [texts(1), texts(2)], weights=[1.0, -2.0])
    with pytest.raises(HfZipError, match="floor is 0"):
        FisherOptions(floor=0.0)


def test_the_squares_of_many_inputs_are_summed_as_precisely_as_each():
    model, gradients = torch.nn.Linear(3, 2), torch.randn(70, 2, 3)
    squares = Squares(model, torch.device("cpu"))
    for gradient in gradients:
        squares.add("weight", gradient)
        squares.count()
    found = squares.means()["weight"]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, gradients.double().square().mean(dim=0), rtol=1e-6, atol=0)
    assert squares.state()[""] == 70
