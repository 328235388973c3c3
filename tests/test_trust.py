"""Checkpoints of somebody who means harm."""

import json
import pickle

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import hf_zip
from hf_zip import cli
from hf_zip.errors import HfZipError
from hf_zip.inspection import describe
from hf_zip.pipeline import reevaluate
from hf_zip.sources import load_source
from hf_zip.sweep import sweep
from hf_zip.trust import check_inside
from tests.models import processor, vit

# The client's own upload of LFS files (huggingface_hub/lfs.py) calls httpx2 as httpx2 once was.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Harm:
    """An object that runs code when its pickle is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def folder(tmp_path):
    vit(names=["audi", "volvo"]).save_pretrained(tmp_path / "cars")
    processor().save_pretrained(tmp_path / "cars")
    return tmp_path / "cars"


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_pickle_is_read_only_if_asked_for_and_runs_nothing(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    name, recipe = str(folder), {"merge_method": "average", "models": [{"model": str(folder)}]}
    spec = {"task": "cars", "data": "x.parquet"}
    for load in (
        lambda **asked: load_source(name, **asked),
        lambda **asked: hf_zip.merge([name], method="average", **asked),
        lambda **asked: describe([name], **asked),
        lambda **asked: sweep(
            hf_zip.Recipe.from_dict({**recipe, "evaluation": [spec]}), tmp_path / "out", **asked
        ),
    ):
        with pytest.raises(HfZipError, match="a pickle, which can run code"):
            load()
        with pytest.raises(HfZipError, match="cannot be loaded as ViTForImageClassification"):
            load(allow_pickle=True)
    assert not (tmp_path / "harm").exists()


def test_a_merge_of_pickles_is_evaluated_again_if_asked_for(folder, tmp_path):
    hf_zip.merge([folder], method="average", out=tmp_path / "out")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    spec = [{"task": "cars", "data": str(tmp_path / "none.parquet")}]
    with pytest.raises(HfZipError, match="a pickle"):
        reevaluate(tmp_path / "out", spec)
    with pytest.raises(HfZipError, match=r"none\.parquet"):
        reevaluate(tmp_path / "out", spec, allow_pickle=True)


def test_the_command_asks_for_pickles(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    command = ["merge", str(folder), "--method", "average", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, command)
    assert "--allow-pickle" in str(result.exception)
    result = CliRunner().invoke(cli.app, [*command, "--allow-pickle"])
    assert "cannot be loaded" in str(result.exception)


def test_an_index_names_files_of_the_folder_only(tmp_path):
    vit().save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    index = tmp_path / "shards" / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    name = next(iter(shards))
    for place in ("../other/model.safetensors", str(tmp_path / "x.safetensors"), 3):
        edit(index, weight_map={**shards, name: place})
        with pytest.raises(
            HfZipError, match=r"index.json names the file '.*outside of the model's"
        ):
            load_source(str(tmp_path / "shards"))
    edit(index, weight_map=["model.safetensors"])
    with pytest.raises(
        HfZipError, match="should have a 'weight_map' from parameters to files, but"
    ):
        load_source(str(tmp_path / "shards"))
    index.write_text("{")
    with pytest.raises(HfZipError, match=r"model.safetensors.index.json is not valid JSON"):
        load_source(str(tmp_path / "shards"))


@pytest.mark.parametrize("relative", [False, True])
def test_a_tokenizer_reads_nothing_of_its_reader(folder, tmp_path, relative):
    (folder / "preprocessor_config.json").unlink()
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    (tmp_path / "secret").write_text("mine")
    place = "../secret" if relative else str(tmp_path / "secret")
    config = folder / "tokenizer_config.json"
    edit(config, extra=[{"vocab": place}])
    with pytest.raises(HfZipError, match=r"tokenizer_config.json names the file '.*secret', which"):
        load_source(str(folder))
    # What is no file of the reader is a text like others, and old notes are not read.
    edit(config, extra="/m/0k4j", note="a\x00/b", long="/x" * 5000, here=str(config))
    edit(config, special_tokens_map_file=place)
    assert load_source(str(folder)).processor.get_vocab() == {"[UNK]": 0, "a": 1}
    config.write_text("[]")
    check_inside(folder, "cars")


def test_code_of_a_checkpoint_is_not_run(folder, tmp_path):
    (folder / "modeling_cars.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
    code = {"AutoModelForImageClassification": "modeling_cars.Cars"}
    edit(folder / "config.json", architectures=["Cars"], auto_map=code)
    with pytest.raises(
        HfZipError, match=r"needs code of its own \(trust_remote_code\), which is not"
    ):
        load_source(str(folder))
    edit(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "modeling_cars.Cars"})
    edit(folder / "config.json", architectures=["ViTForImageClassification"])
    load_source(str(folder))
    assert not (tmp_path / "harm").exists()


def test_a_recipe_runs_nothing(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: !!python/object/apply:open [{tmp_path / 'harm'}, w]\n")
    with pytest.raises(HfZipError, match="is not valid YAML"):
        hf_zip.Recipe.from_yaml(recipe)
    assert not (tmp_path / "harm").exists()


TOKEN = "hf_markedMarkedMarkedMarked"


@pytest.mark.parametrize("status", [None, 401, 403, 412, 500])
def test_a_token_is_in_no_message_log_or_file(server, tmp_path, caplog, capfd, monkeypatch, status):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    server.tokens[TOKEN] = ("me", "write")
    caplog.set_level(0)
    if status:
        server.fail("POST", "/commit/", status, times=99, message=f"no: {status}")
    files = {}
    for name, labels in (("cars", ["audi"]), ("trees", ["oak"])):
        vit(names=labels).save_pretrained(tmp_path / name)
        content = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        server.add(f"me/{name}", content, private=True)
    command = ["merge", "me/cars", "me/trees", "--method", "average", "--force"]
    command += ["--out", str(tmp_path / "out"), "--push-to-hub", "me/zip", "--token", TOKEN]
    result = CliRunner().invoke(cli.app, command)
    assert (result.exception is None) == (status is None)
    printed = capfd.readouterr()
    seen = [result.output, str(result.exception), caplog.text, printed.out, printed.err]
    seen += [repr(record.__dict__) for record in caplog.records]
    files = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    files |= server.repos["me/zip"].files() if "me/zip" in server.repos else {}
    assert server.url == constants.ENDPOINT
    assert (not status) == ("model.safetensors" in server.repos["me/zip"].files())
    assert len(seen[2]) > 100
    assert TOKEN not in "".join(seen)
    assert [name for name, content in files.items() if TOKEN.encode() in content] == []
