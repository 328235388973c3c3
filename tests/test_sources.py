import hashlib
import json
import logging
import shutil
from pathlib import Path

import httpx2
import pytest
import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    DeiTForImageClassification,
    PreTrainedTokenizerFast,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_zip import checkout
from hf_zip.adapters.deit import example as deit
from hf_zip.errors import HfZipError
from hf_zip.licenses import License
from hf_zip.recipe import ModelSpec
from hf_zip.sources import Source, from_model, load_source, load_sources, with_unique_names
from tests.models import processor, vit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "cars"
    vit(names=["audi", "volvo"]).save_pretrained(path)
    processor().save_pretrained(path)
    return path


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def same_parameters(first, second):
    pairs = zip(first.named_parameters(), second.named_parameters(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_folder_is_loaded_with_all_that_comes_along(folder):
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Cars\n")
    source = load_source(str(folder), task="vehicles")
    assert type(source.model) is ViTForImageClassification
    assert same_parameters(source.model, vit(names=["audi", "volvo"]))
    assert not source.model.training
    assert source.model.config.id2label == {0: "audi", 1: "volvo"}
    assert isinstance(source.processor, ViTImageProcessorPil)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (source.reference, source.name, source.task) == (str(folder), "cars", "vehicles")
    assert (source.sha256, source.revision, source.license) == (digest, None, License("apache-2.0"))


def test_a_half_precision_checkpoint_is_loaded_in_float32(folder):
    vit().half().save_pretrained(folder)
    model = load_source(str(folder)).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.classifier.weight, vit().half().float().classifier.weight)


def test_a_bare_trunk_and_another_family(tmp_path):
    ViTModel(vit().config).save_pretrained(tmp_path / "trunk")
    source = load_source(str(tmp_path / "trunk"))
    assert type(source.model) is ViTModel
    assert (source.processor, source.license) == (None, None)
    deit().save_pretrained(tmp_path / "deit")
    assert type(load_source(str(tmp_path / "deit")).model) is DeiTForImageClassification


def test_shards_and_pickles_are_weights_too(tmp_path, folder):
    vit().save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    source = load_source(str(tmp_path / "shards"))
    assert same_parameters(source.model, vit())
    listed = [f"{hashlib.sha256(s.read_bytes()).hexdigest()}  {s.name}\n" for s in shards]
    assert source.sha256 == hashlib.sha256("".join(listed).encode()).hexdigest()

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        HfZipError, match=r"weights in pytorch_model.bin, a pickle, .*--allow-pickle"
    ):
        load_source(str(folder))
    model = load_source(str(folder), allow_pickle=True).model
    assert same_parameters(model, vit(names=["audi", "volvo"]))


def test_a_tokenizer_is_a_processor_too(folder):
    (folder / "preprocessor_config.json").unlink()
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    assert load_source(str(folder)).processor.get_vocab() == {"[UNK]": 0, "a": 1}


@pytest.mark.parametrize(
    ("card", "stated"),
    [
        ("no front matter", None),
        ("---\nlicense: [\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", License("llama3", False)),
        (
            "---\nlicense: other\nlicense_name: a\nlicense_link: LICENSE\n---\n",
            License("a", False, "LICENSE"),
        ),
        ("---\nlicense: [mit, bsd]\n---\n", License("mit, bsd")),
        ("---\nlicense: other\n---\n", License("other")),
        ("---\ntags: [vit]\n---\n", None),
    ],
)
def test_the_licence_never_fails_the_load(folder, card, stated):
    (folder / "README.md").write_text(card)
    assert load_source(str(folder)).license == stated


def test_transformers_own_report_stays_off_the_terminal(folder, capfd):
    settings = transformers.utils.logging
    before = (settings.get_verbosity(), settings.is_progress_bar_enabled())
    rewrite_weights(folder, lambda state: state.pop("classifier.bias"))
    with pytest.raises(HfZipError, match="1 missing"):
        load_source(str(folder))
    assert capfd.readouterr() == ("", "")
    assert (settings.get_verbosity(), settings.is_progress_bar_enabled()) == before


# What is refused, and how.


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "nowhere", "a/b/c"])
def test_a_missing_folder_makes_no_network_call(name, monkeypatch):
    monkeypatch.setattr(checkout, "snapshot_download", lambda *_, **__: pytest.fail("called"))
    with pytest.raises(HfZipError, match=f"'{name}' is neither a folder nor a Hub id .*check"):
        load_source(name)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(HfZipError, match=r"config.json' is a file; give the folder that holds"):
        load_source(str(folder / "config.json"))


def test_a_folder_that_is_not_a_model(tmp_path):
    with pytest.raises(HfZipError, match=r"has no config.json, so it is not a model"):
        load_source(str(tmp_path))


def test_an_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(HfZipError, match="is a PEFT adapter of type None, which does not become"):
        load_source(str(folder))


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(HfZipError, match=r"no weights; a model.safetensors should be beside it"):
        load_source(str(folder))


@pytest.mark.parametrize("keep", [0, 4, 2000])
def test_a_file_cut_short(folder, keep):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(HfZipError, match=rf"model.safetensors \({keep} bytes\) is corrupt or cut"):
        load_source(str(folder))


def test_a_pickle_cut_short(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(HfZipError, match="cannot be loaded as ViTForImageClassification"):
        load_source(str(folder), allow_pickle=True)


def test_keys_that_are_missing_left_over_or_of_another_shape(folder):
    def change(state):
        for name in [name for name in state if "layernorm_before" in name]:
            del state[name]
        state["extra.weight"] = torch.zeros(1)
        state["classifier.weight"] = torch.zeros(7, 12)

    rewrite_weights(folder, change)
    with pytest.raises(
        HfZipError,
        match=r"not those of a ViTForImageClassification: 4 missing \(vit.layers.0.layernorm_before"
        r".bias, .*, …\), 1 left over \(extra.weight\), 1 of another shape \(classifier.weight is "
        r"\(7, 12\), should be \(2, 12\)\)\. Its config",
    ):
        load_source(str(folder))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(folder, value):
    rewrite_weights(folder, lambda state: state["classifier.weight"][0, :2].fill_(value))
    with pytest.raises(HfZipError, match=r"2 of 24 values of classifier.weight are NaN or inf"):
        load_source(str(folder))


@pytest.mark.parametrize("text", ["{", "\udcff"])
def test_a_config_that_is_not_json(folder, text):
    (folder / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(HfZipError, match=r"config.json is not valid JSON"):
        load_source(str(folder))


@pytest.mark.parametrize("architectures", [None, [], ["ViTModel", "BertModel"], "ViTModel", [3]])
def test_a_config_that_names_no_class(folder, architectures):
    rewrite_config(folder, architectures=architectures)
    with pytest.raises(HfZipError, match="should name one model class under 'architectures'"):
        load_source(str(folder))


def test_a_config_that_is_a_list(folder):
    (folder / "config.json").write_text("[]")
    with pytest.raises(HfZipError, match="should name one model class"):
        load_source(str(folder))


@pytest.mark.parametrize("name", ["ViTForFlying", "ViTConfig", "pipeline"])
def test_a_class_that_transformers_does_not_know(folder, name):
    rewrite_config(folder, architectures=[name])
    with pytest.raises(HfZipError, match=f"is a {name}, which cannot be merged: transformers 5"):
        load_source(str(folder))


def test_code_of_its_own_is_not_run(folder):
    rewrite_config(folder, architectures=["MyViT"], auto_map={"AutoModel": "modeling.MyViT"})
    with pytest.raises(HfZipError, match=r"is a MyViT, .*code of its own .*which is not run"):
        load_source(str(folder))


def test_a_class_of_another_type(folder):
    rewrite_config(folder, model_type="deit")
    with pytest.raises(HfZipError, match=r"the model_type 'deit', .* is of type 'vit'; correct"):
        load_source(str(folder))


def test_a_config_that_transformers_refuses(folder):
    rewrite_config(folder, hidden_size="12")
    with pytest.raises(HfZipError, match=r"as ViTForImageClassification: Strict.*'hidden_size'"):
        load_source(str(folder))


def test_a_processor_that_cannot_be_loaded(folder):
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Nothing"}')
    with pytest.raises(HfZipError, match=r"preprocessor_config.json cannot be loaded: Unrecog"):
        load_source(str(folder))


# The Hub.


@pytest.fixture
def hub(tmp_path, monkeypatch, folder):
    """A cache that holds commit COMMIT of org/cars as branch main."""
    cached = tmp_path / "cache" / "models--org--cars"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, cached / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return cached / "snapshots" / COMMIT


@pytest.mark.parametrize("reference", ["org/cars", "org/cars@main", f"org/cars@{COMMIT}"])
def test_a_hub_id_is_resolved_to_a_commit(hub, reference):
    source = load_source(reference)
    assert (source.name, source.revision, source.sha256) == ("cars", COMMIT, None)
    assert isinstance(source.processor, ViTImageProcessorPil)
    assert same_parameters(source.model, vit(names=["audi", "volvo"]))


def test_only_what_is_needed_is_fetched(hub, monkeypatch):
    asked = []

    def fake(repository, **options):
        asked.append((repository, options))
        return str(hub)

    monkeypatch.setattr(checkout, "snapshot_download", fake)
    load_source("org/cars@v1", token="secret")
    (hub / "model.safetensors").unlink()
    with pytest.raises(HfZipError, match=r"no weights; .* pickles are fetched only with --allow-p"):
        load_source("org/cars")
    assert len(asked) == 2
    with pytest.raises(HfZipError, match="no weights"):
        load_source("org/cars", allow_pickle=True)
    assert [(o["revision"], o["token"]) for _, o in asked] == [
        ("v1", "secret"),
        (None, None),
        (None, None),
        (COMMIT, None),
    ]
    assert all(o["ignore_patterns"] == ["*/*"] for _, o in asked)
    assert "pytorch_model.bin" not in asked[2][1]["allow_patterns"]
    assert "pytorch_model.bin" in asked[3][1]["allow_patterns"]


@pytest.mark.parametrize("reference", ["org/bikes", "org/cars@v2"])
def test_what_is_neither_in_reach_nor_in_the_cache(hub, reference):
    message = f"'{reference}' is not a folder, .*neither in reach nor in the cache: .*Check the"
    with pytest.raises(HfZipError, match=message):
        load_source(reference)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RevisionNotFoundError, r"'org/cars' has no revision 'v2' on the Hub; give a branch"),
        (GatedRepoError, "'org/cars' is gated; accept its conditions at https://.*/org/cars and"),
        (RepositoryNotFoundError, "'org/cars@v2' is neither a folder nor a repository on the Hub"),
        (httpx2.ReadError, "neither in reach nor in the cache: broken. Check"),
    ],
)
def test_what_the_hub_refuses(monkeypatch, error, message):
    def refuse(*_, **__):
        if error is httpx2.ReadError:
            raise error("broken")
        raise error("no", response=httpx2.Response(404, request=httpx2.Request("GET", "http://x")))

    monkeypatch.setattr(checkout, "snapshot_download", refuse)
    with pytest.raises(HfZipError, match=message):
        load_source("org/cars@v2")


# Models in memory.


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2],
)
def test_a_model_in_memory_is_copied(dtype, expected):
    model = vit().to(dtype).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = from_model(model, task="cars", name="a", processor="its processor")
    assert (source.reference, source.name, source.task) == ("a", "a", "cars")
    assert source.processor == "its processor"
    assert source.model.dtype == expected
    assert not source.model.training
    with torch.no_grad():
        for parameter in source.model.parameters():
            parameter.zero_()
    source.model.config.id2label[0] = "changed"
    assert model.training
    assert model.config.id2label[0] == "class 0.0"
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_in_memory_is_a_transformers_model():
    with pytest.raises(HfZipError, match="'model' is a Linear, but should be a transformers"):
        from_model(torch.nn.Linear(1, 1))


def test_a_model_in_memory_has_weights():
    with pytest.raises(HfZipError, match="'a' has parameters on the meta device; load its weights"):
        from_model(vit().to("meta"), name="a")


def test_a_model_in_memory_is_finite():
    model = vit()
    torch.nn.init.constant_(model.vit.layernorm.bias, torch.nan)
    with pytest.raises(HfZipError, match=r"'a': 12 of 12 values of vit.layernorm.bias are NaN"):
        from_model(model, name="a")


# Several.


def test_the_models_of_a_recipe_keep_their_order(tmp_path):
    for name in ("a/model", "b/model", "c/model-2"):
        vit(seed=ord(name[0])).save_pretrained(tmp_path / name)
    specs = [
        ModelSpec(str(tmp_path / "c/model-2")),
        ModelSpec(str(tmp_path / "b/model"), task="b"),
        ModelSpec(str(tmp_path / "a/model")),
    ]
    loaded = load_sources(specs)
    assert [Path(source.reference).parent.name for source in loaded] == ["c", "b", "a"]
    assert [source.name for source in loaded] == ["model-2", "model", "model-3"]
    assert [source.task for source in loaded] == [None, "b", None]


@pytest.mark.parametrize(
    ("given", "unique"),
    [
        ([], []),
        (["a"], ["a"]),
        (["a", "b", "a", "a"], ["a", "b", "a-2", "a-3"]),
        (["a", "a", "a-2"], ["a", "a-3", "a-2"]),
        (["a-2", "a-2", "a"], ["a-2", "a-2-2", "a"]),
    ],
)
def test_unique_names(given, unique):
    model = vit()
    named = with_unique_names([Source(reference="r", model=model, name=name) for name in given])
    assert [source.name for source in named] == unique


def test_no_licence_is_logged_for_who_looks(folder, caplog):
    with caplog.at_level(logging.DEBUG, logger="hf_zip"):
        load_source(str(folder))
    assert "no licence read from" in caplog.text
