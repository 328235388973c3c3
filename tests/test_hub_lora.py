"""A merge that is an adapter, pushed to a Hub on this machine and loaded from it by PEFT."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import hf_api, hf_hub_download
from peft import AutoPeftModelForSequenceClassification, PeftConfig
from transformers import BertForMaskedLM

import hf_zip
from hf_zip.peft_adapter import MERGED_CONFIG
from tests.adapters import lora, save
from tests.models import outputs, random_inputs
from tests.test_lora_output import HEAD
from tests.texts import bert, tokenizer

pytestmark = [
    # The client's own upload of LFS files (huggingface_hub/lfs.py) calls httpx2 as it once was.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning"),
]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def sources(server, tmp_path, monkeypatch):
    """The commits of a base and of two LoRAs that name it, on the Hub."""
    # PEFT asks by the functions of the package, whose client was made when it was imported.
    monkeypatch.setattr(hf_api.api, "endpoint", server.url)
    base = bert(seed=90, cls=BertForMaskedLM)
    base.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    commits = {"base": server.add("org/base", content(tmp_path / "base"))}
    for seed, name in ((1, "a"), (2, "b")):
        model = bert(seed + 1, seed)
        model.bert.load_state_dict(base.bert.state_dict(), strict=False)
        save(lora(model, seed, **HEAD), tmp_path / name, "org/base")
        commits[name] = server.add(f"org/{name}", content(tmp_path / name))
    return commits


def test_an_adapter_of_a_base_on_the_hub_is_pushed_and_loaded_by_its_id(server, sources, tmp_path):
    out = tmp_path / "out"
    result = hf_zip.merge(
        ["org/a", "org/b"],
        method="task_arithmetic",
        tasks=["a", "b"],
        output="lora",
        out=out,
        progress=False,
    )
    address = hf_zip.push(out, "me/merge")
    assert address.startswith(f"{server.url}/me/merge/commit/")
    pushed = server.repos["me/merge"].files()
    expected = {path.name for path in out.iterdir() if path.is_file()}
    assert expected <= pushed.keys()
    assert MERGED_CONFIG in pushed

    settings = PeftConfig.from_pretrained("me/merge")
    assert settings.base_model_name_or_path == "org/base"
    assert settings.revision == sources["base"]
    # A later commit of the base is another model, which the adapter is not of.
    other = bert(seed=91, cls=BertForMaskedLM)
    other.save_pretrained(tmp_path / "base")
    server.add("org/base", content(tmp_path / "base"))
    auto = AutoPeftModelForSequenceClassification.from_pretrained("me/merge", num_labels=5)
    inputs = random_inputs(result.model, 4, seed=3)
    expected = outputs(result.model, inputs)
    torch.testing.assert_close(outputs(auto.eval(), inputs), expected)

    card = Path(hf_hub_download("me/merge", "README.md")).read_text(encoding="utf-8")
    assert str(tmp_path) not in card
    assert "base_model:\n- org/base\n" in card
    code, names = card.partition("```python\n")[2].partition("```")[0], {}
    exec(code, names)  # what the card says that users should do
    torch.testing.assert_close(outputs(names["model"].eval(), inputs), expected)
    assert names["model"].config.id2label == result.model.config.id2label
    assert names["model"].config.label2id == result.model.config.label2id

    # It is a source like others, by its id.
    again = hf_zip.merge(["me/merge"], method="average", progress=False).model
    torch.testing.assert_close(outputs(again, inputs), expected)
    config = json.loads(pushed[MERGED_CONFIG])
    assert [task["name"] for task in config["hf_zip"]["tasks"]] == ["a", "b"]
