import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.groups import MergeGroup
from hf_zip.match import Plan, match, matched_correlation
from hf_zip.matching.merge_map import MergeMap


def group(name, role, size, num_heads=1, linked=None):
    return MergeGroup(name, role, size, (), (), (), num_heads, linked)


GROUPS = (
    group("stream", "stream", 4),
    group("value", "value", 6, num_heads=3),
    group("query_key", "query_key", 6, num_heads=3, linked="value"),
    group("mlp", "mlp", 5),
)


def covariances(num_models, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for item in GROUPS:
        features = torch.randn(200, item.size * num_models, generator=generator).double()
        found[item.name] = (torch.cov(features.T),)
    return found


def test_groups_left_as_they_are_have_no_map():
    found = match(GROUPS, covariances(2), 2, Plan("identity", "permute", "zip"))
    assert set(found.maps) == {"value", "query_key", "mlp"} == set(found.correlations)


def test_one_model_needs_no_maps():
    assert match(GROUPS, covariances(1), 1, Plan()).maps == {}


@pytest.mark.parametrize("how", ["permute", "zip"])
@pytest.mark.parametrize("num_models", [2, 3])
def test_linked_groups_move_the_same_heads(how, num_models):
    maps = match(GROUPS, covariances(num_models), num_models, Plan(how, how, how)).maps
    blocks = [
        maps[name].merge.reshape(num_models, 3, 2, 3, 2).abs().sum(dim=(2, 4)) > 0
        for name in ("value", "query_key")
    ]
    assert torch.equal(*blocks)
    for name, found in maps.items():
        assert found.num_models == num_models, name
        # What is merged and unmerged again is merged alike: shared features stay what they are.
        back = torch.stack([m @ u for m, u in zip(found.merge, found.unmerge, strict=True)])
        torch.testing.assert_close(back.mean(dim=0), torch.eye(found.merged_size))


@pytest.mark.parametrize("num_models", [2, 3])
def test_a_share_of_all_groups_is_merged(num_models):
    whole = match(GROUPS, covariances(num_models), num_models, Plan())
    found = match(GROUPS, covariances(num_models), num_models, Plan(shared=2 / 3))
    kept = {"stream": (3, 1), "value": (4, 2), "query_key": (4, 2), "mlp": (3, 2)}
    for name, (together, apart) in kept.items():
        merge = found.maps[name].merge
        assert merge.shape[1] == together + num_models * apart, name
        # What is merged is merged as it would be in whole, and the best of it.
        rows = {tuple(row) for row in whole.maps[name].merge.transpose(0, 1).flatten(1).tolist()}
        own = merge[:, :together].transpose(0, 1).flatten(1).tolist()
        assert {tuple(row) for row in own} <= rows, name
    assert found.correlations["stream"] > whole.correlations["stream"]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_another_share_is_refused(share):
    with pytest.raises(HfZipError, match=rf"share of merged features is {share}; give one in"):
        Plan(shared=share)


def test_only_permuted_features_are_merged_in_part():
    with pytest.raises(HfZipError, match="matched by identity, permute; permute all, or share"):
        Plan(stream="identity", shared=0.5)


def test_matched_correlation_by_hand():
    similarity = torch.tensor(
        [
            [1.0, 0.0, 0.5, 0.1],
            [0.0, 1.0, 0.2, 0.9],
            [0.5, 0.2, 1.0, 0.3],
            [0.1, 0.9, 0.3, 1.0],
        ]
    )
    straight = MergeMap.identity(2, 2)
    assert matched_correlation(similarity, straight) == pytest.approx((0.5 + 0.9) / 2)
    # One cluster of the first three features, and one of the last alone, which pairs with nothing.
    unmerge = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    merge = torch.tensor([[[2 / 3, 2 / 3], [0.0, 0.0]], [[2 / 3, 0.0], [0.0, 2.0]]])
    assert matched_correlation(similarity, MergeMap(merge, unmerge)) == pytest.approx(0.7 / 3)


def test_nothing_shared_correlates_with_nothing():
    assert matched_correlation(torch.eye(2), MergeMap.identity(1, 2)) == 0


def similar_streams(order, noise, num_models=2):
    """Covariances of a stream that every further model has in another order, with noise."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(400, 4, generator=generator).double()
    parts = [first]
    for _ in range(num_models - 1):
        own = torch.randn(400, 4, generator=generator).double()
        parts.append(first[:, order] + noise * own)
    return {"stream": (torch.cov(torch.cat(parts, dim=1).T),)}


@pytest.mark.parametrize("num_models", [2, 3])
def test_a_stream_stays_where_its_features_correlate_in_place(num_models):
    found = match(
        GROUPS[:1], similar_streams([0, 1, 2, 3], 0.5, num_models), num_models, Plan("auto")
    )
    assert found.maps == {}
    assert found.correlations["stream"] > 0.7


@pytest.mark.parametrize("num_models", [2, 3])
def test_a_reordered_stream_is_matched(num_models):
    statistics = similar_streams([1, 2, 3, 0], 0.5, num_models)
    found = match(GROUPS[:1], statistics, num_models, Plan("auto"))
    expected = match(GROUPS[:1], statistics, num_models, Plan("permute"))
    assert torch.equal(found.maps["stream"].merge, expected.maps["stream"].merge)
    assert found.correlations == expected.correlations
