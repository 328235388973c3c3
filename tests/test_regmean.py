"""RegMean on models: what each layer of each model reads decides how much it counts."""

import pytest
import torch
from transformers import AlbertConfig, AlbertForSequenceClassification

from hf_zip.adapters import adapters
from hf_zip.calibration import from_memory
from hf_zip.collect import observe
from hf_zip.errors import HfZipError
from hf_zip.groups import Tap
from hf_zip.texts import TextReader
from hf_zip.weighing.layers import in_passes, linear_layers, readers
from hf_zip.weighing.regmean import RegressionOptions
from tests.launch import assert_same_states, run_in
from tests.models import random_inputs, randomise, rows, vit
from tests.siblings import family
from tests.texts import sentences, tokenizer
from tests.weighing import run

QUERY = "bert.encoder.layer.1.attention.self.query"
DENSE = "bert.encoder.layer.0.output.dense"
DECODER = "bert.embeddings.word_embeddings.weight"
# Conjugate gradients enlarge rounding from step to step.
METHODS = {"regmean": {}, "regmean_pp": {}, "fisher": {}, "mats": {"iterations": 5}}


def texts(seed, count=6):
    return from_memory(sentences(count, seed=seed), TextReader(tokenizer(), 16, 128))


def siblings(count=2):
    return [model.double() for model in family(count)[1]]


def read(model, inputs, layer):
    """All rows that go into a layer, each text run by itself, so without padding."""
    tap = Tap(layer, "input")
    return torch.cat([observe(model, [tap], inputs.collate([row]))[tap] for row in inputs])


@pytest.mark.parametrize("layer", [QUERY, DENSE, "bert.pooler.dense"])
def test_a_layer_is_the_least_squares_fit_on_each_models_own_inputs(layer):
    models, feeds = siblings(), [texts(1), texts(2)]
    found = run("regmean", models, feeds, weights=[1.0, 3.0], alpha=1.0)[f"{layer}.weight"]
    x, y = [], []
    for model, inputs, weight in zip(models, feeds, (1.0, 3.0), strict=True):
        own = read(model, inputs, layer)
        scale = (weight / len(own)) ** 0.5
        x.append(own * scale)
        y.append(own @ model.get_parameter(f"{layer}.weight").T * scale)
    x, y = torch.cat(x), torch.cat(y)
    if layer == "bert.pooler.dense":  # as many inputs as features: met, not only fitted
        torch.testing.assert_close(x @ found.T, y, rtol=1e-6, atol=1e-6)
    else:
        expected = torch.linalg.lstsq(x, y, driver="gelsd").solution.T
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_what_is_no_linear_layer_is_the_weighted_mean():
    models, feeds = siblings(), [texts(1), texts(2)]
    found = run("regmean", models, feeds, weights=[1.0, 3.0])
    for name in (DECODER, f"{QUERY}.bias", "bert.embeddings.LayerNorm.weight"):
        one, two = (model.get_parameter(name) for model in models)
        torch.testing.assert_close(found[name], (one + 3 * two) / 4)


def test_layers_may_be_merged_some_at_a_time():
    models, feeds = siblings(), [texts(1), texts(2)]
    once, parts = (run("regmean", models, feeds, memory=memory) for memory in (4.0, 0.0))
    for name, parameter in once.items():
        assert torch.equal(parameter, parts[name]), name
    assert list(in_passes({}, 1.0)) == []
    assert list(in_passes({"a": 1, "b": 1}, 0.0)) == [["a"], ["b"]]


@pytest.mark.parametrize("adapter", adapters().values(), ids=lambda adapter: adapter.name)
def test_equal_models_of_every_family_give_themselves_back(adapter):
    torch.manual_seed(0)
    model = randomise(adapter.example().eval())
    feeds = [rows(random_inputs(model, 5, seed)) for seed in (1, 2)]
    found = run("regmean", [model, model], feeds)
    for name, parameter in found.items():
        torch.testing.assert_close(parameter, model.state_dict()[name], rtol=0, atol=1e-6)


def test_what_reads_the_same_is_gathered_once():
    model = vit()
    layers = linear_layers(model, dict(model.named_parameters()))
    same = readers(model, layers, random_inputs(model, 1))
    place = "vit.layers.0.attention"
    assert same[f"{place}.k_proj"] == same[f"{place}.v_proj"] == f"{place}.q_proj"
    assert len({*same.values()}) == 2 * 4 + 1


def test_a_layer_that_runs_several_times_sees_all_of_it():
    config = AlbertConfig(
        vocab_size=17, embedding_size=6, hidden_size=12, num_attention_heads=3, num_hidden_layers=3,
        intermediate_size=20, max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    models = [
        randomise(AlbertForSequenceClassification(config), seed).double().eval() for seed in (1, 2)
    ]
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn"
    seen = []
    for model, inputs in zip(models, (texts(1), texts(2)), strict=True):
        rows_seen = []
        module = model.get_submodule(layer)
        handle = module.register_forward_pre_hook(
            lambda _, args, into=rows_seen: into.append(args[0].flatten(0, 1))
        )
        with torch.no_grad():
            for row in inputs:
                model(**inputs.collate([row]))
        handle.remove()
        assert len(rows_seen) == 3 * len(inputs)
        seen.append(torch.cat(rows_seen))
    found = run("regmean", models, [texts(1), texts(2)], alpha=1.0)[f"{layer}.weight"]
    x = torch.cat([own / len(own) ** 0.5 for own in seen])
    y = torch.cat(
        [
            own @ m.get_parameter(f"{layer}.weight").T / len(own) ** 0.5
            for own, m in zip(seen, models, strict=True)
        ]
    )
    expected = torch.linalg.lstsq(x, y, driver="gelsd").solution.T
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_layers_that_no_forward_calls_are_averaged_and_named(caplog):
    model, other = vit(seed=1), vit(seed=2)
    for own in (model, other):
        own.unused = torch.nn.Linear(3, 3)
    feeds = [rows(random_inputs(model, 3, seed)) for seed in (1, 2)]
    found = run("regmean", [model, other], feeds)
    mean = (model.unused.weight + other.unused.weight) / 2
    torch.testing.assert_close(found["unused.weight"], mean.detach())
    assert "averaged, because a forward does not call them" in caplog.text
    assert "unused" in caplog.text


def test_a_matrix_that_is_an_embedding_too_is_none():
    model = family(
        1,
    )[0]
    layers = linear_layers(model, dict(model.named_parameters()))
    assert "cls.predictions.transform.dense" in layers
    assert "cls.predictions.decoder" not in layers


def test_wrong_weights_options_and_inputs_are_refused():
    models, feeds = siblings(), [texts(1), texts(2)]
    with pytest.raises(HfZipError, match="'regmean' weighs what each model does; give weights of"):
        run("regmean", models, feeds, weights=[2.0, -1.0])
    with pytest.raises(HfZipError, match="no calibration inputs"):
        run("regmean", models, [texts(1), []])
    with pytest.raises(HfZipError, match=r"alpha is 1\.5"):
        RegressionOptions(alpha=1.5)
    with pytest.raises(HfZipError, match=r"memory is -1"):
        RegressionOptions(memory=-1.0)


SCRIPT = """
from hf_zip.collect import make_accelerator
from hf_zip.learned import learned
from tests.siblings import family
from tests.test_regmean import METHODS, siblings, texts
from tests.weighing import run

accelerator = make_accelerator()
feeds = [texts(1, 7), texts(2, 9)]
base = learned(family(2)[0])
found = {
    name: run(name, siblings(), feeds, base=base, accelerator=accelerator, **options)
    for name, options in METHODS.items()
}
"""


@pytest.mark.slow
def test_two_processes_give_the_models_of_one(tmp_path):
    one, two = (run_in(n, SCRIPT, tmp_path) for n in (1, 2))
    for name in METHODS:
        assert_same_states([one[name]], [two[name]])
