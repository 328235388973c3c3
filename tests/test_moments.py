import numpy as np
import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.refit.moments import RegressionMoments
from hf_zip.refit.ridge import ridge
from hf_zip.statistics.sums import CHUNK_ROWS


def data(rows=60, features=5, targets=3, mean=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64) + mean
    mix = torch.randn(features, targets, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, targets, generator=generator, dtype=torch.float64)
    return x, x @ mix + 0.3 * noise + 2


def sums_of(*batches):
    sums = RegressionMoments(batches[0][0].shape[1], batches[0][1].shape[1])
    for x, y in batches:
        sums.update(x, y)
    return sums


def assert_equal(found, expected, atol=1e-12):
    for name in ("mean_x", "mean_y", "covariance", "cross"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
    assert found.rows == expected.rows


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [59, 1], [7, 20, 33]])
def test_any_split_of_the_rows_gives_the_same(sizes):
    x, y = data(mean=3.0)
    split = sums_of(*zip(x.split(sizes), y.split(sizes), strict=True)).moments()
    assert_equal(split, sums_of((x, y)).moments())
    joint = torch.cov(torch.cat([x, y], dim=1).T, correction=0)
    torch.testing.assert_close(split.covariance, joint[:5, :5], rtol=0, atol=1e-12)
    torch.testing.assert_close(split.cross, joint[5:, :5], rtol=0, atol=1e-12)


def test_a_batch_of_several_chunks_is_that_of_its_chunks():
    x, y = data(rows=2 * CHUNK_ROWS + 3, features=2, targets=1)
    assert_equal(sums_of((x, y)).moments(), sums_of((x[:9], y[:9]), (x[9:], y[9:])).moments())


def test_the_sums_of_several_processes_add_up():
    x, y = data()
    parts = sums_of((x[:10], y[:10])).state(), sums_of((x[10:], y[10:])).state()
    first, second = parts
    total = {
        "features": {k: v + second["features"][k] for k, v in first["features"].items()},
        "targets": first["targets"] + second["targets"],
        "cross": first["cross"] + second["cross"],
    }
    sums = RegressionMoments(5, 3)
    sums.load_state(total)
    assert sums.count == 60
    assert_equal(sums.moments(), sums_of((x, y)).moments())
    first["targets"].zero_()
    assert_equal(sums.moments(), sums_of((x, y)).moments())  # a copy


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_without_penalty_the_fit_is_least_squares(mean):
    x, y = data(mean=mean)
    weight, bias = sums_of((x[:25], y[:25]), (x[25:], y[25:])).moments().fit(penalty=0.0)
    centred = (x - x.mean(dim=0)).numpy()
    expected, *_ = np.linalg.lstsq(centred, (y - y.mean(dim=0)).numpy(), rcond=None)
    np.testing.assert_allclose(weight.numpy(), expected.T, rtol=0, atol=1e-7 if mean else 1e-12)
    fitted = x @ weight.T + bias
    np.testing.assert_allclose(fitted.mean(0).numpy(), y.mean(0).numpy(), rtol=1e-12, atol=1e-12)


def test_float32_rows_with_a_large_mean_lose_nothing_to_it():
    x, y = data(rows=500)
    x = (x + 1000).float()
    weight, _ = sums_of(*zip(x.split(100), y.float().split(100), strict=True)).moments().fit(0.0)
    exact, _ = sums_of((x.double(), y)).moments().fit(0.0)
    assert (weight - exact).abs().max() <= 1e-5


def test_half_precision_rows_are_multiplied_in_float32():
    x, y = (part.bfloat16() for part in data())
    assert_equal(sums_of((x, y)).moments(), sums_of((x.float(), y.float())).moments(), atol=0)


def test_mapped_features_have_the_moments_of_the_mapped_rows():
    x, y = data(mean=2.0)
    matrix = torch.randn(4, 5, dtype=torch.float64)
    assert_equal(
        sums_of((x, y)).moments().mapped(matrix), sums_of((x @ matrix.T, y)).moments(), 1e-12
    )


def test_the_second_moment_is_that_of_the_rows():
    x, y = data(mean=2.0)
    second = sums_of((x, y)).moments().second_moment()
    torch.testing.assert_close(second, x.T @ x / len(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [3, 5, 6])
def test_fewer_rows_than_features_raise_the_penalty_by_their_ratio(rows):
    moments = sums_of(data(rows=rows)).moments()
    given = moments.covariance, moments.cross, moments.mean_x, moments.mean_y
    weight, _ = moments.fit(penalty=0.01)
    assert torch.equal(weight, ridge(*given, 0.01 * max(1, 5 / rows))[0])


def test_a_feature_that_does_not_vary_gets_no_weight():
    x, y = data(mean=7.0)
    x[:, 1] = 0.1  # not exact in binary: its sums round
    x[:, 3] = 0.0
    weight, bias = sums_of((x[:13], y[:13]), (x[13:], y[13:])).moments().fit(1e-10)
    assert weight[:, [1, 3]].abs().max() == 0
    assert bias.isfinite().all()


def test_no_rows_are_refused():
    with pytest.raises(HfZipError, match="no rows to fit"):
        RegressionMoments(2, 1).moments()


def test_features_that_are_not_finite_are_refused():
    x, y = data()
    x[3, 2] = torch.inf
    with pytest.raises(HfZipError, match="not finite"):
        sums_of((x, y))
