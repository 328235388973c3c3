"""Task vectors merged by their singular vectors or by the inputs they stand for."""

import numpy as np
import pytest
import scipy.linalg
import torch

import hf_zip
from hf_zip.combining.interference import least_interference
from hf_zip.combining.spectra import (
    isotropic,
    isotropic_in_subspaces,
    nearest_orthonormal,
    without_interference,
)
from hf_zip.errors import HfZipError
from tests.siblings import combined, family, tensors, trunk

SHAPES = {"wide": (5, 9), "tall": (10, 6), "bias": (5,), "kernel": (3, 2, 2)}
METHODS = ("tsv", "iso_c", "iso_cts", "wudi")


def draw(count=3, shape=(6, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def polar(matrix):
    """The orthonormal factor, by scipy; it wants no fewer rows than columns."""
    matrix = matrix.numpy()
    tall = matrix.shape[0] >= matrix.shape[1]
    factor = scipy.linalg.polar(matrix if tall else matrix.T)[0]
    return torch.from_numpy(np.ascontiguousarray(factor if tall else factor.T))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_matrix_of_a_linear_layer_is_averaged(method):
    base, states = tensors(3, **SHAPES)
    models = [{"weight": weight} for weight in (1.0, 2.0, 0.0)]
    found = combined(method, base, states, models, scaling=0.5)
    for name in ("bias", "kernel"):
        own = [state[name] - base[name] for state in states]
        expected = base[name] + 0.5 * (own[0] + 2 * own[1]) / 3
        torch.testing.assert_close(found[name], expected)


# TSV.


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_tsv_by_scipy(shape):
    vectors = draw(3, shape)
    columns, sizes, rows = [], [], []
    for vector in vectors:
        left, values, right = (torch.from_numpy(x) for x in scipy.linalg.svd(vector.numpy()))
        kept = min(shape) // 3
        columns.append(left[:, :kept])
        sizes.append(values[:kept])
        rows.append(right[:kept])
    expected = polar(torch.cat(columns, 1)) @ torch.cat(sizes).diag() @ polar(torch.cat(rows))
    torch.testing.assert_close(without_interference(vectors), expected)


def test_tsv_of_one_model_is_its_task_vector():
    vectors = draw(1)
    torch.testing.assert_close(without_interference(vectors), vectors[0])


def test_tsv_of_orthogonal_directions_is_their_sum():
    vectors = torch.zeros(2, 4, 4)
    vectors[0, 0, 0], vectors[0, 1, 1] = 3.0, 2.0
    vectors[1, 2, 2], vectors[1, 3, 3] = 4.0, 1.0
    torch.testing.assert_close(without_interference(vectors), vectors.sum(dim=0))


def test_tsv_of_more_models_than_directions_keeps_one_of_each():
    vectors = draw(5, (3, 4))
    found = without_interference(vectors)
    assert found.shape == (3, 4)
    assert torch.linalg.matrix_rank(found) == 3


# Iso-C and Iso-CTS.


def test_iso_c_has_the_directions_of_the_sum_and_one_singular_value():
    base, states = tensors(3, **SHAPES, dtype=torch.float64)
    found = combined("iso_c", base, states)
    for name in ("wide", "tall"):
        total = sum(state[name] - base[name] for state in states)
        merged = found[name] - base[name]
        values = torch.linalg.svdvals(merged)
        torch.testing.assert_close(values, torch.linalg.svdvals(total).mean().expand_as(values))
        torch.testing.assert_close(merged / values[0], polar(total))


def test_an_isotropic_matrix_has_no_directions_that_were_not_there():
    low = draw(1, (6, 2))[0] @ draw(1, (2, 9), 1)[0]
    found = isotropic(low)
    values = torch.linalg.svdvals(low)[:2]
    torch.testing.assert_close(torch.linalg.svdvals(found)[:2], values.mean().expand(2))
    assert torch.linalg.matrix_rank(found) == 2
    assert torch.equal(isotropic(torch.zeros(3, 2)), torch.zeros(3, 2))
    assert torch.equal(nearest_orthonormal(torch.zeros(3, 2)), torch.zeros(3, 2))


@pytest.mark.parametrize(("common", "own"), [(0.5, 1), (0.8, 1), (0.9, 0), (0.0, 2), (0.4, 1)])
def test_iso_cts_by_scipy(common, own):
    base, states = tensors(3, wide=(6, 9), dtype=torch.float64)
    vectors = [state["wide"] - base["wide"] for state in states]
    total = torch.from_numpy(sum(vectors).numpy())
    left, values, right = (torch.from_numpy(x) for x in scipy.linalg.svd(total.numpy()))
    shared = 6 - 3 * own
    columns, sizes, rows = [left[:, :shared]], [values[:shared]], [right[:shared]]
    for vector in vectors:
        rest = vector - columns[0] @ columns[0].T @ vector
        u, s, v = (torch.from_numpy(x) for x in scipy.linalg.svd(rest.numpy()))
        columns.append(u[:, :own])
        sizes.append(s[:own])
        rows.append(v[:own])
    mean = torch.cat(sizes).mean()
    expected = mean * polar(torch.cat(columns, 1)) @ polar(torch.cat(rows))
    found = combined("iso_cts", base, states, common=common)["wide"] - base["wide"]
    torch.testing.assert_close(found, expected)


def test_iso_cts_never_takes_more_directions_than_there_are():
    # Seven directions, half of them for each of two models: three for each, and one that is common.
    merged = isotropic_in_subspaces(draw(2, (7, 8)), 0.0)
    values = torch.linalg.svdvals(merged)
    torch.testing.assert_close(values, values.mean().expand_as(values))


def test_iso_cts_of_common_directions_alone_is_iso_c():
    base, states = tensors(3, **SHAPES)
    alone, other = (
        combined(method, base, states, **options)
        for method, options in (("iso_cts", {"common": 1.0}), ("iso_c", {}))
    )
    for name in base:
        torch.testing.assert_close(alone[name], other[name])


# WUDI.


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_wudi_is_what_an_optimiser_finds(shape):
    vectors = draw(3, shape)
    ridge = 1e-3 * 3 / shape[1]

    def cost(merged):
        apart = [((merged - own) @ own.T).square().sum() / own.square().sum() for own in vectors]
        return sum(apart) + ridge * (merged - vectors.sum(dim=0)).square().sum()

    merged = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [merged], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = cost(merged)
        loss.backward()
        return loss

    optimiser.step(closure)
    found = least_interference(vectors, 1e-3)
    torch.testing.assert_close(found, merged.detach(), rtol=0, atol=1e-5)
    assert cost(found) <= cost(merged)


def test_wudi_of_task_vectors_that_read_other_inputs_is_their_sum():
    vectors = torch.zeros(2, 3, 4)
    vectors[0, :, :2] = torch.randn(3, 2)
    vectors[1, :, 2:] = torch.randn(3, 2)
    found = least_interference(vectors, 1e-9)
    torch.testing.assert_close(found, vectors.sum(dim=0), rtol=0, atol=1e-5)


def test_wudi_goes_from_the_least_interference_to_the_sum():
    vectors = draw()
    torch.testing.assert_close(least_interference(vectors, 1e9), vectors.sum(dim=0))
    copies = vectors[:1].expand(3, -1, -1)
    torch.testing.assert_close(least_interference(copies, 1e-9), vectors[0], rtol=0, atol=1e-5)


def test_models_that_have_not_moved_say_nothing():
    vectors = draw()
    vectors[1] = 0
    assert least_interference(vectors, 1e-3).isfinite().all()
    assert torch.equal(least_interference(torch.zeros(2, 3, 4), 1e-3), torch.zeros(3, 4))


# Which parameters are matrices.


def test_embeddings_are_averaged_and_linear_layers_are_not():
    base, models = family()
    merged = hf_zip.merge(
        models, method="iso_c", base_model=base, tasks=["a", "b"], progress=False
    ).model
    origin = trunk(base)
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.0.output.LayerNorm.weight"):
        own = [model.bert.get_parameter(name) for model in models]
        torch.testing.assert_close(merged.bert.get_parameter(name), (own[0] + own[1]) / 2)
    name = "encoder.layer.0.output.dense.weight"
    values = torch.linalg.svdvals(merged.bert.get_parameter(name) - origin.get_parameter(name))
    torch.testing.assert_close(values, values.mean().expand_as(values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("iso_cts", {"common": 1.5}, r"common is 1.5; it should be in \[0, 1\]"),
        ("wudi", {"penalty": 0.0}, r"penalty is 0.0; it should be in \[1e-09, inf\]"),
    ],
)
def test_options_have_ranges(method, options, message):
    base, states = tensors(1, **SHAPES)
    with pytest.raises(HfZipError, match=message):
        combined(method, base, states, **options)
