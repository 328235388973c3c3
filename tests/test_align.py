import pytest
import torch

from hf_zip.align import align, along, mean, side_by_side
from hf_zip.errors import HfZipError
from hf_zip.groups import Axis, MergeGroup
from hf_zip.matching.merge_map import MergeMap


def test_along_maps_one_dimension_and_leaves_the_others():
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    matrix = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
    mapped = along(tensor, 1, matrix)
    assert mapped.shape == (2, 2, 4)
    torch.testing.assert_close(mapped[:, 0], tensor[:, 1])
    torch.testing.assert_close(mapped[:, 1], 2 * tensor[:, 0] + tensor[:, 2])


def test_along_keeps_the_precision_of_the_tensor():
    assert along(torch.ones(2, dtype=torch.float64), 0, torch.eye(2)).dtype == torch.float64


def layer_between(inner, outer):
    """Two groups and a linear layer that reads the first and writes the second."""
    return (
        MergeGroup("inner", "mlp", inner, (), (), (Axis("w", 1),)),
        MergeGroup("outer", "stream", outer, (), (Axis("w", 0), Axis("b", 0)), ()),
    )


def test_a_layer_becomes_merge_w_unmerge():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(2, 3, generator=generator), torch.randn(2, generator=generator)
    merge, unmerge = torch.randn(2, 4, 2, generator=generator), torch.randn(2, 2, 4)
    inner = MergeMap(torch.randn(2, 5, 3), torch.randn(2, 3, 5))
    maps = {"inner": inner, "outer": MergeMap(merge, unmerge)}
    state = {"w": weight, "b": bias, "other": torch.ones(1)}
    aligned = align(state, layer_between(3, 2), maps, 1)
    torch.testing.assert_close(aligned["w"], merge[1] @ weight @ inner.unmerge[1])
    torch.testing.assert_close(aligned["b"], merge[1] @ bias)
    assert aligned["other"] is state["other"]
    assert state["w"] is weight  # the input is left as it was


def test_a_group_without_a_map_is_left():
    state = {"w": torch.ones(2, 3), "b": torch.ones(2)}
    assert align(state, layer_between(3, 2), {}, 0) == state


def test_a_map_of_another_size_is_refused():
    with pytest.raises(HfZipError, match=r"map of 'inner' is for 4 features, .* has 3"):
        align({}, layer_between(3, 2), {"inner": MergeMap.identity(1, 4)}, 0)


def test_maps_side_by_side_make_the_weighted_mean_of_the_mapped_features():
    inner, _ = layer_between(3, 2)
    merge = torch.randn(2, 4, 3)
    matrix = side_by_side(inner, {"inner": MergeMap(merge, merge.transpose(1, 2))}, [0.25, 0.75])
    assert matrix.dtype == torch.float64
    torch.testing.assert_close(matrix, torch.cat([merge[0] / 4, merge[1] * 3 / 4], dim=1).double())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (MergeMap.identity(2, 4), "map of 'inner' is for 4 features, .* has 3"),
        (MergeMap.identity(3, 3), "map of 'inner' is for 3 models, but there are 2"),
    ],
)
def test_a_map_for_something_else_is_refused(found, message):
    inner, _ = layer_between(3, 2)
    with pytest.raises(HfZipError, match=message):
        side_by_side(inner, {"inner": found}, [0.5, 0.5])


def test_mean_by_hand():
    states = [{"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 4.0])}]
    assert mean(states)["w"].tolist() == [2.0, 3.0]
    assert mean(states, [3.0, 1.0])["w"].tolist() == [1.0, 2.5]


def test_mean_of_one_is_itself_and_keeps_its_precision():
    state = {"w": torch.tensor([0.1, 0.2])}
    assert torch.equal(mean([state])["w"], state["w"])


def test_mean_of_half_precision_is_summed_in_float64():
    states = [{"w": torch.tensor([2048.0], dtype=torch.float16)} for _ in range(3)]
    states.append({"w": torch.tensor([1.0], dtype=torch.float16)})
    assert mean(states)["w"].item() == 1536.0  # float16 would lose the one in the sum


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0], "2 models but 1 weights"), ([1.0, -1.0], "their sum should be")],
)
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(HfZipError, match=message):
        mean([{"w": torch.ones(1)}] * 2, weights)


def test_a_merge_map_is_checked():
    with pytest.raises(HfZipError, match=r"unmerge should have shape \(1, 3, 2\)"):
        MergeMap(torch.ones(1, 2, 3), torch.ones(1, 2, 3))
    with pytest.raises(HfZipError, match="not finite"):
        MergeMap(torch.full((1, 1, 1), torch.nan), torch.ones(1, 1, 1))


def test_the_identity_map_is_one():
    found = MergeMap.identity(2, 3)
    assert (found.num_models, found.size, found.merged_size) == (2, 3, 3)
    assert torch.equal(found.merge[1] @ found.unmerge[0], torch.eye(3))


def test_heads_move_as_their_features_do():
    table = torch.tensor([[1.0, 2.0, 3.0]])
    group = MergeGroup("heads", "query_key", 6, (), (Axis("table", 1, per_head=True),), (), 3)
    order = torch.tensor([5, 4, 0, 1, 3, 2])  # heads 2, 0 and 1, their features moved as well
    matrix = torch.eye(6)[order].unsqueeze(0)
    maps = {"heads": MergeMap(matrix, matrix.transpose(1, 2))}
    assert align({"table": table}, [group], maps, 0)["table"].tolist() == [[3.0, 1.0, 2.0]]


def test_a_merged_head_is_the_mean_of_its_members():
    # Of two models with two heads of one feature each: both heads of the first, and the others.
    merge = torch.tensor([[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
    heads = MergeMap(merge, merge.transpose(1, 2)).of_heads(2)
    assert torch.equal(heads.merge, merge)
    tables = torch.tensor([[2.0, 4.0], [6.0, 10.0]])
    assert (heads.merge @ tables[..., None]).mean(dim=0).flatten().tolist() == [3.0, 8.0]


def test_parts_that_stand_side_by_side_are_mapped_alike():
    axes = tuple(Axis("w", 1, part, 2) for part in range(2))
    group = MergeGroup("stream", "stream", 2, (), (), axes)
    swap = torch.eye(2).flip(0).unsqueeze(0)
    state = {"w": torch.tensor([[1.0, 2.0, 3.0, 4.0]])}
    aligned = align(state, [group], {"stream": MergeMap(swap, swap)}, 0)
    assert aligned["w"].tolist() == [[2.0, 1.0, 4.0, 3.0]]
