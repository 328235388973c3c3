import logging

import jaxtyping
import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.matching.correlation import checked_similarity, correlation, mean_correlation


def covariance(size, scale=None):
    x = torch.randn(40, size, dtype=torch.float64) @ torch.randn(size, size, dtype=torch.float64)
    return torch.cov((x if scale is None else x * scale).T)


@pytest.fixture
def shapes_unchecked():
    """Lets a wrong shape reach the library's own check, as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_it_is_pearsons():
    x = torch.randn(40, 6, dtype=torch.float64)
    found = correlation(torch.cov(x.T))
    torch.testing.assert_close(found, torch.corrcoef(x.T))
    assert torch.equal(found, found.T)
    assert torch.equal(found.diagonal(), torch.ones(6, dtype=torch.float64))


def test_it_does_not_depend_on_scales():
    scale = torch.tensor([1e-2, -1, 5, 1e3], dtype=torch.float64)
    torch.manual_seed(1)
    plain = correlation(covariance(4))
    torch.manual_seed(1)
    torch.testing.assert_close(
        correlation(covariance(4, scale)), plain * torch.outer(scale.sign(), scale.sign())
    )


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_it_does_not_depend_on_the_scale_of_all(scale):
    given = covariance(4)
    torch.testing.assert_close(correlation(scale * given), correlation(given))


def test_equal_features_correlate_by_no_more_than_one():
    x = torch.randn(50, 1).repeat(1, 3) * torch.tensor([1.0, 0.1, 1 / 3])
    found = correlation(torch.cov(x.T))
    assert found.max() == 1
    torch.testing.assert_close(found, torch.ones(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("deviation", [0.0, 1e-9])
def test_a_dead_feature_correlates_with_nothing(deviation, caplog):
    found = covariance(4, torch.tensor([1, deviation, 1, 1]))
    alive = [0, 2, 3]
    with caplog.at_level(logging.INFO):
        result = correlation(found)
    assert not result[1].any()
    assert not result[:, 1].any()
    torch.testing.assert_close(
        result[alive][:, alive], correlation(found[alive][:, alive]), rtol=0, atol=0
    )
    assert caplog.messages == ["1 of 4 features are dead: they correlate with nothing"]


def test_a_feature_that_varies_little_is_alive(caplog):
    with caplog.at_level(logging.INFO):
        assert correlation(covariance(3, torch.tensor([1, 1e-5, 1]))).diagonal().sum() == 3
    assert not caplog.messages


def test_a_variance_that_rounding_made_negative_is_dead():
    assert correlation(torch.tensor([[-1e-20, 0], [0, 1]])).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("value", [0.0, 4.0])
def test_one_feature_is_alive_if_it_varies(value):
    assert correlation(torch.tensor([[value]])).item() == (value > 0)


def test_the_covariance_is_left_as_it_was():
    given = covariance(4)
    before = given.clone()
    mean_correlation([given, given])
    assert torch.equal(given, before)


def test_the_mean_is_over_correlations_not_covariances():
    one, two = covariance(4), 1e6 * covariance(4)
    torch.testing.assert_close(
        mean_correlation([one, two]), (correlation(one) + correlation(two)) / 2
    )
    assert torch.equal(mean_correlation([one]), correlation(one))


def test_no_covariances_are_refused():
    with pytest.raises(HfZipError, match="no covariances to average"):
        mean_correlation([])


def test_covariances_of_different_sizes_are_refused(shapes_unchecked):
    with pytest.raises(HfZipError, match=r"different shapes: \[\(2, 2\), \(3, 3\)\]"):
        mean_correlation([covariance(2), covariance(3)])


def test_a_covariance_that_is_not_square_is_refused(shapes_unchecked):
    with pytest.raises(HfZipError, match=r"covariance has shape \(2, 3\)"):
        correlation(torch.zeros(2, 3))


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(HfZipError, match="covariance holds values that are not finite"):
        correlation(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float64, "float64"),
        (torch.float32, "float32"),
        (torch.bfloat16, "float32"),
    ],
)
def test_a_similarity_is_an_array_of_at_least_float32(given, expected):
    found = checked_similarity(torch.eye(4, dtype=given, requires_grad=True), 2)
    assert (found.dtype, found.tolist()) == (expected, torch.eye(4).tolist())


def test_a_similarity_of_one_model_is_refused():
    with pytest.raises(HfZipError, match="features of 1 model are to be matched"):
        checked_similarity(torch.eye(4), 1)


@pytest.mark.parametrize(("size", "models", "heads"), [(5, 2, 1), (8, 2, 3), (0, 2, 1), (4, 2, 0)])
def test_a_similarity_that_does_not_divide_is_refused(size, models, heads):
    with pytest.raises(HfZipError, match=f"{size} features does not divide into {models} models"):
        checked_similarity(torch.eye(size), models, heads)


def test_a_similarity_that_is_not_square_is_refused(shapes_unchecked):
    with pytest.raises(HfZipError, match=r"similarity has shape \(2, 4\)"):
        checked_similarity(torch.zeros(2, 4), 2)


def test_a_similarity_that_is_not_finite_is_refused():
    with pytest.raises(HfZipError, match="similarity holds values that are not finite"):
        checked_similarity(torch.full((2, 2), float("inf")), 2)
