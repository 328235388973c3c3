"""`refit: all`: every layer fitted to the features that merge maps give."""

import tempfile
from pathlib import Path

import pytest
import torch

import hf_zip
from hf_zip.adapters import adapter_for, adapter_of, adapters
from hf_zip.align import shares, side_by_side
from hf_zip.aligned import merge_aligned
from hf_zip.canonical import canonical
from hf_zip.collect import observe
from hf_zip.errors import HfZipError
from hf_zip.groups import Tap, blocks, merge_groups
from hf_zip.match import Matching
from hf_zip.matching.merge_map import MergeMap
from hf_zip.method import MergeInputs, Runtime
from hf_zip.refit.mapped import merged_shape, refit_mapped
from hf_zip.refit.moments import RegressionMoments
from hf_zip.refit.walk import RidgeOptions
from tests.launch import assert_same_fit, run_in
from tests.models import images, permuted, random_inputs, random_permutations, rows, vit
from tests.test_zipfit import assembled, deit, logits, relative_error, rotated

EXACT = RidgeOptions(penalty=1e-10, head_penalty=1e-10)


def refit(models, maps, inputs=96, batch_size=20, **more):
    models = [model.double() for model in models]
    adapter = adapter_of(models[0])
    data = rows(images(models[0], inputs, seed=9))
    return refit_mapped(models, adapter, data, maps, batch_size=batch_size, progress=False, **more)


def groups_of(model):
    return merge_groups(model, adapter_of(model))


def maps_to_first(model, seeds):
    """The maps that bring copies, permuted by so many seeds, back to their original."""
    groups = groups_of(model)
    orders = [random_permutations(groups, seed) for seed in seeds]
    maps = {}
    for group in groups:
        eye = torch.eye(group.size)
        merge = torch.stack([eye, *(order[group.name].merge[0].T for order in orders)])
        maps[group.name] = MergeMap(merge, merge.transpose(1, 2))
    return maps


def dense_maps(groups, num_models, width, units):
    """Random maps, which mix all features of a head or of a group without heads."""
    generator = torch.Generator().manual_seed(1)
    maps = {}
    for group in groups:
        size = units if group.role == "mlp" else width
        merge = torch.randn(num_models, size, group.size, generator=generator).double()
        maps[group.name] = MergeMap(merge, merge.transpose(1, 2))
    return maps


def merge(models, method, refit, samples=200, **more):
    return hf_zip.merge(
        models,
        method=method,
        tasks=[f"task {k}" for k in range(len(models))],
        parameters={"refit": refit},
        calibration=images(models[0], samples, seed=9)["pixel_values"],
        dtype="float64",
        labels="apart",
        force=True,
        progress=False,
        **more,
    )


@pytest.mark.parametrize("make", [vit, deit])
@pytest.mark.parametrize("copies", [0, 1, 2])
def test_copies_of_a_model_are_merged_to_it(make, copies):
    model = make().double()
    seeds = range(1, copies + 1)
    models = [model, *(permuted(model, seed) for seed in seeds)]
    fitted = refit(models, maps_to_first(model, seeds), options=EXACT)
    for position in range(len(models)):
        assert relative_error(model, assembled(model, fitted, position)) <= 1e-6
    assert all(share == pytest.approx(1, abs=1e-6) for share in fitted.explained.values())


def test_one_model_without_biases_of_queries_keys_and_values_is_returned():
    model = vit(qkv_bias=False).double()
    fitted = refit([model], {}, options=EXACT)
    assert fitted.config["qkv_bias"] is True
    assert relative_error(model, assembled(model, fitted)) <= 1e-6


@torch.no_grad()
@pytest.mark.parametrize("make", [vit, deit])
@pytest.mark.parametrize("weights", [None, (3.0, 1.0)])
def test_every_layer_is_the_ridge_regression_of_the_mapped_features(make, weights):
    models = [make(seed=1).double(), make(labels=4, seed=2).double()]
    groups, width = groups_of(models[0]), 12 // models[0].config.num_attention_heads
    maps = dense_maps(groups, 2, width=5 * width, units=9)
    fitted = refit(models, maps, batch_size=96, weights=weights)
    merged = assembled(models[0], fitted)
    assert (merged.config.hidden_size, merged.config.intermediate_size) == (5 * width, 9)
    assert merged.config.num_attention_heads == 5

    # Hooks on whole forwards see what the fits saw block by block, from the held streams.
    inputs = images(models[0], 96, seed=9)
    teachers = [canonical(model, adapter_of(model)) for model in models]
    layers = blocks(teachers[0], adapter_of(models[0]))
    linears = ("query", "key", "value", "output", "mlp_in", "mlp_out")
    taps = [Tap(getattr(layer, name), side) for layer in layers for name in linears
            for side in ("input", "output")]  # fmt: skip
    taps += [Tap(layer.mlp_norm, "input") for layer in layers]
    taps += [Tap(layer.name, side) for layer in layers for side in ("input", "output")]
    own, *seen = (observe(model, taps, inputs) for model in (merged, *teachers))
    matrices = {group.name: side_by_side(group, maps, shares(2, weights)) for group in groups}

    def wanted(tap, group):
        return torch.cat([record[tap] for record in seen], dim=1) @ matrices[group].T

    matrices["stream"] -= matrices["stream"].mean(dim=0)
    for n, layer in enumerate(layers):
        before, after = Tap(layer.name, "input"), Tap(layer.name, "output")
        middle = Tap(layer.mlp_norm, "input")
        targets = {
            layer.query: wanted(Tap(layer.query, "output"), f"layers.{n}.query_key"),
            layer.key: wanted(Tap(layer.key, "output"), f"layers.{n}.query_key"),
            layer.value: wanted(Tap(layer.value, "output"), f"layers.{n}.value"),
            layer.output: wanted(middle, "stream") - own[before],
            layer.mlp_in: wanted(Tap(layer.mlp_in, "output"), f"layers.{n}.mlp"),
            layer.mlp_out: wanted(after, "stream") - own[middle],
        }
        for name, target in targets.items():
            sums = RegressionMoments(*(x.shape[1] for x in (own[Tap(name, "input")], target)))
            sums.update(own[Tap(name, "input")], target)
            weight, bias = sums.moments().fit(1e-3)
            if name in (layer.key, layer.value):  # softmax and the output make up for these
                bias = torch.zeros_like(bias)
            found = merged.get_submodule(name)
            scale = weight.abs().max()
            torch.testing.assert_close(found.weight.data, weight, rtol=0, atol=1e-8 * scale)
            torch.testing.assert_close(found.bias.data, bias, rtol=0, atol=1e-8 * scale)


@torch.no_grad()
def test_embeddings_are_the_centred_mean_of_the_mapped_ones():
    models = [vit(seed=1).double(), vit(seed=2).double()]
    maps = dense_maps(groups_of(models[0]), 2, width=12, units=20)
    merged = assembled(models[0], refit(models, maps, weights=(3.0, 1.0)))
    first, second = maps["stream"].merge
    one, other = (
        canonical(model, adapter_for("vit")).vit.embeddings.position_embeddings for model in models
    )
    mean = 0.75 * one @ first.T + 0.25 * other @ second.T
    mean = mean - mean.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(merged.vit.embeddings.position_embeddings.data, mean)


@pytest.mark.parametrize("method", ["permute", "zipit", "rotate"])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_copy_is_matched_back(method, copies):
    model = vit().double()
    parameters = {"alpha": 1.0} if method == "zipit" else {}
    copied = rotated if method == "rotate" else permuted
    models = [model, *(copied(model, seed) for seed in range(1, copies + 1))]
    found = hf_zip.merge(
        models,
        method=method,
        tasks=["same"] * len(models),
        parameters={"refit": "all", **parameters},
        calibration=images(model, 300, seed=9)["pixel_values"],
        dtype="float64",
        force=True,
        progress=False,
    ).model
    assert relative_error(model, found) <= 0.02  # the ridge
    assert torch.equal(logits(model).argmax(-1), logits(found).argmax(-1))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_averaging_models_that_agree_leaves_them(count):
    model = vit().double()
    found = merge([model] * count, "average", "all").model
    task = found.config.hf_zip["tasks"][0]
    own = logits(found)[:, task["start"] : task["start"] + 3]
    assert ((own - logits(model)).abs().max() / logits(model).abs().max()).item() <= 0.02


@pytest.mark.parametrize(
    ("method", "other"),
    [("average", "none"), ("permute", "head"), ("zipit", "head"), ("rotate", "head")],
)
def test_a_refit_of_every_layer_answers_closer_to_the_parents(method, other):
    parents = [vit(3, seed=1).double(), vit(2, seed=2).double()]
    wanted = torch.cat([logits(parent) for parent in parents], dim=1)
    less, everything = (merge(parents, method, refit) for refit in (other, "all"))
    left = [(logits(found.model) - wanted).square().mean() for found in (less, everything)]
    assert left[1] < left[0]
    names = {f"layers.{n}.{part}" for n in range(2) for part in ("attention", "mlp")}
    assert set(everything.report.explained) == names
    assert set(everything.report.matching) == set(less.report.matching)
    assert everything.model.config.qkv_bias is True


@pytest.mark.parametrize("refit", ["repair", "all"])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("method", ["permute", "rotate"])
def test_the_tails_of_a_partial_zip_are_rewritten_in_the_refitted_features(refit, qkv_bias, method):
    model = vit(qkv_bias=qkv_bias).double()
    models = [model, permuted(model, 1)]
    found = merge(models, method, refit, stop_at=1, unmerge="exact").model
    inputs = images(model, 48, seed=4)
    with torch.no_grad():
        wanted = model(**inputs).logits
        for task in ("task 0", "task 1"):
            error = (found(**inputs, task=task).logits - wanted).abs().max() / wanted.abs().max()
            assert error <= (0.02 if refit == "all" else 1e-6)


def test_a_model_without_weight_counts_for_nothing_but_its_head():
    parents = [vit(3, seed=1).double(), vit(2, seed=2).double()]
    fitted = refit(parents, {}, weights=(1.0, 0.0), options=EXACT)
    assert relative_error(parents[0], assembled(parents[0], fitted)) <= 1e-6
    assert relative_error(parents[1], assembled(parents[1], fitted, 1)) > 0.01


def test_streams_on_disk_give_the_same_to_the_last_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = []
    write_bytes = Path.write_bytes
    monkeypatch.setattr(
        Path, "write_bytes", lambda self, data: (written.append(self), write_bytes(self, data))
    )
    models = [vit(seed=1), vit(labels=4, seed=2)]
    in_memory = refit(models, {})
    assert not written
    on_disk = refit(models, {}, options=RidgeOptions(memory=0.0))
    assert written
    for a, b in zip(
        (in_memory.state, *in_memory.heads), (on_disk.state, *on_disk.heads), strict=True
    ):
        assert all(torch.equal(a[name], b[name]) for name in a)


SCRIPT = """
from hf_zip.adapters import adapter_for, adapter_of, adapters
from hf_zip.collect import make_accelerator
from hf_zip.refit.mapped import refit_mapped
from tests.models import images, rows, vit
from tests.test_mapped import maps_to_first

models = [vit(seed=1).double(), vit(labels=4, seed=2).double()]
accelerator = make_accelerator()
fitted = refit_mapped(models, adapter_for("vit"), rows(images(models[0], 70)),
    maps_to_first(models[0], [3]), None, None, 16, accelerator, False)
found = vars(fitted)
"""


@pytest.mark.slow
def test_two_processes_with_unequal_batches_give_the_model_of_one(tmp_path):
    one, two = (run_in(n, SCRIPT, tmp_path) for n in (1, 2))
    assert_same_fit(one, two)


def test_sizes_without_maps_are_those_of_the_sources():
    shape = merged_shape(groups_of(vit()), {})
    assert (shape.width, shape.units, shape.num_heads, shape.head_width) == (12, 20, 3, 4)


def resized(sizes):
    """Maps that make so many features of each group."""
    groups = groups_of(vit())
    maps = {}
    for group in groups:
        if group.name in sizes:
            merge = torch.zeros(2, sizes[group.name], group.size)
            maps[group.name] = MergeMap(merge, merge.transpose(1, 2))
    return groups, maps


def test_maps_of_different_sizes_in_different_blocks_are_refused():
    message = r"'layers\.1\.mlp' makes 22 features, .* block before makes 20; all blocks"
    with pytest.raises(HfZipError, match=message):
        merged_shape(*resized({"layers.1.mlp": 22}))


@pytest.mark.parametrize(
    ("stream", "query_key", "value"), [(16, 12, 12), (12, 16, 12), (12, 12, 16), (14, 14, 14)]
)
def test_maps_that_make_no_whole_heads_are_refused(stream, query_key, value):
    sizes = {"stream": stream}
    for n in range(2):
        sizes |= {f"layers.{n}.query_key": query_key, f"layers.{n}.value": value}
    message = (
        rf"stream of {stream} features, {query_key} features of queries and keys, and {value} of "
        r"values; all should be the same multiple of the 4 features of a head"
    )
    with pytest.raises(HfZipError, match=message):
        merged_shape(*resized(sizes))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_inputs_are_refused(count):
    message = rf"the refit is given {count} calibration input\(s\); it needs at least two"
    with pytest.raises(HfZipError, match=message):
        refit([vit()], {}, inputs=count)


def test_a_family_without_a_canonical_form_is_refused_with_what_it_can_have():
    model = adapters()["bert"].example().eval()
    calibration = rows(random_inputs(model, 8))
    inputs = MergeInputs(
        states=(),
        groups=(),
        heads=(),
        runtime=Runtime((model,), adapters()["bert"], calibration, 4, None, False),
    )
    message = r"'bert' .*post-norm\), so gains and biases .*; use refit: none, head or repair"
    with pytest.raises(HfZipError, match=message):
        merge_aligned(inputs, Matching({}, {}), refit="all")
