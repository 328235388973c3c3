"""ZipFit of post-norm models as a whole, and its parts that only make sense inside it."""

import copy
import logging
import tempfile

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
)

import hf_zip
from hf_zip.adapters import adapter_for, adapter_of
from hf_zip.errors import HfZipError
from hf_zip.refit.held import GIB, Held
from hf_zip.refit.moments import RegressionMoments
from hf_zip.refit.post_norm import basis, embedding, pooler, zipfit_post_norm
from hf_zip.refit.post_norm import fit as fit_module
from hf_zip.refit.post_norm.basis import plain_norm
from hf_zip.refit.post_norm.embedding import Sums, fit_tables, split_places
from hf_zip.refit.post_norm.gains import SMALLEST, GainMoments
from hf_zip.refit.post_norm.weighted import ScaledMoments
from hf_zip.refit.post_norm.work import centred
from hf_zip.refit.zipfit import FitOptions
from tests.launch import assert_same_fit, run_in
from tests.models import permuted, random_inputs, randomise, rows
from tests.texts import bert, sentences, tokenizer

EXACT = {"penalty": 1e-10, "head_penalty": 1e-10}
SIZES = {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 20}
every_family = pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])


def example(family, seed=0):
    torch.manual_seed(seed)
    model = adapter_for(family).example()
    if family == "electra":  # as wide as the stream, the embeddings are not projected
        model.config.embedding_size = model.config.hidden_size
        model = type(model)(model.config)
    return randomise(model.double().eval(), seed)


def fit(models, inputs=96, batch_size=20, **options):
    models = [model.double() for model in models]
    adapter = adapter_of(models[0])
    data = rows(random_inputs(models[0], inputs, seed=9)) if isinstance(inputs, int) else inputs
    return zipfit_post_norm(
        models, adapter, data, FitOptions(**options), batch_size, progress=False
    )


def assembled(model, fitted, position=0):
    """The merged model with one of its heads, loaded strictly into the native class."""
    config, head = copy.deepcopy(model.config), fitted.heads[position]
    for key, value in fitted.config.items():
        setattr(config, key, value)
    config.num_labels = next(len(part) for name, part in head.items() if name.endswith("bias"))
    merged = type(model)(config).to(model.dtype).eval()
    merged.load_state_dict({**fitted.state, **head})
    return merged


def relative_error(model, other):
    with torch.no_grad():
        a, b = (m(**random_inputs(m, 48, seed=4)).logits for m in (model, other))
    return float((a - b).abs().max() / a.abs().max())


def largest_difference(one, other):
    pairs = zip((one.state, *one.heads), (other.state, *other.heads), strict=True)
    return max(float((a[name] - b[name]).abs().max()) for a, b in pairs for name in a)


@every_family
@pytest.mark.parametrize("heads", ["auto", "select"])
def test_one_model_is_returned(family, heads):
    model = example(family)
    fitted = fit([model], heads=heads, **EXACT)
    assert relative_error(model, assembled(model, fitted)) <= 1e-6
    assert all(share == pytest.approx(1, abs=1e-6) for share in fitted.explained.values())


@every_family
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("copied", [permuted, lambda model, seed: model])
def test_copies_of_a_model_are_merged_to_it(family, copied, copies):
    model = example(family)
    models = [model, *(copied(model, seed) for seed in range(1, copies + 1))]
    fitted = fit(models, **EXACT)
    assert fitted.config["num_attention_heads"] == model.config.num_attention_heads
    for position in range(len(models)):
        assert relative_error(model, assembled(model, fitted, position)) <= 1e-6


@every_family
def test_a_model_whose_gains_are_alike_is_returned_in_another_basis(family, monkeypatch):
    monkeypatch.setattr(basis, "REDUNDANT", -1.0)  # a zip of one model
    model = example(family)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(0.7)
    inputs = random_inputs(model, 128, seed=9)
    # Half of the words are never seen, but fitted all the same.
    inputs["input_ids"] = inputs["input_ids"].clamp(max=15)
    fitted = fit([model], rows(inputs), **EXACT)
    merged = assembled(model, fitted)
    assert relative_error(model, merged) <= 1e-4
    own, other = (next(m.parameters()) for m in (model, merged))
    assert (own - other).abs().max() > 0.1


@pytest.mark.parametrize(
    ("size", "heads"), [(0.5, "all"), (1.0, "all"), (1.0, "select"), (2.0, "all")]
)
@pytest.mark.parametrize("count", [2, 3])
def test_different_models_give_a_model_of_the_declared_sizes(size, heads, count):
    models = [bert(labels=2 + k, seed=k, **SIZES) for k in range(count)]
    fitted = fit(models, size=size, heads=heads)
    assert fitted.config == {
        "hidden_size": 36 * size,
        "intermediate_size": 20 * size,
        "num_attention_heads": 3 if heads == "select" else 3 * count,
    }
    for position, model in enumerate(models):
        merged = assembled(model, fitted, position)
        assert all(parameter.isfinite().all() for parameter in merged.parameters())
    kinds = [f"layers.{layer}.{part}" for layer in (0, 1) for part in ("attention", "mlp")]
    assert list(fitted.explained) == ["stream", *kinds]


def test_two_models_at_twice_the_size_are_close_to_both():
    models = [bert(labels=3 + k, seed=k, hidden_size=24) for k in range(2)]
    fitted = fit(models, inputs=400, size=2.0, **EXACT)
    assert fitted.explained["stream"] >= 1 - 1e-9
    assert fitted.explained["layers.1.mlp"] >= 0.8
    with torch.no_grad():
        for position, model in enumerate(models):
            inputs = random_inputs(model, 200, seed=4)
            merged = assembled(model, fitted, position)
            own, other = (m(**inputs).logits.argmax(1) for m in (model, merged))
            assert (own == other).double().mean() >= 0.8


def test_the_mlps_of_a_distilbert_have_the_declared_size():
    fitted = fit([example("distilbert", 1), example("distilbert", 2)], size=0.5)
    assert fitted.config == {"hidden_size": 6, "num_attention_heads": 6, "hidden_dim": 10}


def test_the_size_of_the_batches_does_not_matter():
    models = [bert(seed=1), bert(labels=4, seed=2)]
    one, many = fit(models, inputs=30, batch_size=1), fit(models, inputs=30, batch_size=30)
    assert largest_difference(one, many) <= 1e-7


def test_what_stands_in_the_padding_does_not_matter():
    models = [bert(seed=1), bert(labels=4, seed=2)]
    inputs = random_inputs(models[0], 40, seed=9)
    padding = inputs["attention_mask"] == 0
    assert padding.any()
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(padding, 7)}
    assert largest_difference(fit(models, rows(inputs)), fit(models, rows(other))) == 0


def test_inputs_without_a_mask_have_no_padding():
    models = [bert(seed=1), bert(labels=4, seed=2)]
    ids = random_inputs(models[0], 40, seed=9)["input_ids"]
    masked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    one, other = fit(models, rows({"input_ids": ids})), fit(models, rows(masked))
    assert largest_difference(one, other) <= 1e-8


def test_streams_on_disk_give_the_same_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    models = [bert(seed=1), bert(labels=4, seed=2)]
    assert largest_difference(fit(models), fit(models, memory=0.0)) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inputs", [30, 60])
def test_what_is_held_grows_with_the_tokens_only(inputs, monkeypatch):
    most = [0]

    class Counted(Held):
        def __setitem__(self, key, tensor):
            super().__setitem__(key, tensor)
            most[0] = max(most[0], int(GIB - self._left))

    monkeypatch.setattr(fit_module, "Held", Counted)
    models = [bert(seed=1, **SIZES), bert(labels=4, seed=2, **SIZES)]
    given = random_inputs(models[0], inputs, seed=9)
    fit(models, rows(given), batch_size=inputs, heads="all", memory=1.0)
    tokens, real = given["input_ids"].numel(), int(given["attention_mask"].sum())
    assert real < tokens
    # The teachers' streams and the merged one; what attention and MLP write, and what is between.
    assert most[0] == 8 * 36 * (3 * tokens + 3 * 2 * real)


SCRIPT = """
from hf_zip.adapters import adapter_for, adapter_of
from hf_zip.collect import make_accelerator
from hf_zip.refit.post_norm import zipfit_post_norm
from hf_zip.refit.zipfit import FitOptions
from tests.models import random_inputs, rows
from tests.texts import bert

models = [bert(seed=1).double(), bert(labels=4, seed=2).double()]
accelerator = make_accelerator()
data = rows(random_inputs(models[0], 70))
options = FitOptions()
fitted = zipfit_post_norm(models, adapter_for("bert"), data, options, 16, accelerator, False)
found = vars(fitted)
"""


@pytest.mark.slow
def test_two_processes_with_unequal_batches_give_the_model_of_one(tmp_path):
    one, two = (run_in(n, SCRIPT, tmp_path) for n in (1, 2))
    assert_same_fit(one, two)


def test_a_merge_of_texts_is_a_native_model_that_loads_again(tmp_path):
    models = [bert(seed=1), bert(labels=4, seed=2)]
    texts = sentences(60, seed=3)
    result = hf_zip.merge(
        models, method="zipfit", tasks=["a", "b"], processor=tokenizer(), calibration=texts,
        out=tmp_path / "merged", progress=False,
    )  # fmt: skip
    assert type(result.model) is type(models[0])
    assert result.model.config.num_attention_heads == 6
    assert result.model.config.hidden_size == 12
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    given = random_inputs(result.model, 8)
    with torch.no_grad():
        torch.testing.assert_close(again(**given).logits, result.model(**given).logits)
    assert again.config.num_labels == 7


def test_few_pooled_tokens_are_believed_as_far_as_they_can_tell(monkeypatch):
    models = [bert(seed=3, **SIZES), bert(labels=4, seed=4, **SIZES)]
    given = random_inputs(models[0], 300, seed=4)
    errors = []
    for ridges in (pooler.STRONGER, pooler.STRONGER[:1]):
        monkeypatch.setattr(pooler, "STRONGER", ridges)
        fitted = fit(models, inputs=70)
        with torch.no_grad():
            pairs = [(m, assembled(m, fitted, k)) for k, m in enumerate(models)]
            misses = [one(**given).logits - other(**given).logits for one, other in pairs]
        errors.append([float(miss.square().mean()) for miss in misses])
    assert all(chosen < 0.9 * fixed for chosen, fixed in zip(*errors, strict=True)), errors


def test_few_texts_raise_the_ridge_and_say_so(caplog):
    models = [bert(seed=1, **SIZES), bert(labels=4, seed=2, **SIZES)]
    inputs = rows({"input_ids": torch.arange(5, 15).view(2, 5)})
    with caplog.at_level(logging.WARNING):
        fitted = fit(models, inputs)
    assert [record.getMessage() for record in caplog.records] == [
        "the blocks are fitted on 10 rows for up to 72 features, so the ridge is raised up to 7.2 "
        "times; give more inputs",
        "the task head is fitted on 2 rows for up to 36 features, so the ridge is raised up to 18 "
        "times; give more inputs",
    ]
    assert all(parameter.isfinite().all() for parameter in fitted.state.values())


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_inputs_are_refused(count):
    with pytest.raises(HfZipError, match=rf"given {count} calibration input\(s\); it needs"):
        fit([bert()], inputs=count)


def test_a_size_beyond_all_models_is_refused():
    with pytest.raises(HfZipError, match=r"size is 2\.5, larger than all 2 models together"):
        fit([bert(seed=1), bert(seed=2)], size=2.5)


@pytest.mark.parametrize(
    ("cls", "reader"),
    [
        (BertModel, "pooler.dense"),
        (BertForQuestionAnswering, "qa_outputs"),
        (BertForMaskedLM, "cls.predictions.transform.dense"),
    ],
)
def test_outputs_that_are_no_task_heads_are_refused(cls, reader):
    with pytest.raises(HfZipError, match=f"{reader} of {cls.__name__} reads the stream and has no"):
        fit([bert(labels=2, cls=cls)])


def test_projected_embeddings_are_refused():
    with pytest.raises(HfZipError, match=r"embeddings_project of 'electra' projects .* use 'permu"):
        fit([adapter_for("electra").example()])


def test_other_normalisations_are_refused():
    model = bert()
    model.bert.embeddings.LayerNorm = nn.RMSNorm(12)
    with pytest.raises(HfZipError, match=r"embeddings\.LayerNorm is a RMSNorm, but only models"):
        plain_norm([model], "bert.embeddings.LayerNorm")


@torch.no_grad()
def test_gains_near_zero_do_not_blow_up():
    model = bert().double()
    norm = model.bert.embeddings.LayerNorm
    norm.weight.data = torch.tensor([0.0, -2.0, *[1.0] * 10], dtype=torch.float64)
    plain = plain_norm([model], "bert.embeddings.LayerNorm")
    assert plain.gain.tolist() == [0.05, 2.0, *[1.0] * 10]
    assert torch.equal(plain.bias, norm.bias)


def test_scaled_moments_are_those_of_weighted_least_squares():
    x, y, scale = torch.randn(50, 3).double(), torch.randn(50, 2).double(), torch.rand(50).double()
    scale = scale + 0.5
    sums = ScaledMoments(3, 2)
    sums.update(x[:20], y[:20], scale[:20])
    sums.update(x[20:], y[20:], scale[20:])
    weight, bias = sums.moments().fit(penalty=0.0)
    extended = torch.cat([x, torch.ones(50, 1)], dim=1)
    expected = torch.linalg.lstsq(extended / scale[:, None], y / scale[:, None]).solution
    torch.testing.assert_close(torch.cat([weight.T, bias[None]]), expected)


def test_equal_scales_weigh_nothing():
    x, y = torch.randn(50, 3).double(), torch.randn(50, 2).double()
    scaled, plain = ScaledMoments(3, 2), RegressionMoments(3, 2)
    scaled.update(x, y, torch.full((50,), 3.0).double())
    plain.update(x, y)
    for a, b in zip(scaled.moments().fit(0.1), plain.moments().fit(0.1), strict=True):
        torch.testing.assert_close(a, b)


def test_gains_are_fitted_feature_by_feature():
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 2.0, 1.0]])
    y = torch.tensor([[1.0, 5.0, 3.0], [3.0, 4.0, 3.0]])
    sums = GainMoments(3)
    sums.update(x[:1], y[:1])
    sums.update(x[1:], y[1:])
    gain, bias = sums.fit()
    # The second wants a gain of -1, and the third is always the same.
    torch.testing.assert_close(gain, torch.tensor([2.0, SMALLEST, SMALLEST]).double())
    torch.testing.assert_close(
        bias, torch.tensor([1.0, 4.5 - 1.5 * SMALLEST, 3 - SMALLEST]).double()
    )


def two_tables(count, words=7, places=5, width=6, own=4):
    """Tables of some teachers, and how often each row is seen: some never."""
    draw = torch.Generator().manual_seed(count)
    sums = []
    for size in range(own, own + count):
        tables = [torch.randn(n, size, generator=draw).double() for n in (words, places)]
        matrix = torch.randn(width, size, generator=draw).double()
        sums.append(Sums(*map(centred, tables), centred(matrix.T).T, 1e-12))
    seen = [torch.randint(0, 3, (n,), generator=draw).double() for n in (words, places)]
    return sums, (seen[0], seen[1])


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("pairs", [1, 12, 10**6])
def test_tables_are_what_each_pair_of_rows_asks_for(count, pairs, monkeypatch):
    monkeypatch.setattr(embedding, "PAIRS", pairs)
    monkeypatch.setattr(embedding, "ROUNDS", 1)
    sums, counts = two_tables(count)
    weights = [part / part.sum() for part in counts]
    rows = [[s.words for s in sums], [s.places for s in sums]]
    scales = [s.scales(s.words, s.places) for s in sums]
    typical = [float(weights[0] @ scale @ weights[1]) for scale in scales]
    found = [
        sum(own @ s.matrix.T / scale for own, s, scale in zip(side, sums, typical, strict=True))
        for side in rows
    ]
    shares = [
        ((s.words[:, None] + s.places) @ s.matrix.T) / scale[..., None]
        for s, scale in zip(sums, scales, strict=True)
    ]
    wanted = layer_norm(sum(shares), (6,))
    for own, weight in ((0, weights[1]), (1, weights[0])):
        size = (wanted * (found[0][:, None] + found[1])).mean(dim=-1, keepdim=True)
        lacking = size * wanted - (found[1] if own == 0 else found[0][:, None])
        found[own] = torch.tensordot(lacking, weight, ([1 - own], [0]))
    for one, other in zip(fit_tables(sums, counts), found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that is made."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.size = max(self.size, made.numel())
        return made


def test_pairs_of_words_and_places_have_no_features_of_their_own(monkeypatch):
    monkeypatch.setattr(embedding, "PAIRS", 500)
    sums, _ = two_tables(2, words=40, places=30, width=12)
    with Largest() as largest:
        fit_tables(sums, (torch.ones(40).double(), torch.ones(30).double()))
    assert largest.size == 40 * 30  # of how large the sums are typically


@pytest.mark.parametrize("sizes", [[4], [4, 3], [4, 1], [3, 2, 2]])
def test_places_that_are_sums_are_split_into_them(sizes):
    tables = [torch.randn(size, 5).double() for size in sizes]
    places = tables[0]
    for table in tables[1:]:
        places = (places[:, None] + table).flatten(0, 1)
    counts = torch.ones(len(places)).double()
    found = split_places(places, counts, sizes)
    total = found[0]
    for table in found[1:]:
        total = (total[:, None] + table).flatten(0, 1)
    torch.testing.assert_close(total, places)


def test_places_that_are_seen_decide_what_the_parts_are():
    places = torch.randn(4 * 2, 5).double()
    counts = torch.tensor([3.0, 0.0] * 4).double()  # the second part is always its first row
    positions, types = split_places(places, counts, [4, 2])
    torch.testing.assert_close(positions + types[0], places[::2], rtol=0, atol=1e-3)
