"""CLIP's zero-shot classifiers in merges that give every task weights of its own."""

import copy

import pytest
import torch
from transformers import AutoModelForImageClassification

import hf_zip
from hf_zip.merged import for_task, load_merge
from hf_zip.modeling import HfZipClipForImageClassification
from tests.models import processor
from tests.remote import without_hf_zip
from tests.test_zero_shot import CLASSES, images, logits, zero_shot


@pytest.fixture(scope="module")
def base():
    return zero_shot("pets", 3)


@pytest.fixture(scope="module")
def parents(base):
    """Fine-tunes of one image encoder, each with rows for the texts of its own classes."""
    found = []
    for seed, task in enumerate(CLASSES, start=1):
        model = copy.deepcopy(zero_shot(task, 3))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("classifier"):
                    noise = torch.randn(parameter.shape, generator=torch.manual_seed(seed))
                    parameter.add_(0.02 * noise)
        found.append(model)
    return found


@pytest.mark.parametrize("method", ["emr", "twin"])
def test_every_task_has_its_weights_with_hf_zip_and_without(base, parents, method, tmp_path):
    values = images(parents[0])["pixel_values"]
    merged = hf_zip.merge(
        parents,
        method=method,
        base_model=base,
        tasks=list(CLASSES),
        own_calibration=None if method == "emr" else [values, values + 3],
        parameters={} if method == "emr" else {"rank": 1.0},
        processor=processor(),
        progress=False,
        out=tmp_path / "out",
    ).model
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), logits(merged))
    with torch.inference_mode():
        own = loaded(pixel_values=values, task="things").logits
    if method == "twin":
        torch.testing.assert_close(own, logits(parents[1]))
    single = for_task(load_merge(tmp_path / "out")[0], "things")
    assert type(single) is HfZipClipForImageClassification
    torch.testing.assert_close(logits(single), own)
    code = """
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("out", trust_remote_code=True)
with torch.inference_mode():
    found = model(pixel_values=values, task="things").logits
"""
    torch.testing.assert_close(without_hf_zip(code, tmp_path, values=values), own)
