import logging
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from hf_zip.errors import HfZipError
from hf_zip.matching.zip import zip_features, zip_heads, zip_map

WARNING = "no merge is left within the budgets"


def brute_force(similarity, num_models, merged, alpha, beta):
    """The rules of the greedy zip, word by word, with no cache of any kind."""
    size = len(similarity)
    models = {f: {f * num_models // size} for f in range(size)}
    members = {f: [f] for f in range(size)}
    similar = {(i, j): similarity[i, j] for i, j in combinations(range(size), 2)}
    budgets = [int((size - merged) / num_models * beta)] * num_models
    lifted = False
    while len(members) > merged:
        admissible = [
            (i, j)
            for i, j in sorted(similar)
            if lifted or all(budgets[k] > 0 for k in models[i] & models[j])
        ]
        if not admissible:
            lifted = True
            continue
        i, j = max(admissible, key=similar.get)  # the first of equals
        for k in models[i] & models[j]:
            budgets[k] -= 1
        for other in members.keys() - {i, j}:
            with_i, with_j = tuple(sorted((i, other))), tuple(sorted((j, other)))
            lower = min(similar[with_i], similar[with_j])
            similar[with_i] = lower - (1 - alpha) * abs(lower)
        similar = {pair: value for pair, value in similar.items() if j not in pair}
        models[i] |= models.pop(j)
        members[i] += members.pop(j)
    labels = np.empty(size, dtype=int)
    for label, first in enumerate(sorted(members)):
        labels[members[first]] = label
    return labels.tolist(), lifted


def random_similarity(generator, size, num_models, levels=None, dtype=np.float64):
    """Correlations of both signs; `levels` makes many of them equal."""
    x = generator.normal(size=(size, 6))
    shared = np.tile(generator.normal(size=(size // num_models, 6)), (num_models, 1))
    result = np.corrcoef(x + shared)
    if levels:
        result = np.round(result * levels) / levels
    return result.astype(dtype)


@pytest.mark.parametrize("num_models", [2, 3, 4])
@pytest.mark.parametrize("beta", [0.0, 0.075, 0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_it_equals_brute_force(num_models, beta, alpha, caplog):
    generator = np.random.default_rng([num_models, int(1000 * beta), int(10 * alpha)])
    for trial in range(16):
        levels, dtype = (None, 2, 4, None)[trial % 4], (np.float64, np.float32)[trial % 2]
        size = num_models * int(generator.integers(1, 20 // num_models))
        merged = int(generator.integers(1, size + 1))
        given = random_similarity(generator, size, num_models, levels, dtype)
        expected, lifted = brute_force(given, num_models, merged, alpha, beta)
        caplog.clear()
        found = zip_features(torch.from_numpy(given), num_models, merged, alpha, beta)
        assert found.tolist() == expected, (trial, size, merged)
        assert any(WARNING in message for message in caplog.messages) == lifted


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_it_equals_brute_force_on_more_features(beta):
    for num_models in (2, 3):
        generator = np.random.default_rng(num_models)
        given = random_similarity(generator, 36, num_models)
        expected, _ = brute_force(given, num_models, 12, 0.3, beta)
        assert zip_features(torch.from_numpy(given), num_models, 12, 0.3, beta).tolist() == expected


@pytest.mark.parametrize("num_models", [2, 3])
def test_permuted_copies_are_matched_back(num_models):
    x = torch.randn(300, 8)
    shuffles = [torch.arange(8)] + [torch.randperm(8) for _ in range(num_models - 1)]
    copies = torch.cat([x[:, s] + 0.1 * torch.randn(300, 8) for s in shuffles], dim=1)
    found = zip_features(torch.corrcoef(copies.T), num_models, 8)
    assert found.tolist() == torch.cat(shuffles).tolist()


@pytest.mark.parametrize("merged", [1, 2, 11, 12])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_every_feature_has_a_cluster_and_every_cluster_features(merged, beta):
    given = torch.from_numpy(random_similarity(np.random.default_rng(merged), 12, 3))
    found = zip_features(given, 3, merged, 0.5, beta)
    assert found.dtype == torch.int64
    assert found.unique().tolist() == list(range(merged))
    firsts = [found.tolist().index(c) for c in range(merged)]
    assert firsts == sorted(firsts)


def test_all_features_may_stay_alone():
    found = zip_features(torch.ones(6, 6), 2, 6)
    assert found.tolist() == list(range(6))


def test_without_budget_no_model_merges_within(caplog):
    generator = np.random.default_rng(0)
    for _ in range(5):
        given = torch.from_numpy(random_similarity(generator, 20, 2))
        clusters = zip_features(given, 2, 10, beta=0.0).view(2, 10)
        assert all(len(model.unique()) == 10 for model in clusters)
    assert not caplog.messages


def test_within_one_models_features_only_its_budget_is_merged():
    # Model 0's eight features are all alike, so it wants to merge within; a quarter is allowed.
    given = torch.eye(16)
    given[:8, :8] = 0.9
    clusters = zip_features(given, 2, 8, beta=0.25).view(2, 8)
    assert 8 - len(clusters[0].unique()) == int(8 / 2 * 0.25)
    assert len(clusters.unique()) == 8


def test_exhausted_budgets_are_lifted_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        found = zip_features(torch.eye(6), 2, 2, beta=0.0)
    assert found.unique().tolist() == [0, 1]
    (message,) = caplog.messages
    assert message.startswith(WARNING)
    assert "the last 3 clusters" in message


def hand_case(alpha, sign):
    """Model 0 has a, b, c, and model 1 has d, e, f; a and d are merged first."""
    values = torch.full((6, 6), -0.99)
    values[0, 3] = 0.95
    values[0, 1], values[1, 3] = 0.5 * sign, 0.6 * sign  # b with a and d
    values[4, 5] = 0.4 * sign  # e with f
    return zip_features(values, 2, 4, alpha).tolist()


def test_a_similarity_falls_with_a_merge_whatever_its_sign():
    # b with {a, d} is min(.5, .6) = .5, more than .4.
    assert hand_case(alpha=1.0, sign=1) == [0, 0, 1, 0, 2, 3]
    # It is .5 - .5 * .5 = .25, less than .4.
    assert hand_case(alpha=0.5, sign=1) == [0, 1, 2, 0, 3, 3]
    # It is min(-.5, -.6) = -.6 and falls to -.9; a factor of .5 would raise it to -.3.
    assert hand_case(alpha=0.5, sign=-1) == [0, 1, 2, 0, 3, 3]


def test_similarities_that_fall_beyond_the_range_lose_no_feature(caplog):
    given = torch.full((6, 6), -3e38)
    assert zip_features(given, 2, 1, alpha=0.1).tolist() == [0] * 6
    assert zip_features(given, 2, 3, alpha=0.1, beta=0.0).tolist() == [0, 1, 2, 0, 1, 2]
    assert not caplog.messages


def test_what_is_below_the_diagonal_is_not_read():
    given = torch.from_numpy(random_similarity(np.random.default_rng(3), 600, 2))
    expected = zip_features(given, 2, 300, 0.5, 0.5)
    assert torch.equal(zip_features(given.triu(1), 2, 300, 0.5, 0.5), expected)
    assert torch.equal(zip_features(given.T.triu(1), 2, 300, 0.5, 0.5), expected)


def test_the_similarity_is_left_as_it_was():
    given = torch.from_numpy(random_similarity(np.random.default_rng(3), 12, 2))
    before = given.clone()
    zip_features(given, 2, 4, 0.5, 0.5)
    assert torch.equal(given, before)


def test_a_map_averages_clusters_and_copies_back():
    labels = torch.tensor([0, 1, 0, 2, 0, 1])
    found = zip_map(labels, 2)
    x = torch.randn(2, 3)
    shared = torch.einsum("kcd,kd->c", found.merge, x) / 2
    expected = torch.stack([x.flatten()[labels == c].mean() for c in range(3)])
    torch.testing.assert_close(shared, expected)
    torch.testing.assert_close(found.unmerge @ shared, expected[labels].view(2, 3))
    torch.testing.assert_close((found.merge @ found.unmerge).mean(dim=0), torch.eye(3))


@pytest.mark.parametrize("num_models", [1, 2, 6])
def test_a_map_of_single_features_is_a_selection(num_models):
    found = zip_map(torch.arange(6), num_models)
    assert found.merge.shape == (num_models, 6, 6 // num_models)
    assert torch.equal(found.merge, num_models * found.unmerge.transpose(1, 2))


def head_features(heads, size):
    return torch.randn(400, heads, size)


@pytest.mark.parametrize("num_models", [2, 3])
def test_permuted_heads_of_linked_groups_are_zipped_back(num_models):
    heads, sizes = 3, (4, 2)
    groups = [head_features(heads, size) for size in sizes]
    copies = [[x.flatten(1)] for x in groups]
    for _ in range(num_models - 1):
        shuffle = torch.randperm(heads)
        for x, size, of_group in zip(groups, sizes, copies, strict=True):
            inner = torch.stack([torch.randperm(size) for _ in range(heads)])
            of_group.append(x[:, shuffle[:, None], inner].flatten(1))
    found = zip_heads(
        [torch.corrcoef(torch.cat(x, dim=1).T) for x in copies], num_models, heads, heads
    )
    for merge_map, of_group in zip(found, copies, strict=True):
        for x, merge in zip(of_group, merge_map.merge, strict=True):
            torch.testing.assert_close(x @ merge.T, of_group[0])


def test_heads_of_one_feature_are_features():
    for merged in (1, 3, 6, 7):
        given = torch.from_numpy(random_similarity(np.random.default_rng(merged), 12, 2))
        (found,) = zip_heads([given], 2, 6, merged, 0.5, 0.5)
        expected = zip_map(zip_features(given, 2, merged, 0.5, 0.5), 2)
        assert torch.equal(found.merge, expected.merge)


def test_linked_groups_count_the_same_whatever_the_size_of_their_heads():
    # In the wide group, heads 0 and 3 are alike by 0.5; in the narrow one, heads 0 and 2 by 0.6.
    wide, narrow = torch.zeros(2 * 2 * 8, 2 * 2 * 8), torch.zeros(4, 4)
    wide[range(8), range(24, 32)] = 0.5
    narrow[0, 2] = 0.6
    found = zip_heads([wide, narrow], 2, 2, 3)
    assert found[1].unmerge.argmax(dim=2).flatten().tolist() == [0, 1, 0, 2]
    assert found[0].unmerge.argmax(dim=2)[1, :8].tolist() == list(range(8))


@pytest.mark.parametrize("seed", range(5))
def test_heads_are_zipped_by_their_mean_matched_similarity(seed):
    heads, sizes, alpha, beta = 3, (2, 4), 0.5, 0.7
    generator = np.random.default_rng(seed)
    given = [random_similarity(generator, 2 * heads * size, 2) for size in sizes]
    between = np.zeros((6, 6))
    order = {}
    for g, (each, size) in enumerate(zip(given, sizes, strict=True)):
        for i, j in combinations(range(6), 2):
            part = each[i * size : (i + 1) * size, j * size : (j + 1) * size]
            rows, order[g, i, j] = linear_sum_assignment(-part)
            between[i, j] += part[rows, order[g, i, j]].mean() / 2
    clusters, _ = brute_force(between, 2, 3, alpha, beta)
    found = zip_heads([torch.from_numpy(each) for each in given], 2, heads, 3, alpha, beta)
    for g, (merge_map, size) in enumerate(zip(found, sizes, strict=True)):
        labels = merge_map.unmerge.argmax(dim=2).view(6, size).numpy()
        for head, cluster in enumerate(clusters):
            first = clusters.index(cluster)
            inner = range(size) if head == first else order[g, first, head]
            assert labels[head, inner].tolist() == [cluster * size + m for m in range(size)]


def test_the_most_heads_stay_alone_and_the_fewest_are_one():
    given = torch.from_numpy(random_similarity(np.random.default_rng(5), 24, 2))
    (alone,), (one,) = zip_heads([given], 2, 4, 8), zip_heads([given], 2, 4, 1)
    assert torch.equal(alone.unmerge.reshape(24, 24), torch.eye(24))
    assert one.merged_size == 3


@pytest.mark.parametrize("merged", [0, 7])
def test_too_few_or_too_many_clusters_are_refused(merged):
    with pytest.raises(HfZipError, match=f"6 features cannot be zipped into {merged}; give 1 to 6"):
        zip_features(torch.eye(6), 2, merged)
    with pytest.raises(HfZipError, match=f"6 heads cannot be zipped into {merged}; give 1 to 6"):
        zip_heads([torch.eye(12)], 2, 3, merged)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.1, float("nan")])
def test_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(HfZipError, match=r"alpha is .*; it should be in \(0, 1\]"):
        zip_features(torch.eye(6), 2, 3, alpha=alpha)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_beta_out_of_range_is_refused(beta):
    with pytest.raises(HfZipError, match=r"beta is .*; it should be in \[0, 1\]"):
        zip_features(torch.eye(6), 2, 3, beta=beta)


def test_features_that_do_not_divide_are_refused():
    with pytest.raises(HfZipError, match="5 features does not divide into 2 models"):
        zip_features(torch.eye(5), 2, 2)


def test_no_similarities_are_refused():
    with pytest.raises(HfZipError, match="no similarities to zip heads by"):
        zip_heads([], 2, 1, 1)


def test_labels_that_do_not_divide_are_refused():
    for labels, num_models in ((torch.arange(3), 2), (torch.arange(0), 2), (torch.arange(2), 0)):
        with pytest.raises(HfZipError, match="labels do not divide into"):
            zip_map(labels, num_models)


def test_a_negative_label_is_refused():
    with pytest.raises(HfZipError, match="a label is -1; clusters are numbered from 0"):
        zip_map(torch.tensor([0, -1]), 2)


def test_a_cluster_without_features_is_refused():
    with pytest.raises(HfZipError, match="cluster 1 of 3 has no features"):
        zip_map(torch.tensor([0, 2]), 2)
