import copy
from dataclasses import replace
from itertools import permutations

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

import hf_zip
from hf_zip.adapters import adapter_for, adapters
from hf_zip.align import align
from hf_zip.canonical import canonical, canonical_entries, obstacle
from hf_zip.collect import make_accelerator
from hf_zip.covariances import group_covariances
from hf_zip.entries import set_entries
from hf_zip.errors import HfZipError
from hf_zip.groups import merge_groups
from hf_zip.matching.merge_map import MergeMap
from hf_zip.matching.rotation import (
    aligned_covariance,
    centred,
    match_head_rotations,
    match_rotation,
    procrustes,
)
from hf_zip.method import MergeInputs, Runtime, WeightOptions
from hf_zip.methods import method_named
from hf_zip.methods.rotate import RotateOptions, run
from tests.models import images, random_permutations, randomise, rows, vit, with_parameters

PRE_NORM = [adapter for adapter in adapters().values() if not obstacle(adapter, rotated=True)]
every_adapter = pytest.mark.parametrize("adapter", PRE_NORM, ids=lambda adapter: adapter.name)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def orthogonal(size, seed):
    return torch.linalg.qr(randn(size, size, seed=seed))[0]


def fixing_ones(size, seed):
    """A random orthogonal matrix that maps the vector of ones to itself."""
    vectors = randn(size, size, seed=seed)
    vectors[:, 0] = 1
    basis = torch.linalg.qr(vectors)[0]
    middle = torch.block_diag(torch.ones(1, 1, dtype=torch.float64), orthogonal(size - 1, seed + 1))
    return basis @ middle @ basis.T


def covariance(models):
    """Covariance of the features of all models, side by side."""
    return torch.cov(torch.cat(models, dim=1).T, correction=0)


def noisy(x, seed):
    return x + 0.1 * randn(*x.shape, seed=seed)


def centred_rows(x):
    return x - x.mean(dim=1, keepdim=True)


def total(found, blocks):
    """Covariance of the aligned features, summed over pairs of models."""
    aligned = aligned_covariance(blocks, found)
    split = aligned.reshape(found.num_models, found.size, found.num_models, found.size)
    return sum(split[k, :, m].trace().item() for k in range(found.num_models) for m in range(k))


def assert_orthogonal(found):
    eye = torch.eye(found.size, dtype=torch.float64).expand(found.num_models, -1, -1)
    assert found.merge.dtype == torch.float64
    torch.testing.assert_close(found.merge @ found.unmerge, eye, rtol=0, atol=1e-10)
    assert torch.equal(found.merge.transpose(1, 2), found.unmerge)
    assert torch.equal(found.merge[0], eye[0])


@pytest.mark.parametrize("num_models", [2, 3, 5])
@pytest.mark.parametrize("fix_ones", [True, False])
def test_rotated_copies_are_matched_back(num_models, fix_ones):
    x = randn(300, 9)
    turns = [
        fixing_ones(9, seed) if fix_ones else orthogonal(9, seed) for seed in range(1, num_models)
    ]
    models = [x, *(x @ turn.T for turn in turns)]
    found = match_rotation([covariance(models)], num_models, fix_ones)
    assert_orthogonal(found)
    for turn, merge in zip(turns, found.merge[1:], strict=True):
        torch.testing.assert_close(merge, turn.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_models", [2, 4])
def test_ones_stay_ones(num_models):
    blocks = covariance([randn(200, 8, seed=k) + 3 for k in range(num_models)])
    found = match_rotation([blocks], num_models)
    assert_orthogonal(found)
    ones = torch.ones(8, dtype=torch.float64)
    for merge in found.merge:
        torch.testing.assert_close(merge @ ones, ones, rtol=0, atol=1e-10)
        torch.testing.assert_close(merge.T @ ones, ones, rtol=0, atol=1e-10)


def test_the_mean_over_features_does_not_matter():
    x, y = randn(200, 6), randn(200, 6, seed=1) + randn(200, 6)
    shifts = 10 * randn(200, 2, seed=2)
    plain = match_rotation([covariance([x, y])], 2)
    shifted = match_rotation([covariance([x + shifts[:, :1], y + shifts[:, 1:]])], 2)
    torch.testing.assert_close(plain.merge, shifted.merge, rtol=0, atol=1e-9)


def test_two_models_agree_with_scipy():
    for seed in range(5):
        x, y = randn(50, 7, seed=seed), randn(50, 7, seed=seed + 100)
        x, y = x - x.mean(dim=0), y - y.mean(dim=0)
        expected, _ = orthogonal_procrustes(y.numpy(), x.numpy())  # y @ expected is close to x
        found = match_rotation([covariance([x, y])], 2, fix_ones=False)
        np.testing.assert_allclose(found.merge[1].numpy(), expected.T, rtol=0, atol=1e-10)
        # In a basis of the complement of the ones the same must hold.
        basis = torch.linalg.qr(torch.cat([torch.ones(7, 1), torch.eye(7)], dim=1).double())[0]
        basis = basis[:, 1:]
        inner, _ = orthogonal_procrustes((y @ basis).numpy(), (x @ basis).numpy())
        expected = basis.numpy() @ inner.T @ basis.numpy().T + 1 / 7
        found = match_rotation([covariance([x, y])], 2)
        np.testing.assert_allclose(found.merge[1].numpy(), expected, rtol=0, atol=1e-10)


def test_every_tap_counts_the_same_however_strong():
    taps = [covariance([randn(60, 5, seed=s), randn(60, 5, seed=s + 1)]) for s in (0, 2)]
    plain = match_rotation(taps, 2)
    scale = torch.tensor([2.0, 50.0]).double().repeat_interleave(5)
    scaled = match_rotation([taps[0], taps[1] * torch.outer(scale, scale)], 2)
    torch.testing.assert_close(plain.merge, scaled.merge, rtol=0, atol=1e-10)
    alone = match_rotation(taps[:1], 2)
    assert (plain.merge - alone.merge).abs().max() > 0.1


def test_no_model_of_three_could_be_matched_better():
    improved = 0
    for seed in range(10):
        models = [randn(40, 5, seed=10 * seed + k) for k in range(3)]
        models = [(x - x.mean(dim=0)) / (x - x.mean(dim=0)).norm() for x in models]
        blocks = covariance(models)
        found = match_rotation([blocks], 3, fix_ones=False)
        assert_orthogonal(found)
        alone = [
            match_rotation([covariance([models[0], models[k]])], 2, fix_ones=False).merge[1]
            for k in (1, 2)
        ]
        merge = torch.stack([found.merge[0], *alone])
        anchored = total(MergeMap(merge, merge.transpose(1, 2)), blocks)
        score = total(found, blocks)
        assert score >= anchored
        improved += score > anchored * (1 + 1e-3)
        for k in (1, 2):
            others = sum(models[m] @ found.merge[m].T for m in range(3) if m != k)
            again, _ = orthogonal_procrustes(models[k].numpy(), others.numpy())
            merge = found.merge.clone()
            merge[k] = torch.from_numpy(again.T)
            better = total(MergeMap(merge, merge.transpose(1, 2)), blocks)
            assert better <= score * (1 + 1e-4)
    assert improved > 5


def test_directions_without_variance_stay_as_they_are():
    x = randn(3, 8)  # three rows: two directions vary
    found = match_rotation([covariance([x, x])], 2)
    torch.testing.assert_close(found.merge[1], torch.eye(8).double(), rtol=0, atol=1e-10)
    turn = fixing_ones(8, 5)
    turned = match_rotation([covariance([x, x @ turn.T])], 2)
    assert_orthogonal(turned)
    rows = centred_rows(x - x.mean(dim=0))
    torch.testing.assert_close(rows @ turn.T @ turned.merge[1].T, rows, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_models", [2, 3])
def test_dead_features_stay_and_are_finite(num_models):
    models = [randn(100, 6, seed=k) for k in range(num_models)]
    models[-1][:] = 4  # a model that is dead throughout
    found = match_rotation([covariance(models)], num_models)
    assert_orthogonal(found)
    torch.testing.assert_close(found.merge[-1], torch.eye(6).double(), rtol=0, atol=1e-12)
    assert_orthogonal(match_rotation([torch.zeros(12, 12)], 2))


@pytest.mark.parametrize("fix_ones", [True, False])
def test_one_feature(fix_ones):
    x = randn(20, 1)
    found = match_rotation([covariance([x, -x])], 2, fix_ones)
    # Its mean over features is all that one feature is, so nothing may turn it if that is fixed.
    assert found.merge.flatten().tolist() == [1, 1 if fix_ones else -1]


def test_procrustes_by_hand():
    # The stronger direction is turned as it wants to be; the other, unseen, stays if it can.
    quarter = torch.tensor([[0.0, -2.0], [1.0, 0.0]])
    torch.testing.assert_close(procrustes(quarter), quarter.sign().double())
    assert torch.equal(procrustes(torch.zeros(3, 3)).round(decimals=12), torch.eye(3).double())
    flip = procrustes(torch.diag(torch.tensor([-1.0, 0.0])))
    torch.testing.assert_close(flip, torch.diag(torch.tensor([-1.0, 1.0])).double())


def test_centring_by_hand():
    given = torch.tensor(
        [[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 0.0], [2.0, 0.0, 5.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    )
    centre = torch.eye(2) - 0.5
    both = torch.block_diag(centre, centre).double()
    torch.testing.assert_close(centred(given, 2), both @ given.double() @ both)
    x = [randn(50, 4, seed=k) for k in range(3)]
    torch.testing.assert_close(
        centred(covariance(x), 3), covariance([centred_rows(each) for each in x])
    )


def test_aligned_covariance_is_that_of_the_aligned_features():
    x = [randn(50, 4, seed=k) for k in range(3)]
    merge = torch.stack([orthogonal(4, seed) for seed in range(3)])
    found = aligned_covariance(covariance(x), MergeMap(merge, merge.transpose(1, 2)))
    expected = covariance([each @ turn.T for each, turn in zip(x, merge, strict=True)])
    torch.testing.assert_close(found, expected)


def scrambled_heads(x, num_heads, order, seed):
    """The map of features whose heads are reordered and rotated, `[d, d]`."""
    size = x // num_heads
    result = torch.zeros(num_heads, size, num_heads, size, dtype=torch.float64)
    for slot, head in enumerate(order):
        result[slot, :, head] = orthogonal(size, seed + slot)
    return result.reshape(x, x)


@pytest.mark.parametrize("num_models", [2, 3])
@pytest.mark.parametrize(
    ("num_heads", "sizes"), [(4, (3, 2)), (1, (5, 4)), (5, (1, 1)), (1, (1, 1))]
)
def test_rotated_heads_of_linked_groups_are_matched_back(num_models, num_heads, sizes):
    orders = [torch.randperm(num_heads, generator=generator(k)).tolist() for k in range(num_models)]
    features, taps, maps = [], [], []
    for group, size in enumerate(sizes):
        x = [randn(400, num_heads * size, seed=10 * group + tap) for tap in range(group + 1)]
        turns = [torch.eye(num_heads * size, dtype=torch.float64)] + [
            scrambled_heads(num_heads * size, num_heads, orders[k], 100 * k + 10 * group)
            for k in range(1, num_models)
        ]
        features.append(x)
        maps.append(turns)
        taps.append([covariance([each @ turn.T for turn in turns]) for each in x])
    found = match_head_rotations(taps, num_models, num_heads)
    for turns, merge_map in zip(maps, found, strict=True):
        assert_orthogonal(merge_map)
        for turn, merge in zip(turns, merge_map.merge, strict=True):
            torch.testing.assert_close(merge, turn.T, rtol=0, atol=1e-10)


def test_linked_heads_move_together_and_stay_whole():
    taps = [
        [covariance([randn(30, 4 * size, seed=size), randn(30, 4 * size, seed=9 + size)])]
        for size in (3, 5)
    ]
    moves = []
    for found, size in zip(match_head_rotations(taps, 2, 4), (3, 5), strict=True):
        assert_orthogonal(found)
        heads = found.merge[1].reshape(4, size, 4, size).abs().sum(dim=(1, 3)) > 0
        assert heads.sum(dim=0).tolist() == heads.sum(dim=1).tolist() == [1] * 4
        moves.append(heads.int().argmax(dim=1).tolist())
    assert moves[0] == moves[1]
    assert moves[0] != [0, 1, 2, 3]


def test_heads_of_two_models_are_matched_as_well_as_possible():
    for seed in range(5):
        x, y = randn(30, 6, seed=seed), randn(30, 6, seed=seed + 50)
        x, y = (z - z.mean(dim=0) for z in (x, y))

        def score(i, j, x=x, y=y):
            """The largest correlation of two heads, features of each rotated at will."""
            a, b = x[:, 2 * i : 2 * i + 2], y[:, 2 * j : 2 * j + 2]
            _, scale = orthogonal_procrustes(b.numpy(), a.numpy())
            return scale / (a.norm() * b.norm()).item()

        scores = [[score(i, j) for j in range(3)] for i in range(3)]
        assert all(0 <= value <= 1 for row in scores for value in row)
        best = max(permutations(range(3)), key=lambda o: sum(scores[i][o[i]] for i in range(3)))
        (found,) = match_head_rotations([[covariance([x, y])]], 2, 3)
        heads = found.merge[1].reshape(3, 2, 3, 2).abs().sum(dim=(1, 3)).argmax(dim=1)
        assert heads.tolist() == list(best)


def test_a_strong_head_counts_no_more_than_a_weak_one():
    x, y = randn(40, 6), randn(40, 6, seed=1)
    (plain,) = match_head_rotations([[covariance([x, y])]], 2, 3)
    scale = torch.tensor([1.0, 30.0, 0.1]).double().repeat_interleave(2)
    (scaled,) = match_head_rotations([[covariance([x * scale, y])]], 2, 3)
    torch.testing.assert_close(plain.merge, scaled.merge, rtol=0, atol=1e-10)


def test_dead_heads_are_not_turned():
    x, y = randn(60, 6), randn(60, 6, seed=1)
    y[:, 2:4] = 7.0
    (found,) = match_head_rotations([[covariance([x, y])]], 2, 3)
    assert_orthogonal(found)
    blocks = found.merge[1].reshape(3, 2, 3, 2)
    slot = blocks[:, :, 1].abs().sum(dim=(1, 2)).argmax()
    torch.testing.assert_close(blocks[slot, :, 1], torch.eye(2).double(), rtol=0, atol=1e-12)
    # Rounding errors are no features either.
    y[:, 2:4] += 1e-9 * randn(60, 2, seed=2)
    (again,) = match_head_rotations([[covariance([x, y])]], 2, 3)
    torch.testing.assert_close(again.merge, found.merge, rtol=0, atol=1e-7)


def test_heads_of_three_models_do_better_than_by_the_anchor_alone():
    improved = 0
    for seed in range(5):
        models = [randn(25, 6, seed=10 * seed + k) for k in range(3)]
        models = [x - x.mean(dim=0) for x in models]
        scaled = [x / x.reshape(25, 3, 2).norm(dim=(0, 2)).repeat_interleave(2) for x in models]
        (found,) = match_head_rotations([[covariance(models)]], 3, 3)
        assert_orthogonal(found)
        pairs = [match_head_rotations([[covariance([models[0], models[k]])]], 2, 3) for k in (1, 2)]
        merge = torch.stack([found.merge[0], *(pair[0].merge[1] for pair in pairs)])
        anchored = total(MergeMap(merge, merge.transpose(1, 2)), covariance(scaled))
        gain = total(found, covariance(scaled)) - anchored
        assert gain >= -1e-12
        improved += gain > 1e-3 * anchored
    assert improved > 2


@pytest.fixture
def shapes_unchecked():
    """Lets a wrong shape reach the library's own check, as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_what_cannot_be_matched_is_refused(shapes_unchecked):
    square = torch.eye(12)
    for match in (
        lambda taps, models=2: match_rotation(taps, models),
        lambda taps, models=2: match_head_rotations([taps], models, 1),
    ):
        with pytest.raises(HfZipError, match="no covariances to match by; a group needs at least"):
            match([])
        with pytest.raises(HfZipError, match=r"shape \(3, 4\); it should be square"):
            match([torch.ones(3, 4)])
        with pytest.raises(HfZipError, match="12 features does not divide into 5 models with 1"):
            match([square], 5)
        with pytest.raises(HfZipError, match=r"divide into 0 models|features of 0 model"):
            match([square], 0)
        with pytest.raises(HfZipError, match="features of 1 model are to be matched; it takes at"):
            match([square], 1)
        with pytest.raises(HfZipError, match="holds values that are not finite"):
            match([torch.full((4, 4), torch.nan)])
        with pytest.raises(HfZipError, match=r"different shapes: \[\(12, 12\), \(4, 4\)\]"):
            match([square, torch.eye(4)])
        with pytest.raises(HfZipError, match="0 features does not divide"):
            match([torch.zeros(0, 0)])


def test_heads_that_cannot_be_matched_are_refused():
    with pytest.raises(HfZipError, match="no groups to match heads by"):
        match_head_rotations([], 2, 3)
    with pytest.raises(HfZipError, match="12 features does not divide into 2 models with 5 heads"):
        match_head_rotations([[torch.eye(12)]], 2, 5)
    with pytest.raises(HfZipError, match="12 features does not divide into 2 models with 0 heads"):
        match_head_rotations([[torch.eye(12)]], 2, 0)


def test_a_map_of_another_size_is_refused():
    with pytest.raises(
        HfZipError, match="6 features per model is to be mapped by a merge map for 5"
    ):
        aligned_covariance(torch.eye(12), MergeMap.identity(2, 5))
    with pytest.raises(HfZipError, match="does not divide into 3 models"):
        centred(torch.eye(4), 3)


def logits(model, seed=3):
    with torch.no_grad():
        return model(**images(model, 32, seed=seed)).logits


def example(adapter, seed=0):
    torch.manual_seed(seed)
    model = adapter.example()
    config = copy.deepcopy(model.config)
    # An attention pool beside the head is left out of the canonical form, so it is here.
    set_entries(config, canonical_entries(model, adapter))
    return randomise(type(model)(config).double().eval(), seed)


def random_maps(groups, seed):
    """Random maps that leave a canonical model's function: rotations, reordered heads and units."""
    maps = random_permutations([g for g in groups if g.role == "mlp"], seed)
    for position, group in enumerate(groups):
        at = 1000 * seed + 50 * position
        if group.role == "stream":
            merge = fixing_ones(group.size, at)
        elif group.role == "mlp":
            continue
        else:
            order = torch.randperm(group.num_heads, generator=generator(seed)).tolist()
            merge = scrambled_heads(group.size, group.num_heads, order, at)
        maps[group.name] = MergeMap(merge[None], merge.T[None])
    return maps


def scrambled(model, adapter, seed):
    """An exact copy of a model's function in another basis."""
    plain = canonical(model, adapter)
    groups = merge_groups(plain, adapter)
    state = dict(plain.named_parameters())
    return with_parameters(plain, align(state, groups, random_maps(groups, seed), 0))


def merge(models, **parameters):
    return hf_zip.merge(
        models,
        method="rotate",
        tasks=["same"] * len(models),
        calibration=images(models[0], 128, seed=7)["pixel_values"],
        parameters=parameters,
        force=True,
        progress=False,
    )


def relative_error(model, other):
    expected = logits(model)
    return ((logits(other.double()) - expected).abs().max() / expected.abs().max()).item()


@every_adapter
@pytest.mark.parametrize("copies", [1, 2])
def test_a_scrambled_copy_is_matched_back(adapter, copies):
    model = example(adapter)
    others = [scrambled(model, adapter, seed) for seed in range(1, copies + 1)]
    for other in others:
        torch.testing.assert_close(logits(other), logits(model), rtol=0, atol=1e-10)
    result = merge([model, *others])
    assert relative_error(model, result.model) <= 1e-5
    for name, value in result.report.matching.items():
        assert value == pytest.approx(1, abs=1e-6), name
    # Reordering whole features is not enough.
    if copies == 1:
        assert relative_error(model, merge([model, *others], stream="permute").model) > 0.1
        assert relative_error(model, merge([model, *others], heads="permute").model) > 0.01


def inputs_for(models, adapter, count=64):
    runtime = Runtime(
        models=tuple(models),
        table=adapter,
        calibration=rows(images(models[0], count, seed=7)),
        batch_size=32,
        accelerator=make_accelerator(),
        progress=False,
    )
    inputs = MergeInputs(
        states=tuple(dict(model.named_parameters()) for model in models),
        groups=merge_groups(models[0], adapter),
        heads=("classifier",),
        runtime=runtime,
        model_options=(WeightOptions(),) * len(models),
    )
    found = group_covariances(inputs.groups, models, runtime.calibration, **runtime.running)
    return replace(inputs, covariances=found)


@every_adapter
@pytest.mark.parametrize("how", ["rotate", "permute", "identity"])
def test_every_alignment_leaves_the_function(adapter, how):
    models = [example(adapter, seed) for seed in (0, 5, 6)]
    inputs = inputs_for(models, adapter)
    options = RotateOptions(stream=how, heads=how)
    for kept, model in enumerate(models):
        # All the weight on one model: what is returned is that model, rewritten.
        weights = tuple(WeightOptions(float(k == kept)) for k in range(3))
        merged = run(replace(inputs, model_options=weights), options)
        aligned = with_parameters(model, {**merged.state, **merged.heads[kept]})
        torch.testing.assert_close(logits(aligned), logits(model), rtol=0, atol=1e-10)
        changed = (aligned.classifier.weight - canonical(model, adapter).classifier.weight).abs()
        assert (changed.max() > 0.1) == (kept > 0 and how != "identity")


def test_a_few_inputs_are_enough_for_equal_models():
    model = example(adapter_for("vit"))
    inputs = inputs_for([model, copy.deepcopy(model)], adapter_for("vit"), count=1)
    merged = run(inputs, RotateOptions())
    found = with_parameters(model, {**merged.state, **merged.heads[0]})
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=1e-10)


def test_a_model_alone_is_itself():
    model = example(adapter_for("vit"))
    merged = run(inputs_for([model], adapter_for("vit")), RotateOptions())
    found = with_parameters(model, {**merged.state, **merged.heads[0]})
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=1e-10)
    assert merged.provenance == {"matched_correlation": {}}


def test_rotations_of_unlike_models_correlate_more_than_reorderings():
    adapter = adapter_for("vit")
    inputs = inputs_for([example(adapter, 0), example(adapter, 5)], adapter)
    found = [
        run(inputs, RotateOptions(stream=how, heads=how)).provenance["matched_correlation"]
        for how in ("rotate", "permute", "identity")
    ]
    assert list(found[2]) == ["layers.0.mlp", "layers.1.mlp"]
    assert set(found[0]) == set(found[1]) == {group.name for group in inputs.groups}
    assert found[0]["stream"] > found[1]["stream"] > 0
    assert all(-1 <= value <= 1 for each in found for value in each.values())
    none = run(inputs, RotateOptions("identity", "identity", "identity"))
    assert none.provenance["matched_correlation"] == {}


def test_weights_are_those_of_the_mean():
    adapter = adapter_for("vit")
    inputs = inputs_for([example(adapter, 0), example(adapter, 5)], adapter)
    one, other, mixed = (
        run(
            replace(inputs, model_options=tuple(map(WeightOptions, weights))), RotateOptions()
        ).state
        for weights in ((1.0, 0.0), (0.0, 1.0), (3.0, 1.0))
    )
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, 0.75 * one[name] + 0.25 * other[name])


def test_models_without_attention_biases_receive_them():
    model = vit(qkv_bias=False).double()
    result = merge([model, model])
    assert result.model.config.qkv_bias is True
    assert relative_error(model, result.model) <= 1e-5
    turned = scrambled_without_biases(model)
    assert relative_error(model, merge([model, turned]).model) <= 1e-5


def scrambled_without_biases(model):
    """A copy whose heads are reordered and rotated, as nothing else is exact without folding."""
    groups = merge_groups(model, adapter_for("vit"))
    maps = {n: m for n, m in random_maps(groups, 1).items() if n != "stream"}
    return with_parameters(model, align(dict(model.named_parameters()), groups, maps, 0))


def test_a_post_norm_family_is_refused():
    adapter = adapter_for("vit")
    inputs = inputs_for([vit(), vit(seed=1)], adapter)
    runtime = replace(inputs.runtime, table=replace(adapter, pre_norm=False))
    with pytest.raises(HfZipError, match=r"'vit' do not normalise what they read \(post-norm\)"):
        run(replace(inputs, runtime=runtime), RotateOptions())


def test_the_method_is_registered():
    method = method_named("rotate")
    assert (method.options(), method.requires.covariances) == (RotateOptions(), True)
    assert method.reference == "https://arxiv.org/abs/2502.00264"
