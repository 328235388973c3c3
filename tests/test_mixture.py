"""Merges whose MLPs are mixed for each input by trained routers."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertForQuestionAnswering
from transformers import pipeline as make_pipeline

import hf_zip
from hf_zip.errors import HfZipError
from hf_zip.inspection import describe
from hf_zip.merged import is_of_own_class, load_merge
from hf_zip.modeling import HfZipMixtureConfig, HfZipMixtureModel, modeling_hf_zip_mixture
from hf_zip.modeling.modeling_hf_zip_mixture import mixed_linear
from hf_zip.modeling.modeling_hf_zip_tasks import HfZipStackedModel
from tests.data import random_images
from tests.models import images, processor, random_inputs, rows, vit
from tests.remote import code_files, without_hf_zip
from tests.siblings import family, near
from tests.texts import bert, sentences, tokenizer

UNTRAINED = {"training": {"steps": 0}}
# Endings that routers can tell apart, and texts of several lengths before them.
OWN = [
    [f"{text} {ending}" for text in sentences(24, seed)]
    for seed, ending in enumerate(("who who who", "book book", "the the the"))
]


def merge(models, base, method="wemoe", parameters=UNTRAINED, **more):
    more.setdefault("tasks", list("abc")[: len(models)])
    more.setdefault("processor", tokenizer())
    if method == "wemoe":
        more.setdefault("own_calibration", OWN[: len(models)])
    return hf_zip.merge(
        models, method=method, base_model=base, parameters=parameters, progress=False, **more
    )


@pytest.fixture(scope="module")
def texts():
    """A base without poolers, and three classifiers of 2, 3 and 4 labels."""
    return family(3, amount=0.2)


@pytest.fixture(scope="module")
def trained(texts):
    base, models = texts
    training = {"steps": 12, "batch_size": 12, "learning_rate": 0.02}
    return merge(models, base, parameters={"training": training})


def batch(count=2):
    """Texts of all models, in turn."""
    listed = [OWN[k][i] for i in range(count) for k in range(3)]
    return tokenizer()(listed, return_tensors="pt", padding=True)


def answer(model, inputs=None, **more):
    with torch.no_grad():
        return model.eval()(**(inputs or batch()), **more)


@pytest.mark.parametrize("layers", [1, 2])
def test_before_it_is_trained_it_is_task_arithmetic(texts, layers):
    base, models = texts
    merged = merge(models, base, parameters={"layers": layers, "scaling": 0.4, **UNTRAINED}).model
    expected = merge(models, base, "task_arithmetic", {"scaling": 0.4}).model
    found = answer(merged)
    torch.testing.assert_close(found.logits, answer(expected).logits)
    torch.testing.assert_close(found.task_weights, torch.full((6, 2, 3), 0.4))
    linears = [x for x in merged.mlps[0].router if isinstance(x, torch.nn.Linear)]
    assert len(linears) == layers
    if layers == 2:
        assert 0.005 < linears[0].weight.std() < 0.015


def test_one_model_at_full_scale_is_itself(texts):
    base, models = texts
    merged = merge(models[:1], base, parameters={"scaling": 1.0, **UNTRAINED}).model
    torch.testing.assert_close(answer(merged).logits, answer(models[0]).logits)


def test_training_makes_predictions_more_decided(texts, trained):
    (found,) = trained.report.trainings
    assert (found.name, found.steps) == ("routers", 12)
    losses = [loss for _, loss in found.losses]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.1
    base, models = texts
    start = merge(models, base).model
    before, after = (answer(model).logits for model in (start, trained.model))
    own = [slice(2), slice(2, 5), slice(5, 9)]

    def undecided(logits):
        parts = (logits[k::3, own[k]].softmax(-1) for k in range(3))
        return sum(-(x * x.log()).sum(-1).mean() for x in parts)

    assert undecided(after) < undecided(before)
    expected = dict(start.shared.named_parameters())
    for name, parameter in trained.model.shared.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def test_routers_begin_with_the_published_learning_rate(trained):
    defaults = hf_zip.methods.method_named("wemoe").options().training
    assert (defaults.steps, defaults.learning_rate, defaults.batch_size) == (1000, 1e-4, 16)


def test_an_input_runs_with_the_weights_of_its_shares(texts, trained):
    base, models = texts
    inputs = batch()
    found = answer(trained.model, inputs)
    assert found.task_weights.std(dim=0).min() > 0
    for i in range(6):
        native = copy.deepcopy(trained.model.shared)
        for k, (block, own) in enumerate(
            zip(native.bert.encoder.layer, base.bert.encoder.layer, strict=True)
        ):
            for place in ("intermediate.dense", "output.dense"):
                origin = dict(own.get_submodule(place).named_parameters())
                for name, parameter in block.get_submodule(place).named_parameters():
                    assert torch.equal(parameter, origin[name])
                    where = f"bert.encoder.layer.{k}.{place}.{name}"
                    for share, model in zip(found.task_weights[i, k], models, strict=True):
                        parameter.data += share * (model.get_parameter(where) - origin[name])
        alone = {name: x[i : i + 1] for name, x in inputs.items()}
        torch.testing.assert_close(answer(native, alone).logits[0], found.logits[i])


def test_an_input_is_answered_alike_alone_and_among_others(trained):
    inputs = batch()
    found = answer(trained.model, inputs)
    assert not inputs["attention_mask"].bool().all()
    for i in range(6):
        length = int(inputs["attention_mask"][i].sum())
        one = answer(trained.model, {name: x[i : i + 1, :length] for name, x in inputs.items()})
        torch.testing.assert_close(one.logits[0], found.logits[i])
        torch.testing.assert_close(one.task_weights[0], found.task_weights[i])


def test_mixed_layers_by_hand_and_some_inputs_at_a_time(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    sizes = ((5, 4, 3), (5, 2), (2, 7, 3), (2, 7))
    values, shares, weight, bias = (torch.randn(s, generator=draw).double() for s in sizes)
    expected = torch.einsum("ntc,nk,krc->ntr", values, shares, weight)
    torch.testing.assert_close(mixed_linear(values, shares, weight, None), expected)
    monkeypatch.setattr(modeling_hf_zip_mixture, "_AT_ONCE", 2 * 7 * 3)
    found = mixed_linear(values, shares, weight, bias)
    torch.testing.assert_close(found, expected + torch.einsum("nk,kr->nr", shares, bias)[:, None])


def test_gradients_reach_routers_and_nothing_else(trained):
    model = copy.deepcopy(trained.model).double()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    last = model.mlps[0].router[-1].requires_grad_(True)
    model(**batch()).logits.square().sum().backward()
    found = last.bias.grad[1].item()
    around = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            last.bias[1] += step
            around.append(model(**batch()).logits.square().sum().item())
            last.bias[1] -= step
    assert found == pytest.approx((around[0] - around[1]) / 2e-5, rel=1e-6)


def test_a_copy_has_routers_of_its_own(trained):
    before = answer(trained.model).logits
    other = copy.deepcopy(trained.model)
    with torch.no_grad():
        other.mlps[1].router[-1].bias.add_(1)
    assert not torch.allclose(answer(other).logits, before)
    torch.testing.assert_close(answer(trained.model).logits, before)


def test_saved_and_loaded(trained, tmp_path):
    model = trained.model
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert is_of_own_class(tmp_path)
    for auto in (AutoModel, AutoModelForSequenceClassification):
        torch.testing.assert_close(
            answer(auto.from_pretrained(tmp_path)).logits, answer(model).logits
        )
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    found = answer(half, task="b").logits.float()
    torch.testing.assert_close(found, answer(model, task="b").logits, rtol=0.1, atol=0.15)


def test_loaded_without_hf_zip_through_remote_code(texts, tmp_path):
    base, models = texts
    parameters = {"training": {"steps": 2, "learning_rate": 0.01}}
    model = merge(models, base, parameters=parameters, out=tmp_path / "out").model
    code = """
from transformers import AutoModel, pipeline
model = AutoModel.from_pretrained("out", trust_remote_code=True)
with torch.no_grad():
    found = model(**inputs).logits
classify = pipeline("text-classification", "out", trust_remote_code=True)
assert len(classify("who is the best", top_k=9)) == 9
"""
    found = without_hf_zip(code, tmp_path, inputs=dict(batch()))
    torch.testing.assert_close(found, answer(model).logits)
    assert len(code_files(tmp_path / "out")) == 6


def test_images_are_mixed_measured_and_carded(tmp_path):
    base = vit(seed=90)
    models = [near(base, seed, seed + 1) for seed in (1, 2)]
    own = [images(base, 20, seed)["pixel_values"] + 3 * seed for seed in (0, 1)]
    data = {
        task: [{"pixel_values": x, "labels": i % 2} for i, x in enumerate(values[:6])]
        for task, values in zip("ab", own, strict=True)
    }
    result = merge(
        models,
        base,
        parameters={"training": {"steps": 2}},
        processor=processor(),
        own_calibration=own,
        evaluation=data,
        dtype="bfloat16",
        out=tmp_path / "out",
    )
    row = result.report.evaluation.of_kind("merge")[0]
    assert set(row.per_task) == {"a", "b"}
    assert row.joint is not None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "In every block a router reads what goes into the MLP" in card
    assert "in six files" in card
    assert "`task_weights`, `[inputs, blocks, sources]`" in card
    assert "Trained without labels: routers, 2 steps" in card
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert 0 <= written - result.report.sizes["merge"] < 30_000  # the header
    shown = describe([str(tmp_path / "out")])
    assert "a merge by wemoe with MLPs that are mixed for every input" in shown
    assert "of 2 MLPs, by routers of 2 layers and" in shown
    assert "task b, classification by model 1: class 2.0" in shown
    model, own_processor = load_merge(tmp_path / "out")
    assert type(model) is HfZipMixtureModel
    classify = make_pipeline("image-classification", model=model, image_processor=own_processor)
    assert len(classify(random_images(1)[0], top_k=9)) == 5
    with pytest.raises(HfZipError, match="by 'wemoe' mixes its MLPs for each input, so no native"):
        hf_zip.pipeline.export(tmp_path / "out", "b", tmp_path / "b")
    with pytest.raises(
        HfZipError, match="is a merge with weights for every input, which cannot be"
    ):
        merge([str(tmp_path / "out")] * 2, base)


def test_labels_give_a_loss_and_a_task_chooses_rows(trained):
    labels = torch.tensor([0, 8, 3, 2, 1, 0])
    found = answer(trained.model, labels=labels)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(found.logits, labels))
    one = answer(trained.model, task="b")
    torch.testing.assert_close(one.logits, found.logits[:, 2:5])
    torch.testing.assert_close(one.task_weights, found.task_weights)


def test_without_anything_added_the_shared_model_answers(trained):
    stacked = HfZipStackedModel.answer(trained.model, batch(), None)
    torch.testing.assert_close(stacked[0], answer(trained.model.shared).logits)
    assert stacked[1] is None


def test_a_config_without_values_is_a_config():
    assert HfZipMixtureConfig().trunk_config.model_type == "bert"


def test_what_does_not_fit_is_refused(texts):
    base, models = texts
    with pytest.raises(HfZipError, match="stop_at is 1, but 'wemoe' gives every task weights of"):
        merge(models, base, stop_at=1)
    with pytest.raises(HfZipError, match=r"leave training\.checkpoint_activations out"):
        merge(models, base, parameters={"training": {"checkpoint_activations": True}})
    with pytest.raises(HfZipError, match="'wemoe' needs unlabelled inputs"):
        merge(models, base, own_calibration=None)
    spans = [bert(2, seed, cls=BertForQuestionAnswering) for seed in (1, 2)]
    for model in spans:
        model.load_state_dict(base.state_dict(), strict=False)
    given = {"calibration": rows(random_inputs(base, 4)), "own_calibration": None}
    with pytest.raises(HfZipError, match="BertForQuestionAnswering has no head with rows of its"):
        merge(spans, base, tasks=["same"] * 2, **given)
    regression = [copy.deepcopy(model) for model in models]
    for model in regression:
        model.config.problem_type = "regression"
    with pytest.raises(HfZipError, match="wemoe lowers the entropy of predictions, but the head"):
        merge(regression, base)
