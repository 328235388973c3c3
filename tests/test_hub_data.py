"""Data sets on a Hub on this machine: pulled by id and revision, and named in report and card."""

import datasets
import pytest
from datasets import Dataset
from huggingface_hub import ModelCard

import hf_zip
from hf_zip.card import render_card
from hf_zip.data import open_table
from hf_zip.errors import HfZipError
from tests.data import write_labelled
from tests.models import processor, vit
from tests.test_hub import CATS

# The client's own upload of LFS files (huggingface_hub/lfs.py) calls httpx2 as httpx2 once was.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """The server, which the library of data sets reaches too."""
    url = server.url + "/datasets/{repo_id}/resolve/{revision}/{path}"
    values = {
        "HF_ENDPOINT": server.url,
        "HUB_DATASETS_URL": url,
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_CACHE": tmp_path / "datasets",
    }
    for name, value in values.items():
        monkeypatch.setattr(datasets.config, name, value)
    return server


def add(hub, name, *folders, **options):
    """Adds a data set of files that are named by their split."""
    files = {f"data/{split}-00000-of-00001.parquet": path.read_bytes() for split, path in folders}
    return hub.add(f"datasets/{name}", files, **options)


@pytest.fixture
def tables(tmp_path):
    for name, seed in (("train", 1), ("test", 2)):
        write_labelled(tmp_path / f"{name}.parquet", CATS, count=6, seed=seed)
    return [(name, tmp_path / f"{name}.parquet") for name in ("train", "test")]


def test_data_are_pinned_and_named(hub, tables):
    first = add(hub, "me/pets", *tables)
    hub.repos["datasets/me/pets"].tags["v1"] = first
    second = add(hub, "me/pets", *reversed(tables))
    models = [vit(seed=seed, names=CATS) for seed in (1, 2)]
    result = hf_zip.merge(
        models,
        method="permute",
        tasks=["pets", "pets"],
        processor=processor(),
        calibration={"data": ["me/pets@v1"], "samples": 4},
        evaluation={"pets": "me/pets"},
        force=True,
        progress=False,
    )
    calibration, (task,) = result.report.calibration, result.report.evaluation.tasks
    assert (calibration["revision"], calibration["split"]) == (first, "train")
    assert (task.data["revision"], task.data["split"], task.samples) == (second, "test", 6)
    data = ModelCard(render_card(result.report)).data
    assert data.datasets == ["me/pets"]
    (measured,) = data.eval_results[:1]
    assert (measured.dataset_type, measured.dataset_revision) == ("me/pets", second)
    assert measured.dataset_split == "test"


def test_private_and_missing_data_are_named(hub, tables, monkeypatch):
    add(hub, "them/pets", *tables, private=True)
    for name in ("them/pets", "me/nothing", "me/nothing@v2"):
        with pytest.raises(HfZipError, match=f"data '{name}' are neither a file or folder nor a"):
            open_table(name, None, ("train",))
    monkeypatch.setenv("HF_TOKEN", "theirs")
    assert len(open_table("them/pets", None, ("train",)).rows) == 6
    with pytest.raises(HfZipError, match="unknown split of data 'them/pets' 'tset'"):
        open_table("them/pets", "tset", ("train",))


def test_data_that_are_pushed_are_read_again(hub):
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    rows.push_to_hub("me/texts", split="validation")
    table = open_table("me/texts", None, ("train", "validation"))
    assert table.rows["text"][:] == ["a", "b"]
    assert (table.split, table.revision) == (
        "validation",
        hub.repos["datasets/me/texts"].find("main"),
    )
