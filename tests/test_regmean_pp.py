"""RegMean++ block by block, against a forward of what is merged so far."""

import copy

import pytest
import torch

from hf_zip.asked import read_request
from hf_zip.collect import make_accelerator, observe
from hf_zip.errors import HfZipError
from hf_zip.groups import Tap
from hf_zip.methods import method_named
from hf_zip.preparation import prepare
from tests.test_compatibility import built
from tests.test_regmean import siblings, texts
from tests.weighing import run


def test_one_model_gives_itself_back():
    (model,) = siblings(1)
    for name, parameter in run("regmean_pp", [model], [texts(1)]).items():
        torch.testing.assert_close(parameter, model.get_parameter(name).detach())


def test_a_block_reads_what_the_merged_blocks_before_it_give():
    models, feeds = siblings(), [texts(1), texts(2)]
    found = run("regmean_pp", models, feeds, alpha=1.0)
    layer = "bert.encoder.layer.1.output.dense"
    x, y = [], []
    for model, inputs in zip(models, feeds, strict=True):
        mixed = copy.deepcopy(model)  # merged up to the block, the model's own from there
        with torch.no_grad():
            for name, parameter in found.items():
                if "embeddings" in name or "layer.0" in name:
                    mixed.get_parameter(name).copy_(parameter)
        tap = Tap(layer, "input")
        rows = [observe(mixed, [tap], inputs.collate([row]))[tap] for row in inputs]
        own = torch.cat(rows)
        x.append(own / len(own) ** 0.5)
        y.append(own @ model.get_parameter(f"{layer}.weight").T / len(own) ** 0.5)
    expected = torch.linalg.lstsq(torch.cat(x), torch.cat(y), driver="gelsd").solution.T
    torch.testing.assert_close(found[f"{layer}.weight"], expected, rtol=1e-6, atol=1e-6)


def test_the_layer_after_the_blocks_reads_the_merged_model():
    models, feeds = siblings(), [texts(1), texts(2)]
    found = run("regmean_pp", models, feeds, alpha=1.0)
    merged = copy.deepcopy(models[0])
    with torch.no_grad():
        for name, parameter in found.items():
            merged.get_parameter(name).copy_(parameter)
    tap = Tap("bert.pooler.dense", "input")
    for model, inputs in zip(models, feeds, strict=True):
        x = torch.cat([observe(merged, [tap], inputs.collate([row]))[tap] for row in inputs])
        own = model.bert.pooler.dense.weight
        torch.testing.assert_close(
            x @ found["bert.pooler.dense.weight"].T, (x @ own.T).detach(), rtol=1e-6, atol=1e-6
        )


def test_it_does_not_depend_on_the_memory_and_differs_from_regmean():
    models, feeds = siblings(), [texts(1), texts(2)]
    once, parts = (run("regmean_pp", models, feeds, memory=memory) for memory in (4.0, 0.0))
    plain = run("regmean", models, feeds, alpha=0.95)
    for name, parameter in once.items():
        assert torch.equal(parameter, parts[name]), name
    first, last = (f"bert.encoder.layer.{n}.output.dense.weight" for n in (0, 1))
    assert (plain[last] - once[last]).abs().max() > 1e-3
    assert (plain[first] - once[first]).abs().max() > 1e-6  # the mean's embeddings


def test_models_without_a_table_and_negative_weights_are_refused():
    request = read_request(
        [built("SwinModel")] * 2, method="regmean_pp", own_calibration=[["never looked at"]] * 2
    )
    with pytest.raises(HfZipError, match="'regmean_pp' does not support these models"):
        prepare(request, method_named("regmean_pp"), True, make_accelerator(), progress=False)
    with pytest.raises(HfZipError, match="'regmean_pp' weighs what each model does"):
        run("regmean_pp", siblings(), [texts(1), texts(2)], weights=[1.0, -0.5])
