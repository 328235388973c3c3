"""What the usage code of a card loads."""

from dataclasses import replace

import pytest

from hf_zip.card import render_card
from tests.test_report import REPORT


@pytest.mark.parametrize(
    ("architecture", "trusts"),
    [("HfZipMaskedModel", True), ("BertForSequenceClassification", False)],
)
def test_a_tokenizer_beside_code_is_loaded_without_being_asked(architecture, trusts):
    native = "BertForSequenceClassification"
    sources = tuple(replace(source, architecture=native) for source in REPORT.sources)
    report = replace(REPORT, architecture=architecture, sources=sources, processor="BertTokenizer")
    assert (
        'AutoTokenizer.from_pretrained(".", trust_remote_code=True)' in render_card(report)
    ) == trusts
