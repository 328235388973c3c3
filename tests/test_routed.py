"""Merges that add to what models share what else suits an input, chosen by a router."""

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

import hf_zip
from hf_zip.combining.exclusive import discriminant, thinned
from hf_zip.errors import HfZipError
from hf_zip.inspection import describe
from hf_zip.merged import for_task, is_of_own_class, load_merge
from hf_zip.modeling import HfZipRoutedConfig, HfZipRoutedModel
from hf_zip.modeling.modeling_hf_zip_routed import thin_shapes
from tests.data import random_images
from tests.models import images, processor, rows, vit
from tests.remote import code_files, without_hf_zip
from tests.siblings import family, finetuned, near
from tests.texts import bert, sentences, tokenizer

# Inputs that anything could tell apart.
ENDINGS = ("who who who who", "book book book book", "the the the the")
OWN = [[f"{text} {ending}" for text in sentences(30, seed)] for seed, ending in enumerate(ENDINGS)]


def merge(models, base, **more):
    more.setdefault("tasks", list("abc")[: len(models)])
    more.setdefault("processor", tokenizer())
    more.setdefault("own_calibration", OWN[: len(models)])
    return hf_zip.merge(models, method="twin", base_model=base, progress=False, **more)


@pytest.fixture(scope="module")
def texts():
    """A base without poolers, and three classifiers of 2, 3 and 4 labels."""
    return family(3, amount=0.1)


@pytest.fixture(scope="module")
def result(texts):
    base, models = texts
    return merge(models, base)


def mixed(count=2):
    """Texts of all models, in turn, as a batch."""
    listed = [OWN[k][i] for i in range(count) for k in range(3)]
    return tokenizer()(listed, return_tensors="pt", padding=True)


def answer(model, inputs=None, **more):
    with torch.no_grad():
        return model.eval()(**(inputs or mixed()), **more)


@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 8, 5), (1, 4, 4)])
@pytest.mark.parametrize("rank", [1, 3])
def test_thin_matrices_are_the_nearest_of_their_rank(shape, rank):
    matrices = torch.randn(shape, generator=torch.manual_seed(1))
    left, right = thinned(matrices, rank)
    assert (left.shape[-1], right.shape[-2]) == (rank, rank)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    nearest = u[..., :rank] * s[:, None, :rank] @ v[:, :rank]
    torch.testing.assert_close(left @ right, nearest, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "rank", "thin"),
    [
        ((10, 20), 0.2, ((10, 2), (2, 20))),
        ((1, 10, 20), 0.2, ((10, 2), (2, 20))),
        ((10, 2, 10), 0.01, ((10, 1), (1, 20))),
        ((10, 20), 0.9, None),
        ((20,), 0.2, None),
        ((1, 1, 20), 0.2, None),
        ((), 0.2, None),
    ],
)
def test_what_would_be_no_smaller_is_kept_whole(shape, rank, thin):
    assert thin_shapes(torch.Size(shape), rank) == thin


def test_the_router_is_a_linear_discriminant():
    generator = torch.manual_seed(1)
    draws = [torch.randn(40, 3, generator=generator).double() + i for i in range(3)]
    means = torch.stack([x.mean(dim=0) for x in draws])
    spread = torch.stack([x.T.cov(correction=0) for x in draws]).mean(dim=0)
    weight, bias = discriminant(means, spread, 1e-12)
    oracle = LinearDiscriminantAnalysis(solver="lsqr")
    oracle.fit(torch.cat(draws).numpy(), torch.arange(3).repeat_interleave(40).numpy())
    expected = torch.tensor(oracle.predict_proba(torch.cat(draws).numpy()))
    found = (torch.cat(draws) @ weight.T + bias).softmax(dim=-1)
    torch.testing.assert_close(found, expected)


def test_features_without_variance_tell_nothing():
    weight, bias = discriminant(torch.eye(2).double(), torch.zeros(2, 2).double(), 1e-2)
    assert not weight.any()
    assert not bias.any()


def test_at_full_rank_a_known_task_has_the_weights_of_its_model(texts):
    base, models = texts
    merged = merge(models, base, parameters={"rank": 1.0}).model
    for position, (task, model) in enumerate(zip("abc", models, strict=True)):
        torch.testing.assert_close(answer(merged, task=task).logits, answer(model).logits)
        assert answer(merged, task=task).task_weights[0].argmax() == position


def test_what_is_added_is_cut_to_a_rank(texts, result):
    base, models = texts
    name = "encoder.layer.1.output.dense.weight"
    origin = base.bert.get_parameter(name)
    own = torch.stack([model.bert.get_parameter(name) for model in models])
    shared = origin + 0.4 * (own - origin).sum(dim=0)
    torch.testing.assert_close(result.model.shared.bert.get_parameter(name), shared)
    u, s, v = torch.linalg.svd(own[1] - shared)
    found = result.for_task("b").bert.get_parameter(name)
    torch.testing.assert_close(found, shared + s[0] * torch.outer(u[:, 0], v[0]))
    bias = "encoder.layer.1.output.dense.bias"
    torch.testing.assert_close(
        result.for_task("b").bert.get_parameter(bias), models[1].bert.get_parameter(bias)
    )


def test_the_router_tells_whose_an_input_is(texts, result):
    found = answer(result.model)
    assert found.task_weights.argmax(dim=1).tolist() == [0, 1, 2] * 2
    torch.testing.assert_close(found.task_weights.sum(dim=1), torch.ones(6))
    base, models = texts
    top = merge(models, base, parameters={"routing": "top"}).model
    found = answer(top)
    assert found.task_weights.tolist() == torch.eye(3).repeat(2, 1).tolist()
    for task, columns in (("a", slice(2)), ("b", slice(2, 5)), ("c", slice(5, 9))):
        alone = answer(top, task=task).logits
        mine = found.task_weights[:, "abc".index(task)] == 1
        torch.testing.assert_close(found.logits[mine][:, columns], alone[mine])


def test_an_input_is_answered_alike_alone_and_among_others(result):
    batch = mixed()
    whole = answer(result.model, batch)
    for i in range(6):
        one = answer(result.model, {name: x[i : i + 1] for name, x in batch.items()})
        torch.testing.assert_close(one.logits[0], whole.logits[i])


def test_weights_are_those_of_the_shares(texts, result):
    model = result.model
    shares = torch.tensor([0.5, 0.25, 0.25])
    parts = [model.parameters_for(torch.eye(3)[i]) for i in range(3)]
    assert model.parameters_for(torch.eye(3)[1]) is parts[1]
    for name, found in model.parameters_for(shares).items():
        expected = sum(share * part[name] for share, part in zip(shares, parts, strict=True))
        torch.testing.assert_close(found, expected)


def test_two_models_of_one_task_share_it(texts):
    base, _ = texts
    models = [finetuned(base, seed, 2) for seed in (1, 2)]
    for model in models:
        model.config.id2label, model.config.label2id = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    merged = merge(models, base, tasks=["one", "one"]).model
    assert answer(merged, task="one").task_weights.tolist() == [[0.5, 0.5]] * 6


def test_labels_give_a_loss_and_tasks_have_names(result):
    labels = torch.tensor([0, 8, 3, 2, 1, 0])
    found = answer(result.model, labels=labels)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(found.logits, labels))
    with pytest.raises(ValueError, match="unknown task 'x'; this model knows: a, b, c"):
        answer(result.model, task="x")


def test_tokens_are_routed_by_the_whole_text():
    base = bert(seed=90, cls=BertForMaskedLM)
    models = [finetuned(base, seed, 2, cls=BertForTokenClassification) for seed in (7, 8)]
    merged = merge(models, base).model
    (short,) = (tokenizer()([OWN[0][0]], return_tensors="pt") for _ in range(1))
    padded = tokenizer()([OWN[0][0]], return_tensors="pt", padding="max_length", max_length=16)
    one, other = answer(merged, short), answer(merged, padded)
    torch.testing.assert_close(one.task_weights, other.task_weights)
    assert other.logits.shape == (1, 16, 4)
    without = {"input_ids": short["input_ids"]}
    torch.testing.assert_close(answer(merged, without).task_weights, one.task_weights)
    with pytest.raises(ValueError, match="one label of an input only, and a, b ask for something"):
        answer(merged, labels=torch.tensor([0]))


def test_saved_and_loaded(result, tmp_path):
    model = result.model
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert is_of_own_class(tmp_path)
    for auto in (AutoModel, AutoModelForSequenceClassification):
        loaded = auto.from_pretrained(tmp_path)
        torch.testing.assert_close(answer(loaded).logits, answer(model).logits)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    found = answer(half, task="b").logits
    torch.testing.assert_close(found.float(), answer(model, task="b").logits, rtol=0.1, atol=0.1)


def test_loaded_without_hf_zip_through_remote_code(texts, tmp_path):
    base, models = texts
    model = merge(models, base, out=tmp_path / "out").model
    code = """
from transformers import AutoModel, pipeline
model = AutoModel.from_pretrained("out", trust_remote_code=True)
with torch.no_grad():
    found = model(**inputs).logits
classify = pipeline("text-classification", "out", trust_remote_code=True)
assert len(classify("who is the best", top_k=9)) == 9
"""
    found = without_hf_zip(code, tmp_path, inputs=dict(mixed()))
    torch.testing.assert_close(found, answer(model).logits)
    assert len(code_files(tmp_path / "out")) == 6


def test_images_are_routed_measured_and_carded(tmp_path):
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
    assert "for every input a router weighs what else each source knows" in card
    assert "in six files" in card
    assert "`task_weights` has the share of each source" in card
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert 0 <= written - result.report.sizes["merge"] < 30_000  # the header
    shown = describe([str(tmp_path / "out")])
    assert "a merge by twin with weights for every task" in shown
    assert "at 0.1 of the rank, chosen for an input by soft routing on 12 features" in shown
    assert "task b, classification by model 1: class 2.0" in shown
    model, own_processor = load_merge(tmp_path / "out")
    assert type(model) is HfZipRoutedModel
    hf_zip.pipeline.export(tmp_path / "out", "b", tmp_path / "b")
    single = type(models[1]).from_pretrained(tmp_path / "b", dtype="auto")
    assert single.dtype == torch.bfloat16
    assert single.config.id2label == models[1].config.id2label
    values = images(base, 4)["pixel_values"].bfloat16()
    with torch.no_grad():
        expected = model(pixel_values=values, task="b").logits
        torch.testing.assert_close(single(pixel_values=values).logits, expected)
    classify = pipeline("image-classification", model=model, image_processor=own_processor)
    assert len(classify(random_images(1)[0], top_k=9)) == 5
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "t"), use_cpu=True, report_to=[], disable_tqdm=True
    )
    found = [{**row, "labels": i} for i, row in enumerate(rows(images(base, 4)))]
    metrics = Trainer(model.float(), arguments, eval_dataset=found).evaluate()
    with torch.no_grad():
        expected = model(**images(base, 4), labels=torch.arange(4)).loss
    assert metrics["eval_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_a_config_without_values_is_a_config():
    assert HfZipRoutedConfig().trunk_config.model_type == "bert"


def test_what_does_not_fit_is_refused(texts, tmp_path):
    base, models = texts
    with pytest.raises(HfZipError, match=r"models\.1 has no inputs of its own, by which the rou"):
        merge(models, base, own_calibration=[OWN[0], None, None], calibration=OWN[0])
    with pytest.raises(HfZipError, match="rank is 0"):
        merge(models, base, parameters={"rank": 0.0})
    with pytest.raises(HfZipError, match="penalty is 0"):
        merge(models, base, parameters={"penalty": 0.0})
    tags = finetuned(base, 7, 2, cls=BertForTokenClassification)
    with pytest.raises(HfZipError, match="and BertModel has none or they stay apart"):
        merge([models[0], tags], base)
    merge(models, base, out=tmp_path / "out")
    with pytest.raises(HfZipError, match="unknown task 'x'"):
        for_task(load_merge(tmp_path / "out")[0], "x")
    with pytest.raises(HfZipError, match="is a merge with weights for every task, which cannot be"):
        merge([str(tmp_path / "out")] * 2, base)
