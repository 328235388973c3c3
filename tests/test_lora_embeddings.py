"""A merge whose words PEFT knows as embeddings, written as a LoRA."""

import copy

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

import hf_zip
from tests.models import randomise


@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning")
def test_embeddings_of_the_merge_are_not_written_beside_their_change(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_zip.record.pictures", lambda report: {})
    # With so many layers PEFT writes the last parts of their names, by which it knows embeddings.
    sizes = {"vocab_size": 17, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3}
    base = randomise(LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=3)).eval(), 1)
    base.save_pretrained(tmp_path / "base")
    models = [randomise(copy.deepcopy(base), seed) for seed in (2, 3)]
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / f"{i}")
    result = hf_zip.merge(
        [str(tmp_path / "0"), str(tmp_path / "1")],
        method="average",
        base_model=str(tmp_path / "base"),
        output="lora",
        rank=3,
        out=tmp_path / "out",
        progress=False,
    )
    origin = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(origin, tmp_path / "out").merge_and_unload()
    torch.testing.assert_close(
        loaded.model.embed_tokens.weight, result.model.model.embed_tokens.weight
    )
    assert not torch.equal(loaded.lm_head.weight, base.lm_head.weight)
