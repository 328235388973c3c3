from itertools import combinations

import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.matching.selection import select_features, select_heads


def features(rows=200, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64) @ mix


def gram_of(x):
    return x.T @ x / len(x)


def residuals(x, chosen):
    """What a least-squares fit on the chosen columns leaves of each column."""
    if not len(chosen):
        return x.square().sum(dim=0)
    own = x[:, chosen]
    return (x - own @ torch.linalg.lstsq(own, x).solution).square().sum(dim=0)


@pytest.mark.parametrize("seed", range(5))
def test_each_feature_is_the_one_least_explained_by_those_before(seed):
    x = features(seed=seed)
    chosen = select_features(gram_of(x), 6)
    expected = []
    for _ in range(6):
        left = residuals(x, expected)
        left[expected] = -1
        expected.append(int(left.argmax()))
    assert chosen.tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_copy_is_not_chosen_while_something_new_is_left(count):
    x = features(size=4)
    copies = torch.cat([x, x, 3 * x[:, [2, 0, 3, 1]]], dim=1)
    sources = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 2, 0, 3, 1])
    chosen = select_features(gram_of(copies), count)
    assert len(set(sources[chosen].tolist())) == count


@pytest.mark.parametrize("count", [1, 5, 12])
def test_as_many_different_features_as_asked_for_also_beyond_the_rank(count):
    x = features(size=4)
    chosen = select_features(gram_of(torch.cat([x, x, x], dim=1)), count)
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == count
    assert set(chosen.tolist()) <= set(range(12))


def test_features_that_are_all_zero_are_still_chosen():
    assert sorted(select_features(torch.zeros(3, 3), 3).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 4])
def test_a_count_out_of_range_is_refused(count):
    with pytest.raises(HfZipError, match=f"{count} of 3 features are asked for"):
        select_features(torch.eye(3), count)
    with pytest.raises(HfZipError, match=f"{count} of 3 heads are asked for"):
        select_heads(torch.eye(6), 3, count)


def test_moments_that_are_not_finite_are_refused():
    gram = torch.eye(4)
    gram[1, 1] = torch.nan
    with pytest.raises(HfZipError, match="the moments of the features are not finite"):
        select_features(gram, 2)
    with pytest.raises(HfZipError, match="the moments of the heads are not finite"):
        select_heads(gram, 2, 1)


@pytest.mark.parametrize("seed", range(5))
def test_each_head_is_the_one_that_explains_most_of_what_is_left(seed):
    x = features(size=10, seed=seed)
    chosen, left = select_heads(gram_of(x), 5, 3)

    def unexplained(heads):
        columns = [2 * head + i for head in heads for i in range(2)]
        return float(residuals(x, columns).sum() / x.square().sum())

    found = []
    for _ in range(3):
        others = [head for head in range(5) if head not in found]
        found.append(min(others, key=lambda head: unexplained([*found, head])))
    assert chosen.tolist() == found
    assert left == pytest.approx(unexplained(found), abs=1e-10)
    assert left >= min(unexplained(heads) for heads in combinations(range(5), 3)) - 1e-10


def test_of_two_copies_of_all_heads_one_each_explains_all():
    x = features(size=6)
    chosen, left = select_heads(gram_of(torch.cat([x, x], dim=1)), 6, 3)
    assert sorted(head % 3 for head in chosen.tolist()) == [0, 1, 2]
    assert left <= 1e-12


def test_all_heads_explain_all_also_where_they_are_copies():
    x = features(size=4)
    chosen, left = select_heads(gram_of(torch.cat([x, x], dim=1)), 4, 4)
    assert sorted(chosen.tolist()) == [0, 1, 2, 3]
    assert left <= 1e-12


def test_heads_without_energy_leave_nothing():
    chosen, left = select_heads(torch.zeros(4, 4), 2, 1)
    assert (chosen.tolist(), left) == ([0], 0.0)


def test_heads_of_unequal_width_are_refused():
    with pytest.raises(HfZipError, match="5 features do not divide into 2 heads"):
        select_heads(torch.eye(5), 2, 1)


def test_moments_are_left_as_they_were():
    gram = gram_of(features())
    before = gram.clone()
    select_features(gram, 3)
    select_heads(gram, 3, 2)
    assert torch.equal(gram, before)
