import weakref

import pytest
import torch

from hf_zip.adapters import adapter_for, adapters
from hf_zip.calibration import from_memory
from hf_zip.collect import Observation, collect, group_observations, observe
from hf_zip.errors import HfZipError
from hf_zip.groups import Tap, merge_groups
from hf_zip.images import ImageReader
from hf_zip.pairs import PairReader
from hf_zip.statistics.covariance import Covariance
from hf_zip.texts import TextReader
from tests.launch import run_in
from tests.models import images, randomise, rows, vit
from tests.texts import VOCABULARY, bert, sentences, tokenizer

SCRIPT = """
from accelerate.utils import gather_object
from hf_zip.adapters import adapter_for
from hf_zip.collect import collect, group_observations, make_accelerator
from hf_zip.groups import merge_groups
from hf_zip.statistics.covariance import Covariance
from tests.models import images, rows, vit

models = [vit(seed=1), vit(seed=2)]
accelerator = make_accelerator()
updates = 0
class Counting(Covariance):
    def update(self, x):
        global updates
        updates += 1
        super().update(x)
groups = merge_groups(models[0], adapter_for("vit"))
observations = [o for group in groups for o in group_observations(group, 2)]
found = collect(models, rows(images(models[0], 37)), observations, Counting, 8, accelerator, False)
updates = gather_object([updates])
found = {"updates": updates, "covariances": [f.covariance() for f in found]}
"""


def test_two_processes_with_unequal_batches_give_the_numbers_of_one(tmp_path):
    one, two = (run_in(n, SCRIPT, tmp_path) for n in (1, 2))
    assert len(set(two["updates"])) == 2  # 37 inputs make 5 batches: one process has more
    assert sum(two["updates"]) == sum(one["updates"])
    for a, b in zip(one["covariances"], two["covariances"], strict=True):
        assert a.dtype == torch.float64
        assert (a - b).abs().max() <= 1e-12 * a.abs().max()


def test_covariance_is_that_of_all_models_features_side_by_side():
    models = [vit(seed=1).double(), vit(seed=2).double()]
    inputs = images(models[0], 10)
    group = merge_groups(models[0], adapter_for("vit"))[-1]
    (found,) = collect(
        models, rows(inputs), group_observations(group, 2), Covariance, 4, progress=False
    )
    features = torch.cat([observe(m, group.taps, inputs)[group.taps[0]] for m in models], dim=1)
    torch.testing.assert_close(found.covariance(), torch.cov(features.T, correction=0))


def test_hooks_and_models_are_left_as_they_were():
    model = vit()
    tap = Tap("vit.layers.0.mlp.fc2", "input")
    before = model(**images(model)).logits
    observe(model, [tap], images(model))
    assert not model.vit.layers[0].mlp.fc2._forward_pre_hooks
    assert torch.equal(model(**images(model)).logits, before)


def test_a_module_that_takes_keywords_is_observed():
    class Doubling(torch.nn.Module):
        def forward(self, *, states):
            return (2 * states, None)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Doubling()

        def forward(self, x):
            return self.inner(states=x)

    seen = observe(
        Model(), [Tap("inner", "input"), Tap("inner", "output")], {"x": torch.ones(2, 3)}
    )
    assert seen[Tap("inner", "input")].tolist() == [[1.0] * 3] * 2
    assert seen[Tap("inner", "output")].tolist() == [[2.0] * 3] * 2


def test_a_batch_is_let_go_before_the_next_one_runs(monkeypatch):
    model, seen, alive = vit(), [], []

    def watched(*arguments):
        alive.append(sum(reference() is not None for reference in seen))
        found = observe(*arguments)
        seen.extend(weakref.ref(features) for features in found.values())
        return found

    monkeypatch.setattr("hf_zip.collect.observe", watched)
    place = Observation(20, ((0, Tap("vit.layers.0.mlp.fc2", "input")),))
    collect([model], rows(images(model, 6)), [place], Covariance, 2, progress=False)
    assert alive == [0, 0, 0]


def test_no_inputs_are_refused():
    with pytest.raises(HfZipError, match="no calibration inputs"):
        collect([vit()], [], [], Covariance, 4)


def test_a_module_that_does_not_exist_is_refused():
    with pytest.raises(HfZipError, match=r"has no module 'vit\.nowhere'"):
        observe(vit(), [Tap("vit.nowhere", "input")], images(vit()))


def test_a_module_that_is_not_reached_is_refused():
    model = vit()
    model.unused = torch.nn.Linear(1, 1)
    with pytest.raises(HfZipError, match=r"never reached 'unused'"):
        observe(model, [Tap("unused", "output")], images(model))


def test_an_observation_of_one_model_is_not_the_others():
    models = [vit(seed=1), vit(seed=2)]
    inputs = rows(images(models[0], 6))
    place = Tap("classifier", "output")
    first, second = collect(
        models,
        inputs,
        [Observation(3, ((k, place),)) for k in range(2)],
        Covariance,
        3,
        progress=False,
    )
    assert not torch.allclose(first.covariance(), second.covariance())


# Texts.

LAYER = "bert.encoder.layer.1"
TOKENS = [
    Tap("bert.embeddings", "output"),
    Tap(f"{LAYER}.attention.self.query", "output"),
    Tap(f"{LAYER}.attention.output.dense", "input"),
    Tap(f"{LAYER}.output.dense", "input"),
    Tap(LAYER, "output"),
]
POOLED = [Tap("classifier", "input"), Tap("classifier", "output")]


def places(taps, models=2):
    sizes = {LAYER + ".output.dense": 20, "classifier output": 3}
    return [
        Observation(
            models * sizes.get(f"{tap.module} {tap.side}", sizes.get(tap.module, 12)),
            tuple((k, tap) for k in range(models)),
        )
        for tap in taps
    ]


def texts(count=37):
    return from_memory(sentences(count), TextReader(tokenizer()))


def statistics(inputs, batch_size):
    models = [bert(seed=1).double(), bert(seed=2).double()]
    return collect(models, inputs, places(TOKENS + POOLED), Covariance, batch_size, progress=False)


def takes_texts(adapter):
    return adapter.example().main_input_name == TextReader.key


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.state()["count"] == b.state()["count"]
        for x, y in ((a.covariance(), b.covariance()), (a.mean(), b.mean())):
            assert x.dtype == torch.float64
            assert (x - y).abs().max() <= 1e-12 * y.abs().max()


@pytest.mark.parametrize("batch_size", [2, 8, 64])
def test_statistics_of_texts_do_not_depend_on_their_padding(batch_size):
    inputs = texts()
    alone = statistics(inputs, 1)  # one text at a time has no padding
    assert_equal(statistics(inputs, batch_size), alone)
    tokens = sum(len(row["input_ids"]) for row in inputs)
    counts = [int(found.state()["count"]) for found in alone]
    assert counts == [tokens] * len(TOKENS) + [len(inputs)] * len(POOLED)


@pytest.mark.parametrize(
    "adapter",
    [adapter for adapter in adapters().values() if takes_texts(adapter)],
    ids=lambda adapter: adapter.name,
)
def test_no_statistic_of_a_family_depends_on_padding(adapter):
    torch.manual_seed(0)
    model = randomise(adapter.example().double())
    padded = adapter.inputs(model.config, 9, torch.Generator().manual_seed(0))
    real = padded["attention_mask"] == 1
    assert not real.all()
    images = padded.pop("pixel_values", None)
    alone = [{name: x[i][real[i]] for name, x in padded.items()} for i in range(9)]
    reader = TextReader(tokenizer())
    if images is not None:
        alone = [{"pixel_values": x.float(), **row} for x, row in zip(images, alone, strict=True)]
        reader = PairReader(ImageReader(), reader)
    inputs = from_memory(alone, reader)
    groups = merge_groups(model, adapter)
    if adapter.name == "siglip":  # what it puts out is that of the last token, padding or not
        groups = [group for group in groups if group.role != "joint"]
    observations = [o for group in groups for o in group_observations(group, 1)]
    found = [
        collect([model], inputs, observations, Covariance, batch_size, progress=False)
        for batch_size in (1, 4)
    ]
    assert_equal(*found)


def test_what_stands_in_the_padding_changes_nothing():
    inputs = [texts().collate([texts()[i] for i in (0, 36)])]
    inputs += [{**inputs[0], "input_ids": inputs[0]["input_ids"].clone()}]
    padding = inputs[1]["attention_mask"] == 0
    assert padding.any()
    inputs[1]["input_ids"][padding] = len(VOCABULARY) - 1
    assert_equal(*(statistics(rows(batch), 2) for batch in inputs))


def test_features_that_are_not_the_tokens_are_refused():
    model = bert()
    batch = texts().collate([texts()[i] for i in (0, 36)])
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: torch.zeros(2, 1, 3, 12))
    text = (
        r"the output of 'bert.encoder.layer.0' has shape \(2, 1, 3, 12\), but should have one row"
    )
    with pytest.raises(HfZipError, match=text):
        observe(model, [Tap("bert.encoder.layer.0", "output")], batch)


TEXT_SCRIPT = """
from accelerate.utils import gather_object
from hf_zip.collect import collect, make_accelerator
from hf_zip.statistics.covariance import Covariance
from tests.test_collect import POOLED, TOKENS, places, texts
from tests.texts import bert

models = [bert(seed=1).double(), bert(seed=2).double()]
accelerator = make_accelerator()
updates = 0
class Counting(Covariance):
    def update(self, x):
        global updates
        updates += 1
        super().update(x)
found = collect(models, texts(), places(TOKENS + POOLED), Counting, 8, accelerator, False)
updates = gather_object([updates])
found = {"updates": updates, "states": [f.state() for f in found]}
"""


@pytest.mark.slow  # starts Python twice
def test_two_processes_give_the_statistics_of_texts_of_one(tmp_path):
    two = run_in(2, TEXT_SCRIPT, tmp_path)
    assert len(set(two["updates"])) == 2
    expected = statistics(texts(), 8)
    found = statistics(texts(1), 1)
    for statistic, state in zip(found, two["states"], strict=True):
        statistic.load_state(state)
    assert_equal(found, expected)
