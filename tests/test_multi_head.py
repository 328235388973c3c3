"""Merges of models whose heads are of several kinds: one trunk, every head as it was."""

import copy

import pytest
import torch
import transformers
from transformers import AutoModel, Trainer, TrainingArguments, pipeline

import hf_zip
from hf_zip.adapters import adapter_for
from hf_zip.card import render_card
from hf_zip.errors import HfZipError
from hf_zip.inspection import describe
from hf_zip.merged import for_task, is_of_own_class, load_merge
from hf_zip.modeling import HfZipMultiHeadModel
from tests.models import permuted, random_inputs, randomise, rows, vit
from tests.remote import code_files, without_hf_zip
from tests.texts import bert, sentences, tokenizer

HEADS = {
    "topic": "ForSequenceClassification",
    "tags": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
    "words": "ForMaskedLM",
}
FAMILIES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "electra": "Electra"}


def with_head(head, seed=0, family="bert", **changes):
    config = copy.deepcopy(adapter_for(family).example().config)
    if head == HEADS["spans"]:
        config.num_labels = 2
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    cls = getattr(transformers, FAMILIES[family] + head)
    return randomise(cls(config).eval(), seed)


@pytest.fixture(scope="module")
def parents():
    return [with_head(head, seed) for seed, head in enumerate(HEADS.values())]


def same_trunk(models):
    """Copies of models, all with the first's trunk."""
    copied = [copy.deepcopy(model) for model in models]
    first = dict(copied[0].base_model.named_parameters())
    with torch.no_grad():
        for model in copied:
            for name, parameter in model.base_model.named_parameters():
                if not name.startswith("pooler."):
                    parameter.copy_(first[name])
    return copied


def calibration(model, count=80, seed=9):
    """Inputs one by one, texts without padding."""
    inputs = random_inputs(model, count, seed=seed)
    if "attention_mask" not in inputs:
        return rows(inputs)
    real = inputs["attention_mask"].bool()
    return [{k: v[i][real[i]] for k, v in inputs.items()} for i in range(count)]


def merge(models, method="average", **more):
    more.setdefault("calibration", calibration(models[0]))
    more.setdefault("tasks", list(HEADS)[: len(models)])
    more.setdefault("processor", tokenizer())
    return hf_zip.merge(models, method=method, force=True, progress=False, **more)


def answers(model, task=None, count=5, **more):
    more |= {} if task is None else {"task": task}
    inputs = random_inputs(getattr(model, "trunk", model), count, seed=4)
    with torch.no_grad():
        return model.eval()(**inputs, **more)


def tensors(output):
    return [output[key] for key in ("logits", "start_logits", "end_logits") if key in output]


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_on_one_trunk_answer_as_they_did(family):
    models = same_trunk([with_head(head, i, family) for i, head in enumerate(HEADS.values())])
    model = merge(models, calibration=None).model
    assert isinstance(model, HfZipMultiHeadModel)
    together = answers(model).outputs
    for task, native in zip(HEADS, models, strict=True):
        pairs = [tensors(answers(native)), tensors(answers(model, task)), tensors(together[task])]
        for expected, alone, among in zip(*pairs, strict=True):
            torch.testing.assert_close(alone, expected)
            torch.testing.assert_close(among, expected)


@pytest.mark.parametrize("method", ["permute", "zipit", "zipfit"])
def test_a_reordered_trunk_is_matched_and_its_head_answers(method):
    models = same_trunk([with_head("ForSequenceClassification"), with_head(HEADS["tags"], 1)])
    result = merge([models[0], permuted(models[1])], method)
    for task, native in zip(HEADS, models, strict=False):
        (expected,), (found,) = tensors(answers(native)), tensors(answers(result.model, task))
        assert float((found - expected).norm() / expected.norm()) < 0.05
    assert min(v for k, v in result.report.explained.items() if "unmerge" in k) > 0.99


def test_a_larger_trunk_holds_more_of_the_sources(parents):
    shares = [
        min(
            share
            for place, share in merge(
                parents, "zipfit", parameters={"size": size}
            ).report.explained.items()
            if place.startswith("unmerge.")
        )
        for size in (1.0, 2.0, 4.0)
    ]
    assert shares == sorted(shares)
    assert shares[-1] > 0.85


def test_images_have_heads_of_several_kinds_too():
    models = [vit(3, seed=1), vit(1, seed=2)]
    result = merge(models, "zipfit", processor=None)
    assert [task.kind for task in result.report.tasks] == ["classification", "regression"]
    inputs = random_inputs(models[0], 4, seed=1)
    with torch.no_grad():
        outputs = result.model(**inputs).outputs
    assert {task: tuple(x.logits.shape) for task, x in outputs.items()} == {
        "topic": (4, 3),
        "tags": (4, 1),
    }


def test_labels_give_the_loss_of_the_task(parents):
    model = merge(parents).model
    labels = torch.tensor([0, 1, 2, 0, 1])
    found = answers(model, "topic", labels=labels)
    expected = torch.nn.functional.cross_entropy(found.logits, labels)
    torch.testing.assert_close(found.loss, expected)
    spans = {"start_positions": torch.zeros(5).long(), "end_positions": torch.ones(5).long()}
    assert answers(model, "spans", **spans).loss.isfinite()
    with pytest.raises(ValueError, match="labels can be given for one task only; give task"):
        answers(model, labels=labels)
    with pytest.raises(ValueError, match="unknown task 'x'; this model knows: topic, tags"):
        answers(model, "x")


def test_hidden_states_are_the_trunks(parents):
    model = merge(parents).model
    states = answers(model, "tags", output_hidden_states=True).hidden_states
    assert len(states) == len(answers(model, output_hidden_states=True).hidden_states)
    assert len(states) == 1 + model.config.trunk_config.num_hidden_layers
    assert answers(model, "tags").hidden_states is None


def test_return_dict_false_is_a_tuple(parents):
    model = merge(parents).model
    (found,) = answers(model, "tags", return_dict=False)
    assert torch.equal(found, answers(model, "tags").logits)


def test_saved_and_loaded(parents, tmp_path):
    model = merge(parents, "zipfit", out=tmp_path / "out", dtype="bfloat16").model
    assert is_of_own_class(tmp_path / "out")
    loaded, _ = load_merge(tmp_path / "out")
    automatic = AutoModel.from_pretrained(tmp_path / "out")
    for task in HEADS:
        for found in (loaded, automatic):
            assert all(
                torch.equal(x, y)
                for x, y in zip(
                    tensors(answers(found, task)), tensors(answers(model, task)), strict=True
                )
            )
    shown = describe([str(tmp_path / "out")])
    assert "task tags, token-classification by the head of BertForTokenClassification" in shown
    with pytest.raises(HfZipError, match="is a merge with several heads, which cannot be merged"):
        hf_zip.merge([str(tmp_path / "out"), str(tmp_path / "out")], method="average")


def test_loaded_without_hf_zip_through_remote_code(parents, tmp_path):
    model = merge(parents, "permute", out=tmp_path / "out").model
    inputs = random_inputs(model.trunk, 5, seed=4)
    code = """
from transformers import AutoModel
model = AutoModel.from_pretrained("out", trust_remote_code=True).eval()
with torch.no_grad():
    found = model(**inputs, task="tags").logits
"""
    found = without_hf_zip(code, tmp_path, inputs=inputs)
    assert torch.equal(found, answers(model, "tags").logits)
    names = ["configuration_hf_zip_multi_head", "modeling_hf_zip_multi_head"]
    assert code_files(tmp_path / "out") == names


def test_one_tasks_model_is_smaller_and_answers_alike(parents):
    model = merge(parents, "permute").model
    single = for_task(model, "tags")
    assert single.tasks == ("tags",)
    assert single.num_parameters() < model.num_parameters()
    assert single.config.id2label == parents[1].config.id2label
    assert torch.equal(answers(single).logits, answers(model, "tags").logits)
    with pytest.raises(HfZipError, match=r"unknown task 'tag'\. Did you mean 'tags'"):
        for_task(model, "tag")


def test_pipelines_answer_the_chosen_task():
    models = [bert(3, 1), bert(4, 2, cls=transformers.BertForTokenClassification)]
    model = merge(models, calibration=sentences(40)).model
    model.set_task("tags")
    found = pipeline("token-classification", model=model, tokenizer=tokenizer())("who is the best")
    assert {entry["entity"] for entry in found} <= set(models[1].config.id2label.values())
    model.set_task("topic")
    found = pipeline("text-classification", model=model, tokenizer=tokenizer())("who is the best")
    assert found[0]["label"] in models[0].config.id2label.values()
    model.set_task(None)
    assert set(answers(model).outputs) == {"topic", "tags"}


def test_trainer_evaluates_the_chosen_task(parents, tmp_path):
    model = merge(parents).model
    model.set_task("topic")
    data = [{**row, "labels": i % 3} for i, row in enumerate(rows(random_inputs(parents[0], 6, 1)))]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True
    )
    metrics = Trainer(model, arguments, eval_dataset=data).evaluate()
    labels = torch.tensor([row["labels"] for row in data])
    with torch.no_grad():
        expected = model(**random_inputs(parents[0], 6, 1), labels=labels).loss
    assert metrics["eval_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_models_of_one_class_stay_native_where_their_heads_can_be_one(parents):
    spans = [with_head("ForQuestionAnswering", seed) for seed in (1, 2)]
    assert type(merge(spans, tasks=None).model) is type(spans[0])
    assert type(merge(spans, tasks=["one", "one"]).model) is type(spans[0])
    apart = merge(spans, tasks=["one", "two"]).model
    assert apart.tasks == ("one", "two")


def test_the_card_says_what_every_head_answers(parents, tmp_path):
    merge(parents, "permute", out=tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| tags | token-classification | `BertForTokenClassification` |" in card
    assert 'model(**inputs, task="topic")' in card
    assert "trust_remote_code=True" in card


def test_what_does_not_fit_is_refused(parents):
    with pytest.raises(HfZipError, match="heads of several kinds stay apart, one for each task"):
        merge(parents[:2], tasks=["one", "one"])
    with pytest.raises(HfZipError, match="'model_1', a BertModel, has no task head"):
        merge([parents[0], with_head("Model")])
    with pytest.raises(HfZipError, match="has a head of another kind"):
        merge([parents[0], with_head("ForNextSentencePrediction")])
    with pytest.raises(HfZipError, match="unmerge is exact, but the heads of several kinds"):
        merge(parents, "permute", unmerge="exact")
    with pytest.raises(HfZipError, match="unmerge: exact"):
        merge(parents, calibration=None, unmerge="ridge")
    with pytest.raises(HfZipError, match="leave stop_at out"):
        merge(parents, "permute", stop_at=1)
    config = transformers.AlbertConfig(
        vocab_size=17,
        hidden_size=12,
        embedding_size=8,
        num_attention_heads=3,
        num_hidden_layers=1,
        intermediate_size=8,
    )
    classes = (
        transformers.AlbertForSequenceClassification,
        transformers.AlbertForTokenClassification,
    )
    with pytest.raises(HfZipError, match="where a head of theirs begins is not known: models of"):
        hf_zip.merge([cls(config) for cls in classes], method="average")
    wider = with_head("ForTokenClassification", hidden_size=24)
    with pytest.raises(HfZipError, match="differ in hidden_size"):
        merge([parents[0], wider])


def labelled(model, count=12, seed=5):
    """Inputs with what the model itself answers as what is right, every other one changed."""
    found = calibration(model, count, seed)
    for position, row in enumerate(found):
        with torch.no_grad():
            logits = model.eval()(**{k: v[None] for k, v in row.items()}).logits[0]
        answer = (logits.argmax(dim=-1) + position % 2) % logits.shape[-1]
        row["labels"] = answer.tolist()
    return found


def test_every_task_is_measured_in_its_own_way():
    models = same_trunk([with_head("ForSequenceClassification"), with_head(HEADS["tags"], 1)])
    data = {task: labelled(model) for task, model in zip(HEADS, models, strict=False)}
    report = merge(models, "permute", evaluation=data).report
    found = report.evaluation
    rows = {row.name: row for row in found.rows}
    card = render_card(report)
    assert "control: one source's trunk as it is, with all heads as in the merge" in card
    assert "tags (token accuracy)" in card
    assert rows["model_0"].per_task["topic"] == 0.5
    assert rows["ensemble"].per_task["topic"] == 0.5
    assert 0.3 < rows["ensemble"].per_task["tags"] < 0.7
    for kind in ("average", "control", "merge"):
        for row in found.of_kind(kind):
            assert row.per_task == pytest.approx(rows["ensemble"].per_task, abs=0.1)
            assert row.joint is None
    assert [row.name for row in found.of_kind("control")] == [
        "one trunk (model_0)",
        "one trunk (model_1)",
    ]


def test_inspect_shows_whether_models_with_heads_of_several_kinds_fit(parents, tmp_path):
    for name, model in zip(HEADS, parents[:2], strict=False):
        model.save_pretrained(tmp_path / name)
    shown = describe([str(tmp_path / "topic"), str(tmp_path / "tags")])
    assert "task head of BertForSequenceClassification: stays apart" in shown
    assert "task 'tags': 5 labels of tags" in shown
    assert "initialisation: different" in shown
