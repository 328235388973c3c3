"""PEFT adapters as models to merge: merged into their bases exactly, and named with them."""

import json
import re
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
    ViTModel,
)

import hf_zip
from hf_zip.adapters.roberta import example as roberta
from hf_zip.errors import HfZipError
from hf_zip.inspection import describe
from hf_zip.licenses import License
from hf_zip.lineage import tree
from hf_zip.peft_adapter import MERGEABLE
from hf_zip.record import published_texts
from hf_zip.report import read
from hf_zip.save import MARKER
from hf_zip.sources import load_source
from tests.adapters import adapted, change_settings, lora, save
from tests.models import processor, vit
from tests.texts import bert, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning")

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 10, 3]])
HEAD = {"modules_to_save": ["classifier", "pooler"]}
OPTIONS = {
    "ADALORA": {"r": None, "init_r": 3, "target_r": 3, "total_step": 9},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "FOURIERFT": {"n_frequency": 9},
    "IA3": {"feedforward_modules": ["output.dense"]},
    "LN_TUNING": {"target_modules": ["LayerNorm"]},
    "OFT": {"oft_block_size": 4, "r": 0},
}
LORAS = [
    {"use_dora": True},
    {"use_rslora": True, "bias": "all"},
    {"rank_pattern": {r"layer\.0\..*query": 3}, "alpha_pattern": {"value": 7}},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"layers_to_transform": [1]},
    {"target_modules": "all-linear"},
    {"trainable_token_indices": [5, 7]},
]


def logits(model):
    return next(iter(model(input_ids=IDS).to_tuple()))


def largest(first, second):
    return (first - second).abs().max().item()


@pytest.fixture
def trunk(tmp_path):
    """A base without a classifier, and a classifier on it that an adapter may be trained on."""
    base = bert(seed=90, cls=BertForMaskedLM)
    base.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    return base


def classifier(trunk, labels=4, seed=1):
    model = bert(labels, seed)
    model.bert.load_state_dict(trunk.bert.state_dict(), strict=False)
    return model


@pytest.mark.parametrize("kind", MERGEABLE)
def test_every_kind_of_adapter_computes_the_same_in_its_base(tmp_path, trunk, kind):
    cls = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    values = {"target_modules": ["query", "output.dense"], "r": 2, **HEAD}
    values = {k: v for k, v in {**values, **OPTIONS.get(kind, {})}.items() if v is not None}
    known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
    model = adapted(classifier(trunk), cls(**known))
    source = load_source(str(save(model, tmp_path / "tuned", tmp_path / "base")))
    found, expected = logits(source.model), logits(model)
    assert largest(found, expected) < 5e-5  # FFTs of large spectra in float32
    assert largest(logits(classifier(trunk)), expected) > 1e-3
    assert not hasattr(source.model, "peft_config")
    assert all(p.requires_grad for p in source.model.parameters())


@pytest.mark.parametrize("settings", LORAS, ids=lambda settings: next(iter(settings)))
def test_every_form_of_lora(tmp_path, trunk, settings):
    model = lora(classifier(trunk), **HEAD, **settings)
    found = load_source(str(save(model, tmp_path / "tuned", tmp_path / "base"))).model
    assert largest(logits(found), logits(model)) < 1e-5


def test_an_adapter_is_named_with_its_base(tmp_path, trunk):
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    folder = save(lora(classifier(trunk), **HEAD), tmp_path / "tuned", tmp_path / "base")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    source = load_source(str(folder), task="mood")
    base = source.adapter_base
    assert (source.reference, source.name, source.task) == (str(folder), "tuned", "mood")
    assert (source.license, base.license) == (License("mit"), License("apache-2.0"))
    assert base.reference == str(tmp_path / "base")
    assert len({source.sha256, base.sha256}) == 2
    assert source.processor.get_vocab() == tokenizer().get_vocab()
    # Adapters do not keep the names of labels.
    assert source.model.config.id2label == {i: f"LABEL_{i}" for i in range(4)}
    assert source.model.dtype == torch.float32
    assert load_source(str(folder), dtype=torch.float64).model.dtype == torch.float64


@pytest.mark.parametrize(
    ("task", "cls", "head"),
    [
        ("TOKEN_CLS", BertForTokenClassification, []),
        ("QUESTION_ANS", BertForQuestionAnswering, []),
        ("FEATURE_EXTRACTION", BertModel, ["pooler"]),
        (None, BertForTokenClassification, ["classifier"]),
    ],
)
def test_the_class_is_that_of_the_task_or_of_the_training(tmp_path, trunk, task, cls, head):
    model = bert(2, 3, cls=cls)
    own = getattr(model, "bert", model)
    own.load_state_dict(trunk.bert.state_dict(), strict=False)
    tuned = lora(model, task_type=task, modules_to_save=head or None)
    found = load_source(str(save(tuned, tmp_path / "tuned", tmp_path / "base"))).model
    assert type(found) is cls
    assert largest(logits(found), logits(tuned)) < 1e-5


def test_what_was_loaded_keeps_its_own_labels(tmp_path):
    base = bert(3, names=["a", "b", "c"])
    base.save_pretrained(tmp_path / "base")
    for name, settings in {"without": {}, "with": {"modules_to_save": ["classifier"]}}.items():
        model = lora(base, **settings)
        found = load_source(str(save(model, tmp_path / name, tmp_path / "base"))).model
        assert found.config.id2label == {0: "a", 1: "b", 2: "c"}
        assert largest(logits(found), logits(model)) < 1e-5


def test_what_is_drawn_for_lack_of_weights_leaves_the_seed(tmp_path, trunk):
    folder = save(lora(classifier(trunk), **HEAD), tmp_path / "tuned", tmp_path / "base")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_source(str(folder))
    assert torch.equal(torch.rand(3), expected)


# Adapters that were written before the modules of ViTs were renamed.

OLD = [
    (r"layers\.(\d)\.attention\.([qkv])_proj", r"encoder.layer.\1.attention.attention.\2"),
    (r"attention\.attention\.q\b", "attention.attention.query"),
    (r"attention\.attention\.v\b", "attention.attention.value"),
    (r"layers\.(\d)\.mlp\.fc2", r"encoder.layer.\1.output.dense"),
]


def write_as_before(folder, **changes):
    path = folder / "adapter_model.safetensors"
    state = {}
    for key, tensor in load_file(path).items():
        name = key
        for new, old in OLD:
            name = re.sub(new, old, name)
        state[name] = tensor
    assert any("attention.attention.query" in key for key in state)
    save_file(state, path, {"format": "pt"})
    change_settings(folder, **changes)
    return folder


@pytest.mark.parametrize(
    ("settings", "before"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["query", "value"]}),
        (
            {
                "target_modules": ["q_proj", "fc2"],
                "rank_pattern": {r"layers\.1.*q_proj": 3},
                "alpha_pattern": {"fc2": 9},
                "layers_to_transform": [1],
                "layers_pattern": "layers",
            },
            {
                "target_modules": ["query", "output.dense"],
                "rank_pattern": {r"layer\.1.*query": 3},
                "alpha_pattern": {"output.dense": 9},
                "layers_pattern": "layer",
            },
        ),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["classifier", "fc2"]},
            {"target_modules": r".*\.query", "modules_to_save": ["classifier", "output.dense"]},
        ),
    ],
    ids=["usual", "patterns", "saved"],
)
def test_adapters_of_earlier_vits(tmp_path, settings, before):
    base = ViTModel(vit().config)
    base.save_pretrained(tmp_path / "base")
    processor().save_pretrained(tmp_path / "base")
    model = vit(5, seed=2)
    model.vit.load_state_dict(base.state_dict(), strict=False)
    tuned = lora(model, **{"modules_to_save": ["classifier"], **settings})
    folder = write_as_before(save(tuned, tmp_path / "tuned", tmp_path / "base"), **before)
    found = load_source(str(folder))
    images = torch.rand(2, 3, 8, 8)
    assert found.model.config.num_labels == 5
    assert largest(found.model(images).logits, tuned(images).logits) < 1e-5
    assert found.processor.size == processor().size


def test_feedforward_modules_of_earlier_vits(tmp_path):
    base = vit(3)
    base.save_pretrained(tmp_path / "base")
    settings = peft.IA3Config(target_modules=["q_proj", "fc2"], feedforward_modules=["fc2"])
    tuned = adapted(base, settings)
    folder = save(tuned, tmp_path / "tuned", tmp_path / "base")
    before = {
        "target_modules": ["query", "output.dense"],
        "feedforward_modules": r".*output\.dense",
    }
    found = load_source(str(write_as_before(folder, **before))).model
    images = torch.rand(2, 3, 8, 8)
    assert largest(found(images).logits, tuned(images).logits) < 1e-5


# Where adapters and bases come from.


@pytest.fixture
def tuned(tmp_path, trunk):
    """Two adapters of one base, with heads of their own."""
    for seed, name in enumerate(("cheer", "topic"), start=1):
        model = lora(classifier(trunk, 2 + seed, seed), seed, **HEAD)
        save(model, tmp_path / name, tmp_path / "base")
    return [str(tmp_path / name) for name in ("cheer", "topic")]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_method_merges_adapters(tuned, tmp_path):
    result = hf_zip.merge(tuned, method="task_arithmetic", out=tmp_path / "out", progress=False)
    base = str(tmp_path / "base")
    assert result.recipe.base_model == base
    assert [spec.model for spec in result.recipe.models] == [f"{base}+{name}" for name in tuned]
    assert sorted(result.model.config.id2label.values()) == sorted(
        [f"cheer/LABEL_{i}" for i in range(3)] + [f"topic/LABEL_{i}" for i in range(4)]
    )
    again = hf_zip.merge(result.recipe, progress=False)
    pairs = zip(result.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    weight = "bert.encoder.layer.0.attention.self.query.weight"
    origin = load_file(tmp_path / "base" / "model.safetensors")[weight]
    moved = sum(load_source(name).model.get_parameter(weight) - origin for name in tuned)
    expected = origin + result.report.recipe["parameters"]["scaling"] * moved
    assert largest(result.model.get_parameter(weight), expected) < 1e-6


def test_local_adapters_are_described_without_their_folders(tuned, tmp_path):
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    out = tmp_path / "out"
    hf_zip.merge(tuned, method="average", out=out, progress=False)
    report = read(out)
    digest = report.sources[0].adapter_base.sha256
    assert report.family[0].base_digest == digest
    card, page = (out / "README.md").read_text(), hf_zip.report_page(out).read_text()
    own = report.sources[0].sha256
    assert f"| a local adapter, merged into a local model | cheer | sha256 `{own}`, base" in card
    assert f", base sha256 `{digest}` | not stated; its base: mit |" in card
    assert "- the base of cheer states mit." in card
    assert f"merged into a local model, sha256 <code>{digest}</code>" in " ".join(page.split())
    texts = published_texts(report, "me/merge")
    assert "model: base+cheer\n" in texts[MARKER]
    for text in (card, page, *texts.values()):
        assert str(tmp_path) not in text


def test_adapters_and_bases_of_the_hub(tuned, tmp_path, server):
    old = server.add("org/base", files(tmp_path / "base"))
    moved = files(tmp_path / "base")
    moved["README.md"] = b"---\nlicense: mit\n---\n"
    server.add("org/base", moved)
    for name in ("cheer", "topic"):
        change_settings(tmp_path / name, base_model_name_or_path="org/base", revision=old)
    cheer = server.add("me/cheer", files(tmp_path / "cheer"))
    topic = server.add("me/topic", files(tmp_path / "topic"))
    result = hf_zip.merge(
        ["me/cheer", f"org/base+me/topic@{topic}"], method="average", progress=False
    )
    new = server.repos["org/base"].find("main")
    assert [spec.model for spec in result.recipe.models] == [
        f"org/base@{old}+me/cheer@{cheer}",
        f"org/base@{new}+me/topic@{topic}",
    ]
    first, second = result.report.sources
    assert (first.revision, first.adapter_base.revision) == (cheer, old)
    assert (second.name, second.adapter_base.license) == ("topic", License("mit"))
    texts = published_texts(result.report, "me/merge")
    assert "- me/cheer\n- me/topic\n- org/base\n" in texts["README.md"]
    assert f"model: org/base@{old}+me/cheer@{cheer}\n" in texts[MARKER]
    lines = tree(result.report.family)
    assert lines[0] == f"├─ me/cheer, weight 1, {cheer[:12]}, an adapter to org/base, {old[:12]}"


def test_what_need_a_base_get_it_from_adapters_on_the_hub(tuned, tmp_path, server):
    commit = server.add("org/base", files(tmp_path / "base"))
    for name in ("cheer", "topic"):
        change_settings(tmp_path / name, base_model_name_or_path="org/base")
        server.add(f"me/{name}", files(tmp_path / name))
    result = hf_zip.merge(["me/cheer", "me/topic"], method="ties", progress=False)
    assert result.recipe.base_model == f"org/base@{commit}"


def test_models_that_share_no_base_need_one(tuned, tmp_path):
    bert().save_pretrained(tmp_path / "whole")
    other = [f"{tmp_path / 'whole'}+{tuned[0]}", tuned[1]]
    for models in (other, [tuned[0], str(tmp_path / "whole")]):
        with pytest.raises(HfZipError, match="'ties' needs the model that the others were fine-t"):
            hf_zip.merge(models, method="ties", progress=False)


def test_a_folder_with_a_plus_in_its_name(tuned, tmp_path):
    (tmp_path / "base").rename(tmp_path / "a+b")
    source = load_source(f"{tmp_path / 'a+b'}+{tuned[0]}")
    assert source.adapter_base.reference == str(tmp_path / "a+b")
    bert().save_pretrained(tmp_path / "c+d")
    assert load_source(str(tmp_path / "c+d")).name == "c+d"


def test_an_adapter_may_be_inspected_alone(tuned):
    assert "BertForSequenceClassification" in describe([tuned[0]])


# What is refused, and how.


def refused(folder, match, **options):
    with pytest.raises(HfZipError, match=match):
        load_source(str(folder), **options)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "NEWER", None])
def test_kinds_that_cannot_be_merged(tuned, tmp_path, kind):
    change_settings(tmp_path / "cheer", peft_type=kind)
    refused(tuned[0], f"'.*cheer' is a PEFT adapter of type {kind}, which does not .*are LORA, AD")


@pytest.mark.parametrize(
    "change",
    [
        {"alora_invocation_tokens": [1, 2]},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"megatron_config": {"a": 1}},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "pissa_niter_4"},
        {"use_something_new": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_whose_merge_is_not_exact(tuned, tmp_path, change):
    change_settings(tmp_path / "cheer", **change)
    refused(tuned[0], f"a PEFT adapter with {next(iter(change))}: .* merge it where it was trained")


def test_settings_that_are_off_or_unknown_do_not_matter(tuned, tmp_path):
    change_settings(tmp_path / "cheer", use_something_new=False, another={}, loftq_config={})
    change_settings(tmp_path / "cheer", init_lora_weights="eva")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_source(tuned[0])


def test_configurations_that_are_none(tuned, tmp_path):
    (tmp_path / "cheer" / "adapter_config.json").write_text("{")
    refused(tuned[0], "adapter_config.json is not valid JSON")
    (tmp_path / "cheer" / "adapter_config.json").write_text("[]")
    refused(tuned[0], "adapter_config.json holds a list, but should be a mapping")


def test_an_adapter_without_weights(tuned, tmp_path):
    (tmp_path / "cheer" / "adapter_model.safetensors").unlink()
    refused(tuned[0], r"no weights; an adapter_model.safetensors should be beside it")


def test_an_adapter_in_a_pickle(tuned, tmp_path):
    expected = load_source(tuned[0]).model
    path = tmp_path / "cheer" / "adapter_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    refused(tuned[0], r"weights in adapter_model.bin, a pickle, which can run code")
    found = load_source(tuned[0], allow_pickle=True).model
    assert torch.equal(logits(found), logits(expected))
    path.with_suffix(".bin").write_bytes(b"PK")
    refused(tuned[0], r"adapter_model.bin \(2 bytes\) is unreadable: ", allow_pickle=True)


def test_a_damaged_adapter(tuned, tmp_path):
    path = tmp_path / "cheer" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    refused(tuned[0], r"adapter_model.safetensors \(100 bytes\) is corrupt or cut short")


def test_an_adapter_that_names_files_elsewhere(tuned, tmp_path):
    (tmp_path / "secret.txt").write_text("x")
    settings = {"vocab_file": str(tmp_path / "secret.txt")}
    (tmp_path / "cheer" / "tokenizer_config.json").write_text(json.dumps(settings))
    refused(tuned[0], r"tokenizer_config.json names the file .* outside of the model's folder")


def test_an_adapter_that_does_not_say_of_what(tuned, tmp_path):
    change_settings(tmp_path / "cheer", base_model_name_or_path=None)
    refused(tuned[0], r"does not say what it is an adapter of .*base_model_name_or_path is None")
    assert load_source(f"{tmp_path / 'base'}+{tuned[0]}").name == "cheer"


def test_an_adapter_of_a_folder_that_is_not_here(tuned, tmp_path):
    change_settings(tmp_path / "cheer", base_model_name_or_path="/runs/base")
    refused(tuned[0], "an adapter of '/runs/base', which is no folder here and no Hub id; give ba")


def test_an_adapter_of_the_hub_reads_no_folder_here(tuned, tmp_path, server, monkeypatch):
    server.add("me/cheer", files(tmp_path / "cheer"))
    refused("me/cheer", r"an adapter of '/.*/base', which is no Hub id; give base\+adapter")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "base").rename(tmp_path / "org" / "base")
    change_settings(tmp_path / "cheer", base_model_name_or_path="org/base")
    assert load_source(tuned[0]).adapter_base.revision is None
    server.add("me/cheer", files(tmp_path / "cheer"))
    refused("me/cheer", "'org/base' is neither a folder nor a repository on the Hub")


def test_what_is_no_adapter_after_the_plus(tuned, tmp_path):
    refused(f"{tmp_path / 'base'}+{tmp_path / 'base'}", "has no adapter_config.json, so it is no")


def test_an_adapter_of_an_adapter(tuned):
    refused(f"{tuned[0]}+{tuned[1]}", "'.*cheer' is a PEFT adapter where a whole model should be")


def test_weights_that_nobody_kept(tmp_path, trunk):
    folder = save(lora(classifier(trunk), task_type="SEQ_CLS"), tmp_path / "t", tmp_path / "base")
    refused(folder, r"neither .* nor its base .* holds 'bert.pooler.dense.bias', .*modules_to_save")


def test_keys_that_are_missing_left_over_or_of_another_shape(tuned, tmp_path):
    path = tmp_path / "cheer" / "adapter_model.safetensors"
    state = load_file(path)
    first, *_, last = [key for key in state if "lora_A" in key]
    del state[first]
    state[last] = torch.zeros(9, 12)
    state["base_model.model.extra"] = torch.zeros(1)
    save_file(state, path, {"format": "pt"})
    refused(
        tuned[0],
        r"not those of an adapter of .*base' as BertForSequenceClassification: 1 missing "
        r"\(base_model.*layer.0.*lora_A.weight\), 1 left over \(base_model.model.extra\), 1 of "
        r"another shape \(.* is \(9, 12\), should be \(2, 12\)\)\. Give the base",
    )


def test_weights_that_are_not_finite(tuned, tmp_path):
    path = tmp_path / "cheer" / "adapter_model.safetensors"
    state = load_file(path)
    state["base_model.model.classifier.weight"][0, 0] = torch.nan
    save_file(state, path, {"format": "pt"})
    refused(tuned[0], "cheer': 1 of 36 values of classifier.weight are NaN")


def test_a_task_that_the_base_cannot_do(tmp_path):
    base = vit()
    base.save_pretrained(tmp_path / "base")
    save(lora(base, target_modules=["q_proj"]), tmp_path / "t", tmp_path / "base")
    change_settings(tmp_path / "t", task_type="SEQ_CLS")
    refused(tmp_path / "t", "for the task SEQ_CLS, but transformers has no such class .*'vit'")
    change_settings(tmp_path / "t", task_type="SOMETHING")
    refused(tmp_path / "t", "for the task SOMETHING, but transformers has no such class")


def test_a_class_of_another_base(tuned, tmp_path):
    folder = tmp_path / "cheer"
    roberta().save_pretrained(tmp_path / "roberta")
    change_settings(folder, base_model_name_or_path=str(tmp_path / "roberta"))
    refused(folder, "trained on a BertForSequenceClassification, but its base .* is a Roberta")
    change_settings(folder, auto_mapping={"base_model_class": "BertForFlying"})
    refused(folder, "was trained on a BertForFlying, which transformers 5.* does not know")


def test_settings_that_do_not_fit(tuned, tmp_path):
    change_settings(tmp_path / "cheer", r=0)
    refused(tuned[0], "does not fit its base .* as BertForSequenceClassification: ValueError: `r`")
