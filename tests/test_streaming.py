"""Merges streamed from files to files, against the same merges of models in memory."""

import json
import logging
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

import hf_zip
from hf_zip import siblings
from hf_zip.errors import HfZipError
from hf_zip.mapped import mapped_tensors, release_pages
from hf_zip.methods import methods
from tests.models import randomise, vit
from tests.siblings import family
from tests.test_siblings import siblings_of
from tests.texts import bert

STREAMED = [name for name, known in methods().items() if known.combination is not None]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Draws nothing, which takes longer than everything else."""
    monkeypatch.setattr("hf_zip.record.pictures", lambda report: {})


def save(folder, models, base=None, **options):
    """Folders of models, and of their base."""
    paths = [folder / f"model {i}" for i in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        model.save_pretrained(path, **options)
    if base is not None:
        base.save_pretrained(folder / "base", **options)
    return paths, None if base is None else str(folder / "base")


@pytest.fixture(scope="module")
def berts(tmp_path_factory):
    base, models = family(2, cls=BertModel)
    return save(tmp_path_factory.mktemp("berts"), models, base)


def both_lanes(folder, paths, base=None, method="average", at_once=64, **options):
    """The folders of one merge made in memory and streamed, the latter in small pieces."""
    made = []
    for lane in ("memory", "stream"):
        out = folder / lane
        with pytest.MonkeyPatch.context() as patch:
            if lane == "stream":
                patch.setattr(siblings, "_AT_ONCE", at_once)
            hf_zip.merge(
                paths, method=method, base_model=base, out=out, lane=lane, progress=False, **options
            )
        made.append(out)
    return made


def assert_same(memory, stream):
    names = sorted(path.name for path in memory.iterdir())
    assert sorted(path.name for path in stream.iterdir()) == names
    for name in names:
        if name.endswith((".safetensors", "config.json", ".yaml", ".png", "index.json")):
            assert (memory / name).read_bytes() == (stream / name).read_bytes(), name
    reports = [json.loads((path / "hf_zip_report.json").read_text()) for path in (memory, stream)]
    for report in reports:
        report.pop("seconds")
    assert reports[0] == reports[1]


@pytest.mark.parametrize("method", STREAMED)
def test_every_method_gives_the_same_files(method, berts, tmp_path):
    paths, base = berts
    known = methods()[method]
    assert_same(*both_lanes(tmp_path, paths, base if known.requires.base else None, method))


@pytest.mark.parametrize("options", [{"trim": "tensor"}, {"density": 0.0}, {"layer_scale": 0.5}])
def test_ties_gives_the_same_files_whatever_its_options(options, berts, tmp_path):
    assert_same(*both_lanes(tmp_path, *berts, "ties", parameters=options))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_the_result_is_cast_once(dtype, berts, tmp_path):
    assert_same(*both_lanes(tmp_path, *berts, "task_arithmetic", dtype=dtype))


def test_sources_may_be_in_half_precision(tmp_path):
    base, models = family(2, cls=BertModel)
    paths, base = save(tmp_path, [m.bfloat16() for m in models], base.half())
    assert_same(*both_lanes(tmp_path, paths, base, "ties"))


def test_vits_under_older_names_give_the_same_files(tmp_path):
    base = vit(seed=90)
    paths, base = save(tmp_path, siblings_of(base, 3), base)
    memory, stream = both_lanes(tmp_path, paths, base, "dare", tasks=["a", "b", "c"])
    assert_same(memory, stream)
    assert "vit.encoder.layer.0.attention.attention.query.weight" in load_file(
        stream / "model.safetensors"
    )


def test_tied_decoders_are_merged_once(tmp_path):
    base = bert(seed=90, cls=BertForMaskedLM)
    models = [randomise(bert(seed=90, cls=BertForMaskedLM), seed) for seed in (1, 2)]
    paths, base = save(tmp_path, models, base)
    assert_same(*both_lanes(tmp_path, paths, base, "ties", tasks=["same", "same"]))


def distilbert():
    config = DistilBertConfig(vocab_size=40, dim=12, hidden_dim=20, n_layers=2, n_heads=2)
    return DistilBertForSequenceClassification(config)


def resnet():
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
    return ResNetForImageClassification(config)


def gpt2():
    config = GPT2Config(vocab_size=40, n_embd=12, n_layer=2, n_head=2, pad_token_id=0)
    return GPT2ForSequenceClassification(config)


@pytest.mark.parametrize("make", [distilbert, resnet, gpt2])
def test_other_families_give_the_same_files(make, tmp_path):
    torch.manual_seed(0)
    start = make()
    models = [make(), make()]
    for seed, model in enumerate(models):
        model.load_state_dict(start.state_dict())
        for buffer in model.buffers():
            if buffer.dtype.is_floating_point:
                buffer.add_(seed + 1)
        randomise(model, seed)
    paths, _ = save(tmp_path, models)
    weights = {"parameters": {"weight": 3.0}}
    recipe = {
        "merge_method": "average",
        "models": [{"model": str(path), "task": path.name, **weights} for path in paths],
    }
    recipe["models"][0].pop("parameters")
    made = []
    for lane in ("memory", "stream"):
        made.append(tmp_path / lane)
        hf_zip.merge(recipe, out=made[-1], lane=lane, progress=False, force=True)
    assert_same(*made)


def test_shards_come_in_and_go_out(tmp_path):
    base, models = family(2, cls=BertModel)
    paths, base = save(tmp_path, models, base, max_shard_size="5KB")
    assert len([*paths[0].glob("*.safetensors")]) > 2
    expected, stream = tmp_path / "saved", tmp_path / "sharded"
    keys = {"method": "ties", "base_model": base, "max_shard_size": "5KB"}
    memory = hf_zip.merge(paths, **keys, out=expected, lane="memory").model
    result = hf_zip.merge(paths, **keys, out=stream, lane="stream")
    for name, tensor in memory.state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name]), name
    assert len([*expected.glob("*.safetensors")]) > 2
    for path in expected.glob("model*"):
        assert path.read_bytes() == (stream / path.name).read_bytes(), path.name


def test_the_lane_is_chosen_and_told(berts, tmp_path, caplog):
    paths, base = berts
    caplog.set_level(logging.DEBUG, "hf_zip.streaming")
    result = hf_zip.merge(paths, method="ties", base_model=base, out=tmp_path / "out")
    assert "lane: stream, from files" in caplog.text
    labels = [result.model.config.id2label[i] for i in range(5)]
    assert len(labels) == result.model.classifier.out_features
    assert result.for_task("model 1").classifier.out_features == 3
    caplog.clear()
    hf_zip.merge(paths, method="ties", base_model=base)
    assert "not streamed: it is not written to a folder" in caplog.text
    assert "lane: memory" in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "permute", "calibration": torch.ones(2, 3)}, "'permute' merges whole models"),
        ({"out": None}, "it is not written to a folder"),
        ({"calibration": torch.ones(2, 3)}, "models are run on calibration inputs"),
        ({"evaluation": {"model 0": []}}, "models are evaluated"),
        ({"stop_at": 1}, "a part of the blocks is shared"),
        ({"parameters": {"refit": "head"}}, "something is fitted after it"),
    ],
)
def test_what_cannot_be_streamed_is_told(options, reason, berts, tmp_path):
    given = {"method": "average", "out": tmp_path / "out", **options}
    with pytest.raises(HfZipError, match=f"this merge cannot be streamed: {reason}; use lane: au"):
        hf_zip.merge(berts[0], lane="stream", **given)


def test_models_in_memory_stay_there(tmp_path):
    _, models = family(2)
    with pytest.raises(HfZipError, match="models are in memory already"):
        hf_zip.merge(models, method="average", out=tmp_path / "out", lane="stream")


def test_a_lane_is_one_of_three(berts, tmp_path):
    with pytest.raises(HfZipError, match=r"unknown lane 'fast'\..* Known: auto, memory, stream"):
        hf_zip.merge(berts[0], method="average", out=tmp_path / "out", lane="fast")


def rewritten(path, change):
    """Changes the tensors of a checkpoint."""
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def double(tensors):
    tensors["classifier.bias"] = tensors["classifier.bias"].double()


def eighth(tensors):
    tensors["classifier.bias"] = tensors["classifier.bias"].to(torch.float8_e4m3fn)


def untie(tensors):
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop("classifier.bias"), "classifier.bias is missing"),
        (lambda tensors: tensors.update(other=torch.ones(1)), "other is left over"),
        (
            lambda tensors: tensors.update({"classifier.bias": torch.ones(9)}),
            "classifier.bias is there twice or has another shape",
        ),
        (
            lambda tensors: tensors.update({"classifier.bias": torch.ones(2).int()}),
            "classifier.bias is torch.int32, but torch.float32 in the model",
        ),
        (double, "is in float64, of which float32 is merged"),
        (eighth, "model.safetensors holds tensors of types that are not streamed"),
    ],
)
def test_files_that_do_not_fit_are_left_to_the_other_lane(change, reason, tmp_path):
    paths, _ = save(tmp_path, family(2)[1])
    rewritten(paths[0], change)
    with pytest.raises(HfZipError, match=reason):
        hf_zip.merge(paths, method="average", out=tmp_path / "out", lane="stream")


def test_weights_that_are_tied_and_there_twice_are_left_to_the_other_lane(tmp_path):
    models = [bert(seed=seed, cls=BertForMaskedLM) for seed in (1, 2)]
    paths, _ = save(tmp_path, models)
    rewritten(paths[1], untie)
    with pytest.raises(HfZipError, match="it holds tied weights twice"):
        hf_zip.merge(paths, method="average", out=tmp_path / "out", lane="stream")


def test_what_older_versions_wrote_is_passed_over(berts, tmp_path):
    paths, _ = save(tmp_path, family(2)[1])
    ids = torch.arange(4)[None]
    rewritten(paths[0], lambda tensors: tensors.update({"bert.embeddings.position_ids": ids}))
    assert_same(*both_lanes(tmp_path, paths))


def test_a_merge_that_overflows_is_refused_and_the_old_one_stays(berts, tmp_path):
    paths, base = berts
    out = tmp_path / "out"
    hf_zip.merge(paths, method="average", out=out)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(HfZipError, match=r"is NaN or infinite in torch.float16; merge in a w"):
        hf_zip.merge(
            paths,
            method="task_arithmetic",
            base_model=base,
            out=out,
            dtype="float16",
            parameters={"scaling": 1e9},
        )
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_written_is_compared(berts, tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(len(data)), at))
    with pytest.raises(HfZipError, match=r"the saved parameters .* differ from what was merged"):
        hf_zip.merge(berts[0], method="average", out=tmp_path / "out", lane="stream")
    assert not (tmp_path / "out").exists()


def test_what_is_not_written_whole_is_told(berts, tmp_path, monkeypatch):
    pieces = siblings.merged_pieces

    def some(*given):
        return (piece for piece in pieces(*given) if "word_embeddings" not in piece[0])

    monkeypatch.setattr("hf_zip.streaming.merge.merged_pieces", some)
    with pytest.raises(HfZipError, match=r"word_embeddings.weight of BertForSequ.* not merged"):
        hf_zip.merge(berts[0], method="average", out=tmp_path / "out", lane="stream")


def test_mapped_tensors_are_there_again_after_their_pages_are_released(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).bool(), "c": torch.ones(0)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = mapped_tensors(tmp_path / "x.safetensors")
    for _ in range(2):
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor)
        release_pages()


@pytest.mark.parametrize("name", ["bert.encoder.layer.0.output.LayerNorm.bias", "classifier.bias"])
def test_numbers_that_are_none_are_told_of_their_model(name, tmp_path):
    base, models = family(2, cls=BertModel)
    paths, base = save(tmp_path, models, base)
    rewritten(paths[1], lambda tensors: tensors[name].__setitem__(0, float("nan")))
    with pytest.raises(HfZipError, match=rf"model 1': 1 of \d+ values of {name} are NaN"):
        hf_zip.merge(paths, method="ties", base_model=base, out=tmp_path / "out", lane="stream")
