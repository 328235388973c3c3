"""Partial zips: a shared trunk, one tail per source."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

import hf_zip
import hf_zip.pipeline
from hf_zip.errors import HfZipError
from hf_zip.merged import for_task, is_of_own_class, load_merge
from hf_zip.modeling import HfZipConfig, HfZipForImageClassification
from tests.data import random_images
from tests.models import images, processor, rows, vit
from tests.remote import code_files, without_hf_zip

DEPTH = 2


@pytest.fixture(scope="module")
def parents():
    return [vit(3, seed=1, num_hidden_layers=DEPTH), vit(2, seed=2, num_hidden_layers=DEPTH)]


def merge(models, stop_at, method="permute", **more):
    calibration = images(models[0], 64, seed=9)["pixel_values"]
    return hf_zip.merge(
        models,
        method=method,
        tasks=more.pop("tasks", ["a", "b"]),
        calibration=None if method == "average" else calibration,
        stop_at=stop_at,
        labels="apart",
        force=True,
        progress=False,
        **more,
    )


def copies(models):
    return [copy.deepcopy(model) for model in models]


def load(folder, **more):
    return AutoModelForImageClassification.from_pretrained(folder, **more)


def logits(model, count=6, **more):
    with torch.no_grad():
        return model.eval()(**images(model, count, seed=4), **more).logits


def ensemble(models):
    return torch.cat([logits(model) for model in models], dim=1)


@pytest.mark.parametrize("method", ["average", "permute", "zipit", "zipfit"])
def test_depth_0_is_the_ensemble(parents, method):
    model = merge(parents, 0, method).model
    torch.testing.assert_close(logits(model), ensemble(parents))


@pytest.mark.parametrize("method", ["permute", "zipit", "zipfit"])
def test_full_depth_is_the_full_merge(parents, method):
    full, deep = merge(parents, None, method).model, merge(parents, DEPTH, method).model
    assert type(deep) is type(parents[0])
    assert torch.equal(logits(full), logits(deep))


@pytest.mark.parametrize("method", ["average", "permute", "zipit", "zipfit"])
def test_half_depth_shares_the_first_blocks_and_keeps_the_others(parents, method):
    model = merge(parents, 1, method).model
    assert isinstance(model, HfZipForImageClassification)
    assert len(model.trunk.layers) == 1
    for tail, parent in zip(model.tails, parents, strict=True):
        assert torch.equal(
            tail.blocks.layers[0].mlp.fc1.weight, parent.vit.layers[1].mlp.fc1.weight
        )
        assert torch.equal(tail.classifier.weight, parent.classifier.weight)


def test_a_copy_costs_nothing_at_any_depth(parents):
    twins = [parents[0], parents[0]]
    for depth in range(DEPTH):
        model = merge(twins, depth, tasks=["a", "b"]).model
        expected = logits(parents[0])
        torch.testing.assert_close(
            logits(model, task="b"), expected, rtol=0, atol=2e-2 * float(expected.abs().max())
        )


def test_one_task_is_a_part_of_all(parents):
    model = merge(parents, 1).model
    both = logits(model)
    assert torch.equal(logits(model, task="a"), both[:, :3])
    assert torch.equal(logits(model, task="b"), both[:, 3:])
    with pytest.raises(ValueError, match="unknown task 'c'; this model knows: a, b"):
        logits(model, task="c")


def test_two_models_of_one_task_answer_with_their_mean():
    a, b = vit(2, seed=1, names=["cat", "dog"]), vit(2, seed=2, names=["dog", "cat"])
    model = merge([a, b], 0, tasks=["pets", "pets"]).model
    torch.testing.assert_close(logits(model), (logits(a) + logits(b)[:, [1, 0]]) / 2)


def test_labels_give_a_loss(parents):
    model = merge(parents, 1).model
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    out = model(**images(model, 6, seed=4), labels=labels)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))
    own = model(**images(model, 6, seed=4), labels=labels % 2, task="b")
    torch.testing.assert_close(own.loss, torch.nn.functional.cross_entropy(own.logits, labels % 2))


def test_return_dict_false_is_a_tuple(parents):
    model = merge(parents, 1).model
    (found,) = model(**images(model, 6, seed=4), return_dict=False)
    torch.testing.assert_close(found, logits(model))


def inner(model, **more):
    """Logits, hidden states and attentions."""
    asked = {"output_hidden_states": True, "output_attentions": True, **more}
    with torch.no_grad():
        return model(**images(model, 6, seed=4), **asked)


@pytest.fixture(scope="module")
def eager():
    models = [vit(3, seed=1, num_hidden_layers=3), vit(2, seed=2, num_hidden_layers=3)]
    for model in models:
        model.set_attn_implementation("eager")
    return models


def test_one_tasks_inner_states_at_depth_0_are_those_of_its_source(eager):
    model = merge(eager, 0).model
    model.set_attn_implementation("eager")
    for source, task in zip(eager, "ab", strict=True):
        native, found = inner(source), inner(model, task=task)
        assert (len(found.hidden_states), len(found.attentions)) == (4, 3)
        torch.testing.assert_close(found.hidden_states, native.hidden_states)
        torch.testing.assert_close(found.attentions, native.attentions)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_inner_states_are_the_trunks_then_the_tails(eager, depth):
    model = merge(eager, depth).model
    model.set_attn_implementation("eager")
    both, ones = inner(model), [inner(model, task=task) for task in "ab"]
    trunk = model.trunk(
        **images(model, 6, seed=4), output_hidden_states=True, output_attentions=True
    )
    for tail, one in zip(model.tails, ones, strict=True):
        torch.testing.assert_close(one.hidden_states[:depth], trunk.hidden_states[:-1])
        read = tail.unmerge(trunk.last_hidden_state)
        torch.testing.assert_close(one.hidden_states[depth], read)
        after = tail.blocks.layers[0](read)
        torch.testing.assert_close(one.hidden_states[depth + 1], after)
        assert (len(one.hidden_states), len(one.attentions)) == (4, 3)
        normalised = tail.blocks.layernorm(one.hidden_states[-1])
        torch.testing.assert_close(tail.classifier(normalised[:, 0]), one.logits)
    own = [state for one in ones for state in one.hidden_states[depth:]]
    torch.testing.assert_close(both.hidden_states, (*trunk.hidden_states, *own))
    own = [attention for one in ones for attention in one.attentions[depth:]]
    torch.testing.assert_close(both.attentions, (*trunk.attentions, *own))
    assert not any(module._forward_hooks for module in model.tails.modules())


def test_inner_states_are_returned_where_they_are_asked_for(eager):
    model = merge(eager, 1).model
    plain = inner(model, output_hidden_states=None, output_attentions=None)
    assert plain.hidden_states is plain.attentions is None
    assert inner(model).attentions == ()  # sdpa shows none, in native models neither
    every = inner(model, task="a").hidden_states
    for wanted in ([1, -1], [7], 2):
        native = inner(eager[0], output_hidden_states=wanted).hidden_states
        found = inner(model, task="a", output_hidden_states=wanted).hidden_states
        assert [s is None for s in found] == [s is None for s in native]
        assert all(s is None or torch.equal(s, t) for s, t in zip(found, every, strict=True))
    as_tuple = inner(model, return_dict=False)
    assert [len(part) for part in as_tuple] == [6, 8, 0]
    model.set_attn_implementation("eager")
    model.config.output_hidden_states = model.config.output_attentions = True
    by_config = inner(model, output_hidden_states=None, output_attentions=None)
    assert (len(by_config.hidden_states), len(by_config.attentions)) == (2 + 2 * 3, 1 + 2 * 2)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageClassification])
def test_saved_and_loaded_by_an_auto_class(parents, tmp_path, depth, auto):
    model = merge(parents, depth, out=tmp_path / "out").model
    reloaded = auto.from_pretrained(tmp_path / "out")
    assert type(reloaded) is HfZipForImageClassification
    assert torch.equal(logits(reloaded), logits(model))


def test_loaded_without_hf_zip_through_remote_code(parents, tmp_path):
    model = merge(parents, 1, processor=processor(), out=tmp_path / "out").model
    random_images(1)[0].save(tmp_path / "image.png")
    code = """
from transformers import AutoModelForImageClassification, pipeline
try:
    AutoModelForImageClassification.from_pretrained("out", trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("loaded without trust")
model = AutoModelForImageClassification.from_pretrained("out", trust_remote_code=True)
found = model(**inputs).logits
classify = pipeline("image-classification", "out", trust_remote_code=True)
assert len(classify("image.png", top_k=9)) == 5
model.save_pretrained("again")
"""
    found = without_hf_zip(code, tmp_path, inputs=images(model, 6, seed=4))
    assert torch.equal(found, logits(model))
    assert (tmp_path / "again" / "modeling_hf_zip.py").is_file()


def test_the_travelling_files_import_nothing_of_hf_zip(parents, tmp_path):
    merge(parents, 1, out=tmp_path / "out")
    assert code_files(tmp_path / "out") == ["configuration_hf_zip", "modeling_hf_zip"]


@pytest.mark.parametrize("depth", [0, 1])
def test_half_precision_and_eager_attention(parents, tmp_path, depth):
    model = merge(parents, depth, dtype="bfloat16", out=tmp_path / "out").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    reloaded = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = logits(reloaded)
    reloaded.set_attn_implementation("eager")
    assert {tail.blocks.config._attn_implementation for tail in reloaded.tails} == {"eager"}
    torch.testing.assert_close(logits(reloaded), expected)


def test_a_sharded_save_loads(parents, tmp_path):
    model = merge(parents, 1).model
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(AutoModel.from_pretrained(tmp_path)), logits(model))


def test_it_exports(parents):
    model = merge(parents, 1).model
    inputs = images(model, 6, seed=4)
    program = torch.export.export(model, (), inputs)
    torch.testing.assert_close(program.module()(**inputs).logits, logits(model))


def test_trainer_evaluates_it(parents, tmp_path):
    model = merge(parents, 1).model
    data = [{**row, "labels": i % 5} for i, row in enumerate(rows(images(model, 10)))]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True
    )
    metrics = Trainer(model, arguments, eval_dataset=data).evaluate()
    with torch.no_grad():
        labels = torch.tensor([row["labels"] for row in data])
        expected = model(**images(model, 10), labels=labels).loss
    assert metrics["eval_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_pipeline_with_hf_zip(parents, tmp_path):
    merge(parents, 1, processor=processor(), out=tmp_path / "out")
    model, own = load_merge(tmp_path / "out")
    classify = pipeline("image-classification", model=model, image_processor=own)
    assert len(classify(random_images(1)[0], top_k=9)) == 5


def test_one_tasks_model_is_smaller_and_answers_alike(parents, tmp_path):
    model = merge(parents, 1).model
    single = for_task(model, "b")
    assert len(single.tails) == 1
    assert list(single.config.id2label.values()) == list(parents[1].config.id2label.values())
    torch.testing.assert_close(logits(single), logits(model, task="b"))
    assert len(model.tails) == 2
    with pytest.raises(HfZipError, match="unknown task 'c'"):
        for_task(model, "c")
    with pytest.raises(HfZipError, match="shares nothing"):
        for_task(merge(parents, 0).model, "b")


@pytest.mark.parametrize("stop_at", [None, 1])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_tasks_model_keeps_the_precision_of_its_merge(parents, tmp_path, stop_at, dtype):
    merge([model.double() for model in copies(parents)], stop_at, dtype=dtype, out=tmp_path / "all")
    hf_zip.pipeline.export(tmp_path / "all", "b", tmp_path / "b")
    written = load_file(tmp_path / "b" / "model.safetensors").values()
    assert {tensor.dtype for tensor in written} == {getattr(torch, dtype)}
    whole, single = load_merge(tmp_path / "all")[0], load(tmp_path / "b", dtype="auto")
    torch.testing.assert_close(logits(single), logits(whole)[:, 3:])


def test_the_report_says_how_well_the_tails_read_the_trunk(parents):
    report = merge(parents, 1).report
    shares = {k: v for k, v in report.explained.items() if k.startswith("unmerge.")}
    assert len(shares) == 2
    assert all(0 < share <= 1 for share in shares.values())


def test_a_damaged_folder_is_refused(parents, tmp_path):
    merge(parents, 1, out=tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["tails.1.classifier.bias"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(HfZipError, match=r"1 missing \(tails\.1\.classifier\.bias\)"):
        load_merge(tmp_path)


def test_a_folder_is_told_apart(parents, tmp_path):
    merge(parents, 1, out=tmp_path / "partial")
    merge(parents, None, out=tmp_path / "full")
    assert is_of_own_class(tmp_path / "partial")
    assert not is_of_own_class(tmp_path / "full")
    assert not is_of_own_class(tmp_path)
    assert json.loads((tmp_path / "partial" / "config.json").read_text())["hf_zip"]["tasks"]


def test_a_config_without_values_is_a_config():
    assert HfZipConfig().trunk_config.model_type == "vit"


def test_models_with_several_heads_are_refused(parents):
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    config = DeiTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
        id2label={0: "x", 1: "y"},
        label2id={"x": 0, "y": 1},
    )
    model = DeiTForImageClassificationWithTeacher(config)
    with pytest.raises(HfZipError, match="only image classifiers with one head"):
        merge([model, model], 1, tasks=["a", "a"])


def test_the_card_says_that_blocks_are_shared_and_how_to_load(parents, tmp_path):
    merge(parents, 1, processor=processor(), out=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The first block is shared" in card
    assert "One `HfZipForImageClassification`" in card
    assert "pipeline_tag: image-classification" in card
    assert "of the energy of the sources'" in card
    random_images(1)[0].save(tmp_path / "out" / "image.png")
    for code in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        without_hf_zip(code, tmp_path / "out")
    full = merge(parents, None, processor=processor(), out=tmp_path / "full")
    assert "trust_remote_code" not in (tmp_path / "full" / "README.md").read_text()
    assert full.report.architecture == "ViTForImageClassification"
