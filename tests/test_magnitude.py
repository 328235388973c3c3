"""Thresholds found in passes over tensors, against sorted numbers."""

import pytest
import torch

from hf_zip.combining.magnitude import thresholds, trim


def parts(dtype=torch.float32, models=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(models, 13, 5), (models, 1), (models,), (models, 7, 2, 3)]
    draws = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    # Numbers of very different sizes, some of them alike in their first bits, and zeros.
    found = [(draw.abs() ** 20 * draw.sign()).to(dtype) for draw in draws]
    found[0][0, :3] = 1.0 + torch.arange(15).reshape(3, 5).to(dtype) * torch.finfo(dtype).eps
    found[0][1, :2] = 0.0
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_threshold_is_the_smallest_of_the_largest(dtype):
    tensors = parts(dtype)
    rows = torch.cat([tensor.reshape(2, -1) for tensor in tensors], dim=1)
    ordered = rows.abs().sort(dim=1, descending=True).values
    count = rows.shape[1]
    for kept in (1, 2, 8, 9, 14, 40, count - 1, count):
        found = thresholds(lambda: tensors, [kept / count] * 2)
        assert found == tuple(ordered[:, kept - 1].tolist())


def test_each_model_has_a_density_of_its_own():
    tensors = parts(models=3)
    found = thresholds(lambda: tensors, [0.0, 0.5, 1.0])
    assert found[0] == float("inf")
    rows = torch.cat([tensor.reshape(3, -1) for tensor in tensors], dim=1)
    kept = [trim(rows, found)[i].count_nonzero() for i in range(3)]
    assert kept == [0, round(0.5 * rows.shape[1]), rows[2].count_nonzero()]


def test_numbers_that_equal_the_threshold_are_all_kept():
    tensors = [torch.tensor([[1.0, -1.0, 1.0, 0.5]])]
    (found,) = thresholds(lambda: tensors, [0.25])
    assert found == 1.0
    assert trim(tensors[0], [found]).tolist() == [[1.0, -1.0, 1.0, 0.0]]


def test_the_order_of_the_parts_does_not_matter():
    tensors = parts()
    assert thresholds(lambda: tensors, [0.3, 0.7]) == thresholds(
        lambda: reversed(tensors), [0.3, 0.7]
    )


def test_many_numbers_are_counted_in_chunks(monkeypatch):
    tensors = parts()
    whole = thresholds(lambda: tensors, [0.3, 0.7])
    monkeypatch.setattr("hf_zip.combining.magnitude._CHUNK", 4)
    assert thresholds(lambda: tensors, [0.3, 0.7]) == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trimming_keeps_the_limit_and_drops_the_next_smaller(dtype):
    limit = torch.tensor(0.1, dtype=dtype)
    below = limit.nextafter(torch.zeros_like(limit))
    row = torch.stack([limit, below, -limit, -below, 2 * limit, 0 * limit])
    kept = trim(torch.stack([row] * 3), [float(limit), 0.0, float("inf")])
    assert (
        kept[0].tolist()
        == torch.stack([limit, 0 * limit, -limit, 0 * limit, 2 * limit, 0 * limit]).tolist()
    )
    assert torch.equal(kept[1], row)
    assert not kept[2].any()
