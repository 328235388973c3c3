"""Drafts of tables: right for families whose table is known, and honest about others."""

import copy

import pytest
import torch
import transformers
from torch import nn
from typer.testing import CliRunner

from hf_zip import cli
from hf_zip.adapters import adapter_for
from hf_zip.errors import HfZipError
from hf_zip.groups import merge_groups
from hf_zip.propose import propose, propose_for
from hf_zip.propose.law import check_table
from hf_zip.propose.outside import OutsideDraft
from hf_zip.propose.source import adapter_source
from hf_zip.propose.survey import Survey
from tests.laws.test_adapters import relative_change
from tests.models import random_permutations, randomise

KNOWN = (
    "vit",
    "deit",
    "beit",
    "dinov2",
    "clip_vision_model",
    "bert",
    "roberta",
    "distilbert",
    "electra",
)
# Told apart by what they do; the others are names of what is not in every class.
ROLES = ("layers", "query", "key", "value", "output", "mlp_in", "mlp_out", "block_norms")
ROLES = (*ROLES, "block_scales", "pre_norm", "key_bias", "embedding_norms", "base", "head_parts")


def config(name, **changes):
    return getattr(transformers, name)(**changes)


def entry(proposal):
    names = {}
    exec(compile(proposal.source, "draft", "exec"), names)
    return names["ENTRY"]


@pytest.mark.parametrize("family", KNOWN)
def test_the_draft_of_a_known_family_keeps_the_law(family):
    known = adapter_for(family)
    proposal = propose_for(known.example().config)
    assert not proposal.failed
    assert not any("shift" in text or "not told" in text for text in proposal.open)
    draft = entry(proposal)
    for role in ROLES:
        assert getattr(draft, role) == getattr(known, role), role
    torch.manual_seed(0)
    for adapter in (draft, known):
        model = randomise(adapter.example().double().eval())
        drafted, own = merge_groups(model, draft), merge_groups(model, known)
        assert relative_change(model, drafted, random_permutations(drafted)) <= 1e-10
        assert [(g.role, g.size, {*g.axes}) for g in drafted] == [
            (g.role, g.size, {*g.axes}) for g in own
        ]


@pytest.mark.parametrize(
    ("name", "changes", "verified"),
    [
        ("ASTConfig", {}, ["ASTModel", "ASTForAudioClassification"]),
        ("AlbertConfig", {}, ["AlbertModel", "AlbertForMaskedLM"]),
        ("DebertaV2Config", {}, ["DebertaV2Model", "DebertaV2ForTokenClassification"]),
        ("Data2VecTextConfig", {}, ["Data2VecTextForSequenceClassification"]),
        (
            "DebertaV2Config",
            {
                "relative_attention": True,
                "position_buckets": 8,
                "share_att_key": True,
                "pos_att_type": ["p2c", "c2p"],
                "norm_rel_ebd": "layer_norm",
                "position_biased_input": False,
            },
            ["DebertaV2ForSequenceClassification"],
        ),
    ],
)
def test_families_without_a_table_that_pass(name, changes, verified):
    proposal = propose_for(config(name, **changes))
    assert not proposal.failed
    assert {*verified} <= {*proposal.verified}
    draft = entry(proposal)
    model = randomise(draft.example().double().eval())
    groups = merge_groups(model, draft)
    assert check_table(model, draft) == ""
    assert {group.role for group in groups} >= {"stream", "value", "query_key", "mlp"}


def test_a_shared_block_is_told():
    assert any("runs 2 times" in text for text in propose_for(config("AlbertConfig")).open)


@pytest.mark.parametrize(
    ("name", "sentence", "problem"),
    [
        ("MPNetConfig", "relative_attention_bias.weight, of shape (32, 3), has 0", "not cover"),
        ("ModernBertConfig", "no three linear layers of a block read the same", "lacks query"),
        (
            "T5Config",
            "only some blocks have layer.0.SelfAttention.relative_att",
            "changes the outp",
        ),
        ("LlamaConfig", "a shift of all keys should leave the attention, but", "lacks mlp_in"),
        ("LlamaConfig", "mlp.gate_proj, mlp.up_proj, mlp.down_proj, and a table", "lacks mlp_in"),
        ("SiglipVisionConfig", "head.attention.in_proj_bias, of shape (36,), has 0", "not cover"),
        ("Dinov2Config", "which entry of the config says that an MLP has 48", ""),
    ],
)
def test_what_could_not_be_decided_is_said(name, sentence, problem):
    proposal = propose_for(config(name, architectures=[name.replace("Config", "Model")]))
    assert any(sentence in text for text in proposal.open), proposal.open
    assert all(problem in text for text in proposal.failed.values())
    assert bool(problem) == bool(proposal.failed)
    for text in (*proposal.open, *proposal.failed.values()):
        assert text in proposal.source


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SwinConfig", "several lists of SwinLayer, .*a table describes one stream of one width"),
        ("ResNetConfig", "ResNetModel has no list of equal blocks"),
        ("ViTMAEConfig", "ViTMAEModel draws random numbers"),
        ("WhisperConfig", r"WhisperModel does not run on random inputs \(none are known for it\)"),
        ("MobileViTConfig", "MobileViTModel cannot be made small: The hidden size"),
    ],
)
def test_families_that_no_table_can_describe_are_refused(name, message):
    with pytest.raises(HfZipError, match=message):
        propose_for(config(name))


def test_a_list_of_blocks_that_does_not_run_is_refused():
    class Spare(transformers.ViTModel):
        def __init__(self, config):
            super().__init__(config)
            self.spare = nn.ModuleList(nn.Linear(99, 99) for _ in range(2))

    model = Spare(adapter_for("vit").example().config).double().eval()
    with pytest.raises(HfZipError, match=r"'spare.0' of Spare looks like its first block, but giv"):
        Survey(model)


def test_a_layer_that_never_ran_has_no_role():
    class Spare(transformers.ViTModel):
        def __init__(self, config):
            super().__init__(config)
            self.spare = nn.Linear(config.hidden_size, 7)

    found = OutsideDraft()
    found.add(Survey(Spare(adapter_for("vit").example().config).double().eval()))
    assert "spare.weight, of shape (7, 12), belongs to a layer that never ran" in found.open
    assert not any("spare" in name for name in (*found.embeddings, *found.readers))


def test_models_of_several_kinds_of_inputs_are_refused():
    model = adapter_for("vit").example()
    with pytest.raises(HfZipError, match="that take pixel_values and input_ids are not drafted"):
        adapter_source(model, {}, ["pixel_values", "input_ids"], {})


def test_a_type_without_an_encoder_is_refused():
    class Unknown(transformers.PretrainedConfig):
        model_type = "of_tomorrow"

    with pytest.raises(HfZipError, match="transformers has no encoder of type 'of_tomorrow'"):
        propose_for(Unknown())


def test_a_wrong_table_fails_the_check():
    from dataclasses import replace

    known = adapter_for("bert")
    model = randomise(known.example().double().eval())
    assert check_table(model, known) == ""
    swapped = replace(known, value=known.query, query=known.value)
    assert "permuting all groups changes the outputs" in check_table(model, swapped)
    assert "does not cover" in check_table(model, replace(known, embedding_norms=()))
    trunk = randomise(transformers.BertModel(copy.deepcopy(model.config)).double().eval())
    assert check_table(trunk, known) == ""
    assert "permuting all groups" in check_table(trunk, swapped)


def test_the_draft_of_a_folder_is_a_file(tmp_path):
    model = transformers.ASTConfig(hidden_size=24, num_attention_heads=2)
    model.architectures = ["ASTForAudioClassification"]
    model.save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(cli.app, ["inspect", "--propose", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    assert "# Verified, ASTForAudioClassification: covered, and permuting" in result.stdout
    assert [line for line in entry_lines(result.stdout) if len(line) > 100] == []
    assert str(tmp_path) not in result.stdout
    names = {}
    exec(compile(result.stdout, "draft", "exec"), names)
    assert names["ENTRY"].model_types == ("audio-spectrogram-transformer",)


def entry_lines(text):
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_only_one_model_is_drafted_and_its_config_is_needed(tmp_path):
    with pytest.raises(HfZipError, match=r"no config of .* can be read"):
        propose(str(tmp_path))
    result = CliRunner().invoke(cli.app, ["inspect", "--propose", "a", "b"])
    assert isinstance(result.exception, HfZipError)
    assert "one model" in str(result.exception)
