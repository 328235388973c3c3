from itertools import permutations

import numpy as np
import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.matching.permutation import match_head_pairs, match_heads, match_permutation


def similarity(models):
    """Correlation of the features of all models, side by side."""
    return torch.corrcoef(torch.cat(models, dim=1).T)


def random_similarity(size, seed):
    torch.manual_seed(seed)
    return torch.corrcoef(torch.randn(size, 12, dtype=torch.float64))


def noisy(x):
    return x + 0.1 * torch.randn_like(x)


def orders(merge_map):
    return merge_map.merge.argmax(dim=2).numpy()


def blocks(similarity, num_models):
    size = len(similarity) // num_models
    return similarity.reshape(num_models, size, num_models, size).numpy()


def total(blocks, orders):
    return sum(
        blocks[k, orders[k], m, orders[m]].sum() for k in range(len(orders)) for m in range(k)
    )


def assert_permutations(merge_map):
    eye = torch.eye(merge_map.size).expand(merge_map.num_models, -1, -1)
    assert merge_map.merge.dtype == torch.float32
    assert set(merge_map.merge.unique().tolist()) <= {0, 1}
    assert torch.equal(merge_map.merge @ merge_map.unmerge, eye)
    assert torch.equal(merge_map.merge[0], eye[0])


@pytest.mark.parametrize("num_models", [2, 3, 5])
def test_permuted_copies_are_matched_back(num_models):
    x = torch.randn(500, 9)
    shuffles = [torch.arange(9)] + [torch.randperm(9) for _ in range(num_models - 1)]
    models = [noisy(x)[:, shuffle] for shuffle in shuffles]
    found = match_permutation(similarity(models), num_models)
    assert_permutations(found)
    for shuffle, merge in zip(shuffles, found.merge, strict=True):
        assert torch.equal(x[:, shuffle] @ merge.T, x)


@pytest.mark.parametrize("num_models", [2, 3])
def test_permuted_heads_of_linked_groups_are_matched_back(num_models):
    heads, sizes = 4, (3, 2)
    groups = [torch.randn(500, heads, size) for size in sizes]
    copies = [[x.flatten(1)] for x in groups]
    for _ in range(num_models - 1):
        shuffle = torch.randperm(heads)
        for x, size, of_group in zip(groups, sizes, copies, strict=True):
            inner = torch.stack([torch.randperm(size) for _ in range(heads)])
            of_group.append(x[:, shuffle[:, None], inner].flatten(1))
    found = match_heads(
        [similarity([noisy(x) for x in of_group]) for of_group in copies], num_models, heads
    )
    for merge_map, of_group in zip(found, copies, strict=True):
        assert_permutations(merge_map)
        for x, merge in zip(of_group, merge_map.merge, strict=True):
            assert torch.equal(x @ merge.T, of_group[0])


def test_two_models_are_matched_as_well_as_possible():
    for seed in range(5):
        given = random_similarity(10, seed)
        across = blocks(given, 2)[0, :, 1]
        best = max(across[range(5), list(order)].sum() for order in permutations(range(5)))
        assert across[range(5), orders(match_permutation(given, 2))[1]].sum() == best


def test_heads_of_two_models_are_matched_as_well_as_possible():
    for seed in range(5):
        given = [random_similarity(2 * 3 * size, seed + size) for size in (2, 3)]
        split = [
            each.reshape(2, 3, size, 2, 3, size).numpy()
            for each, size in zip(given, (2, 3), strict=True)
        ]
        best = max(
            sum(
                max(
                    each[0, i, range(each.shape[2]), 1, j, list(inner)].sum()
                    for inner in permutations(range(each.shape[2]))
                )
                for each in split
                for i, j in enumerate(outer)
            )
            for outer in permutations(range(3))
        )
        found = match_heads(given, 2, 3)
        score = sum(
            total(blocks(s, 2), orders(merge_map))
            for s, merge_map in zip(given, found, strict=True)
        )
        assert score == pytest.approx(best, abs=1e-12)


def test_linked_heads_move_together_and_stay_whole():
    given = [random_similarity(2 * 4 * size, size) for size in (3, 5)]
    moves = []
    for merge_map, size in zip(match_heads(given, 2, 4), (3, 5), strict=True):
        heads = orders(merge_map)[1].reshape(4, size) // size
        assert (heads == heads[:, :1]).all()
        moves.append(heads[:, 0].tolist())
    assert moves[0] == moves[1]
    assert moves[0] != [0, 1, 2, 3]


def test_no_model_of_three_could_be_matched_better():
    improved = 0
    for seed in range(20):
        given = random_similarity(12, seed)
        split = blocks(given, 3)
        found = orders(match_permutation(given, 3))
        anchored = [found[0]] + [
            orders(match_permutation(given[pair][:, pair], 2))[1]
            for pair in (list(range(8)), [0, 1, 2, 3, 8, 9, 10, 11])
        ]
        score = total(split, found)
        assert found[0].tolist() == [0, 1, 2, 3]
        improved += score > total(split, anchored) + 1e-9
        assert score >= total(split, anchored)
        for k in (1, 2):
            for order in permutations(range(4)):
                other = [*found[:k], np.array(order), *found[k + 1 :]]
                assert total(split, other) <= score + 1e-12
    assert improved > 5


def test_heads_of_three_models_do_better_than_by_the_anchor_alone():
    improved = 0
    for seed in range(5):
        given = random_similarity(3 * 3 * 2, seed)
        split = blocks(given, 3)
        (merge_map,) = match_heads([given], 3, 3)
        anchored = [orders(merge_map)[0]]
        for k in (1, 2):
            pair = torch.cat([torch.arange(6), torch.arange(6) + 6 * k])
            (alone,) = match_heads([given[pair][:, pair]], 2, 3)
            anchored.append(orders(alone)[1])
        gain = total(split, orders(merge_map)) - total(split, anchored)
        assert gain >= 0
        improved += gain > 1e-9
    assert improved > 1


def test_a_case_by_hand():
    across = torch.tensor([[0.9, 0.8], [0.8, -0.5]])
    given = torch.eye(4)
    given[:2, 2:], given[2:, :2] = across, across.T
    # The best pair is 0 with 0, but 0 with 1 and 1 with 0 are better together.
    assert orders(match_permutation(given, 2)).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("num_models", [2, 4])
def test_one_feature_stays(num_models):
    found = match_permutation(torch.ones(num_models, num_models), num_models)
    assert found.merge.tolist() == [[[1.0]]] * num_models


def test_dead_features_leave_the_order():
    assert orders(match_permutation(torch.zeros(9, 9), 3)).tolist() == [[0, 1, 2]] * 3


def test_pairs_that_are_not_asked_for_are_zero():
    scores, found = match_head_pairs(np.eye(6) - 1, 3, [(0, 1), (2, 2)])
    assert scores.tolist() == [[0, -2, 0], [0, 0, 0], [0, 0, 0]]
    assert found[2, 2].tolist() == [0, 1]


def test_no_similarities_are_refused():
    with pytest.raises(HfZipError, match="no similarities to match heads by"):
        match_heads([], 2, 1)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(HfZipError, match="8 features does not divide into 2 models with 3 heads"):
        match_heads([torch.eye(8)], 2, 3)


def test_one_model_is_refused():
    with pytest.raises(HfZipError, match="it takes at least 2"):
        match_permutation(torch.eye(4), 1)
