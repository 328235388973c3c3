"""The model that others were fine-tuned from: found, checked, recorded."""

import copy
import json

import pytest
import torch
import transformers
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    ResNetForImageClassification,
)

import hf_zip
from hf_zip.base_model import base_state
from hf_zip.card import render_card
from hf_zip.errors import HfZipError
from hf_zip.preflight import preflight
from hf_zip.recipe import Recipe
from hf_zip.sources import from_model
from hf_zip.task_head import task_heads
from hf_zip.tasks import resolve_tasks
from hf_zip.tiny import tiny
from tests.models import randomise, vit
from tests.siblings import family, trunk
from tests.texts import SPECIAL, VOCABULARY, WORDS, bert, tokenizer

SCALING = 0.4


def merge(models, base, method="task_arithmetic", **options):
    return hf_zip.merge(
        models,
        method=method,
        base_model=base,
        tasks=[f"task {i}" for i in range(len(models))],
        progress=False,
        **options,
    )


def check(models, base, processors=(None, None), force=False):
    """What preflight finds, the base's code only."""
    own, theirs = processors
    sources = [
        from_model(model, name=f"model {i}", processor=own) for i, model in enumerate(models)
    ]
    source = from_model(base, name="origin", processor=theirs)
    found = preflight(sources, resolve_tasks(sources, "apart"), base=source, force=force)
    return [(f.level, f.message) for f in found.findings if "origin" in f.message]


# Names.


@pytest.mark.parametrize(
    ("name", "base_name", "absent"),
    [
        ("BertForSequenceClassification", "BertModel", []),
        ("BertForSequenceClassification", "BertForMaskedLM", ["bert.pooler.dense"]),
        ("BertForSequenceClassification", "BertForPreTraining", []),
        ("BertForMaskedLM", "BertModel", ["cls.predictions"]),
        ("BertModel", "BertForTokenClassification", ["pooler.dense"]),
        ("DistilBertForSequenceClassification", "DistilBertForMaskedLM", ["pre_classifier"]),
        ("RobertaForSequenceClassification", "RobertaForMaskedLM", ["classifier.dense"]),
        ("ViTForImageClassification", "ViTModel", []),
        ("SwinForImageClassification", "SwinModel", []),
        ("AlbertForSequenceClassification", "AlbertForMaskedLM", ["albert.pooler"]),
        ("CLIPVisionModel", "CLIPModel", []),
        ("CLIPForImageClassification", "CLIPModel", []),
        ("CLIPForImageClassification", "CLIPVisionModel", []),
        ("CLIPTextModelWithProjection", "CLIPModel", []),
    ],
)
def test_every_parameter_below_the_base_model_is_found_under_its_name(name, base_name, absent):
    model = randomise(tiny(getattr(transformers, name)))
    base = randomise(tiny(getattr(transformers, base_name)), seed=4)
    heads = task_heads(model)
    found = base_state(model, base, heads)
    lacking = [n for n, _ in model.named_parameters() if n not in found]
    assert all(n.startswith((*absent, *heads)) for n in lacking), lacking
    assert absent == [] or [n for n in lacking if n.startswith(tuple(absent))]
    # Its values are those of the base, at the place that transformers loads them to.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    into, own = dict(model.named_parameters()), dict(base.named_parameters())
    for full, tensor in found.items():
        assert tensor.shape == into[full].shape, full
        ends = [other for other in own.values() if other is not None and torch.equal(other, tensor)]
        assert len(ends) == 1, full


def test_the_encoders_of_a_clip_are_not_taken_for_one_another():
    clip = randomise(tiny(transformers.CLIPModel))
    for cls, tower in (("CLIPVisionModel", "vision_model"), ("CLIPTextModel", "text_model")):
        found = base_state(tiny(getattr(transformers, cls)), clip, ())
        assert found
        for name, tensor in found.items():
            assert torch.equal(tensor, clip.get_parameter(f"{tower}.{name}"))


# What is merged.


@pytest.mark.parametrize("cls", [BertModel, BertForMaskedLM, BertForPreTraining])
def test_task_vectors_are_added_to_bases_with_any_head_or_none(cls):
    base, models = family(cls=cls)
    merged = merge(models, base).model
    theirs = dict(trunk(base).named_parameters())
    for name, parameter in merged.bert.named_parameters():
        own = [model.bert.get_parameter(name).double() for model in models]
        if name in theirs:
            origin = theirs[name].double()
            expected = origin + SCALING * sum(tensor - origin for tensor in own)
        else:
            assert name.startswith("pooler.")
            assert cls is BertForMaskedLM
            expected = sum(own) / len(own)
        torch.testing.assert_close(parameter, expected.float(), msg=name)
    rows = torch.cat([model.classifier.weight for model in models])
    assert torch.equal(merged.classifier.weight, rows)


def test_heads_of_the_base_are_no_part_of_task_vectors():
    base = bert(3, seed=90)
    models = [copy.deepcopy(base) for _ in range(2)]
    for seed, model in enumerate(models):
        torch.nn.init.normal_(model.classifier.weight, std=seed + 1.0)
        model.config.id2label = {i: f"{seed}.{i}" for i in range(3)}
    merged = merge(models, base).model
    rows = torch.cat([model.classifier.weight for model in models])
    assert torch.equal(merged.classifier.weight, rows)


def test_words_of_the_base_in_another_order_are_reordered(tmp_path):
    base, models = family()
    order = torch.randperm(len(VOCABULARY))
    shuffled = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in (
            shuffled.bert.embeddings.word_embeddings.weight,
            shuffled.cls.predictions.bias,
        ):
            parameter.copy_(parameter[order])
    shuffled.config.pad_token_id = order.tolist().index(0)
    words = [VOCABULARY[i] for i in order]
    for model, name, own in (
        (base, "base", VOCABULARY),
        (shuffled, "shuffled", words),
        *((model, f"m{i}", VOCABULARY) for i, model in enumerate(models)),
    ):
        model.save_pretrained(tmp_path / name)
        tokenizer(own).save_pretrained(tmp_path / name)
    paths = [str(tmp_path / f"m{i}") for i in range(2)]
    one, other = (merge(paths, str(tmp_path / name)) for name in ("base", "shuffled"))
    assert any("with other ids" in finding for finding in other.report.findings)
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, other.model.get_parameter(name)), name


def test_running_statistics_are_averaged():
    base = randomise(tiny(ResNetForImageClassification))
    models = [copy.deepcopy(base) for _ in range(2)]
    for seed, model in enumerate(models):
        model.config.id2label = {i: f"{seed}.{i}" for i in range(2)}
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(0.25 + seed)
    merged = merge(models, base, parameters={"scaling": 30.0}).model
    variances = [b for name, b in merged.named_buffers() if name.endswith("running_var")]
    assert variances
    assert all(bool((variance == 0.75).all()) for variance in variances)


# What is recorded.


def test_the_base_is_recorded_with_its_digest(tmp_path):
    base, models = family()
    names = ["base", "m0", "m1"]
    for name, model in zip(names, [base, *models], strict=True):
        model.save_pretrained(tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    result = merge(paths[1:], paths[0], out=tmp_path / "out")
    assert result.report.base.reference == paths[0]
    assert len(result.report.base.sha256) == 64
    assert result.report.base.architecture == "BertForMaskedLM"
    report = json.loads((tmp_path / "out" / "hf_zip_report.json").read_text())
    assert report["base"]["sha256"] == result.report.base.sha256
    card = (tmp_path / "out" / "README.md").read_text()
    digest = result.report.base.sha256
    assert (
        f"fine-tuned from the base model base: a local model, sha256 `{digest}`, licence not"
        in card
    )
    assert str(tmp_path) not in card
    recipe = Recipe.from_yaml(tmp_path / "out" / "hf_zip_recipe.yaml")
    assert recipe.base_model == paths[0]
    again = hf_zip.merge(recipe, progress=False)
    for name, parameter in result.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name))


# What is refused.


def test_a_missing_base_is_refused_before_any_weights_are_read(tmp_path):
    _, models = family()
    (tmp_path / "model").mkdir()
    models[0].config.save_pretrained(tmp_path / "model")
    for given in (models, [tmp_path / "model"]):
        with pytest.raises(HfZipError, match=r"'task_arithmetic' needs the model .* give base_mod"):
            merge(given, None)


def test_methods_that_do_without_a_base_are_given_none():
    base, models = family()
    result = merge(models, base, method="average")
    assert result.report.base.name == "base_model"
    torch.testing.assert_close(
        dict(result.model.named_parameters()),
        dict(merge(models, None, method="average").model.named_parameters()),
    )
    assert "fine-tuned from the base model base\\_model" in render_card(result.report)


def test_a_base_of_another_type_is_refused():
    _, models = family()
    with pytest.raises(
        HfZipError, match=r"base_model 'origin' is of type vit, but 'model 0' is of type bert; give"
    ):
        check(models, vit())


def test_a_base_of_another_shape_is_refused():
    _, models = family()
    with pytest.raises(
        HfZipError,
        match=r"base_model 'origin' and 'model 0' differ in \d+ parameters .*word_embeddings.weight "
        r"\(17, 24\) and \(17, 12\), .*; give the model that it was",
    ):
        check(models, bert(cls=BertModel, hidden_size=24))


def test_a_base_of_other_parts_is_refused():
    _, models = family()
    with pytest.raises(
        HfZipError, match=r"'origin' has \d+ of the \d+ parameters .*encoder.layer.*are absent\)"
    ):
        check([bert(num_hidden_layers=9), bert(seed=2, num_hidden_layers=9)], bert(cls=BertModel))
    assert check(models, bert(cls=BertForMaskedLM), force=True)


def test_an_unrelated_base_is_refused():
    _, models = family()
    stranger = bert(cls=BertForMaskedLM, seed=1000)
    with pytest.raises(
        HfZipError, match=r"weights of base_model 'origin' and of 'model 1' are unrelated \(cosine"
    ):
        check(models, stranger)
    assert [level for level, _ in check(models, stranger, force=True) if level == "warning"]


def test_a_base_that_is_only_somewhat_alike_is_told():
    base, models = family(amount=0.6)
    messages = [message for level, message in check(models, base) if level == "warning"]
    assert "only somewhat alike" in messages[0]


def test_a_model_that_is_its_base_is_told():
    base, models = family(cls=BertModel)
    same = copy.deepcopy(models[0])
    same.bert.load_state_dict(base.state_dict())
    found = check([*models, same], base)
    assert found == [
        ("warning", "'model 2' has the weights of base_model 'origin', so its task vector is zero")
    ]


def test_what_the_base_lacks_is_told():
    base, models = family()
    assert check(models, base) == [
        (
            "info",
            "base_model 'origin' lacks bert.pooler.dense.weight, bert.pooler.dense.bias, which no "
            "task vector has: they are averaged, or kept as they are by methods that keep "
            "something per task",
        )
    ]


def test_a_base_with_another_activation_is_refused():
    base, models = family()
    base.config.hidden_act = "relu"
    with pytest.raises(HfZipError, match=r"'origin' differ in hidden_act, 'gelu' and 'relu'"):
        check(models, base)


def test_a_base_of_other_words_is_refused():
    base, models = family()
    other = tokenizer((*SPECIAL, *WORDS[:-1], "rest"))
    with pytest.raises(HfZipError, match=r"'origin' have different vocabularies: 16 tokens are"):
        check(models, base, (tokenizer(), other))
    lower = tokenizer(do_lower_case=False)
    assert not [level for level, _ in check(models, base, (tokenizer(), lower)) if level == "error"]
