"""Merges that are written as a PEFT adapter of their base."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    ViTForImageClassification,
    ViTModel,
)
from typer.testing import CliRunner

import hf_zip
from hf_zip.card import render_card
from hf_zip.cli import app
from hf_zip.errors import HfZipError
from hf_zip.extraction import extract
from hf_zip.hub import Destination, upload
from hf_zip.inspection import describe
from hf_zip.page import render_page
from hf_zip.peft_adapter import MERGED_CONFIG
from hf_zip.pipeline import export
from hf_zip.report import read
from hf_zip.save import MARKER
from tests.adapters import lora, save
from tests.models import outputs, random_inputs, vit
from tests.siblings import family
from tests.test_siblings import siblings_of
from tests.texts import VOCABULARY, bert, tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning"),
    pytest.mark.usefixtures("no_pictures"),
]
HEAD = {"modules_to_save": ["classifier", "pooler"], "task_type": "SEQ_CLS"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base without a classifier, and two LoRAs of rank 2 on it with classifiers."""
    folder = tmp_path_factory.mktemp("loras")
    base = bert(seed=90, cls=BertForMaskedLM)
    base.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    for seed, name in ((1, "a"), (2, "b")):
        model = bert(seed + 1, seed)
        model.bert.load_state_dict(base.bert.state_dict(), strict=False)
        targets = ["query", "output.dense"] if name == "a" else ["query", "value"]
        save(
            lora(model, seed, target_modules=targets, **HEAD),
            folder / name,
            folder / "base",
        )
    return folder


@pytest.fixture
def no_pictures(monkeypatch):
    """Draws nothing, which takes longer than everything else."""
    monkeypatch.setattr("hf_zip.record.pictures", lambda report: {})


def merge(folders, out=None, names="ab", **keys):
    keys = {"method": "task_arithmetic", "output": "lora", **keys}
    paths = [str(folders / name) for name in names]
    return hf_zip.merge(paths, out=out, tasks=[*names], progress=False, **keys)


def on_base(folder, base, config):
    """What a user of PEFT loads."""
    model = BertForSequenceClassification.from_pretrained(
        base, num_labels=config.num_labels, id2label=config.id2label, label2id=config.label2id
    )
    return PeftModel.from_pretrained(model, folder).eval()


def largest(first, second):
    inputs = random_inputs(first, 4, seed=3)
    return (outputs(first, inputs) - outputs(second, inputs)).abs().max().item()


def test_a_base_is_named_by_its_whole_path(folders, tmp_path, monkeypatch, no_pictures):
    monkeypatch.chdir(folders)
    merge(folders, tmp_path / "out", base_model="base")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str((folders / "base").resolve())
    assert '    "base",  # its folder' in (tmp_path / "out" / "README.md").read_text()


def test_a_sum_of_loras_is_a_lora_of_their_ranks(folders, tmp_path):
    out = tmp_path / "out"
    result = merge(folders, out)
    whole = merge(folders, output="model").model
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["r"] == settings["lora_alpha"] == 4
    assert settings["base_model_name_or_path"] == str(folders / "base")
    assert settings["task_type"] == "SEQ_CLS"
    assert settings["bias"] == "none"
    assert {name.rpartition(".")[2] for name in settings["target_modules"]} == {
        "query",
        "value",
        "dense",
    }
    assert {"bert.pooler.dense", "classifier"} <= {*settings["modules_to_save"]}
    loaded = on_base(out, folders / "base", result.model.config)
    assert type(loaded).__name__ == "PeftModelForSequenceClassification"
    assert largest(whole, loaded) < 1e-5
    found = read(out).adapter
    assert found.rank == 4
    assert found.modules == 8
    assert found.error < 1e-5
    auto = AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=5).eval()
    assert largest(whole, auto) < 1e-5
    assert (out / "tokenizer.json").is_file()
    assert not (out / "config.json").is_file()


def test_it_is_a_merge_and_a_source_like_others(folders, tmp_path):
    out = tmp_path / "out"
    result = merge(folders, out)
    text = describe([str(out)])
    assert "a merge by task_arithmetic of the tasks a (2), b (3)" in text
    assert f"an adapter of {folders / 'base'}" in text
    assert "a/LABEL_0, a/LABEL_1, b/LABEL_0" in text
    export(out, "b", tmp_path / "b")
    cut = BertForSequenceClassification.from_pretrained(tmp_path / "b")
    assert cut.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    again = merge(tmp_path, method="average", output="model", names=["out"]).model
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter, result.model.get_parameter(name))


def test_the_command_line_writes_an_adapter_of_a_rank(folders, tmp_path):
    names = [str(folders / name) for name in "ab"]
    command = ["merge", *names, "--method", "average", "--task", "a", "--task", "b"]
    command += ["--output", "lora", "--rank", "3", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 3


@pytest.mark.parametrize("method", ["average", "ties", "tsv", "iso_c", "slerp", "knots", "regmean"])
def test_every_method_gives_an_adapter_of_a_rank(folders, tmp_path, method):
    keys = {"calibration": ["good w0 w1", "bad w2"]} if method == "regmean" else {}
    merge(folders, tmp_path / "out", method=method, rank=3, **keys)
    whole = merge(folders, method=method, output="model", **keys).model
    found = read(tmp_path / "out").adapter
    base = BertForMaskedLM.from_pretrained(folders / "base")
    source = hf_zip.merge([str(tmp_path / "out")], method="average", progress=False).model
    lost = changed = 0.0
    for name, own in whole.bert.named_parameters():
        if name.endswith("weight") and own.dim() == 2 and "pooler" not in name:
            delta = (own - base.bert.get_parameter(name)).double()
            near = (source.bert.get_parameter(name) - base.bert.get_parameter(name)).double()
            left = torch.linalg.svdvals(delta)[3:].square().sum()
            assert (delta - near).norm().item() == pytest.approx(left.sqrt().item(), abs=2e-5)
            lost, changed = lost + left.item(), changed + delta.square().sum().item()
    assert found.error == pytest.approx((lost / changed) ** 0.5, rel=1e-2, abs=1e-5)
    assert found.worst_error >= found.error
    assert found.rank == 3
    card = (tmp_path / "out" / "README.md").read_text()
    assert "PeftModel.from_pretrained" in card
    assert "library_name: peft" in card
    assert "rank 3" in card


def test_a_full_fine_tune_keeps_whole_what_no_lora_holds(tmp_path):
    base, models = family(2, cls=BertModel)
    base.save_pretrained(tmp_path / "base")
    for name, model in zip("ab", models, strict=True):
        model.save_pretrained(tmp_path / name)
    keys = {"base_model": str(tmp_path / "base")}
    result = merge(tmp_path, tmp_path / "out", rank=12, **keys)
    loaded = on_base(tmp_path / "out", tmp_path / "base", result.model.config)
    whole = merge(tmp_path, output="model", **keys).model
    assert largest(result.model, loaded) < 1e-5
    assert largest(whole, loaded) < 1e-4
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["bias"] == "all"
    assert "bert.embeddings.word_embeddings" in settings["target_modules"]
    assert "bert.encoder.layer.0.output.LayerNorm" in settings["modules_to_save"]
    with pytest.raises(HfZipError, match=r"without a rank, .* has the rank 12 of 12, .* rank: 16"):
        merge(tmp_path, **keys)


def test_parameters_outside_of_layers_are_kept_with_their_module(tmp_path):
    base = vit(seed=90)
    for name, model in zip("ab", siblings_of(base), strict=True):
        model.save_pretrained(tmp_path / name)
    base.save_pretrained(tmp_path / "base")
    result = merge(
        tmp_path, tmp_path / "out", rank=2, base_model=str(tmp_path / "base"), dtype="bfloat16"
    )
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert "vit.embeddings" in settings["modules_to_save"]
    assert settings["auto_mapping"]["base_model_class"] == "ViTForImageClassification"
    held = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
    model = ViTForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=4, ignore_mismatched_sizes=True
    )
    loaded = PeftModel.from_pretrained(model, tmp_path / "out").eval()
    assert largest(result.model, loaded) < 1e-4
    assert 0.1 < result.report.adapter.error < 1
    assert type(result.model.vit) is ViTModel


REFUSED = {
    "a method that moves features": (
        {"method": "permute", "calibration": ["a text", "another text"]},
        "output is lora, .*'permute' moves features.*use one of .*'average'",
    ),
    "weights per task": ({"method": "emr"}, "'emr' gives every task weights of its own, which"),
    "a partial zip": ({"stop_at": 1}, "output is lora, .*stop_at is 1, and a partial zip is no"),
    "no base": (
        {"method": "average", "names": ["base", "base"]},
        "the models are not adapters of one base, and none is named",
    ),
    "a base in memory": (
        {"base_model": bert(seed=90, cls=BertForMaskedLM)},
        "the base is in memory, and an adapter names its base",
    ),
    "an adapter as the base": ({"base_model": "a"}, "base_model '.*a' is an adapter itself"),
    "a rank without an adapter": (
        {"output": "model", "rank": 3},
        "rank is that of an adapter; use output: lora, or leave rank out",
    ),
    "no rank": ({"rank": 0}, "rank is 0; it should be at least 1"),
    "the lane that streams": ({"lane": "stream"}, "cannot be streamed: it is written as an ad"),
    "nothing changed": (
        {"parameters": {"scaling": 0.0}},
        "the merge changed no matrix of its base, so there is nothing",
    ),
}


@pytest.mark.parametrize(("keys", "message"), REFUSED.values(), ids=[*REFUSED])
def test_what_cannot_be_an_adapter_is_refused(folders, tmp_path, keys, message):
    if isinstance(keys.get("base_model"), str):
        keys = {**keys, "base_model": str(folders / keys["base_model"])}
    with pytest.raises(HfZipError, match=message):
        merge(folders, tmp_path / "out", **keys)
    assert not (tmp_path / "out").exists()


def test_tied_matrices_and_loose_parameters_are_refused():
    model = bert(seed=1, cls=BertForMaskedLM)
    base = {name: own.detach().clone() for name, own in model.named_parameters()}
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.add_(0.1)
    with pytest.raises(HfZipError, match=r"word_embeddings.weight, which is tied to cls.pred"):
        extract(model, base, 2)
    with torch.no_grad():
        model = vit(seed=1).vit
        model.register_parameter("loose", torch.nn.Parameter(torch.ones(3)))
        state = {name: own.detach().clone() for name, own in model.named_parameters()}
        model.loose.add_(1)
    with pytest.raises(HfZipError, match=r"'loose' of ViTModel changed, which belong to no module"):
        extract(model, state, 2)


def test_words_in_another_order_are_refused(folders, tmp_path):
    base = bert(seed=90, cls=BertForMaskedLM)
    order = [0, 1, 2, 3, 4, *reversed(range(5, len(VOCABULARY)))]
    with torch.no_grad():
        weight = base.bert.embeddings.word_embeddings.weight
        weight.copy_(weight[order].clone())
    base.save_pretrained(tmp_path / "other")
    tokenizer([VOCABULARY[i] for i in order]).save_pretrained(tmp_path / "other")
    with pytest.raises(HfZipError, match="has its words in another order than the models"):
        merge(folders, base_model=str(tmp_path / "other"))


def test_another_base_under_the_same_name_is_found_out(folders, tmp_path, monkeypatch):
    out = tmp_path / "out"
    merge(folders, out)
    before = (out / "adapter_model.safetensors").read_bytes()

    def damaged(self, folder, *args, **kwargs):
        real(self, folder, *args, **kwargs)
        file = folder / "adapter_model.safetensors"
        held = load_file(file)
        name = next(iter(held))
        save_file({**held, name: held[name] + 1}, file)

    real = PeftModel.save_pretrained
    monkeypatch.setattr(PeftModel, "save_pretrained", damaged)
    with pytest.raises(HfZipError, match="with the adapter differs from the merge in 'bert"):
        merge(folders, out)
    monkeypatch.setattr(
        PeftModel,
        "save_pretrained",
        lambda self, folder, **_: (folder / "adapter_config.json").write_text("{"),
    )
    with pytest.raises(HfZipError, match=r"the adapter does not load on .*; nothing was replaced"):
        merge(folders, out)
    assert (out / "adapter_model.safetensors").read_bytes() == before


def test_card_and_page_tell_what_it_is_an_adapter_of(folders, tmp_path):
    merge(folders, tmp_path / "out", rank=1)
    report = read(tmp_path / "out")
    adapter = replace(report.adapter, base="org/base", revision="c0ffee")
    card = render_card(replace(report, adapter=adapter), "user/merge")
    code = card.partition("```python\n")[2].partition("```")[0]
    assert '"org/base", revision="c0ffee",' in code
    assert 'PeftModel.from_pretrained(base, "user/merge")' in code
    assert "a/LABEL_0" in code
    compile(code, "card", "exec")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["base_model"] == ["org/base"]
    assert head["base_model_relation"] == "adapter"
    assert "lora" in head["tags"]
    said = f"of rank 1 on 8 matrices of its base, which leaves out {100 * adapter.error:.1f} %"
    assert said in render_page(report)
    local = render_card(report)
    assert str(tmp_path) not in local
    assert "base_model:" not in local.split("---\n")[1]


def test_an_adapter_of_a_folder_here_is_not_pushed(folders, tmp_path):
    merge(folders, tmp_path / "out")
    assert (tmp_path / "out" / MERGED_CONFIG).is_file()
    assert (tmp_path / "out" / MARKER).is_file()
    with pytest.raises(HfZipError, match=r"an adapter of '.*base', a folder here, so nobody could"):
        upload(tmp_path / "out", read(tmp_path / "out"), Destination("user/repo"))
