"""The refit as a whole, and its parts that only make sense inside it."""

import copy
import json
import logging
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import (
    CLIPForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    SiglipForImageClassification,
)

import hf_zip
from hf_zip.adapters import adapter_for, adapter_of
from hf_zip.align import align
from hf_zip.canonical import canonical
from hf_zip.collect import observe
from hf_zip.entries import set_entries
from hf_zip.errors import HfZipError
from hf_zip.groups import Tap, blocks, merge_groups
from hf_zip.matching.merge_map import MergeMap
from hf_zip.refit import block
from hf_zip.refit import zipfit as module
from hf_zip.refit.block import fit_block
from hf_zip.refit.held import GIB, Held
from hf_zip.refit.moments import RegressionMoments
from hf_zip.refit.reading import selection_stride
from hf_zip.refit.shape import choose_shape, possible_shapes
from hf_zip.refit.stream import centred_basis, stream_map
from hf_zip.refit.survey import survey
from hf_zip.refit.work import Work
from hf_zip.refit.zipfit import FitOptions, zipfit
from tests.launch import assert_same_fit, run_in
from tests.models import images, permuted, randomise, rows, vit, with_parameters

EXACT = {"penalty": 1e-10, "head_penalty": 1e-10}


def deit(labels=3, seed=0, **overrides):
    torch.manual_seed(seed)
    values = {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 28,
        "image_size": 8,
        "patch_size": 4,
        "num_labels": labels,
    }
    model = DeiTForImageClassification(DeiTConfig(**{**values, **overrides})).eval()
    return randomise(model, seed)


def clip(labels=3, seed=0, **overrides):
    """A CLIP classifier, some of whose gains before the blocks are negative."""
    torch.manual_seed(seed)
    config = adapter_for("clip_vision_model").example().config
    config.num_labels = labels
    for key, value in {"num_attention_heads": 3, **overrides}.items():
        setattr(config.vision_config, key, value)
    model = randomise(CLIPForImageClassification(config).eval(), seed)
    with torch.no_grad():
        model.vision_model.pre_layrnorm.weight[::3] *= -1
    return model


def siglip(labels=3, seed=0):
    torch.manual_seed(seed)
    config = adapter_for("siglip_vision_model").example().config
    config.num_labels = labels
    config.vision_config.layer_norm_eps = 1e-12  # as of ViT: the merged stream has another scale
    return randomise(SiglipForImageClassification(config).eval(), seed)


def fit(models, inputs=96, batch_size=20, seed=9, **options):
    models = [model.double() for model in models]
    data = rows(images(models[0], inputs, seed=seed)) if isinstance(inputs, int) else inputs
    adapter = adapter_of(models[0])
    return zipfit(models, adapter, data, FitOptions(**options), batch_size, progress=False)


def assembled(model, fitted, position=0):
    """The merged model with one of its heads, loaded strictly into the native class."""
    config = copy.deepcopy(model.config)
    set_entries(config, fitted.config)
    config.num_labels = len(fitted.heads[position]["classifier.bias"])
    merged = type(model)(config).to(model.dtype).eval()
    merged.load_state_dict({**fitted.state, **fitted.heads[position]})
    return merged


def logits(model, count=48):
    with torch.no_grad():
        return model(**images(model, count, seed=4)).logits


def relative_error(model, other):
    a, b = logits(model), logits(other)
    return float((a - b).abs().max() / a.abs().max())


def rotated(model, seed=0):
    """An exact copy of a model's function, its stream in canonical form rotated."""
    adapter = adapter_of(model)
    plain = canonical(model, adapter)
    group = merge_groups(plain, adapter)[0]
    generator = torch.Generator().manual_seed(seed)
    basis = centred_basis(group.size)
    noise = torch.randn(group.size - 1, group.size - 1, generator=generator, dtype=torch.float64)
    turn = basis @ torch.linalg.qr(noise).Q @ basis.T + 1 / group.size  # leaves ones in place
    maps = {group.name: MergeMap(turn[None], turn.T[None])}
    return with_parameters(plain, align(dict(plain.named_parameters()), [group], maps, 0))


@pytest.mark.parametrize("make", [vit, deit, clip, siglip])
@pytest.mark.parametrize("heads", ["auto", "all", "select"])
def test_one_model_is_returned(make, heads):
    model = make().double()
    fitted = fit([model], heads=heads, **EXACT)
    assert relative_error(model, assembled(model, fitted)) <= 1e-6
    assert all(share == pytest.approx(1, abs=1e-6) for share in fitted.explained.values())


def test_one_model_without_biases_of_queries_keys_and_values_is_returned():
    model = vit(qkv_bias=False).double()
    fitted = fit([model], **EXACT)
    assert fitted.config["qkv_bias"] is True
    assert relative_error(model, assembled(model, fitted)) <= 1e-6


@pytest.mark.parametrize("make", [vit, deit])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("copied", [permuted, rotated, lambda model, seed: model])
def test_copies_of_a_model_are_merged_to_it(make, copied, copies):
    model = make().double()
    models = [model, *(copied(model, seed) for seed in range(1, copies + 1))]
    for other in models:
        assert relative_error(model, other) <= 1e-9
    fitted = fit(models, **EXACT)
    assert fitted.config["num_attention_heads"] == model.config.num_attention_heads
    for position in range(len(models)):
        assert relative_error(model, assembled(model, fitted, position)) <= 1e-6


@pytest.mark.parametrize("make", [clip, siglip])
@pytest.mark.parametrize("copied", [permuted, lambda model, seed: model])
def test_copies_of_a_model_of_images_and_texts_are_merged_to_it(make, copied):
    model = make().double()
    models = [model, copied(model, 1), copied(model, 2)]
    fitted = fit(models, **EXACT)
    for position in range(3):
        assert relative_error(model, assembled(model, fitted, position)) <= 1e-6


@pytest.mark.parametrize("size", [0.5, 1.0, 2.0])
def test_normalised_embeddings_are_fitted_at_every_size(size):
    models = [clip(seed=1).double(), clip(labels=4, seed=2).double()]
    fitted = fit(models, size=size)
    merged = assembled(models[0], fitted)
    assert merged.config.vision_config.hidden_size == 12 * size
    assert 0.3 < fitted.explained["embeddings"] <= 1
    assert merged.vision_model.post_layernorm.weight.tolist() == [1.0] * int(12 * size)


CASES = [(size, count, "all") for size in (0.5, 1.0, 1.5, "all models") for count in (2, 3)]
CASES += [(1.0, count, "select") for count in (2, 3)]


@pytest.mark.parametrize("make", [vit, deit])
@pytest.mark.parametrize(("size", "count", "heads"), CASES)
def test_different_models_give_a_model_of_the_declared_sizes(make, size, count, heads):
    size = float(count) if size == "all models" else size
    sizes = {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 20}
    models = [make(labels=2 + k, seed=k, **sizes) for k in range(count)]
    fitted = fit(models, size=size, heads=heads)
    assert fitted.config == {
        "hidden_size": 36 * size,
        "intermediate_size": 20 * size,
        "num_attention_heads": 3 if heads == "select" else 3 * count,
        "qkv_bias": True,
    }
    for position, model in enumerate(models):
        merged = assembled(model, fitted, position)
        last = merged.base_model.layers[1]
        assert last.mlp.fc1.weight.shape == (20 * size, 36 * size)
        assert last.attention.q_proj.weight.shape == (36 * size, 36 * size)
        assert last.attention.head_dim == 36 * size / fitted.config["num_attention_heads"]
        assert logits(merged).shape == (48, 2 + position)
        assert logits(merged).isfinite().all()


def test_the_merged_model_is_saved_as_the_native_class(tmp_path):
    models = [vit(seed=1), vit(labels=4, seed=2)]
    calibration = images(models[0], 64)["pixel_values"]
    result = hf_zip.merge(
        models,
        method="zipfit",
        tasks=["a", "b"],
        calibration=calibration,
        parameters={"size": 1.5},
        progress=False,
    )
    result.model.save_pretrained(tmp_path)
    loaded, info = type(models[0]).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_size"], config["num_attention_heads"]) == (18, 6)
    assert torch.equal(logits(loaded.eval()), logits(result.model.eval()))


@pytest.mark.parametrize("make", [vit, deit])
def test_more_room_holds_more_of_two_models(make):
    models = [make(seed=1), make(labels=4, seed=2)]
    small, large = (fit(models, size=size, inputs=256) for size in (1.0, 2.0))
    assert small.explained["stream"] < 0.95
    assert large.explained["stream"] == pytest.approx(1, abs=1e-12)
    assert all(large.explained[key] > small.explained[key] for key in small.explained)
    for position, model in enumerate(models):
        left = [
            (logits(model) - logits(assembled(model, fitted, position))).square().mean()
            for fitted in (small, large)
        ]
        assert left[1] < 0.5 * left[0]
        assert left[1] < 0.5 * logits(model).var()


def test_what_is_explained_has_readable_names():
    explained = fit([vit(seed=1), vit(seed=2)]).explained
    assert list(explained) == [
        "stream",
        *(f"layers.{n}.{part}" for n in range(2) for part in ("attention", "mlp")),
    ]
    assert all(0 < share < 1 for share in explained.values())


def test_the_head_is_fitted_to_all_logits_on_what_it_reads():
    models = [vit(seed=1).double(), vit(labels=4, seed=2).double()]
    inputs = images(models[0], 96, seed=9)
    fitted = fit(models)
    read = observe(assembled(models[0], fitted), [Tap("classifier", "input")], inputs)
    with torch.no_grad():
        wanted = torch.cat([model(**inputs).logits for model in models], dim=1)
    sums = RegressionMoments(12, 7)
    sums.update(read[Tap("classifier", "input")], wanted)
    weight, bias = sums.moments().fit(1e-3)
    found = [torch.cat([h[f"classifier.{p}"] for h in fitted.heads]) for p in ("weight", "bias")]
    torch.testing.assert_close(found[0], weight, rtol=0, atol=1e-8)
    torch.testing.assert_close(found[1], bias, rtol=0, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("make", [vit, deit])
def test_the_survey_sees_every_position_of_the_stream_and_all_contexts(make):
    models = [make(seed=1).double(), make(labels=4, seed=2).double()]
    adapter = adapter_of(models[0])
    layers = blocks(models[0], adapter)
    inputs = images(models[0], 10)
    loader = [{"pixel_values": part} for part in inputs["pixel_values"].split([7, 3])]
    moment, contexts = survey(models, adapter, layers, loader, True, Accelerator())

    places = [Tap(layers[0].name, "input")]
    places += [Tap(layer.mlp_norm, "input") for layer in layers]
    places += [Tap(layer.name, "output") for layer in layers]
    attended = [Tap(layer.output, "input") for layer in layers]
    seen = [observe(model, [*places, *attended], inputs) for model in models]
    streams = [torch.cat([record[place] for record in seen], dim=1) for place in places]
    expected = torch.stack([x.T @ x / len(x) for x in streams]).mean(dim=0)
    torch.testing.assert_close(moment, expected, rtol=0, atol=1e-11)
    for found, place in zip(contexts, attended, strict=True):
        rows_of_all = torch.cat([record[place] for record in seen], dim=1)
        torch.testing.assert_close(found, torch.cov(rows_of_all.T, correction=0))
    assert survey(models, adapter, layers, loader, False, Accelerator())[1] == []


@torch.no_grad()
def test_the_units_that_write_most_are_kept(monkeypatch):
    models = [vit(seed=1).double(), vit(labels=4, seed=2).double()]
    alive = torch.arange(4, 11), torch.arange(7, 20)  # 20 units in all, as many as one model has
    for model, own in zip(models, alive, strict=True):
        for layer in model.vit.layers:
            mute = torch.ones(20, dtype=torch.bool)
            mute[own] = False
            layer.mlp.fc2.weight[:, mute] = 0
            layer.mlp.fc1.weight[mute] *= 10  # active, but not heard of
    kept = []
    choose_units = block.choose_units
    monkeypatch.setattr(
        block,
        "choose_units",
        lambda *given: (kept.append(choose_units(*given)), kept[-1])[1],
    )
    fit(models)
    assert len(kept) == 2
    for units in kept:
        assert [own.tolist() for own in units] == [own.tolist() for own in alive]


@pytest.mark.parametrize("tokens", [1, 5, 6, 197, 16])
@pytest.mark.parametrize("rows_in_all", [1, 8191, 8192 * 4, 8192 * 6, 8192 * 197])
def test_units_are_chosen_on_rows_of_all_tokens(tokens, rows_in_all):
    stride = selection_stride(rows_in_all, tokens)
    assert {(stride * row) % tokens for row in range(tokens)} == set(range(tokens))
    assert stride >= max(1, rows_in_all // 8192)


def work_of(model, held, off):
    """A refit of one model whose merged stream starts off by a constant vector."""
    adapter = adapter_of(model)
    teacher = canonical(model, adapter)
    layers = blocks(teacher, adapter)
    stream = teacher.vit.embeddings(images(model, 96)["pixel_values"])
    flat = stream.flatten(0, 1)
    matrix = stream_map(flat.T @ flat / len(flat), 1, 12).matrix
    held["teachers", 0], held["merged", 0] = stream, stream @ matrix.T + off
    (shape,) = possible_shapes(teacher, layers[0], 1, 1.0, "all")
    student = canonical(model, adapter)
    rows_in_all = len(flat)
    return (
        Work(student, (teacher,), shape, matrix, 1e-10, held, 1, rows_in_all, Accelerator()),
        layers[0],
    )


@torch.no_grad()
def test_a_block_makes_up_for_errors_before_it():
    # The student's stream is off by a constant: a bias alone undoes it, if it is asked to.
    off = torch.linspace(-1, 1, 12, dtype=torch.float64)
    with Held(1.0) as held:
        work, layer = work_of(vit().double(), held, off)
        found = fit_block(work, layer, work.shape)
        gap = held["teachers", 0] @ work.matrix.T - held["merged", 0]
        assert gap.flatten(0, 1).mean(dim=0).abs().max() <= 1e-10
        # What would be left if the block wrote just what the teacher's writes.
        energy = (held["teachers", 0] @ work.matrix.T).square().sum()
        uncorrected = off.square().sum() * gap[..., 0].numel() / energy
        assert 1 - found["mlp"] < 0.5 * float(uncorrected)


@torch.no_grad()
def test_without_errors_before_it_a_block_is_the_teachers():
    with Held(1.0) as held:
        work, layer = work_of(vit().double(), held, torch.zeros(12, dtype=torch.float64))
        assert min(fit_block(work, layer, work.shape).values()) >= 1 - 1e-10
        assert sorted(held._tensors) == [("merged", 0), ("teachers", 0)]  # nothing else is kept


@pytest.mark.parametrize("memory", [0.0, 40_000 / GIB])
def test_streams_on_disk_give_the_same_to_the_last_bit(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = []
    write_bytes = Path.write_bytes
    monkeypatch.setattr(
        Path, "write_bytes", lambda self, data: (written.append(self), write_bytes(self, data))
    )
    for dtype in (torch.float64, torch.float32):
        models = [vit(seed=1).to(dtype), vit(labels=4, seed=2).to(dtype)]
        data = rows(images(models[0], 50))
        adapter = adapter_for("vit")
        in_memory = zipfit(models, adapter, data, FitOptions(), 16, progress=False)
        assert not written
        on_disk = zipfit(models, adapter, data, FitOptions(memory=memory), 16, progress=False)
        assert written
        written.clear()
        for a, b in zip(
            (in_memory.state, *in_memory.heads), (on_disk.state, *on_disk.heads), strict=True
        ):
            assert all(torch.equal(a[name], b[name]) for name in a)
        assert in_memory.explained == on_disk.explained
        assert not list(tmp_path.iterdir())


def test_held_tensors_read_back_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tensors = {
        ("a", 0): torch.randn(3, 4),
        ("a", 1): torch.randn(5, 2, dtype=torch.float64).T,
        ("b", 0): torch.randn(6).bfloat16(),
        ("b", 1): torch.arange(4),
    }
    with Held(60 / GIB) as held:
        for key, tensor in tensors.items():
            held[key] = tensor
        (folder,) = tmp_path.iterdir()
        assert len(list(folder.iterdir())) == 2  # 48 of 60 bytes, then 80 too many, 12, 32 too many
        for key, tensor in tensors.items():
            assert key in held
            assert held[key].dtype == tensor.dtype
            assert torch.equal(held[key], tensor)
        held["a", 1] = torch.zeros(1)
        assert torch.equal(held["a", 1], torch.zeros(1))
        assert torch.equal(held.pop("b", 1), torch.arange(4))
        assert ("b", 1) not in held
        assert len(list(folder.iterdir())) == 1  # 4 bytes, as there is no room left
        assert torch.equal(held.pop("a", 0), tensors["a", 0])
        held["a", 1] = torch.zeros(10)  # the room that was given up is used again
        assert not list(folder.iterdir())
    assert not list(tmp_path.iterdir())


def test_temporary_files_are_removed_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail(*_, **__):
        assert list(tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit_block", fail)
    with pytest.raises(KeyboardInterrupt):
        fit([vit()], memory=0.0)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(HfZipError, match=r"8 bytes .* could not be written to a temporary file"):
        Held(0.0)["stream", 0] = torch.zeros(2)


SCRIPT = """
from accelerate.utils import gather_object
from hf_zip.adapters import adapter_for, adapter_of
from hf_zip.collect import make_accelerator
from hf_zip.refit import block
from hf_zip.refit.zipfit import FitOptions, zipfit
from tests.models import images, rows, vit

models = [vit(seed=1).double(), vit(labels=4, seed=2).double()]
accelerator = make_accelerator()
batches = []
fit_attention = block.fit_attention
def counting(work, *others):
    batches.append(work.num_batches)
    return fit_attention(work, *others)
block.fit_attention = counting
data = rows(images(models[0], 70))
fitted = zipfit(models, adapter_for("vit"), data, FitOptions(), 16, accelerator, False)
batches = gather_object([batches[0]])
found = {"batches": batches, **vars(fitted)}
"""


@pytest.mark.slow
def test_two_processes_with_unequal_batches_give_the_model_of_one(tmp_path):
    one, two = (run_in(n, SCRIPT, tmp_path) for n in (1, 2))
    assert (one["batches"], sorted(two["batches"])) == ([5], [2, 3])
    assert_same_fit(one, two)


def test_sources_are_left_as_they_were_and_a_second_run_gives_the_same():
    models = [vit(seed=1).double(), vit(labels=4, seed=2).double()]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    configs = [model.config.to_dict() for model in models]
    once, again = fit(models), fit(models)
    for model, state, config in zip(models, before, configs, strict=True):
        assert model.config.to_dict() == config
        assert all(torch.equal(state[name], p) for name, p in model.state_dict().items())
    for a, b in zip((once.state, *once.heads), (again.state, *again.heads), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_size_of_the_batches_does_not_matter():
    models = [vit(seed=1), vit(labels=4, seed=2)]
    one, many = fit(models, inputs=40, batch_size=1), fit(models, inputs=40, batch_size=40)
    for name, parameter in one.state.items():
        torch.testing.assert_close(parameter, many.state[name], rtol=0, atol=1e-7)


def test_heads_that_do_not_divide_the_width_are_selected():
    models = [vit(seed=k) for k in range(3)]  # 9 heads, 12 features
    assert fit(models).config["num_attention_heads"] == 3
    message = r"9 heads of 3 models do not divide a stream of 1\.0 x 12 .*; use heads: select, or"
    with pytest.raises(HfZipError, match=message):
        fit(models, heads="all")


@pytest.mark.parametrize("heads", ["auto", "all"])
def test_heads_that_do_not_divide_another_width_are_refused(heads):
    message = r"4 heads of 2 models do not divide .* use size 1 and heads: select, .* of 0\.3333"
    with pytest.raises(HfZipError, match=message):
        fit([deit(seed=1), deit(seed=2)], size=0.5, heads=heads)


def test_heads_cannot_be_selected_at_another_size():
    with pytest.raises(HfZipError, match=r"only be selected at size 1, not 1\.5; use heads: all"):
        fit([vit(seed=1), vit(seed=2)], size=1.5, heads="select")


def test_a_choice_of_shapes_needs_contexts():
    model = vit()
    layer = blocks(model, adapter_for("vit"))[0]
    shapes = possible_shapes(model, layer, 2, 1.0, "auto")
    assert [shape.select for shape in shapes] == [True, False]
    assert choose_shape(shapes, [torch.eye(24)]) is shapes[1]
    copies = torch.eye(12).repeat(2, 2)
    assert choose_shape(shapes, [copies]) is shapes[0]
    assert choose_shape(shapes, [copies, torch.eye(24)]) is shapes[1]  # all layers are to agree
    with pytest.raises(HfZipError, match="no contexts by which to choose"):
        choose_shape(shapes, [])


def test_few_inputs_raise_the_ridge_and_say_so(caplog):
    models = [vit(seed=1, hidden_size=36), vit(labels=4, seed=2, hidden_size=36)]
    with caplog.at_level(logging.WARNING):
        fitted = fit(models, inputs=8)  # of 5 tokens each
    assert [record.getMessage() for record in caplog.records] == [
        "the blocks are fitted on 40 rows for up to 72 features, so the ridge is raised up to 1.8 "
        "times; give more inputs",
        "the task head is fitted on 8 rows for up to 36 features, so the ridge is raised up to 4.5 "
        "times; give more inputs",
    ]
    assert all(parameter.isfinite().all() for parameter in fitted.state.values())
    assert all(part.isfinite().all() for head in fitted.heads for part in head.values())


def test_enough_inputs_are_not_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        fit([vit(seed=1), vit(seed=2)], inputs=12)
    assert not caplog.records


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_inputs_are_refused(count):
    message = rf"given {count} calibration input\(s\); it needs at least two"
    with pytest.raises(HfZipError, match=message):
        fit([vit()], inputs=count)


def test_two_inputs_are_enough():
    fitted = fit([vit(seed=1), vit(seed=2)], inputs=2)
    assert all(parameter.isfinite().all() for parameter in fitted.state.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_are_all_the_same_are_refused(dtype):
    models = [vit(seed=1).to(dtype), vit(seed=2).to(dtype)]
    same = rows(images(models[0], 1)) * 40
    with pytest.raises(HfZipError, match=r"the same in every row.*at least two different inputs"):
        zipfit(models, adapter_for("vit"), same, FitOptions(), 20, progress=False)


def test_inputs_that_are_not_finite_are_refused():
    data = rows(images(vit(), 8))
    data[3]["pixel_values"] = data[3]["pixel_values"] * torch.nan
    with pytest.raises(HfZipError, match="not finite"):
        zipfit([vit()], adapter_for("vit"), data, FitOptions(), 4, progress=False)


def test_a_penalty_of_zero_is_refused_as_normalised_features_sum_to_zero():
    with pytest.raises(HfZipError, match=r"linearly dependent and the ridge penalty is 0\.0"):
        fit([vit(seed=1), vit(seed=2)], penalty=0.0)


def test_a_size_beyond_all_models_is_refused():
    with pytest.raises(HfZipError, match=r"size is 2\.5, larger than all 2 models together"):
        fit([vit(seed=1), vit(seed=2)], size=2.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0.05}, r"size is 0\.05; it should be at least 0\.1"),
        ({"size": float("nan")}, "size is nan"),
        ({"penalty": -1.0}, r"penalty is -1\.0; it should be at least 0"),
        ({"head_penalty": float("nan")}, "head_penalty is nan"),
        ({"memory": -0.5}, r"memory is -0\.5; it should be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(HfZipError, match=message):
        FitOptions(**options)
