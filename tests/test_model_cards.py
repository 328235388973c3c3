"""The cards of merges in `model_cards/`: as their reports say, whole, and fit for the Hub."""

import ast
import re

import pytest
from huggingface_hub import ModelCard

from hf_zip.report import REPORT_NAME, read
from scripts.model_cards import CARD, CARDS, is_fresh, write
from tests.test_report import REPORT

FOLDERS = sorted(path.parent for path in CARDS.glob(f"*/{REPORT_NAME}"))


def test_there_are_cards():
    assert len(FOLDERS) >= 3


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_card_is_what_its_report_renders_to(folder):
    assert is_fresh(folder), "run python scripts/model_cards.py"
    card = ModelCard.load(folder / CARD)
    report = read(folder)
    assert card.data.base_model_relation == "merge"
    assert {report.method.name, "merge"} <= {*card.data.tags}
    assert len(card.data.eval_results) >= len(report.tasks)
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", card.text):
        assert (folder / picture).is_file()
    for code in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        ast.parse(code)


def test_a_stale_card_is_found_and_mended(tmp_path):
    folder = tmp_path / "digits"
    write(folder, REPORT)
    assert is_fresh(folder)
    assert '"user/digits"' in (folder / CARD).read_text()
    (folder / "hf_zip_older.png").write_bytes(b"")
    (folder / CARD).write_text("# Another\n")
    assert not is_fresh(folder)
    write(folder, read(folder))
    assert is_fresh(folder)
    assert not (folder / "hf_zip_older.png").exists()
