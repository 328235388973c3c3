"""Merges of CLIPs that classify images by what is said of the classes."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageClassification

import hf_zip
from hf_zip.adapters import adapters
from hf_zip.errors import HfZipError
from hf_zip.inspection import describe
from hf_zip.kinds import head_kind
from hf_zip.merged import for_task, load_merge
from hf_zip.modeling import HfZipClipConfig, HfZipClipForImageClassification
from hf_zip.refit.zipfit import FitOptions, zipfit
from tests.data import random_images
from tests.models import permuted, processor, random_inputs, rows
from tests.remote import code_files, without_hf_zip
from tests.test_zero_shot import CLASSES, images, logits, zero_shot


def merge(models, method="zipfit", **more):
    calibration = rows(random_inputs(models[0], 96, seed=9))
    more.setdefault("calibration", None if method == "average" else calibration)
    more.setdefault("tasks", list(CLASSES)[: len(models)])
    return hf_zip.merge(models, method=method, force=True, progress=False, **more)


@pytest.fixture(scope="module")
def parents():
    return [zero_shot(task, seed) for seed, task in enumerate(CLASSES, start=1)]


@pytest.mark.parametrize("method", ["average", "permute", "zipit", "pleas", "zipfit"])
def test_two_folders_are_merged_saved_and_load_again(parents, method, tmp_path):
    for task, model in zip(CLASSES, parents, strict=True):
        model.save_pretrained(tmp_path / task)
        processor().save_pretrained(tmp_path / task)
    folders = [str(tmp_path / task) for task in CLASSES]
    more = {} if method != "average" else {"calibration": None}
    calibration = rows(random_inputs(parents[0], 96, seed=9))
    result = hf_zip.merge(
        folders,
        method=method,
        tasks=list(CLASSES),
        **{"calibration": calibration, **more},
        out=tmp_path / "out",
        force=True,
        progress=False,
    )
    labels = [*CLASSES["pets"], *CLASSES["things"]]
    assert list(result.model.config.id2label.values()) == labels
    assert result.model.config.spaces == (2 if method in ("pleas", "zipfit") else 1)
    loaded, own = load_merge(tmp_path / "out")
    automatic = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    for model in (loaded, automatic):
        assert type(model) is HfZipClipForImageClassification
        assert torch.equal(logits(model), logits(result.model))
    assert type(own) is type(processor())
    single = for_task(loaded, "things")
    torch.testing.assert_close(logits(single), logits(loaded)[:, 2:])
    assert list(single.config.id2label.values()) == CLASSES["things"]
    assert "a merge by" in describe([str(tmp_path / "out")])


def test_a_permuted_copy_is_matched_back_and_an_average_is_ruined(parents):
    other = permuted(parents[0], 3)
    expected = logits(parents[0])
    found = merge([parents[0], other], "permute", tasks=["one", "one"]).model
    torch.testing.assert_close(logits(found), expected, atol=1e-4, rtol=1e-4)
    ruined = merge([parents[0], other], "average", tasks=["one", "one"]).model
    assert (logits(ruined) - expected).abs().max() > 0.1


def test_fitted_spaces_of_one_encoder_answer_as_both_classifiers_did(parents):
    other = copy.deepcopy(parents[1])
    other.vision_model.load_state_dict(parents[0].vision_model.state_dict())
    lossless = {"penalty": 1e-10, "head_penalty": 1e-10}
    model = merge([parents[0], other], parameters=lossless).model
    expected = torch.cat([logits(parents[0]), logits(other)], dim=1)
    torch.testing.assert_close(logits(model), expected, atol=1e-3, rtol=1e-3)
    assert model.visual_projection.out_features == 20
    assert not model.classifier.weight[:2, 10:].any()
    assert not model.classifier.weight[2:, :10].any()


def test_a_fitted_merge_is_merged_again(parents):
    first = merge(parents).model
    again = merge([first, first], tasks=["one", "one"]).model
    assert again.config.spaces == 4
    relative = (logits(again) - logits(first)).norm() / logits(first).norm()
    assert relative < 0.05


def test_least_squares_rows_have_a_bias(parents):
    found = merge(parents, "permute", parameters={"refit": "head"}).model
    assert found.classifier.bias.abs().min() > 0
    assert found.config.spaces == 1


def test_other_numbers_of_spaces_are_refused(parents):
    two = HfZipClipForImageClassification(
        HfZipClipConfig(
            vision_config=parents[0].config.vision_config,
            projection_dim=5,
            spaces=2,
            num_labels=3,
        )
    )
    with pytest.raises(HfZipError, match="differ in spaces, 1 and 2; only models of one shape"):
        merge([parents[0], two], "permute")


def test_a_layer_before_the_head_without_spaces_is_not_fitted(parents):
    table = adapters()["clip_zero_shot"]
    (pooler,) = table.poolers
    without = replace(table, poolers=(replace(pooler, spaces=""),))
    inputs = rows(random_inputs(parents[0], 4))
    with pytest.raises(HfZipError, match=r"visual_projection of HfZipClip.* reads the stream and"):
        zipfit(parents, without, inputs, FitOptions(), progress=False)


def test_blocks_cannot_be_shared_in_part(parents):
    with pytest.raises(HfZipError, match="'clip_zero_shot' read something else; leave stop_at out"):
        merge(parents, "permute", stop_at=1)


def test_its_head_is_known():
    assert head_kind(zero_shot()) == "classification"


def test_loaded_without_hf_zip_through_remote_code(parents, tmp_path):
    model = merge(parents, processor=processor(), out=tmp_path / "out").model
    random_images(1)[0].save(tmp_path / "out" / "image.png")
    code = """
from transformers import AutoModelForImageClassification, pipeline
model = AutoModelForImageClassification.from_pretrained(place, trust_remote_code=True)
found = model(**inputs).logits
classify = pipeline("image-classification", place, trust_remote_code=True)
assert len(classify("image.png", top_k=9)) == 5
model.save_pretrained("../again")
"""
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The model's code is in two files beside its weights" in card
    usage = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert usage
    out = tmp_path / "out"
    found = without_hf_zip("\n".join([code, *usage]), out, inputs=images(model), place=str(out))
    torch.testing.assert_close(found, logits(model))
    names = ["configuration_hf_zip_clip", "modeling_hf_zip_clip"]
    assert code_files(tmp_path / "again") == names
