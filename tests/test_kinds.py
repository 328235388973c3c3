import pytest
import transformers

from hf_zip.kinds import head_kind, problem_type
from tests.models import vit
from tests.texts import bert


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("BertForSequenceClassification", "classification"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("BertForMaskedLM", "masked-lm"),
        ("BertModel", "features"),
        ("BertForNextSentencePrediction", "other"),
    ],
)
def test_the_class_tells_what_a_head_answers(name, kind):
    assert head_kind(bert(cls=getattr(transformers, name))) == kind


def test_classes_that_share_an_entry_of_the_auto_classes_are_told():
    config = transformers.DeiTConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=3, intermediate_size=8
    )
    assert head_kind(transformers.DeiTForImageClassificationWithTeacher(config)) == "classification"


@pytest.mark.parametrize(
    ("labels", "problem", "kind"),
    [
        (3, None, "classification"),
        (1, None, "regression"),
        (3, "regression", "regression"),
        (3, "multi_label_classification", "multi-label-classification"),
    ],
)
def test_the_config_tells_what_the_rows_of_a_classifier_are(labels, problem, kind):
    assert head_kind(bert(labels=labels, problem_type=problem)) == kind
    assert head_kind(vit(labels=labels, problem_type=problem)) == kind


@pytest.mark.parametrize(
    ("kinds", "own", "expected"),
    [
        (["regression", "regression"], None, "regression"),
        (["multi-label-classification"], None, "multi_label_classification"),
        (["classification", "classification"], None, None),
        (["classification"], "single_label_classification", "single_label_classification"),
        (["token-classification"], "regression", None),
        (["regression", "classification"], "regression", None),
    ],
)
def test_a_config_tells_its_problem_where_all_rows_have_one(kinds, own, expected):
    assert problem_type(kinds, own) == expected
