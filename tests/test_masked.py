"""Merges that share one task vector and keep a bit per number of every source."""

import copy
import pickle

import pytest
import torch
import yaml
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)
from typer.testing import CliRunner

import hf_zip
from hf_zip import cli
from hf_zip.combining.unified import elected_largest, nearer_to_own, of_same_sign, rescaling
from hf_zip.errors import HfZipError
from hf_zip.inspection import describe
from hf_zip.merged import for_task, is_of_own_class, load_merge
from hf_zip.modeling import HfZipMaskedConfig
from hf_zip.modeling.modeling_hf_zip_masked import pack, unpack
from hf_zip.pipeline import export
from hf_zip.recipe import Recipe
from hf_zip.sweep import sweep
from tests.data import random_images
from tests.models import images, processor, randomise, rows, vit
from tests.remote import code_files, without_hf_zip
from tests.siblings import family, finetuned, near, trunk
from tests.texts import bert, tokenizer

METHODS = ("emr", "tall_masks")


def merge(models, base, method="emr", **more):
    more.setdefault("tasks", list("abcd")[: len(models)])
    more.setdefault("processor", tokenizer())
    return hf_zip.merge(models, method=method, base_model=base, progress=False, **more)


@pytest.fixture(scope="module")
def texts():
    """A base without poolers, and three classifiers of 2, 3 and 4 labels."""
    return family(3)


@pytest.fixture(scope="module")
def merged(texts):
    base, models = texts
    return merge(models, base).model


def tokens(count=5):
    return {"input_ids": torch.randint(5, 16, (count, 7), generator=torch.manual_seed(4))}


def answer(model, **more):
    with torch.inference_mode():
        return model.eval()(**{**tokens(), **more})


def shared(model):
    """The parameters of a classifier that the base has too."""
    return {n: p for n, p in model.bert.named_parameters() if not n.startswith("pooler.")}


def by_hand(models, base):
    """Task vectors by name, in float64."""
    origins = dict(base.bert.named_parameters())
    return {
        name: torch.stack([m.bert.get_parameter(name) - origins[name] for m in models]).double()
        for name in shared(models[0])
    }


def test_the_weights_of_every_source_are_those_of_the_papers_formulas(texts):
    base, models = copy.deepcopy(texts)
    base, models = base.double(), [model.double() for model in models]
    merged = merge(models, base, dtype="float64").model
    vectors = by_hand(models, base)
    sums = {name: own.sum(dim=0) for name, own in vectors.items()}
    unified = {
        name: torch.sign(sums[name])
        * torch.where(own.sign() == sums[name].sign(), own.abs(), 0).max(dim=0).values
        for name, own in vectors.items()
    }
    for position in range(3):
        masks = {name: own[position] * unified[name] > 0 for name, own in vectors.items()}
        own_size = sum(own[position].abs().sum() for own in vectors.values())
        taken = sum((masks[name] * unified[name]).abs().sum() for name in vectors)
        native = merged.native(position)
        for name, origin in shared(base).items():
            expected = origin + own_size / taken * masks[name] * unified[name]
            torch.testing.assert_close(
                native.bert.get_parameter(name), expected, rtol=0, atol=1e-13
            )
        for name in ("bert.pooler.dense.weight", "classifier.bias"):
            assert torch.equal(native.get_parameter(name), models[position].get_parameter(name))


def test_a_model_takes_of_the_sum_what_is_mostly_its_own(texts, tmp_path):
    base, models = (copy.deepcopy(x) for x in texts)
    base, models = base.double(), [model.double() for model in models]
    for name, model in zip(("base", *"abc"), (base, *models), strict=True):
        model.save_pretrained(tmp_path / name)
    own = [{"threshold": 0.2}, {}, {}]
    listed = [
        {"model": str(tmp_path / name), "parameters": parameters}
        for name, parameters in zip("abc", own, strict=True)
    ]
    recipe = {
        "merge_method": "tall_masks",
        "models": listed,
        "base_model": str(tmp_path / "base"),
        "parameters": {"threshold": 0.6, "scaling": 0.5},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = ["merge", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(cli.app, run).exit_code == 0
    merged, _ = load_merge(tmp_path / "out")
    for position, threshold in enumerate((0.2, 0.6, 0.6)):
        for name, vectors in by_hand(models, base).items():
            found = merged.native(position).bert.get_parameter(name)
            summed, vector = 0.5 * vectors.sum(dim=0), vectors[position]
            mask = vector.abs() > threshold * (summed - vector).abs()
            expected = base.bert.get_parameter(name) + mask * summed
            # Numbers that are near the threshold may be taken in one precision and not in another.
            wrong = ((found - expected).abs() > 1e-5).double().mean()
            assert wrong < 0.01, name


def test_one_vector_has_the_largest_number_of_the_elected_sign():
    vectors = torch.tensor([[1.0, 2.0, 0.0, 1.0], [4.0, -3.0, 0.0, -1.0], [-2.0, 0.5, 0.0, 0.0]])
    unified = elected_largest(vectors)
    assert unified.tolist() == [4.0, -3.0, 0.0, 0.0]
    assert of_same_sign(vectors, unified).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 0, 0],
    ]


def test_a_number_is_taken_if_it_outweighs_what_others_changed():
    vectors = torch.tensor([[1.0, 2.0, 1.0], [0.1, -3.0, 0.0]])
    taken = nearer_to_own(vectors, vectors.sum(dim=0), torch.tensor([[0.5], [1.0]]))
    assert taken.int().tolist() == [[1, 1, 1], [0, 1, 0]]


def test_what_takes_nothing_is_scaled_by_one():
    factors = rescaling(torch.tensor([6.0, 6.0]), torch.tensor([3.0, 0.0]))
    assert factors.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (8,), (9,), (3, 5), (2, 3, 4)])
def test_bits_come_back_from_bytes(shape):
    mask = torch.rand(shape, generator=torch.manual_seed(1)) > 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-mask.numel() // 8)
    assert torch.equal(unpack(packed, mask.shape), mask)


def test_bits_are_packed_from_the_lowest():
    assert pack(torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1]).bool()).tolist() == [13, 1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("copies", [1, 3])
def test_models_that_agree_are_given_back(texts, method, copies):
    base, (model, *_) = texts
    options = {} if method == "emr" else {"scaling": 1 / copies}
    merged = merge([model] * copies, base, method, labels="apart", parameters=options).model
    for task in merged.task_names:
        torch.testing.assert_close(answer(merged, task=task).logits, answer(model).logits)


def test_a_mask_of_all_numbers_gives_task_arithmetic(texts):
    base, models = texts
    options = {"scaling": 0.4}
    masked = merge(models, base, "tall_masks", parameters={**options, "threshold": 0.0}).model
    added = merge(models, base, "task_arithmetic", parameters=options).model
    for position in range(3):
        native = masked.native(position)
        for name, parameter in shared(added).items():
            torch.testing.assert_close(native.bert.get_parameter(name), parameter)


def test_a_task_is_answered_by_its_weights_and_all_side_by_side(merged):
    every = answer(merged).logits
    assert every.shape == (5, 9)
    for task, rows_of in (("a", slice(2)), ("b", slice(2, 5)), ("c", slice(5, 9))):
        found = answer(merged, task=task, output_hidden_states=True)
        assert torch.equal(found.logits, every[:, rows_of])
        assert len(found.hidden_states) == 3
    with pytest.raises(ValueError, match="unknown task 'x'; this model knows: a, b, c"):
        answer(merged, task="x")


def test_weights_are_made_once_and_as_many_are_kept_as_asked(texts):
    merged = merge(*reversed(texts)).model
    expected = answer(merged).logits
    first = merged.native(0)
    assert merged.native(0) is first
    assert len(merged._made) == 3
    assert first.classifier.weight.data_ptr() == merged.own[0].classifier.weight.data_ptr()
    for other in (copy.deepcopy(merged), pickle.loads(pickle.dumps(merged))):
        assert not other._made
        assert torch.equal(answer(other).logits, expected)
    merged.double()
    assert not merged._made
    assert answer(merged).logits.dtype == torch.float64
    merged.keep = 1
    merged.float()
    assert torch.equal(answer(merged).logits, expected)
    assert list(merged._made) == [2]
    merged.load_state_dict(merged.state_dict())
    assert not merged._made
    with torch.inference_mode():
        merged.native(1)
    assert merged(**tokens(), task="b").logits.isfinite().all()


def test_two_models_of_one_task_answer_with_their_mean(texts):
    base, _ = texts
    models = [finetuned(base, seed, 2) for seed in (1, 2)]
    names = [{0: "no", 1: "yes"}, {0: "yes", 1: "no"}]
    for model, labels in zip(models, names, strict=True):
        model.config.id2label = labels
        model.config.label2id = {label: i for i, label in labels.items()}
    merged = merge(models, base, tasks=["one", "one"]).model
    first, second = (answer(merged.native(i)).logits for i in range(2))
    torch.testing.assert_close(answer(merged).logits, (first + second[:, [1, 0]]) / 2)
    with pytest.raises(HfZipError, match="'one' is answered by 2 models with weights of their own"):
        for_task(merged, "one")


def test_labels_give_a_loss(merged):
    labels = torch.tensor([0, 8, 3, 2, 1])
    found = answer(merged, labels=labels)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(found.logits, labels))
    own = answer(merged, labels=labels % 2, task="b")
    torch.testing.assert_close(own.loss, torch.nn.functional.cross_entropy(own.logits, labels % 2))
    as_tuple = answer(merged, return_dict=False)
    assert torch.equal(as_tuple[0], found.logits)


@pytest.fixture(scope="module")
def kinds():
    """Fine-tunes of one base whose heads are of several kinds."""
    base = bert(seed=90, cls=BertForMaskedLM)
    models = [finetuned(base, 1)]
    for seed, cls in enumerate((BertForTokenClassification, BertForQuestionAnswering), 7):
        model = bert(2, seed, cls=cls)
        model.bert.load_state_dict(finetuned(base, seed).bert.state_dict(), strict=False)
        models.append(model)
    return base, models


def test_heads_of_several_kinds_answer_by_task(kinds, tmp_path):
    base, models = kinds
    result = merge(models, base, tasks=["topic", "tags", "spans"], out=tmp_path / "out")
    merged, _ = load_merge(tmp_path / "out")
    outputs = answer(merged).outputs
    assert outputs["topic"].logits.shape == (5, 3)
    assert outputs["tags"].logits.shape == (5, 7, 2)
    for name in ("start_logits", "end_logits"):
        assert torch.equal(outputs["spans"][name], answer(result.model, task="spans")[name])
    assert merged.config.num_labels == 0
    with pytest.raises(ValueError, match="labels can be given for one task of one source only"):
        answer(merged, labels=torch.zeros(5).long())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| tags | token-classification | `BertForTokenClassification` |" in card
    assert type(for_task(merged, "spans")) is BertForQuestionAnswering
    merged.set_task("tags")
    found = pipeline("token-classification", model=merged, tokenizer=tokenizer())("who is the best")
    assert {entry["entity"] for entry in found} <= set(models[1].config.id2label.values())
    merged.set_task(None)
    assert merged.config.num_labels == 0


def test_spans_of_several_models_are_averaged(kinds):
    base, (_, _, spans) = kinds
    merged = merge([spans, spans], base, tasks=["one", "one"]).model
    torch.testing.assert_close(answer(merged).start_logits, answer(spans).start_logits)


def test_saved_and_loaded(merged, tmp_path):
    merged.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert is_of_own_class(tmp_path)
    for auto in (AutoModel, AutoModelForSequenceClassification):
        assert torch.equal(answer(auto.from_pretrained(tmp_path)).logits, answer(merged).logits)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(
        answer(half).logits.float(), answer(merged).logits, rtol=0.1, atol=0.1
    )
    eager = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert answer(eager, task="a", output_attentions=True).attentions[0] is not None
    eager.set_attn_implementation("sdpa")
    assert eager.native(0).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_one_tasks_model_is_native_and_answers_alike(texts, tmp_path, dtype):
    base, models = texts
    merge(models, base, dtype=dtype, out=tmp_path / "all")
    export(tmp_path / "all", "b", tmp_path / "b")
    single = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b", dtype="auto")
    assert type(single) is type(models[1])
    assert single.dtype == getattr(torch, dtype)
    assert single.config.id2label == models[1].config.id2label
    assert not hasattr(single.config, "hf_zip")
    whole, _ = load_merge(tmp_path / "all")
    assert torch.equal(answer(single).logits, answer(whole, task="b").logits)
    assert all(parameter.requires_grad for parameter in for_task(whole, "b").parameters())
    with pytest.raises(HfZipError, match="unknown task 'x'"):
        for_task(whole, "x")


def test_a_merge_among_the_sources_keeps_its_tasks(texts):
    base, models = texts
    inner = merge(models[:2], base, "task_arithmetic").model
    merged = merge([inner, models[2]], base, tasks=[None, "c"]).model
    assert merged.task_names == ("a", "b", "c")
    single = for_task(merged, "b")
    assert list(single.config.id2label.values()) == list(models[1].config.id2label.values())
    torch.testing.assert_close(answer(single).logits, answer(merged, task="b").logits)
    torch.testing.assert_close(answer(single).logits, answer(merged).logits[:, 2:5])


def test_loaded_without_hf_zip_through_remote_code(texts, tmp_path):
    base, models = texts
    merged = merge(models, base, out=tmp_path / "out").model
    code = """
from transformers import AutoModel, pipeline
model = AutoModel.from_pretrained("out", trust_remote_code=True)
found = [model(**inputs).logits, model(**inputs, task="b").logits]
classify = pipeline("text-classification", "out", trust_remote_code=True)
assert len(classify("who is the best", top_k=9)) == 9
model.save_pretrained("again")
"""
    both, one = without_hf_zip(code, tmp_path, inputs=dict(tokens()))
    assert torch.equal(both, answer(merged).logits)
    assert torch.equal(one, answer(merged, task="b").logits)
    names = ["configuration_hf_zip_clip", "configuration_hf_zip_masked", "modeling_hf_zip_clip"]
    names += ["modeling_hf_zip_masked", "modeling_hf_zip_members", "modeling_hf_zip_tasks"]
    assert code_files(tmp_path / "out") == code_files(tmp_path / "again") == names


def test_images_are_classified_measured_and_carded(tmp_path):
    base = vit(seed=90)
    models = [near(base, seed, seed + 1) for seed in (1, 2)]
    data = {
        task: [{**row, "labels": i % 2} for i, row in enumerate(rows(images(base, 8, seed)))]
        for seed, task in enumerate("ab")
    }
    result = hf_zip.merge(
        models,
        method="emr",
        base_model=base,
        tasks=["a", "b"],
        processor=processor(),
        evaluation=data,
        progress=False,
        out=tmp_path / "out",
    )
    row = result.report.evaluation.of_kind("merge")[0]
    assert set(row.per_task) == {"a", "b"}
    assert row.joint is not None
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    sizes = result.report.sizes
    assert 0 <= written - sizes["merge"] < 30_000  # the header
    assert sizes["sources"] == 4 * sum(p.numel() for model in models for p in model.parameters())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "each source is the base plus the part of the vector" in card
    assert 'model(**inputs, task="a")' in card
    assert "in six files" in card
    shown = describe([str(tmp_path / "out")])
    assert "a merge by emr with weights for every task" in shown
    assert "model 1: ViTForImageClassification, a mask of" in shown
    assert "task b, classification by model 1: class 2.0" in shown
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert (model.config.image_size, model.config.num_channels) == (8, 3)
    _, own = load_merge(tmp_path / "out")
    classify = pipeline("image-classification", model=model, image_processor=own)
    assert len(classify(random_images(1)[0], top_k=9)) == 5
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "t"), use_cpu=True, report_to=[], disable_tqdm=True
    )
    metrics = Trainer(model, arguments, eval_dataset=data["a"]).evaluate()
    with torch.inference_mode():
        labels = torch.tensor([entry["labels"] for entry in data["a"]])
        expected = model(**images(base, 8, 0), labels=labels).loss
    assert metrics["eval_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_running_statistics_and_counters_stay_each_models_own(tmp_path):
    def resnet(seed, amount=0.0):
        torch.manual_seed(90)
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=2)
        model = randomise(ResNetForImageClassification(config), 90)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(amount * torch.randn(parameter.shape))
        model.train()(torch.randn(4, 3, 32, 32, generator=torch.manual_seed(seed)))
        return model.eval()

    base, models = resnet(0), [resnet(seed, 0.01) for seed in (1, 2)]
    merged = merge(models, base, processor=None, labels="apart", out=tmp_path / "out").model
    for position, model in enumerate(models):
        for name, buffer in model.named_buffers():
            assert torch.equal(merged.native(position).get_buffer(name), buffer), name
    single, own = for_task(merged, "b"), dict(models[1].named_buffers())
    assert all(torch.equal(x, own[name]) for name, x in single.named_buffers())


def test_a_config_without_values_is_a_config():
    assert HfZipMaskedConfig().trunk_config.model_type == "bert"
    assert HfZipMaskedConfig().image_size is None


def test_what_does_not_fit_is_refused(texts, tmp_path):
    base, models = texts
    with pytest.raises(HfZipError, match="stop_at is 1, but 'emr' gives every task weights"):
        merge(models, base, stop_at=1)
    with pytest.raises(HfZipError, match="unmerge is exact, but 'tall_masks' gives every task"):
        merge(models, base, "tall_masks", unmerge="exact")
    with pytest.raises(HfZipError, match="'emr' needs the model that the others"):
        merge(models, None)
    with pytest.raises(HfZipError, match="cannot be streamed: 'emr' keeps something of every"):
        merge(models, base, lane="stream", out=tmp_path / "out")
    with pytest.raises(HfZipError, match="threshold is -1"):
        merge(models, base, "tall_masks", parameters={"threshold": -1.0})
    trunks = [trunk(model) for model in models]
    with pytest.raises(HfZipError, match="a BertModel has no task head, so there are no tasks"):
        merge(trunks, base)
    merge(models, base, out=tmp_path / "out")
    with pytest.raises(HfZipError, match="is a merge with weights for every task, which cannot be"):
        merge([str(tmp_path / "out")] * 2, base)
    recipe = {"merge_method": "emr", "models": [{"model": "a"}], "base_model": "b"}
    recipe["evaluation"] = [{"task": "a", "data": "c"}]
    with pytest.raises(HfZipError, match="there are neither depths nor sizes to sweep over"):
        sweep(Recipe.from_dict(recipe), tmp_path / "sweep")
