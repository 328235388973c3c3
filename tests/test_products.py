"""Inner products and signs of weights, against the same worked out two by two."""

import pytest
import torch

from hf_zip import products as module
from hf_zip.products import Pairs, products, total

SHAPES = {"a": (5, 7), "b": (3,), "c": ()}


def states(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = [
        {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]
    for state in found:
        state["a"][0, :3] = 0.0
        state["a"][state["a"] > 1] = 0.0
    return found


def check(pairs, rows):
    rows = torch.stack([row.flatten() for row in rows]).double()
    torch.testing.assert_close(pairs.dots, rows @ rows.T, rtol=1e-6, atol=1e-6)
    signs = rows.sign()
    both = signs[:, None] * signs[None]
    assert torch.equal(pairs.opposite, (both < 0).sum(dim=-1))
    assert torch.equal(pairs.counted, (both != 0).sum(dim=-1))


@pytest.mark.parametrize("at_once", [64, 1 << 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_products_are_those_of_every_two(at_once, dtype, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    *models, base = [{n: x.to(dtype) for n, x in state.items()} for state in states(4)]
    exact = torch.promote_types(dtype, torch.float32)
    found = products(models, {"a": base["a"]}, list(SHAPES))
    own = [model["a"].to(exact) for model in models]
    check(found["a"].weights, [*own, base["a"].to(exact)])
    check(found["a"].changes, [tensor - base["a"].to(exact) for tensor in own])
    check(found["b"].weights, [model["b"] for model in models])
    assert found["b"].changes is None


def test_many_numbers_are_taken_in_turn(monkeypatch):
    torch.manual_seed(0)
    tensors = torch.randn(3, 1500)  # the last parts are fewer
    whole = products([{"x": t} for t in tensors[:2]], {"x": tensors[2]}, ["x"])["x"]
    monkeypatch.setattr(module, "_AT_ONCE", 64)
    parts = products([{"x": t} for t in tensors[:2]], {"x": tensors[2]}, ["x"])["x"]
    for one, other in ((whole.weights, parts.weights), (whole.changes, parts.changes)):
        torch.testing.assert_close(one.dots, other.dots)
        assert torch.equal(one.opposite, other.opposite)
        assert torch.equal(one.counted, other.counted)


def test_small_changes_are_not_lost():
    base = torch.full((1000,), 1000.0)
    moved = base.clone()
    moved[:500] += 1e-3
    (change,) = (moved - base)[:1].tolist()
    found = products([{"x": moved}, {"x": base}], {"x": base}, ["x"])["x"]
    torch.testing.assert_close(found.changes.dots[0, 0].item(), 500 * change**2)
    assert found.changes.cosine(0, 1) == 0.0
    assert found.changes.conflict(0, 1) is None


def test_a_vector_of_zeros_has_no_direction():
    torch.manual_seed(0)
    base = torch.randn(50)
    found = products([{"x": torch.zeros(50)}, {"x": base + 1}], {"x": base}, ["x"])["x"]
    assert found.weights.cosine(0, 1) == 0.0
    assert found.weights.cosine(0, 2) == 0.0


def test_vectors_made_of_several_add_up():
    models = states(2)
    found = products(models, {}, ["a", "b"])
    both = [torch.cat([model["a"].flatten(), model["b"]]) for model in models]
    check(total(own.weights for own in found.values()), both)
    wider = Pairs(torch.eye(3).double(), torch.zeros(3, 3).long(), torch.ones(3, 3).long())
    assert torch.equal(wider.first(2).dots, torch.eye(2).double())
