import copy
from dataclasses import replace

import pytest
import torch
from transformers import BertForSequenceClassification, CLIPModel

import hf_zip
from hf_zip.adapters import adapter_of
from hf_zip.card import render_card
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.methods.rooting import ENTRY, RootingMergeOptions
from hf_zip.plain import build
from hf_zip.report import Report
from hf_zip.rooting.barrier import loss_barrier
from hf_zip.rooting.first_fit import first_fit
from hf_zip.rooting.options import RootingOptions
from hf_zip.rooting.root import root_model
from hf_zip.rooting.streams import run_with_streams, stream_error
from hf_zip.tiny import tiny
from tests.launch import run_in
from tests.models import permuted, random_inputs, rows, vit
from tests.siblings import finetuned
from tests.texts import bert

SHORT = {"steps": 3, "batch_size": 8, "held_out": 0.2, "every": 2}


def trunk_state(model):
    """The parameters of a model but for its head's."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if not name.startswith("classifier")
    }


def root_in(model, root, inputs=None, **options):
    inputs = rows(random_inputs(model, 40, seed=5)) if inputs is None else inputs
    training = options.pop("training", SHORT)
    built = build(RootingOptions, {**options, "training": training}, "options")
    return root_model(
        model,
        trunk_state(root),
        inputs,
        built,
        32,
        make_accelerator(),
        adapter_of(model),
        progress=False,
    )


def loss_on(model, other, inputs):
    """How far one model's answers are from another's."""
    with torch.no_grad():
        one, two = (m(**inputs).logits.log_softmax(-1) for m in (model, other))
    return torch.nn.functional.kl_div(two, one, log_target=True, reduction="batchmean").item()


@pytest.mark.parametrize("make", [vit, bert])
def test_a_rooted_model_does_more_of_what_the_model_does(make):
    model, root = make(3, 1), make(4, 2)
    inputs = random_inputs(model, 64, seed=5)
    training = {**SHORT, "steps": 0}
    before = root_in(model, root, rows(inputs), training=training)
    training = {**SHORT, "steps": 60, "batch_size": 32, "learning_rate": 3e-3, "every": 30}
    after = root_in(model, root, rows(inputs), training=training)
    assert loss_on(model, after.model, inputs) < 0.7 * loss_on(model, before.model, inputs)
    for name, tensor in trunk_state(root).items():
        assert torch.equal(before.model.get_parameter(name), tensor), name
    assert before.barrier == 0
    assert after.model.config.id2label == model.config.id2label
    assert after.model.config.to_dict() == model.config.to_dict()


def test_without_steps_the_head_is_fitted_to_the_models_answers():
    model, root = vit(3, 1), vit(3, 2)
    inputs = random_inputs(model, 200, seed=5)
    rooted = root_in(model, root, rows(inputs), training={**SHORT, "steps": 0}).model
    naive = copy.deepcopy(rooted)
    naive.classifier.load_state_dict(model.classifier.state_dict())
    with torch.no_grad():
        wanted = model(**inputs).logits
        errors = [(m(**inputs).logits - wanted).square().mean().item() for m in (rooted, naive)]
    assert errors[0] < 0.5 * errors[1]


def test_the_model_and_its_gradients_are_left_alone():
    model, root = vit(3, 1), vit(3, 2)
    before = copy.deepcopy(model.state_dict())
    root_in(model, root)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("seed", [0, 1])
def test_maps_are_those_of_least_squares(seed):
    root, model = bert(2, 3).double(), bert(2, 4).double()
    inputs = random_inputs(root, 30, seed=seed)
    accelerator = make_accelerator()
    (found,) = first_fit(root, model, rows(inputs), [2], [], 1e-12, 7, accelerator, False).maps
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        own, theirs = (run_with_streams(m, inputs, [2])[1][0] for m in (root, model))
    x = torch.cat([own[mask], torch.ones(int(mask.sum()), 1, dtype=own.dtype)], dim=1)
    best = torch.linalg.lstsq(x, theirs[mask]).solution
    told = own[mask] @ found.weight.T + found.bias
    assert torch.allclose(told, x @ best, atol=1e-6)
    assert found.spread == pytest.approx(theirs[mask].var(dim=0, correction=0).sum().item())
    errors = (x @ best - theirs[mask]).square().sum(dim=1) / found.spread
    counts = mask.sum(dim=1)
    wanted = torch.stack([part.mean() for part in errors.split(counts.tolist())])
    error = stream_error([own], [theirs], [found], inputs["attention_mask"])
    assert torch.allclose(error, wanted, atol=1e-6)


def test_a_killed_rooting_goes_on_to_the_same_weights(tmp_path):
    model, root = vit(3, 1), vit(3, 2)
    expected = root_in(model, root)
    training = {**SHORT, "checkpoints": str(tmp_path)}
    root_in(model, root, training=training)
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()  # as if killed while writing it
    found = root_in(model, root, training=training)
    for name, parameter in expected.model.named_parameters():
        assert torch.equal(parameter, found.model.get_parameter(name)), name
    with pytest.raises(HfZipError, match="of another training: temperature differ"):
        root_in(model, root, temperature=3.0, training=training)


@pytest.mark.slow
def test_two_processes_root_as_one(tmp_path):
    script = """
from hf_zip.collect import make_accelerator
from tests.models import vit
from tests.test_rooting import root_in
accelerator = make_accelerator()
rooted = root_in(vit(3, 1).double(), vit(3, 2).double())
found = {"losses": dict(rooted.trained.losses), "barrier": rooted.barrier,
         "state": rooted.model.state_dict()}
"""
    one, two = (run_in(processes, script, tmp_path) for processes in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
    assert two["barrier"] == pytest.approx(one["barrier"], abs=1e-6)
    for name, tensor in one["state"].items():
        assert torch.allclose(tensor, two["state"][name], rtol=0, atol=1e-8), name


def test_activations_that_are_computed_again_change_nothing():
    model, root = vit(3, 1), vit(3, 2)
    plain = root_in(model, root)
    again = root_in(model, root, training={**SHORT, "checkpoint_activations": True})
    for name, parameter in plain.model.named_parameters():
        assert torch.allclose(parameter, again.model.get_parameter(name), atol=1e-6), name


def test_the_barrier_by_hand():
    model = vit(2, 1)
    zero = {"classifier.bias": torch.zeros(2)}
    two = {"classifier.bias": torch.full((2,), 2.0)}
    inputs, accelerator = rows(random_inputs(model, 5)), make_accelerator()
    with torch.no_grad():
        model.classifier.weight.zero_()

    def hill(batch):  # 2 at the ends, 4 in the middle
        def on(run):
            place = run(**batch).logits[:, 0] / 2
            return 2 + 8 * place * (1 - place)

        return on

    def slope(batch):
        return lambda run: run(**batch).logits[:, 0]

    for loss, wanted in ((hill, 1.0), (slope, 0.0)):
        found = loss_barrier(model, [zero, two], loss, inputs, 2, accelerator)
        assert found == pytest.approx(wanted)


def merge(models, **keys):
    return hf_zip.merge(
        models,
        method="rooting",
        tasks=[f"task {k}" for k in range(len(models))],
        calibration=rows(random_inputs(models[0], 24, seed=5)),
        progress=False,
        **keys,
    )


def test_models_are_rooted_and_then_merged_as_siblings():
    models = [vit(2, 1), vit(3, 2)]
    result = merge(models, parameters={"training": SHORT, "then": "average"})
    rooted = root_in(models[1], models[0], rows(random_inputs(models[0], 24, seed=5))).model
    for name, parameter in result.model.named_parameters():
        if not name.startswith("classifier"):
            wanted = (models[0].get_parameter(name) + rooted.get_parameter(name)) / 2
            assert torch.allclose(parameter, wanted, atol=1e-6), name
    heads = torch.cat([models[0].classifier.weight, rooted.classifier.weight])
    assert torch.allclose(result.model.classifier.weight, heads, atol=1e-6)
    report = result.report
    assert list(report.barriers) == ["model_1"]
    assert [own.name for own in report.trainings] == ["rooting of model 1"]
    assert Report.from_json(report.to_json()) == report
    card = render_card(report)
    assert "Loss barrier between the root and model\\_1: " in card
    assert "above the tolerance" not in card
    report = replace(report, barriers={"model_1": 0.5})
    assert "which is above the tolerance of 10 %" in render_card(report)


def test_a_sibling_of_the_root_is_not_trained_and_bases_are_the_root():
    root = bert(3, 2)
    models = [root, finetuned(root, 5, labels=2), bert(2, 7)]
    parameters = {"training": SHORT, "then": "task_arithmetic", "then_parameters": {"scaling": 0.5}}
    result = merge(models, parameters=parameters)
    assert list(result.report.barriers) == ["model_2"]
    inputs = rows(random_inputs(root, 24, seed=5))
    rooted = root_in(models[2], root, inputs).model
    name = "bert.encoder.layer.0.output.dense.weight"
    own, *others = (model.get_parameter(name) for model in (root, models[1], rooted))
    wanted = own + 0.5 * sum(other - own for other in others)
    assert torch.allclose(result.model.get_parameter(name), wanted, atol=1e-6)


def test_another_model_can_be_the_root():
    models = [vit(2, 1), vit(3, 2)]
    report = merge(models, parameters={"training": SHORT, "root": 1}).report
    assert list(report.barriers) == ["model_0"]
    with pytest.raises(HfZipError, match="root is 2; it should be from 0 to 1"):
        merge(models, parameters={"root": 2})


def test_a_barrier_above_the_tolerance_is_warned_of(caplog, monkeypatch):
    monkeypatch.setattr("hf_zip.rooting.root.loss_barrier", lambda *_: 0.5)
    root_in(vit(3, 1), vit(3, 2), tolerance=0.5)
    assert not caplog.text
    root_in(vit(3, 1), vit(3, 2), tolerance=0.4)
    assert "on the way from the root the loss rises by 50 % of its larger end" in caplog.text


def test_what_cannot_be_rooted_is_refused():
    model, root = vit(3, 1), vit(3, 2)
    with pytest.raises(
        HfZipError, match="there is no block 3 to compare; give numbers from 0 to 2"
    ):
        root_in(model, root, blocks=[3])
    with pytest.raises(HfZipError, match=r"such as vit.* a model can only be rooted in one of its"):
        root_in(model, vit(3, 2, intermediate_size=24))
    bare = BertForSequenceClassification(bert(3).config).bert
    with pytest.raises(HfZipError, match="is of kind features, whose answers cannot be compared"):
        root_model(
            bare,
            {},
            rows(random_inputs(bare, 4)),
            RootingOptions(feature_weight=0.0),
            4,
            make_accelerator(),
        )


def test_options_that_cannot_be_meant_are_refused():
    with pytest.raises(HfZipError, match="are both 0, so there is nothing to learn"):
        RootingOptions(feature_weight=0.0, answer_weight=0.0)
    with pytest.raises(HfZipError, match=r"temperature is 0.0; it should be in"):
        RootingOptions(temperature=0.0)
    with pytest.raises(HfZipError, match="then is 'zipit', which is not for models that share"):
        merge([vit(2, 1), vit(3, 2)], parameters={"then": "zipit"})
    with pytest.raises(HfZipError, match=r"unknown key in parameters\.then_parameters 'beta'"):
        merge([vit(2, 1), vit(3, 2)], parameters={"then": "ties", "then_parameters": {"beta": 1.0}})


@pytest.mark.parametrize(
    ("options", "known", "then", "parameters"),
    [
        ({}, True, "zipfit", {}),
        ({"root": "merge"}, True, "zipfit", {}),
        ({}, False, "regmean", {"alpha": 1.0}),
        ({"root": "base"}, False, "iso_c", {}),
        ({"root": "merge", "then": "average"}, True, "average", {}),
    ],
)
def test_the_best_method_depends_on_family_and_root(options, known, then, parameters):
    model = vit(2, 1)
    found = RootingMergeOptions(**options).settled(model, adapter_of(model) if known else None)
    assert (found.then, found.then_parameters) == (then, parameters)
    assert found.settled(model, None) == found


def test_layers_that_cannot_be_fitted_are_merged_otherwise():
    model = tiny(CLIPModel)
    assert RootingMergeOptions().settled(model, adapter_of(model)).then == "regmean"


def test_the_report_names_what_best_stands_for(caplog):
    models = [vit(2, 1), vit(3, 2)]
    result = merge(models, parameters={"training": SHORT})
    assert result.recipe.parameters["then"] == "zipfit"
    assert "weighs all models alike" not in caplog.text
    with pytest.raises(HfZipError, match="then is best, which depends on the models"):
        merge(models, parameters={"then_parameters": {"alpha": 1.0}})


def test_rooted_models_can_be_refitted_to_one():
    models, data = [vit(2, 1), vit(3, 2)], random_inputs(vit(), 40, seed=5)["pixel_values"]
    keys = {"calibration": data, "progress": False}
    training = {"training": {**SHORT, "anchor": 0.0}}
    found = hf_zip.merge(
        models, method="rooting", parameters={**training, "then": "zipfit"}, **keys
    )
    rooted = hf_zip.root(models[1], models[0], data, parameters=training, progress=False).model
    expected = hf_zip.merge([models[0], rooted], method="zipfit", **keys).model.state_dict()
    for name, tensor in found.model.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name
    assert len(found.report.barriers) == len(found.report.trainings) == 1


def test_a_refit_has_what_zipfit_needs():
    needs = ENTRY.with_options(RootingMergeOptions(then="zipfit")).requires
    assert needs.canonical
    assert needs.or_post_norm
    rotated = RootingMergeOptions(then="zipfit", root="merge", root_method="rotate")
    needs = ENTRY.with_options(rotated).requires
    assert needs.canonical
    assert not needs.or_post_norm
    assert not ENTRY.with_options(RootingMergeOptions()).requires.canonical


def test_a_permuted_copy_is_no_sibling():
    model = vit(3, 1)
    models = [model, permuted(model, 3)]
    report = merge(models, labels="apart", parameters={"training": SHORT}).report
    assert list(report.barriers) == ["model_1"]


def test_a_method_that_runs_whole_models_runs_the_rooted_ones():
    models, data = [vit(3, 1), vit(4, 2)], random_inputs(vit(), 40, seed=5)["pixel_values"]
    keys = {"calibration": data, "progress": False}
    training = {"training": {**SHORT, "learning_rate": 1e-2}}
    found = hf_zip.merge(
        models, method="rooting", parameters={**training, "then": "fisher"}, **keys
    )
    rooted = hf_zip.root(models[1], models[0], data, parameters=training, progress=False).model
    expected = hf_zip.merge([models[0], rooted], method="fisher", **keys).model
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, msg=name)
