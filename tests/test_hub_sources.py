"""Models to merge, pulled from a Hub on this machine by id and revision."""

import pytest
import torch
from huggingface_hub import HfApi

import hf_zip
from hf_zip.errors import HfZipError
from hf_zip.sources import load_source
from tests.models import processor, vit

CATS, TREES = ["cat", "dog", "cow"], ["oak", "elm"]


@pytest.fixture
def files(tmp_path):
    """What a repository holds of a model."""

    def of(**options):
        folder = tmp_path / "model"
        vit(**options).save_pretrained(folder)
        processor().save_pretrained(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    return of


def test_revisions_are_branches_tags_and_commits(files, server):
    first = server.add("me/pets", files(seed=1))
    HfApi().create_tag("me/pets", tag="v1")
    HfApi().create_branch("me/pets", branch="old")
    second = server.add("me/pets", files(seed=3))
    found = {r: load_source(f"me/pets@{r}") for r in ("v1", "old", first, "main")}
    assert [source.revision for source in found.values()] == [first, first, first, second]
    for name, seed in (("v1", 1), ("main", 3)):
        assert torch.equal(found[name].model.classifier.weight, vit(seed=seed).classifier.weight)
    assert found["main"].name == "pets"
    with pytest.raises(HfZipError, match="'me/pets' has no revision 'v2' on the Hub"):
        load_source("me/pets@v2")


def test_a_merge_pins_the_commits_of_its_sources(files, server):
    pets = server.add("org/pets", files(seed=1, names=CATS))
    trees = server.add("org/trees", files(seed=2, names=TREES))
    server.add("org/trees", files(seed=4, names=TREES))
    sources = ["org/pets", f"org/trees@{trees}"]
    result = hf_zip.merge(sources, method="average", force=True, progress=False)
    assert [source.revision for source in result.report.sources] == [pets, trees]
    pinned = [f"org/pets@{pets}", f"org/trees@{trees}"]
    assert [spec.model for spec in result.recipe.models] == pinned
    again = hf_zip.merge(result.recipe, force=True, progress=False)
    for name, parameter in result.model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), parameter)


def test_a_base_is_pinned_and_linked(files, server, tmp_path):
    server.add("org/pets", files(seed=1, names=CATS))
    server.add("org/trees", files(seed=2, names=TREES))
    base = server.add("org/base", files(seed=3))
    server.add("org/base", files(seed=4))
    result = hf_zip.merge(
        ["org/pets", "org/trees"],
        method="ties",
        base_model=f"org/base@{base}",
        force=True,
        progress=False,
        out=tmp_path / "out",
    )
    assert result.report.base.revision == base
    assert result.recipe.base_model == f"org/base@{base}"
    again = hf_zip.merge(result.recipe, force=True, progress=False)
    for name, parameter in result.model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), parameter)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"base model base: <https://huggingface.co/org/base>, `{base}`, licence" in card


def test_a_private_source_needs_a_token(files, server, monkeypatch):
    server.add("me/secret", files(), private=True)
    with pytest.raises(HfZipError, match="nor a repository on the Hub that you may read"):
        load_source("me/secret", token="theirs")
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        with pytest.raises(HfZipError, match=r"log in with `hf auth login` if it is private"):
            load_source("me/secret")
    assert load_source("me/secret").name == "secret"


def test_what_is_on_no_hub_is_refused(server):
    with pytest.raises(HfZipError, match="'me/nothing' is neither a folder nor a repository"):
        load_source("me/nothing")


def test_a_download_that_fails_works_again(files, server):
    server.add("me/pets", files())
    for place in (r"/api/models/me/pets", r"\.safetensors"):
        server.fail("GET", place)
        with pytest.raises(HfZipError, match="neither in reach nor in the cache"):
            load_source("me/pets")
    assert load_source("me/pets").revision == server.repos["me/pets"].find("main")
