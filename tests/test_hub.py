"""Merges pushed to a Hub on this machine, and loaded from it by id."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import _http
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import hf_zip
from hf_zip import cli, hub
from hf_zip.errors import HfZipError
from hf_zip.hub import Destination
from hf_zip.merged import load_merge
from hf_zip.report import REPORT_NAME
from hf_zip.save import MARKER
from hf_zip.sources import load_source
from tests.data import random_images
from tests.launch import torchrun
from tests.models import images, processor, vit
from tests.remote import without_hf_zip

# The client's own upload of LFS files (huggingface_hub/lfs.py) calls httpx2 as httpx2 once was.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CATS, TREES = ["cat", "dog", "cow"], ["oak", "elm"]


@pytest.fixture
def no_waiting(monkeypatch):
    """The client's retries follow at once."""
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    """A native merge and a partial zip of two ViTs, in folders."""
    folder = tmp_path_factory.mktemp("private")
    for name, labels, seed in (("pets", CATS, 1), ("trees", TREES, 2)):
        vit(seed=seed, names=labels).save_pretrained(folder / name)
        processor().save_pretrained(folder / name)
    sources = [folder / "pets", folder / "trees"]
    for out, options in (("native", {}), ("partial", {"stop_at": 1})):
        hf_zip.merge(sources, method="average", force=True, out=folder / out, **options)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


FRESH = """
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
image, found = Image.open("image.png"), {}
for name, trust in (("native", False), ("partial", True)):
    model = AutoModelForImageClassification.from_pretrained("me/" + name, trust_remote_code=trust)
    assert AutoImageProcessor.from_pretrained("me/" + name).size["height"] == 8
    answers = pipeline("image-classification", "me/" + name, trust_remote_code=trust, top_k=None)
    scores = {answer["label"]: answer["score"] for answer in answers(image)}
    found[name] = [model(**inputs).logits, scores]
"""


def test_what_is_pushed_loads_by_id_where_hf_zip_is_not(merges, server, tmp_path):
    for name in ("native", "partial"):
        address = hf_zip.push(merges / name, f"me/{name}")
        commit = server.repos[f"me/{name}"].find("main")
        assert address == f"{server.url}/me/{name}/commit/{commit}"
    inputs = images(vit(), 5)
    image = random_images(1)[0]
    image.save(tmp_path / "image.png")
    found = without_hf_zip(FRESH, tmp_path, inputs=inputs)
    for name in ("native", "partial"):
        model, prepared = load_merge(merges / name)
        logits, scores = found[name]
        torch.testing.assert_close(logits, model(**inputs).logits)
        shares = model(**prepared(image, return_tensors="pt")).logits[0].softmax(-1).tolist()
        assert scores == pytest.approx(dict(zip(CATS + TREES, shares, strict=True)), abs=1e-6)


@pytest.mark.parametrize("kind", ["native", "partial"])
def test_all_that_a_merge_wrote_is_one_commit_and_nothing_else(merges, server, tmp_path, kind):
    (merges / kind / ".secret").write_text("mine")
    (merges / kind / "test.parquet").write_text("mine")
    before = contents(merges / kind)
    hf_zip.push(merges / kind, "me/zip")
    repo = server.repos["me/zip"]
    assert repo.messages == ["initial commit", "Upload a merge by hf_zip"]
    pushed = repo.files()
    assert pushed.keys() == before.keys() - {".secret", "test.parquet"} | {".gitattributes"}
    same = pushed.keys() - {MARKER, REPORT_NAME, "README.md", ".gitattributes"}
    assert {name: pushed[name] for name in same} == {name: before[name] for name in same}
    assert contents(merges / kind) == before


def test_no_local_path_is_published_and_the_card_names_the_repository(merges, server):
    hf_zip.push(merges / "native", "me/zip")
    pushed = server.repos["me/zip"].files()
    where = str(merges).encode()
    assert where in (merges / "native" / MARKER).read_bytes()
    assert [name for name, content in pushed.items() if where in content] == []
    recipe = yaml.safe_load(pushed[MARKER])
    assert [model["model"] for model in recipe["models"]] == ["pets", "trees"]
    assert json.loads(pushed[REPORT_NAME])["recipe"] == recipe
    assert b'"me/zip"' in pushed["README.md"]
    assert server.sent("POST", "/api/validate-yaml")


def test_a_merge_in_memory_is_pushed_with_all_that_belongs_to_it(server):
    result = hf_zip.merge(
        [vit(seed=1, names=CATS), vit(seed=2, names=TREES)],
        method="average",
        tasks=["pets", "trees"],
        processor=processor(),
        force=True,
    )
    address = result.push_to_hub("me/zip", private=True, commit_message="A first try")
    assert address.startswith(f"{server.url}/me/zip/commit/")
    repo = server.repos["me/zip"]
    assert repo.private
    assert repo.messages[-1] == "A first try"
    assert {MARKER, REPORT_NAME, "README.md", "config.json", "model.safetensors"} <= {*repo.files()}
    assert "preprocessor_config.json" in repo.files()
    loaded = load_source("me/zip")
    for name, parameter in result.model.named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), parameter)


def test_a_newer_merge_replaces_an_older_one_as_a_whole(merges, server):
    hf_zip.push(merges / "partial", "me/zip")
    server.repos["me/zip"].refs["old"] = server.repos["me/zip"].find("main")
    server.add("me/zip", {**server.repos["me/zip"].files(), "notes.md": b"mine", "d/x.py": b""})
    hf_zip.push(merges / "native", "me/zip")
    pushed = server.repos["me/zip"].files()
    assert "modeling_hf_zip.py" in server.repos["me/zip"].files("old")
    assert "modeling_hf_zip.py" not in pushed
    assert {"notes.md", "d/x.py"} <= pushed.keys()
    assert load_source("me/zip").architecture == "ViTForImageClassification"


def test_pushing_the_same_again_makes_no_commit(merges, server):
    first = hf_zip.push(merges / "native", "me/zip")
    assert hf_zip.push(merges / "native", "me/zip") == first
    assert len(server.repos["me/zip"].messages) == 2


def test_a_branch_is_made_and_main_is_left(merges, server):
    hf_zip.push(merges / "partial", "me/zip", revision="v2")
    repo = server.repos["me/zip"]
    assert "modeling_hf_zip.py" in repo.files("v2")
    hf_zip.push(merges / "native", "me/zip", revision="v2")
    assert "modeling_hf_zip.py" not in repo.files("v2")
    assert [*repo.files()] == [".gitattributes"]
    assert load_source("me/zip@v2").revision == repo.find("v2")


def test_the_usage_code_names_the_branch(merges, server):
    hf_zip.push(merges / "native", "me/zip", revision="v2")
    card = server.repos["me/zip"].files("v2")["README.md"].decode()
    assert 'from_pretrained("me/zip", revision="v2")' in card
    assert 'pipeline("image-classification", model="me/zip", revision="v2")' in card
    hf_zip.push(merges / "native", "me/zip")
    assert b"revision=" not in server.repos["me/zip"].files()["README.md"]


def test_what_was_pushed_at_the_same_time_is_not_mixed_with_a_merge(merges, server, monkeypatch):
    preupload = HfApi.preupload_lfs_files

    def meanwhile(api, *arguments, **options):
        server.add("me/zip", {"modeling_theirs.py": b"theirs"})
        return preupload(api, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "preupload_lfs_files", meanwhile)
        with pytest.raises(HfZipError, match="somebody else pushed to 'me/zip' at the same time"):
            hf_zip.push(merges / "native", "me/zip")
    assert [*server.repos["me/zip"].files()] == ["modeling_theirs.py"]


def test_a_pull_request_leaves_main_and_may_go_to_others(merges, server):
    server.add("them/zip", {".gitattributes": b""})
    address = hf_zip.push(merges / "native", "them/zip", create_pr=True)
    assert address == f"{server.url}/them/zip/discussions/1"
    repo = server.repos["them/zip"]
    assert [*repo.files()] == [".gitattributes"]
    assert MARKER in repo.files("refs/pr/1")
    folder = snapshot_download("them/zip", revision="refs/pr/1")
    assert (Path(folder) / "model.safetensors").is_file()


def requests_of_a_push():
    """What a push asks of the Hub, in order, each address once, as patterns."""
    return [
        ("POST", "/repos/create"),
        ("GET", "/api/models/me/zip"),
        ("POST", "/validate-yaml"),
        ("POST", "/preupload/"),
        ("POST", "/lfs/objects/batch"),
        ("PUT", "/objects/"),
        ("POST", "/verify"),
        ("POST", "/commit/"),
    ]


def test_nothing_else_is_asked_in_a_push(merges, server):
    hf_zip.push(merges / "native", "me/zip")
    asked = [
        next(known for known in requests_of_a_push() if known[0] == method and known[1] in path)
        for method, path in server.requests
    ]
    assert list(dict.fromkeys(asked)) == requests_of_a_push()


@pytest.mark.parametrize("fault", ["error", "drop"])
@pytest.mark.parametrize(("method", "place"), requests_of_a_push())
def test_a_push_that_fails_leaves_no_half_commit_and_works_again(
    merges, server, no_waiting, method, place, fault
):
    before = contents(merges / "native")
    fail = server.fail if fault == "error" else server.drop
    fail(method, place, times=99)  # the client itself tries some requests six times
    with pytest.raises(HfZipError, match=r"pushing to 'me/zip' failed: .* push again"):
        hf_zip.push(merges / "native", "me/zip")
    assert [m for repo in server.repos.values() for m in repo.messages] in ([], ["initial commit"])
    assert contents(merges / "native") == before
    server.faults.clear()
    hf_zip.push(merges / "native", "me/zip")
    assert MARKER in server.repos["me/zip"].files()
    assert len(server.repos["me/zip"].messages) == 2


def test_a_full_quota_is_said_in_the_words_of_the_hub(merges, server):
    server.fail("POST", "/lfs/", 403, message="Private repository storage limit reached")
    with pytest.raises(HfZipError, match=r"'me/zip' \(Private repository storage limit reached\)"):
        hf_zip.push(merges / "native", "me/zip")


def test_a_connection_that_drops_once_in_an_upload_is_taken_up_again(merges, server, no_waiting):
    server.drop("PUT", "/objects/")
    hf_zip.push(merges / "native", "me/zip")
    assert len(server.sent("PUT", "/objects/")) == 2
    assert load_source("me/zip").model is not None


def test_a_slow_hub_is_waited_for(merges, server):
    for method, place in (("PUT", "/objects/"), ("POST", "/commit/"), ("GET", "/api/models/")):
        server.slow(method, place, seconds=0.2)
    hf_zip.push(merges / "native", "me/zip")
    assert not any(fault.times for fault in server.faults)
    assert MARKER in server.repos["me/zip"].files()


@pytest.mark.slow
def test_the_command_line_of_the_hub_downloads_what_was_pushed(merges, server, tmp_path):
    hf_zip.push(merges / "partial", "me/zip")
    hf = Path(sys.executable).with_name("hf")
    command = [hf, "download", "me/zip", "--local-dir", tmp_path / "zip"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pushed = server.repos["me/zip"].files()
    assert {name: (tmp_path / "zip" / name).read_bytes() for name in pushed} == pushed


def test_an_interrupted_push_leaves_everything_and_works_again(merges, server, monkeypatch):
    before = contents(merges / "native")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "preupload_lfs_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hf_zip.push(merges / "native", "me/zip")
    assert contents(merges / "native") == before
    assert server.repos["me/zip"].messages == ["initial commit"]
    hf_zip.push(merges / "native", "me/zip")


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("wrong", "me/zip", "'me/zip' cannot be written without a token.*`hf auth login`"),
        (False, "me/zip", "'me/zip' cannot be written without a token.*`hf auth login`"),
        ("reader", "me/zip", r"your token may not write to 'me/zip' \(You don't have the rights"),
        (
            "mine",
            "them/zip",
            r"your token may not write to 'them/zip' \(.*\); log in with `hf auth",
        ),
    ],
)
def test_a_token_without_the_right_is_refused(merges, server, token, repo_id, message):
    with pytest.raises(HfZipError, match=message) as refused:
        hf_zip.push(merges / "native", repo_id, token=token)
    assert "wrong" not in str(refused.value)
    assert server.repos == {}
    assert "wrong" not in repr(Destination(repo_id, token="wrong"))


def test_a_branch_that_is_missing_is_named(merges, server):
    with pytest.raises(HfZipError, match=r"there is no repository 'me/zip' or no branch 'refs/pr"):
        hf_zip.push(merges / "native", "me/zip", revision="refs/pr/7")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repo_id": "a/b/c"}, "'a/b/c' is not a repository id: .*Give user/name"),
        ({"repo_id": "me/z p"}, "'me/z p' is not a repository id"),
        ({"repo_id": "zip"}, "'zip' is not a repository id, as it names no owner; give user/zip"),
        (
            {"repo_id": "me/zip", "create_pr": True, "revision": "v2"},
            "a pull request goes to the main branch, but the revision is 'v2'",
        ),
    ],
)
def test_a_destination_that_is_none_is_refused(values, message):
    with pytest.raises(HfZipError, match=message):
        Destination(**values)


def test_what_is_not_a_merge_is_not_pushed(merges, server):
    for folder in (merges / "pets", merges / "nowhere"):
        with pytest.raises(HfZipError, match=f"holds no {MARKER}; give a folder that a merge"):
            hf_zip.push(folder, "me/zip")
    assert server.requests == []


def test_a_damaged_folder_is_not_pushed(merges, server, tmp_path):
    for name, content in contents(merges / "native").items():
        (tmp_path / name).write_bytes(content)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("classifier.bias")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(HfZipError, match=r"classifier\.bias"):
        hf_zip.push(tmp_path, "me/zip")
    (tmp_path / REPORT_NAME).unlink()
    with pytest.raises(HfZipError, match=f"holds no {REPORT_NAME}"):
        hf_zip.push(tmp_path, "me/zip")
    assert server.requests == []


def test_somebody_elses_model_is_not_overwritten(merges, server):
    server.add("me/zip", contents(merges / "pets"))
    before = server.repos["me/zip"].files()
    with pytest.raises(HfZipError, match=f"holds 'config.json', .* and no {MARKER}, so it is not"):
        hf_zip.push(merges / "native", "me/zip")
    assert server.repos["me/zip"].files() == before


def test_what_should_be_private_does_not_go_where_all_can_see_it(merges, server):
    hf_zip.push(merges / "native", "me/zip")
    with pytest.raises(HfZipError, match="'me/zip' exists and is public, but the merge should be"):
        hf_zip.push(merges / "partial", "me/zip", private=True)
    hf_zip.push(merges / "native", "me/hidden", private=True)
    hf_zip.push(merges / "native", "me/hidden", private=True)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token="theirs").model_info("me/hidden")


def test_a_hub_out_of_reach_is_said(merges, monkeypatch):
    with pytest.raises(HfZipError, match=r"pushing to 'me/zip' failed: .*offline mode is enabled"):
        hf_zip.push(merges / "native", "me/zip")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HfZipError, match=r"pushing to 'me/zip' failed: .*refused.* connection"):
        hf_zip.push(merges / "native", "me/zip", token=False)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_the_command_pushes(merges, server):
    result = run("push", merges / "native", "me/zip", "--private", "--revision", "v2")
    assert result.exit_code == 0, result.exception
    repo = server.repos["me/zip"]
    assert result.stdout == f"pushed to {server.url}/me/zip/commit/{repo.find('v2')}\n"
    assert repo.private
    result = run("push", merges / "native", "me/zip", "--create-pr", "--token", "mine")
    assert result.stdout == f"pushed to {server.url}/me/zip/discussions/1\n"
    result = run("push", merges / "native", "me/zip", "--token", "theirs")
    assert result.exit_code == 1
    assert isinstance(result.exception, HfZipError)


def test_merge_pushes_what_it_wrote(merges, server, tmp_path):
    sources = [merges / "pets", merges / "trees", "--method", "average", "--force"]
    result = run("merge", *sources, "--out", tmp_path / "out", "--push-to-hub", "me/zip")
    assert result.exit_code == 0, result.exception
    assert result.stdout.splitlines()[-2] == f"wrote {tmp_path / 'out'}"
    assert result.stdout.splitlines()[-1].startswith(f"pushed to {server.url}/me/zip/commit/")
    assert contents(tmp_path / "out").keys() < server.repos["me/zip"].files().keys()
    hidden = ["--push-to-hub", "me/hidden", "--private", "--revision", "v2", "--token", "mine"]
    result = run("merge", *sources, "--out", tmp_path / "out", *hidden)
    assert result.exit_code == 0, result.exception
    assert server.repos["me/hidden"].private
    assert MARKER in server.repos["me/hidden"].files("v2")
    assert MARKER not in server.repos["me/hidden"].files()
    result = run(
        "merge", *sources, "--out", tmp_path / "out", "--push-to-hub", "me/zip", "--create-pr"
    )
    assert result.stdout.splitlines()[-1] == f"pushed to {server.url}/me/zip/discussions/1"
    for option in (["--private"], ["--create-pr"], ["--revision", "v2"], ["--token", "mine"]):
        result = run("merge", *sources, "--out", tmp_path / "none", *option)
        assert "say how to upload the merge; give --push-to-hub" in str(result.exception)
    assert not (tmp_path / "none").exists()


def test_merge_does_not_begin_without_a_token(merges, server, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    sources = [merges / "pets", merges / "trees", "--method", "average", "--force"]
    for repo_id, message in (("me/zip", "without a token"), ("zip", "names no owner")):
        result = run("merge", *sources, "--out", tmp_path / "out", "--push-to-hub", repo_id)
        assert isinstance(result.exception, HfZipError)
        assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


PUSHES = """
import sys
import hf_zip
from hf_zip.collect import make_accelerator
address = hf_zip.push(sys.argv[1], "me/zip")
assert (address is not None) == make_accelerator().is_main_process
make_accelerator().wait_for_everyone()
"""


@pytest.mark.slow
def test_of_several_processes_one_pushes(merges, server, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PUSHES)
    torchrun(script, merges / "native", processes=2)
    assert len(server.sent("POST", "/commit/")) == 1


def test_other_processes_than_the_main_one_do_not_push_a_result(server, monkeypatch):
    sources = [vit(seed=1, names=CATS), vit(seed=2, names=TREES)]
    result = hf_zip.merge(sources, method="average", tasks=["pets", "trees"], force=True)
    assert hf_zip.pipeline.replace(result, is_main_process=False).push_to_hub("me/zip") is None
    monkeypatch.setattr(hub, "make_accelerator", lambda: type("A", (), {"is_main_process": False}))
    assert hf_zip.push("nowhere", "me/zip") is None
    assert server.requests == []
