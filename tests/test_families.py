"""Every task class of every family: its parameters are covered, its outputs stay."""

import dataclasses

import pytest
import torch
import transformers

import hf_zip
from hf_zip.adapters import adapter_for, adapters
from hf_zip.align import align
from hf_zip.errors import HfZipError
from hf_zip.groups import merge_groups
from tests.models import random_inputs, random_permutations, randomise, with_parameters

# By class: which of its outputs mean the same whatever the order of its features.
CLASSES = {
    "BertModel": "pooler_output",
    "BertForTokenClassification": "logits",
    "BertForQuestionAnswering": "start_logits",
    "BertForMaskedLM": "logits",
    "BertForNextSentencePrediction": "logits",
    "BertForPreTraining": "prediction_logits",
    "RobertaModel": "pooler_output",
    "RobertaForTokenClassification": "logits",
    "RobertaForQuestionAnswering": "start_logits",
    "RobertaForMaskedLM": "logits",
    "XLMRobertaForSequenceClassification": "logits",
    "XLMRobertaForMaskedLM": "logits",
    "CamembertForSequenceClassification": "logits",
    "CamembertForMaskedLM": "logits",
    "DistilBertForTokenClassification": "logits",
    "DistilBertForQuestionAnswering": "start_logits",
    "DistilBertForMaskedLM": "logits",
    "ElectraForTokenClassification": "logits",
    "ElectraForQuestionAnswering": "start_logits",
    "ElectraForMaskedLM": "logits",
    "ElectraForPreTraining": "logits",
    "ViTModel": "pooler_output",
}


def config_of(cls):
    """The config of the family's example, in the class's own type."""
    config = adapter_for(cls.config_class.model_type).example().config
    fields = {field.name for field in dataclasses.fields(transformers.PretrainedConfig)}
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return cls.config_class(**{k: v for k, v in values.items() if k not in fields})


def build(name, **changes):
    cls = getattr(transformers, name)
    config = config_of(cls)
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return randomise(cls(config).double().eval())


def relative_change(model, output):
    groups = merge_groups(model, adapter_for(model.config.model_type))
    permuted = with_parameters(
        model, align(dict(model.named_parameters()), groups, random_permutations(groups), 0)
    )
    with torch.inference_mode():
        a, b = (getattr(m(**random_inputs(m)), output) for m in (model, permuted))
    return ((a - b).abs().max() / a.abs().max()).item()


@pytest.mark.parametrize(("name", "output"), CLASSES.items(), ids=CLASSES)
def test_the_symmetries_leave_the_outputs_of_every_class(name, output):
    assert relative_change(build(name), output) <= 1e-10


@pytest.mark.parametrize("name", [name for name in CLASSES if name.endswith("MaskedLM")])
def test_a_decoder_of_its_own_reads_features_of_its_own(name):
    tied, untied = build(name), build(name, tie_word_embeddings=False)
    assert relative_change(untied, "logits") <= 1e-10
    roles = [
        [group.role for group in merge_groups(m, adapter_for(m.config.model_type))]
        for m in (tied, untied)
    ]
    assert ["pooler" in found for found in roles] == [False, True]


def test_narrow_embeddings_have_features_of_their_own():
    narrow, wide = build("ElectraForMaskedLM"), build("ElectraForMaskedLM", embedding_size=12)
    assert relative_change(wide, "logits") <= 1e-10
    sizes = [
        {group.role: group.size for group in merge_groups(m, adapters()["electra"])}
        for m in (narrow, wide)
    ]
    assert sizes[0]["embeddings"] == 8
    assert "embeddings" not in sizes[1]


def test_cross_attention_is_named_as_not_covered():
    model = build("BertModel", is_decoder=True, add_cross_attention=True)
    with pytest.raises(HfZipError, match=r"does not cover: encoder\.layer\.0\.crossattention"):
        merge_groups(model, adapter_for("bert"))


def test_a_head_without_one_row_per_label_is_refused():
    models = [build("BertForMultipleChoice")] * 2
    with pytest.raises(HfZipError, match=r"classifier of 'model_0' has 1 rows, .* names 2 labels"):
        hf_zip.merge(models, method="average", force=True, progress=False)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "ElectraForQuestionAnswering", "BertModel"])
def test_models_without_a_task_head_merge_to_one(name):
    model = build(name).float()
    merged = hf_zip.merge([model] * 2, method="average", progress=False).model
    for parameter, own in zip(merged.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter, own)
