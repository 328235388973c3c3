import pytest
import torch
import transformers
from transformers import BertForQuestionAnswering, BertForTokenClassification

import hf_zip
from hf_zip.adapters import adapter_of
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.learned import learned
from hf_zip.plain import build
from hf_zip.refit.head import refit_heads
from hf_zip.rooting.distil import Start, distil
from hf_zip.rooting.options import LessonOptions, RootTraining
from hf_zip.tiny import tiny
from hf_zip.weighing.feed import Feed
from tests.launch import run_in
from tests.models import random_inputs, randomise, rows, vit
from tests.siblings import family
from tests.test_zipfit import clip
from tests.texts import bert

SHORT = {"steps": 3, "batch_size": 8, "held_out": 0.2, "every": 2}
UNTRAINED = {"steps": 0}


def merge(models, parameters, count=24, tasks=None, **keys):
    """A distillation on random inputs."""
    if "own_calibration" not in keys:
        keys["calibration"] = rows(random_inputs(models[0], count, seed=5))
    return hf_zip.merge(
        models,
        method="distill",
        tasks=tasks or [f"task {k}" for k in range(len(models))],
        parameters=parameters,
        progress=False,
        **keys,
    )


def divergences(result, models, inputs):
    """How far the merge is from each model on its task."""
    found = []
    with torch.no_grad():
        for task, model in zip(result.report.tasks, models, strict=True):
            own = result.for_task(task.name)
            one, two = (m(**inputs).logits.log_softmax(-1) for m in (model, own))
            found.append((one.exp() * (one - two)).sum(-1).mean().item())
    return found


@pytest.mark.parametrize("make", [vit, bert, clip])
def test_a_student_learns_what_all_models_do(make):
    models = [make(2, 1), make(4, 2)]
    inputs = random_inputs(models[0], 64, seed=5)
    training = {"steps": 25, "batch_size": 32, "learning_rate": 5e-3, "held_out": 0.0}
    before = merge(models, {"training": UNTRAINED}, 64)
    after = merge(models, {"training": training}, 64)
    start, end = (divergences(result, models, inputs) for result in (before, after))
    assert start[0] < 1e-10
    assert end[1] < 0.7 * start[1]
    assert end[0] < start[1]
    for name, parameter in before.model.named_parameters():
        if not name.startswith("classifier"):
            assert torch.equal(parameter, models[0].get_parameter(name)), name


def test_another_model_can_be_the_start():
    models = [vit(2, 1), vit(3, 2)]
    result = merge(models, {"training": UNTRAINED, "start": 1})
    found = divergences(result, models, random_inputs(models[0], 8))
    assert found[1] < 1e-10 < found[0]


def test_a_merge_can_be_the_start_with_the_config_that_it_has():
    models = [vit(2, 1, hidden_size=36), vit(3, 2, hidden_size=36)]
    start_parameters = {"size": 1.5}
    keys = {"start": "zipfit", "start_parameters": start_parameters}
    result = merge(models, {**keys, "training": UNTRAINED})
    wanted = hf_zip.merge(
        models,
        method="zipfit",
        tasks=["task 0", "task 1"],
        calibration=rows(random_inputs(models[0], 24, seed=5)),
        parameters=start_parameters,
        progress=False,
    )
    assert result.model.config.hidden_size == wanted.model.config.hidden_size == 54
    for name, parameter in wanted.model.named_parameters():
        assert torch.equal(parameter, result.model.get_parameter(name)), name
    trained = merge(models, {**keys, "training": SHORT})
    assert trained.model.config.hidden_size == 54
    assert not torch.equal(trained.model.vit.layernorm.weight, wanted.model.vit.layernorm.weight)
    assert [own.name for own in trained.report.trainings] == ["distillation"]


def test_a_method_that_needs_statistics_or_a_base_can_be_the_start():
    models = [vit(2, 1), vit(3, 2)]
    keys = {"training": UNTRAINED}
    result = merge(models, {**keys, "start": "permute"})
    assert not torch.equal(result.model.vit.layernorm.weight, models[0].vit.layernorm.weight)
    base, tuned = family(2)
    parameters = {**keys, "start": "task_arithmetic", "start_parameters": {"scaling": 0.3}}
    result = merge(tuned, parameters, base_model=base)
    name = "bert.encoder.layer.0.output.dense.weight"
    own, one, two = (model.get_parameter(name) for model in (base, *tuned))
    wanted = own + 0.3 * (one - own + two - own)
    assert torch.allclose(result.model.get_parameter(name), wanted, atol=1e-6)
    with pytest.raises(HfZipError, match="'distill: task_arithmetic' needs the model that"):
        merge(tuned, parameters)


def first_loss(weights, feeds, models, **options):
    """The loss of a student before it learns, on all inputs."""
    start = Start(
        {n: p for n, p in learned(models[0]).items() if not n.startswith("classifier")},
        tuple(
            {n: p for n, p in learned(model).items() if n.startswith("classifier")}
            for model in models
        ),
    )
    training = RootTraining(steps=1, learning_rate=0.0, held_out=0.5, every=1, batch_size=4)
    given = (build(LessonOptions, options, "options"), training, make_accelerator())
    _, trained = distil(models, feeds, weights, start, *given, progress=False)
    return trained.held_out[0][1]


@pytest.mark.parametrize("shared", [True, False])
def test_the_loss_is_the_mean_over_the_models_on_their_inputs(shared):
    models = [vit(2, 1), vit(3, 2)]
    feeds = [Feed(rows(random_inputs(models[0], 12, seed=k)), 5) for k in (3, 4)]
    if shared:
        feeds[1] = feeds[0]
    one, two = (first_loss(weights, feeds, models) for weights in ((1.0, 0.0), (0.0, 1.0)))
    assert first_loss((1.0, 3.0), feeds, models) == pytest.approx((one + 3 * two) / 4)
    assert one < 1e-5 < two
    swapped = first_loss((0.0, 1.0), feeds[::-1], models)
    assert (swapped == pytest.approx(two)) == shared
    if not shared:
        return
    features, answers = (
        first_loss((0.0, 1.0), feeds, models, **{name: 0.0})
        for name in ("answer_weight", "feature_weight")
    )
    assert features + answers == pytest.approx(two)


def test_models_may_have_inputs_of_their_own_and_weights():
    models = [vit(2, 1), vit(3, 2)]
    own = [rows(random_inputs(models[0], count, seed=count)) for count in (12, 16)]
    result = merge(models, {"training": SHORT}, own_calibration=own)
    assert result.report.trainings[0].steps == 3
    start = merge(models, {"training": UNTRAINED}, own_calibration=own)
    head = refit_heads(
        {n: p for n, p in learned(models[0]).items() if not n.startswith("classifier")},
        [models[1]],
        adapter_of(models[1]),
        own[1],
    )[0]["classifier.weight"]
    assert torch.allclose(start.model.classifier.weight[2:], head, atol=1e-5)


def test_a_killed_distillation_goes_on_to_the_same_weights(tmp_path):
    models = [vit(2, 1), vit(3, 2)]
    expected = merge(models, {"training": SHORT}).model
    training = {**SHORT, "checkpoints": str(tmp_path)}
    merge(models, {"training": training})
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()  # as if killed while writing it
    found = merge(models, {"training": training}).model
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, found.get_parameter(name)), name
    with pytest.raises(HfZipError, match="of another training: temperature differ"):
        merge(models, {"training": training, "temperature": 3.0})


@pytest.mark.slow
def test_two_processes_distil_as_one(tmp_path):
    script = """
from hf_zip.collect import make_accelerator
from tests.models import vit
from tests.test_distill import SHORT, merge
accelerator = make_accelerator()
result = merge([vit(2, 1).double(), vit(3, 2).double()], {"training": SHORT}, dtype="float64")
found = {"losses": dict(result.report.trainings[0].losses), "state": result.model.state_dict()}
"""
    one, two = (run_in(processes, script, tmp_path) for processes in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
    for name, tensor in one["state"].items():
        assert torch.allclose(tensor, two["state"][name], rtol=0, atol=1e-8), name


def test_models_that_share_a_head_or_keep_theirs_apart():
    asked = [bert(2, seed, cls=BertForQuestionAnswering) for seed in (1, 2)]
    result = merge(asked, {"training": SHORT}, tasks=["same", "same"])
    before = asked[0].qa_outputs.weight
    assert not torch.equal(result.model.qa_outputs.weight, before)
    assert torch.allclose(result.model.qa_outputs.weight, before, atol=0.1)
    mixed = [bert(2, 1), bert(3, 2, cls=BertForTokenClassification)]
    result = merge(mixed, {"training": SHORT})
    assert type(result.model).__name__ == "HfZipMultiHeadModel"
    assert result.report.trainings[0].steps == 3


def test_running_statistics_are_learnt_too():
    cls = transformers.ResNetForImageClassification
    models = [randomise(tiny(cls).eval(), seed) for seed in (1, 2)]
    inputs = rows({"pixel_values": torch.randn(16, 3, 32, 32)})
    result = hf_zip.merge(
        models,
        method="distill",
        tasks=["same", "same"],
        calibration=inputs,
        parameters={"training": SHORT, "feature_weight": 0.0},
        progress=False,
    )
    name = next(n for n, _ in models[0].named_buffers() if n.endswith("running_mean"))
    assert not torch.equal(result.model.get_buffer(name), models[0].get_buffer(name))


def test_what_cannot_be_distilled_is_refused():
    models = [vit(2, 1), vit(3, 2)]
    with pytest.raises(HfZipError, match="start is 2; it should be from 0 to 1, or the name"):
        merge(models, {"start": 2})
    with pytest.raises(HfZipError, match="start is 'emr', which keeps weights of every task"):
        merge(models, {"start": "emr"})
    with pytest.raises(HfZipError, match="start_parameters are given, but start is 0, a model"):
        merge(models, {"start_parameters": {"size": 1.0}})
    with pytest.raises(HfZipError, match=r"unknown key in parameters\.start_parameters 'alpha'"):
        merge(models, {"start": "zipfit", "start_parameters": {"alpha": 1.0}})
    with pytest.raises(HfZipError, match="distill: average is for models that were"):
        merge(models, {"start": "average"})
    with pytest.raises(HfZipError, match=r"weight of model 0 is -1\.0, so what it does would be"):
        first_loss((-1.0, 2.0), [Feed(rows(random_inputs(models[0], 8)), 4)] * 2, models)
