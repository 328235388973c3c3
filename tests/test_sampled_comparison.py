"""Large tensors are compared by a part of their numbers, and whatever shows this says so."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_zip
from hf_zip import products as module
from hf_zip.adapters import adapter_for
from hf_zip.adapters.bert import example as bert
from hf_zip.base_model import compare_base
from hf_zip.card import render_card
from hf_zip.charts import charts
from hf_zip.errors import HfZipError
from hf_zip.page import render_page
from hf_zip.preflight import Preflight, render
from hf_zip.products import compared_share, products
from hf_zip.report_records import SimilarityRecord
from hf_zip.similarity import similarities, task_vector_similarities
from tests.siblings import family
from tests.test_preflight import finetuned, sources
from tests.test_report import REPORT

SHARE = module._RUN / module._APART


@pytest.fixture
def sampling(monkeypatch):
    """Tensors of more than some numbers are compared by a part of them, in short runs."""

    def set_to(whole, run=8, apart=61):
        monkeypatch.setattr(module, "_WHOLE", whole)
        monkeypatch.setattr(module, "_RUN", run)
        monkeypatch.setattr(module, "_APART", apart)

    return set_to


@pytest.fixture(scope="module")
def large():
    """A base and two changes of it that go together, in more numbers than are compared whole."""
    torch.manual_seed(0)
    base = torch.randn(1030, 1024)
    common = torch.randn(1030, 1024)
    models = [base + 0.1 * (common + torch.randn(1030, 1024)) for _ in range(2)]
    return base, models


def test_what_is_found_in_a_part_stands_for_the_whole(large):
    base, models = large
    found = products([{"x": model} for model in models], {"x": base}, ["x"])["x"]
    assert found.numbers == base.numel()
    assert found.compared / found.numbers == pytest.approx(SHARE, rel=1e-3)
    vectors = [*models, base]
    changes = [model - base for model in models]
    for pairs, own in ((found.weights, vectors), (found.changes, changes)):
        rows = torch.stack([row.flatten() for row in own]).double()
        exact = rows @ rows.T
        # In units of what the standard deviation of an inner product of so many numbers is.
        spread = exact.diagonal().outer(exact.diagonal()).sqrt() / found.compared**0.5
        assert ((pairs.dots - exact).abs() / spread).max() < 5
        assert pairs.counted.unique().tolist() == [base.numel()]
        conflict = (own[0].sign() != own[1].sign()).double().mean().item()
        assert abs(pairs.conflict(0, 1) - conflict) < 5 * 0.5 / found.compared**0.5
        assert pairs.opposite.dtype == torch.int64


def test_as_many_numbers_as_are_compared_whole_are_exact(sampling):
    sampling(whole=100)
    torch.manual_seed(0)
    few, more = torch.randn(2, 100), torch.randn(2, 101)
    found = products([{"few": few[i], "more": more[i]} for i in range(2)], {}, ["few", "more"])
    torch.testing.assert_close(found["few"].weights.dots, few.double() @ few.double().T)
    assert found["few"].compared == 100
    seen = more[:, [*range(8), *range(61, 69)]].double()
    torch.testing.assert_close(found["more"].weights.dots, seen @ seen.T * 101 / 16)
    assert (found["more"].compared, found["more"].numbers) == (16, 101)
    assert compared_share(found.values()) == pytest.approx(116 / 201)
    assert compared_share([]) == 1.0


def test_a_parameter_without_numbers_has_no_products():
    found = products([{"x": torch.ones(0, 3)}, {"x": torch.ones(0, 3)}], {}, ["x"])["x"]
    assert found.weights.cosine(0, 1) == 0.0
    assert (found.compared, found.numbers) == (0, 0)


@pytest.mark.parametrize("width", [384, 512, 768, 1024, 2048, 3072, 4096, 8192, 11008, 14336])
def test_every_column_is_looked_at(width):
    rows = max(512, 2 * module._WHOLE // width)
    numbers = rows * width
    starts = torch.arange(module._runs(numbers)) * module._APART
    places = starts[:, None] + torch.arange(module._RUN)
    seen = torch.bincount(places.flatten() % width, minlength=width) / rows
    assert seen.min() > 0.7 * SHARE
    assert seen.max() < 1.4 * SHARE


def test_many_parts_are_taken_in_turn(large, monkeypatch):
    base, models = large
    whole = products([{"x": model} for model in models], {"x": base}, ["x"])["x"]
    monkeypatch.setattr(module, "_AT_ONCE", 1 << 9)
    parts = products([{"x": model} for model in models], {"x": base}, ["x"])["x"]
    torch.testing.assert_close(whole.weights.dots, parts.weights.dots)
    assert torch.equal(whole.changes.opposite, parts.changes.opposite)


def test_the_share_is_that_of_all_roles(sampling):
    base = bert()
    found = sources(finetuned(base, 1), finetuned(base, 2), processors=[None, None])
    adapter = adapter_for("bert")
    (pair,) = similarities(found, adapter)
    assert pair.share == 1.0
    sampling(whole=64)
    (pair,) = similarities(found, adapter)
    (change,) = task_vector_similarities(found, dict(base.named_parameters()), adapter)
    assert 0.1 < pair.share < 0.25
    assert change.share == pair.share


def test_a_model_that_differs_from_its_base_elsewhere_is_not_its_base(sampling):
    sampling(whole=64)
    base = bert()
    moved, origin = finetuned(base, 1, amount=0.0), sources(base, processors=[None])[0]
    found = sources(moved, processors=[None])
    (told,) = [
        x for x in compare_base(found, origin, ("classifier",), False) if "zero" in x.message
    ]
    assert "has the weights of" in told.message
    with torch.no_grad():
        found[0].model.bert.encoder.layer[0].attention.self.query.weight[-1, -1] += 1
    assert not [
        x for x in compare_base(found, origin, ("classifier",), False) if "zero" in x.message
    ]


@pytest.mark.parametrize(("method", "damaged"), [("average", "b"), ("dare", "b"), ("dare", "base")])
def test_numbers_that_are_none_are_found_elsewhere_too(method, damaged, tmp_path, sampling):
    sampling(whole=64)
    base, models = family(2)
    for name, model in (("base", base), ("a", models[0]), ("b", models[1])):
        model.save_pretrained(tmp_path / name)
    file = tmp_path / damaged / "model.safetensors"
    tensors = load_file(file)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    # What is dropped is no number of the merge, but that of a damaged file all the same.
    options = {"drop_rate": 1.0} if method == "dare" else {}
    needed = {"base_model": str(tmp_path / "base")} if method == "dare" else {}
    with pytest.raises(HfZipError, match=rf"1 of \d+ values of {name} are NaN"):
        hf_zip.merge(
            [tmp_path / "a", tmp_path / "b"],
            method=method,
            parameters=options,
            out=tmp_path / "out",
            lane="stream",
            progress=False,
            **needed,
        )
    assert not (tmp_path / "out").exists()


def test_what_is_shown_says_that_it_is_an_estimate():
    pair = SimilarityRecord("cars", "birds", "weights", {"query": 0.9}, {"query": 0.1}, 0.1234)
    report = replace(REPORT, shared_init=True, similarities=(pair,))
    told = "compared by 12.3 % of them, spread evenly over every large tensor"
    assert told in render_card(report)
    assert told in render_page(report)
    titles = [chart.title for chart in charts(report)]
    assert "Cosines of the sources' weights, of 12 % of them" in titles
    assert "Opposite signs in the sources' weights, of 12 % of them" in titles
    whole = replace(report, similarities=(replace(pair, share=1.0),))
    assert "compared by" not in render_card(whole)
    assert not [chart.title for chart in charts(whole) if "%" in chart.title]


def test_the_preflight_says_that_it_is_an_estimate(sampling):
    base = bert()
    found = sources(finetuned(base, 1), finetuned(base, 2), processors=[None, None])
    for whole, told in ((1 << 19, False), (64, True)):
        sampling(whole)
        pairs = similarities(found, adapter_for("bert"))
        lines = render(Preflight((), pairs, "shared", ""))
        assert ("estimated from 16 % of these weights, spread evenly" in lines) == told
