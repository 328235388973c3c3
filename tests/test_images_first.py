"""Images as the first argument of merges that take texts or images."""

import pytest
import torch

import hf_zip
from tests.models import vit
from tests.siblings import near


@pytest.mark.parametrize(
    ("method", "more", "name"),
    [
        ("emr", {}, "HfZipMaskedModel"),
        ("average", {"problem_type": "regression"}, "HfZipMultiHeadModel"),
    ],
)
def test_images_may_be_given_first(method, more, name):
    base = vit(seed=90)
    models = [near(base, 1, 3), near(base, 2, 1)]
    for key, value in more.items():
        setattr(models[1].config, key, value)
    model = hf_zip.merge(
        models, method=method, base_model=base, tasks=["a", "b"], progress=False
    ).model
    assert type(model).__name__ == name
    images = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(0))
    with torch.inference_mode():
        first, named = model(images, task="a"), model(pixel_values=images, task="a")
    assert torch.equal(first.logits, named.logits)
