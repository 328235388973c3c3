import numpy as np
import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.refit import ridge


def data(rows=40, features=5, targets=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64) * 2 + 3
    mix = torch.randn(features, targets, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, targets, generator=generator, dtype=torch.float64)
    return x, x @ mix + 0.5 * noise - 1


def moments_of(x, y):
    centred, centred_y = x - x.mean(dim=0), y - y.mean(dim=0)
    return centred.T @ centred, centred_y.T @ centred, x.mean(dim=0), y.mean(dim=0)


def test_one_feature_by_hand():
    # Centred: x = -1, 0, 1 and y = -2, 0, 2, so the gram is 2 and the cross moment 4.
    x = torch.tensor([[0.0], [1.0], [2.0]])
    y = torch.tensor([[3.0], [5.0], [7.0]])
    weight, bias = ridge(*moments_of(x, y), penalty=0.0)
    assert (weight.item(), bias.item()) == pytest.approx((2.0, 3.0), abs=1e-15)
    weight, bias = ridge(*moments_of(x, y), penalty=1.0)
    assert (weight.item(), bias.item()) == pytest.approx(
        (1.0, 4.0), abs=1e-15
    )  # half the slope, through the means


def test_without_penalty_it_is_least_squares():
    x, y = data()
    weight, bias = ridge(*moments_of(x, y), penalty=0.0)
    with_ones = np.concatenate([x.numpy(), np.ones((len(x), 1))], axis=1)
    expected, *_ = np.linalg.lstsq(with_ones, y.numpy(), rcond=None)
    np.testing.assert_allclose(weight.numpy(), expected[:-1].T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(bias.numpy(), expected[-1], rtol=0, atol=1e-11)


def test_penalty_is_least_squares_with_extra_rows_and_a_free_bias():
    x, y = data()
    weight, bias = ridge(*moments_of(x, y), penalty=0.1)
    centred, centred_y = (x - x.mean(dim=0)).numpy(), (y - y.mean(dim=0)).numpy()
    ridge_rows = np.sqrt(0.1 * (centred**2).sum(axis=0).mean()) * np.eye(5)
    expected, *_ = np.linalg.lstsq(
        np.concatenate([centred, ridge_rows]),
        np.concatenate([centred_y, np.zeros((5, 3))]),
        rcond=None,
    )
    np.testing.assert_allclose(weight.numpy(), expected.T, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        (x @ weight.T + bias).mean(dim=0).numpy(), y.mean(dim=0).numpy(), rtol=0, atol=1e-12
    )


def test_the_scale_of_the_moments_does_not_matter():
    gram, cross, *means = moments_of(*data())
    sums, averages = ridge(gram, cross, *means), ridge(gram / 40, cross / 40, *means)
    for found, expected in zip(averages, sums, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_moments_in_float32_are_solved_in_float64():
    found = ridge(*(moment.float() for moment in moments_of(*data())))
    assert all(part.dtype == torch.float64 for part in found)


def test_a_dead_feature_is_given_no_weight():
    x, y = data()
    x[:, 2] = 0.0
    weight, _ = ridge(*moments_of(x, y))
    assert weight[:, 2].abs().max() == 0


def test_fewer_rows_than_features_needs_the_penalty():
    dependent = torch.ones(2, 2)
    weight, _ = ridge(dependent, dependent, torch.zeros(2), torch.zeros(2))
    assert weight.isfinite().all()
    with pytest.raises(HfZipError, match=r"linearly dependent and the ridge penalty is 0\.0"):
        ridge(dependent, dependent, torch.zeros(2), torch.zeros(2), 0.0)


def test_features_that_do_not_vary_are_refused():
    with pytest.raises(HfZipError, match="the same in every row"):
        ridge(*moments_of(*data(rows=1)))


@pytest.mark.parametrize("penalty", [-0.5, float("nan")])
def test_a_negative_penalty_is_refused(penalty):
    with pytest.raises(HfZipError, match=rf"penalty is {penalty}; it should be at least 0"):
        ridge(*moments_of(*data()), penalty)


def test_a_moment_that_is_not_finite_is_refused():
    x, y = data()
    y[0, 0] = torch.nan
    with pytest.raises(HfZipError, match="a moment of the regression is not finite"):
        ridge(*moments_of(x, y))


def test_dependent_features_are_refused_without_penalty_however_their_sums_round():
    for seed in range(20):
        x, y = data(seed=seed)
        x = x - x.mean(dim=1, keepdim=True)
        with pytest.raises(HfZipError, match="the features are linearly dependent"):
            ridge(*moments_of(x, y), 0.0)


def indefinite(rank=3, size=6):
    """Moments whose Gram matrix has rank 3 and, by rounding, a negative eigenvalue."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    values = torch.tensor([4.0, 2.0, 1.0, 1e-17, -1e-17, -1e-16], dtype=torch.float64)
    weight = torch.randn(2, rank, generator=generator, dtype=torch.float64)
    gram = basis @ torch.diag(values) @ basis.T
    cross = (weight * values[:rank]) @ basis[:, :rank].T
    means = torch.ones(size, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    return (gram, cross, *means), weight @ basis[:, :rank].T


@pytest.mark.parametrize("penalty", [1e-30, 1e-18, 1e-10, 1e-3])
def test_a_gram_matrix_that_rounding_left_indefinite_is_solved_on_what_varies(penalty):
    moments, expected = indefinite()
    weight, bias = ridge(*moments, penalty)
    # Where nothing varies the weight is rounding / penalty, and at the smallest penalties none.
    tolerance = max(1e-5, 5 * penalty)
    torch.testing.assert_close(weight, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(bias, 1 - weight.sum(dim=1), rtol=0, atol=1e-12)


def test_the_fallback_agrees_with_the_factorisation_where_both_work(monkeypatch):
    given = moments_of(*data())
    expected = ridge(*given, 0.1)
    factorise = torch.linalg.cholesky_ex
    monkeypatch.setattr(
        torch.linalg, "cholesky_ex", lambda matrix: (factorise(matrix)[0], torch.tensor(1))
    )
    for found, part in zip(ridge(*given, 0.1), expected, strict=True):
        torch.testing.assert_close(found, part, rtol=0, atol=1e-12)
