import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.refit.stream import anchored_map, centred_basis, stream_map


def streams(models=2, size=6, rows=200, seed=0, scale=30.0):
    """Centred streams of several models, one of another scale, side by side."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for k in range(models):
        mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
        x = torch.randn(rows, size, generator=generator, dtype=torch.float64) @ mix
        parts.append((x - x.mean(dim=1, keepdim=True)) * scale**k)
    return torch.cat(parts, dim=1)


def moment_of(x):
    return x.T @ x / len(x)


def unit_scaled(x, models):
    parts = [part / part.square().mean().sqrt() for part in x.chunk(models, dim=1)]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("models", [1, 2, 3])
@pytest.mark.parametrize("width", [2, 5, 6])
def test_the_map_is_orthonormal_on_the_scaled_streams(models, width):
    x = streams(models)
    matrix = stream_map(moment_of(x), models, width).matrix
    scales = x.square().reshape(len(x), models, -1).mean(dim=(0, 2)).sqrt()
    orthonormal = matrix * scales.repeat_interleave(x.shape[1] // models)
    rank = min(width - 1, x.shape[1])
    singular = torch.linalg.svdvals(orthonormal)
    assert matrix.shape == (width, x.shape[1])
    assert (singular[:rank] - 1).abs().max() <= 1e-12
    assert singular[rank:].abs().max() <= 1e-12


@pytest.mark.parametrize("width", [2, 4, 12, 20])
def test_its_outputs_sum_to_zero(width):
    x = streams()
    matrix = stream_map(moment_of(x), 2, width).matrix
    assert matrix.sum(dim=0).abs().max() <= 1e-12


@pytest.mark.parametrize("width", [2, 3, 6, 9])
def test_it_keeps_as_much_as_the_best_projection(width):
    x = streams()
    found = stream_map(moment_of(x), 2, width)
    scaled = unit_scaled(x, 2)
    energies = torch.linalg.svd(scaled).S.square()
    assert found.explained == pytest.approx(
        float(energies[: width - 1].sum() / energies.sum()), abs=1e-12
    )
    kept = (x @ found.matrix.T).square().sum() / scaled.square().sum()
    assert float(kept) == pytest.approx(found.explained, abs=1e-12)


@pytest.mark.parametrize("width", [11, 12, 15])
def test_a_width_for_all_directions_keeps_all(width):
    x = streams()  # centred: 2 x 5 directions, for which 11 features are enough
    found = stream_map(moment_of(x), 2, width)
    assert found.explained == pytest.approx(1, abs=1e-12)
    mapped = x @ found.matrix.T
    distances = torch.cdist(mapped, mapped)
    expected = unit_scaled(x, 2)
    torch.testing.assert_close(distances, torch.cdist(expected, expected), rtol=1e-6, atol=1e-6)


def test_one_model_keeps_everything():
    x = streams(1)
    found = stream_map(moment_of(x), 1, 6)
    assert found.explained == pytest.approx(1, abs=1e-12)
    back = torch.linalg.lstsq(x @ found.matrix.T, x).solution
    torch.testing.assert_close(x @ found.matrix.T @ back, x, rtol=0, atol=1e-10)


def test_the_scale_of_a_model_does_not_matter():
    x = streams(scale=1.0)
    scaled = torch.cat([x[:, :6], 1000 * x[:, 6:]], dim=1)
    found, other = stream_map(moment_of(x), 2, 6), stream_map(moment_of(scaled), 2, 6)
    assert found.explained == pytest.approx(other.explained, abs=1e-10)


def test_copies_need_no_more_room_than_one():
    x = streams(1)
    found = stream_map(moment_of(torch.cat([x, x], dim=1)), 2, 6)
    assert found.explained == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("width", [2, 3, 7])
def test_the_basis_is_that_of_the_vectors_that_sum_to_zero(width):
    basis = centred_basis(width)
    torch.testing.assert_close(basis.T @ basis, torch.eye(width - 1).double(), rtol=0, atol=1e-13)
    assert basis.sum(dim=0).abs().max() <= 1e-13


def test_a_width_below_two_is_refused():
    with pytest.raises(HfZipError, match="has width 1; it should be at least 2"):
        stream_map(moment_of(streams()), 2, 1)


def test_a_stream_of_zeros_is_refused():
    x = streams()
    x[:, 6:] = 0
    with pytest.raises(HfZipError, match="residual stream of a model is zero"):
        stream_map(moment_of(x), 2, 6)


def uncentred(models=2, size=6):
    """Streams whose means over features matter."""
    x = streams(models, size, scale=2.0)
    means = torch.randn(len(x), models, 1, generator=torch.Generator().manual_seed(5)).double()
    return x + means.expand(-1, -1, size).flatten(1)


def test_one_model_keeps_its_channels():
    matrix = anchored_map(moment_of(uncentred(1)), 1, 6).matrix
    torch.testing.assert_close(matrix, torch.eye(6).double(), rtol=0, atol=1e-12)


def test_permuted_copies_are_put_back_and_averaged():
    x, order = uncentred(1), torch.randperm(6)
    matrix = anchored_map(moment_of(torch.cat([x, x[:, order], x], dim=1)), 3, 6).matrix
    eye = torch.eye(6).double()
    wanted = torch.cat([eye, eye[order].T, eye], dim=1) / 3
    torch.testing.assert_close(matrix, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [2, 4, 6, 9])
def test_an_anchored_stream_keeps_what_the_best_does_and_the_means(width):
    x = uncentred()
    centred = torch.cat([p - p.mean(dim=1, keepdim=True) for p in x.chunk(2, dim=1)], dim=1)
    best, found = stream_map(moment_of(centred), 2, width), anchored_map(moment_of(x), 2, width)
    mapped = x @ found.matrix.T
    spread = mapped - mapped.mean(dim=1, keepdim=True)
    assert found.explained == pytest.approx(best.explained, abs=1e-12)
    distances, wanted = torch.cdist(spread, spread), torch.cdist(*[centred @ best.matrix.T] * 2)
    torch.testing.assert_close(distances / distances.max(), wanted / wanted.max())
    sizes = centred.reshape(len(x), 2, 6).square().mean(dim=(0, 2)).sqrt()
    means = x.reshape(len(x), 2, 6).mean(dim=2) / sizes
    kept = mapped.mean(dim=1)
    first = torch.linalg.svd(means, full_matrices=False).Vh[0]
    assert abs(float(torch.corrcoef(torch.stack([kept, means @ first]))[0, 1])) > 0.999
