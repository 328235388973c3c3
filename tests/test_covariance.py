import itertools

import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.statistics import covariance as module
from hf_zip.statistics import statistics, sums
from hf_zip.statistics.covariance import Covariance


def statistic(*batches):
    result = Covariance(batches[0].shape[1])
    for batch in batches:
        result.update(batch)
    return result


def oracle(x):
    return torch.cov(x.double().T, correction=0).reshape(x.shape[1], x.shape[1])


def features(rows, size, mean=0.0, dtype=torch.float32):
    mixing = torch.randn(size, size, dtype=torch.float64)
    x = torch.randn(rows, size, dtype=torch.float64) @ mixing + mean * torch.randn(size)
    return x.to(dtype)


@pytest.fixture(params=[1, 3, 4, 5, 11])
def small_blocks(request, monkeypatch):
    """Sizes below, at and above multiples of a block, and batches of several chunks."""
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(sums, "CHUNK_ROWS", 7)
    return request.param


@pytest.mark.parametrize("mean", [0, 1e3])
def test_any_split_of_the_rows_gives_the_covariance(small_blocks, mean):
    x = features(50, small_blocks, mean, torch.float64)
    expected = oracle(x)
    for sizes in ([50], [1] * 50, [7, 14, 29], [0, 49, 1]):
        found = statistic(*x.split(sizes))
        scale = expected.abs().max() + x.square().mean()
        assert found.count == 50
        assert (found.mean() - x.mean(dim=0)).abs().max() <= 1e-12 * (1 + mean)
        assert (found.covariance() - expected).abs().max() <= 1e-12 * scale


def test_any_distribution_of_batches_gives_the_same_sums(small_blocks):
    batches = features(60, small_blocks, 100.0).split([1, 20, 9, 30])
    expected = statistic(*batches).covariance()
    for order in itertools.permutations(range(4)):
        for cut in (1, 2, 3):
            one, two = (
                statistic(*(batches[i] for i in part)) for part in (order[:cut], order[cut:])
            )
            reduced = Covariance(small_blocks)
            reduced.load_state({k: one.state()[k] + two.state()[k] for k in one.state()})
            for found in (reduced, one + two):
                difference = (found.covariance() - expected).abs().max()
                assert difference <= 1e-12 * (expected.abs().max() + 100**2)


def test_float32_rows_with_a_large_mean_keep_their_covariance():
    x = features(500, 6, 1e3)
    naive = x.T @ x / len(x) - torch.outer(x.mean(dim=0), x.mean(dim=0))
    error = (statistic(*x.split(100)).covariance() - oracle(x)).abs().max() / oracle(x).abs().max()
    assert error <= 1e-6
    assert (naive - oracle(x)).abs().max() / oracle(x).abs().max() > 1e-3


def test_the_covariance_of_real_blocks_is_exactly_symmetric():
    x = features(40, module.BLOCK + 9, 3.0)
    found = statistic(x).covariance()
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found, oracle(x), rtol=0, atol=1e-6 * float(found.abs().max()))


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_a_constant_feature_has_no_covariance(value):
    x = features(300, 3)
    x[:, 1] = value
    found = statistic(*x.split(7)).covariance()
    assert not found[1].any()
    assert not found[:, 1].any()
    assert found[0, 2] != 0


def test_a_feature_that_varies_little_beside_its_mean_is_not_constant():
    x = 1e4 + features(300, 1, dtype=torch.float64)
    torch.testing.assert_close(statistic(x).covariance(), oracle(x), rtol=1e-6, atol=0)


def test_one_row_has_covariance_zero():
    found = statistic(torch.tensor([[3.0, -1.0]]))
    assert found.mean().tolist() == [3, -1]
    assert not found.covariance().any()


def test_a_case_by_hand():
    found = statistic(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[2.0, 2.0]]))
    assert found.mean().tolist() == [2, 2]
    torch.testing.assert_close(
        found.covariance(), torch.tensor([[2, 4], [4, 8]], dtype=torch.float64) / 3
    )


def test_half_precision_is_summed_in_float32():
    x = features(30, 4, dtype=torch.bfloat16)
    assert torch.equal(statistic(x).covariance(), statistic(x.float()).covariance())


def test_autocast_does_not_lower_the_precision():
    x = features(30, 4)
    expected = statistic(x).covariance()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(statistic(x).covariance(), expected)


def test_rows_are_left_as_they_were_and_carry_no_gradient():
    x = features(30, 4).requires_grad_()
    before = x.detach().clone()
    assert not statistic(x).covariance().requires_grad
    assert torch.equal(x, before)


def test_a_loaded_state_is_a_copy():
    source = statistic(features(10, 3))
    copy = Covariance(3)
    copy.load_state(source.state())
    expected = source.covariance()
    assert torch.equal(copy.covariance(), expected)
    copy.update(features(10, 3))
    assert torch.equal(source.covariance(), expected)


def test_the_sum_of_two_leaves_both():
    one, two = statistic(features(10, 3)), statistic(features(20, 3))
    before = one.covariance(), two.covariance()
    assert (one + two).count == 30
    assert torch.equal(one.covariance(), before[0])
    assert torch.equal(two.covariance(), before[1])


def test_sums_are_kept_in_float64_where_the_device_has_none():
    assert {value.device.type for value in Covariance(2, "mps").state().values()} == {"cpu"}
    assert {value.dtype for value in Covariance(2, "mps").state().values()} == {torch.float64}


def test_the_registry_knows_it():
    entry = statistics()["covariance"]
    assert entry.title
    assert entry.create(3, device=torch.device("cpu")).size == 3


def test_no_features_are_refused():
    with pytest.raises(HfZipError, match="covariance of 0 features"):
        Covariance(0)


def test_another_width_is_refused():
    with pytest.raises(HfZipError, match=r"shape \(5, 4\) were given; it should be \(rows, 3\)"):
        Covariance(3).update(torch.zeros(5, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_values_that_are_not_finite_are_refused_and_change_nothing(value):
    found = statistic(features(10, 3))
    before = found.covariance()
    x = features(10, 3)
    x[9, 2] = value
    with pytest.raises(HfZipError, match="not finite, or too large"):
        found.update(x)
    assert torch.equal(found.covariance(), before)


@pytest.mark.parametrize("read", [Covariance.mean, Covariance.covariance])
def test_no_rows_are_refused(read):
    with pytest.raises(HfZipError, match="no rows yet"):
        read(statistic(torch.zeros(0, 3)))


def test_the_state_of_another_size_is_refused():
    with pytest.raises(HfZipError, match="that of 3 features has"):
        Covariance(3).load_state(Covariance(4).state())
    with pytest.raises(HfZipError, match="that of 3 features has"):
        Covariance(3) + Covariance(4)
