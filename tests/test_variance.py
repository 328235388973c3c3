import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.statistics import statistics, sums
from hf_zip.statistics.covariance import Covariance
from hf_zip.statistics.variance import Variance


def statistic(*batches):
    result = Variance(batches[0].shape[1])
    for batch in batches:
        result.update(batch)
    return result


@pytest.mark.parametrize("mean", [0.0, 1e3])
def test_any_split_of_the_rows_gives_mean_and_variance(mean, monkeypatch):
    monkeypatch.setattr(sums, "CHUNK_ROWS", 7)
    x = torch.randn(50, 4, dtype=torch.float64) + mean
    for sizes in ([50], [1] * 50, [7, 14, 29], [0, 49, 1]):
        found = statistic(*x.split(sizes))
        torch.testing.assert_close(found.mean(), x.mean(dim=0), rtol=1e-12, atol=1e-12)
        expected = x.var(dim=0, correction=0)
        torch.testing.assert_close(found.variance(), expected, rtol=0, atol=1e-12 * (1 + mean**2))


def test_the_sums_of_two_processes_add_up():
    one, two = torch.randn(9, 3), torch.randn(5, 3)
    parts = [statistic(one).state(), statistic(two).state()]
    found = Variance(3)
    found.load_state({name: parts[0][name] + parts[1][name] for name in parts[0]})
    expected = statistic(one, two)
    torch.testing.assert_close(found.mean(), expected.mean())
    torch.testing.assert_close(found.variance(), expected.variance())


def test_it_is_the_diagonal_of_the_covariance():
    x = (torch.randn(60, 5) * 3 + 10).bfloat16()
    whole = Covariance(5)
    whole.update(x)
    found = statistic(x).variance()
    torch.testing.assert_close(found, whole.covariance().diagonal(), rtol=1e-6, atol=0)
    torch.testing.assert_close(statistic(x).mean(), whole.mean())


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_a_constant_feature_has_no_variance(value):
    x = torch.randn(300, 2)
    x[:, 1] = value
    found = statistic(*x.split(7)).variance()
    assert found[1] == 0
    assert found[0] > 0


def test_the_registry_knows_it():
    assert statistics()["variance"].create(3, device=torch.device("cpu")).mean


def test_sums_are_kept_in_float64_where_the_device_has_none():
    assert {value.device.type for value in Variance(2, "mps").state().values()} == {"cpu"}


def test_another_width_is_refused():
    with pytest.raises(HfZipError, match=r"shape \(5, 4\) were given; it should be \(rows, 3\)"):
        Variance(3).update(torch.zeros(5, 4))


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(HfZipError, match="2 features holds values that are not finite, or too"):
        Variance(2).update(torch.full((3, 2), torch.nan))


@pytest.mark.parametrize("read", [Variance.mean, Variance.variance])
def test_no_rows_are_refused(read):
    with pytest.raises(HfZipError, match="no rows yet; update the variance"):
        read(Variance(3))


def test_the_state_of_another_size_is_refused():
    with pytest.raises(HfZipError, match="that of 3 features has"):
        Variance(3).load_state(Variance(4).state())


def test_no_features_are_refused():
    with pytest.raises(HfZipError, match="variance of 0 features"):
        Variance(0)
