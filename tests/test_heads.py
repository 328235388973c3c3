import pytest
import torch

from hf_zip.refit.heads import truncate_scores, truncate_values

WIDTH, SIZE = 4, 9


def head(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = normal(300, SIZE) @ normal(SIZE, SIZE) + normal(SIZE)
    return inputs, (normal(WIDTH, SIZE), normal(WIDTH), normal(WIDTH, SIZE))


def moments_of(inputs):
    return inputs.T @ inputs / len(inputs), inputs.mean(dim=0)


def scores(inputs, query, bias, key):
    """What softmax sees: of every input as a query, of every input as a key."""
    return (inputs @ query.T + bias) @ (inputs @ key.T).T / len(query) ** 0.5


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_scores_are_the_best_of_their_rank(rank):
    inputs, parameters = head()
    full = scores(inputs, *parameters)
    found = scores(inputs, *truncate_scores(*parameters, *moments_of(inputs), rank))
    u, s, v = torch.linalg.svd(full, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    torch.testing.assert_close(found, best, rtol=0, atol=1e-9 * float(s[0]))
    assert (found - full).norm() == pytest.approx(float(s[rank:].norm()), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_scores_are_those_of_an_explicit_whitening(rank):
    inputs, (query, bias, key) = head(1)
    second, mean = moments_of(inputs)
    extended = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    left, right = root(extended.T @ extended / len(inputs)), root(second)
    form = torch.cat([query, bias[:, None]], dim=1).T @ key
    u, s, v = torch.linalg.svd(left @ form @ right)
    best = torch.linalg.pinv(left) @ (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.pinv(right)
    new_query, new_bias, new_key = truncate_scores(query, bias, key, second, mean, rank)
    found = torch.cat([new_query, new_bias[:, None]], dim=1).T @ new_key
    # Attention divides by the root of the head's width, which is another one now.
    torch.testing.assert_close(found * (WIDTH / rank) ** 0.5, best, rtol=0, atol=1e-8)


def test_scores_at_full_rank_are_the_heads_own():
    inputs, parameters = head()
    found = truncate_scores(*parameters, *moments_of(inputs), WIDTH)
    for new, old in zip(found, parameters, strict=True):
        assert torch.equal(new, old)


def test_scores_of_a_head_of_low_rank_are_exact():
    inputs, (query, bias, key) = head()
    query[2:], bias[2:] = 0, 0
    found = truncate_scores(query, bias, key, *moments_of(inputs), 2)
    expected = scores(inputs, query, bias, key)
    torch.testing.assert_close(scores(inputs, *found), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dead", [0, 2, (0, 1, 2)])
def test_scores_of_a_dead_head_are_zero_and_finite(dead):
    inputs, parameters = head()
    for part in (dead,) if isinstance(dead, int) else dead:
        parameters[part].zero_()
    found = truncate_scores(*parameters, *moments_of(inputs), 2)
    assert all(part.isfinite().all() for part in found)
    if dead != 0:  # a query bias alone still asks for something
        assert scores(inputs, *found).abs().max() == 0


def test_scores_on_inputs_that_do_not_vary_are_finite():
    inputs, parameters = head()
    same = inputs[:1].expand(10, -1)
    found = truncate_scores(*parameters, *moments_of(same), 2)
    torch.testing.assert_close(
        scores(same, *found), scores(same, *parameters), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_values_are_the_best_of_their_rank(rank):
    inputs, _ = head()
    contexts = inputs[:, :WIDTH] - inputs[:, :WIDTH].mean(dim=0)
    output = torch.randn(SIZE, WIDTH, dtype=torch.float64)
    kept = truncate_values(output, contexts.T @ contexts / len(contexts), rank)
    written, features = contexts @ output.T, contexts @ kept.T
    left = written - features @ torch.linalg.lstsq(features, written).solution
    s = torch.linalg.svdvals(written)
    assert kept.shape == (rank, WIDTH)
    assert left.norm() == pytest.approx(float(s[rank:].norm()), rel=1e-8)


@pytest.mark.parametrize("rank", [1, 3])
def test_values_have_unit_energy_together(rank):
    inputs, _ = head()
    covariance = torch.cov(inputs[:, :WIDTH].T)
    kept = truncate_values(torch.randn(SIZE, WIDTH, dtype=torch.float64), covariance, rank)
    energy = kept @ covariance @ kept.T
    torch.testing.assert_close(energy, torch.eye(rank).double(), rtol=0, atol=1e-10)


def test_values_at_full_rank_are_the_heads_own():
    kept = truncate_values(torch.randn(SIZE, WIDTH), torch.eye(WIDTH), WIDTH)
    assert torch.equal(kept, torch.eye(WIDTH).double())


def test_values_of_a_dead_head_are_zero():
    assert truncate_values(torch.zeros(SIZE, WIDTH), torch.eye(WIDTH), 2).abs().max() == 0
    assert truncate_values(torch.ones(SIZE, WIDTH), torch.zeros(WIDTH, WIDTH), 2).abs().max() == 0


def test_values_beyond_the_rank_stay_empty():
    covariance = torch.diag(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    kept = truncate_values(torch.ones(SIZE, WIDTH), covariance, 3)
    assert kept.isfinite().all()
    assert kept[1:].abs().max() <= 1e-6
