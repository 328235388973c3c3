"""The pictures in a merge's folder: written, shown, refreshed, pushed and removed with it."""

import logging
import re
import shutil
import sys

import pytest
from typer.testing import CliRunner

import hf_zip
from hf_zip import cli
from hf_zip.card import render_card
from hf_zip.page import PAGE_NAME
from hf_zip.report import read
from tests.data import write_images, write_labelled
from tests.models import processor, vit
from tests.test_drawing import FULL
from tests.test_preflight import finetuned
from tests.test_report import REPORT

CATS, TREES = ["cat", "dog", "cow"], ["oak", "elm", "fir"]
ALL = {f"hf_zip_{name}.png" for name in ("accuracy", "matching", "similarity", "signs")}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Two models of one base, images, labelled files, and their merge."""
    folder = tmp_path_factory.mktemp("workshop")
    base = vit()
    base.save_pretrained(folder / "base")
    for seed, (name, labels) in enumerate((("pets", CATS), ("trees", TREES)), start=1):
        finetuned(base, seed, names=labels).save_pretrained(folder / name)
        processor().save_pretrained(folder / name)
        write_labelled(folder / f"{name}.parquet", labels, count=6, seed=seed)
    write_images(folder / "images", count=8)
    merged(folder, out=folder / "merged", base_model=str(folder / "base"))
    return folder


def merged(folder, **options):
    return hf_zip.merge(
        [folder / "pets", folder / "trees"],
        method="permute",
        calibration=folder / "images",
        evaluation={name: folder / f"{name}.parquet" for name in ("pets", "trees")},
        progress=False,
        **options,
    )


@pytest.fixture
def folder(workshop, tmp_path):
    """A copy of the merge."""
    return shutil.copytree(workshop / "merged", tmp_path / "merged")


def drawn(folder):
    return {path.name for path in folder.glob("*.png")}


def shown(card):
    return re.findall(r"!\[.*\]\((.*)\)$", card, flags=re.MULTILINE)


def test_pictures_lie_beside_the_merge_and_the_card_shows_them(folder):
    assert drawn(folder) == ALL
    card = (folder / "README.md").read_text()
    assert sorted(shown(card)) == sorted(ALL)
    results, diagnosis = card.index("## Results"), card.index("## Diagnosis")
    assert results < card.index("hf_zip_accuracy.png") < card.index("## Method")
    assert diagnosis < card.index("hf_zip_matching.png") < card.index("## Limits")
    report = read(folder)
    assert [pair.compared for pair in report.similarities] == ["weights", "task vectors"]
    assert "Cosines of the sources' task vectors, cosine: query -0.0" in card or (
        "Cosines of the sources' task vectors, cosine: query 0.0" in card
    )


def test_a_card_shows_the_pictures_that_there_are_with_words_for_them():
    assert shown(render_card(FULL)) == []
    card = render_card(FULL, pictures=("hf_zip_matching.png", "hf_zip_other.png", "x.png"))
    assert shown(card) == ["hf_zip_matching.png"]
    assert "![How well the merged features match, mean correlation: " in card
    card = render_card(FULL, pictures=("hf_zip_signs.png", "hf_zip_explained.png"))
    assert shown(card) == ["hf_zip_explained.png", "hf_zip_signs.png"]
    assert shown(render_card(REPORT, pictures=("hf_zip_signs.png",))) == []


def test_an_evaluation_without_matplotlib_leaves_no_stale_picture(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        hf_zip.reevaluate(folder, progress=False)
        assert drawn(folder) == set()
        assert shown((folder / "README.md").read_text()) == []
    result = CliRunner().invoke(cli.app, ["card", str(folder)])
    assert result.exit_code == 0, result.exception
    assert drawn(folder) == ALL
    assert sorted(shown((folder / "README.md").read_text())) == sorted(ALL)


def test_a_newer_evaluation_draws_again_and_writes_the_page_again(folder):
    page = hf_zip.report_page(folder)
    before = (folder / "hf_zip_accuracy.png").read_bytes(), page.read_text()
    evaluation = [{"task": "trees", "data": str(folder.parent / "trees.parquet")}]
    write_labelled(folder.parent / "trees.parquet", TREES, count=5, seed=9)
    hf_zip.reevaluate(folder, evaluation, progress=False)
    assert (folder / "hf_zip_accuracy.png").read_bytes() != before[0]
    assert page.read_text() != before[1]
    page.unlink()
    hf_zip.reevaluate(folder, progress=False)
    assert not page.exists(), "none is written that nobody asked for"


def test_a_merge_does_not_fail_for_its_pictures(workshop, tmp_path, monkeypatch, caplog):
    def broken(*_, **__):
        raise MemoryError("no ink")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    with caplog.at_level(logging.WARNING, "hf_zip"):
        merged(workshop, out=tmp_path / "out")
    assert drawn(tmp_path / "out") == set()
    assert shown((tmp_path / "out" / "README.md").read_text()) == []
    assert "no picture of accuracy is drawn: no ink" in caplog.text
    assert [pair.compared for pair in read(tmp_path / "out").similarities] == ["weights"]


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_pictures_are_pushed_with_the_merge_and_older_ones_removed(folder, server):
    hf_zip.report_page(folder)
    hf_zip.push(folder, "me/zip")
    repo = server.repos["me/zip"]
    assert {name for name in repo.files() if name.endswith(".png")} == ALL
    assert PAGE_NAME not in repo.files()
    assert sorted(shown(repo.files()["README.md"].decode())) == sorted(ALL)
    assert repo.files()["hf_zip_signs.png"] == (folder / "hf_zip_signs.png").read_bytes()
    assert len(repo.messages) == 2, "one commit"
    (folder / "hf_zip_signs.png").unlink()
    hf_zip.push(folder, "me/zip")
    left = ALL - {"hf_zip_signs.png"}
    assert {name for name in repo.files() if name.endswith(".png")} == left
    assert sorted(shown(repo.files()["README.md"].decode())) == sorted(left)
