import pytest
import torch

from hf_zip.errors import HfZipError
from hf_zip.matching.merge_map import MergeMap
from hf_zip.matching.partial_permutation import partial_permutation
from hf_zip.matching.permutation import match_heads


def permutation(*orders):
    """The map by which feature `order[m]` of a model becomes shared feature `m`."""
    size = len(orders[0])
    merge = torch.stack([torch.eye(size)[list(order)] for order in orders])
    return MergeMap(merge, merge.transpose(1, 2))


def similar(size, num_models, **pairs):
    """Similarities of single pairs, such as `a0_b2=0.9`, of models a, b, c."""
    found = torch.eye(size * num_models, dtype=torch.float64)
    for pair, value in pairs.items():
        one, other = ("abc".index(place[0]) * size + int(place[1:]) for place in pair.split("_"))
        found[one, other] = found[other, one] = value
    return found


def test_features_of_two_models_by_hand():
    found = permutation((0, 1, 2), (2, 0, 1))
    similarity = similar(3, 2, a0_b2=0.9, a1_b0=0.1, a2_b1=0.5)
    (partial,) = partial_permutation([found], [similarity], 3, merged=2)
    assert partial.merge[0].tolist() == [[1, 0, 0], [0, 0, 1], [0, 2, 0], [0, 0, 0]]
    assert partial.merge[1].tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0], [2, 0, 0]]
    assert partial.unmerge[0].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert partial.unmerge[1].T.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_features_of_three_models_by_hand():
    found = permutation((0, 1), (1, 0), (0, 1))
    # The first match is better with one model, the second in the mean over all pairs.
    similarity = similar(2, 3, a0_b1=0.9, a1_b0=0.5, a1_c1=0.4, b0_c1=0.3)
    (partial,) = partial_permutation([found], [similarity], 2, merged=1)
    assert partial.merge[0].tolist() == [[0, 1], [3, 0], [0, 0], [0, 0]]
    assert partial.merge[1].tolist() == [[1, 0], [0, 0], [0, 3], [0, 0]]
    assert partial.merge[2].tolist() == [[0, 1], [0, 0], [0, 0], [3, 0]]


def test_heads_are_scored_over_all_groups_and_features():
    # Two heads of two features, and of one in the other group.
    values, scores = permutation((1, 0, 2, 3), (2, 3, 0, 1)), permutation((0, 1), (1, 0))
    wide = similar(4, 2, a1_b2=0.8, a0_b3=0.0, a2_b0=0.3, a3_b1=0.3)  # means 0.4 and 0.3
    narrow = similar(2, 2, a0_b1=0.1, a1_b0=0.3)  # which tips the balance
    found = partial_permutation([values, scores], [wide, narrow], 2, merged=1)
    assert found[0].merge[0].argmax(dim=1).tolist() == [2, 3, 1, 0, 0, 0]
    assert found[0].merge[0].sum(dim=1).tolist() == [1, 1, 2, 2, 0, 0]
    assert found[0].merge[1].argmax(dim=1).tolist() == [0, 1, 0, 0, 2, 3]
    assert found[0].merge[1].sum(dim=1).tolist() == [1, 1, 0, 0, 2, 2]
    assert found[1].merge[0].tolist() == [[0, 1], [2, 0], [0, 0]]
    assert found[1].merge[1].tolist() == [[1, 0], [0, 0], [0, 2]]
    alone = partial_permutation([values], [wide], 2, merged=1)
    assert alone[0].merge[0].argmax(dim=1).tolist() == [1, 0, 2, 3, 0, 0]


def test_of_equals_the_first_are_merged():
    (found,) = partial_permutation([MergeMap.identity(2, 3)], [similar(3, 2)], 3, merged=1)
    assert found.merge[0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("num_models", [2, 3])
def test_the_ends_are_the_whole_permutation_and_all_features_side_by_side(num_models):
    features = torch.randn(50, 6 * num_models).double()
    similarity = torch.corrcoef(features.T)
    found = match_heads([similarity], num_models, 3)
    (whole,) = partial_permutation(found, [similarity], 3, merged=3)
    assert torch.equal(whole.merge, found[0].merge)
    (none,) = partial_permutation(found, [similarity], 3, merged=0)
    shared = torch.stack(
        [x @ m.T.double() for x, m in zip(features.chunk(num_models, 1), none.merge, strict=True)]
    ).mean(dim=0)
    for x, m, unmerge in zip(
        features.chunk(num_models, 1), found[0].merge, none.unmerge, strict=True
    ):
        torch.testing.assert_close(shared @ unmerge.T.double(), x)
        assert any(torch.equal(part, x @ m.T.double()) for part in shared.chunk(num_models, 1))


@pytest.mark.parametrize("merged", [-1, 4])
def test_more_heads_than_there_are_cannot_be_merged(merged):
    with pytest.raises(HfZipError, match=rf"{merged} of 3 heads cannot be merged; give 0 to 3"):
        partial_permutation([MergeMap.identity(2, 3)], [similar(3, 2)], 3, merged)
