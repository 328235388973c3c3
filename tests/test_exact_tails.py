"""Tails of a partial zip that are rewritten in the merged features, and need no map to read them."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageClassification

import hf_zip
from hf_zip.adapters import adapters
from hf_zip.errors import HfZipError
from hf_zip.merged import for_task
from hf_zip.method import WeightOptions
from hf_zip.methods import method_named, methods
from hf_zip.partial import assemble_partial
from hf_zip.recipe import Recipe
from hf_zip.sources import Source
from hf_zip.tasks import resolve_tasks
from tests.models import images, permuted, randomise, vit
from tests.remote import without_hf_zip
from tests.test_rotation import inputs_for, scrambled, scrambled_without_biases

# Of the methods for models whose features mean the same, which leave all tails as they are, the
# average.
EXACT = [
    name
    for name, method in methods().items()
    if method.exact and (not method.requires.shared_init or name == "average")
]
INEXACT = [name for name, method in methods().items() if not (method.exact or method.per_task)]
every_adapter = pytest.mark.parametrize(
    "adapter",
    [
        adapter
        for adapter in adapters().values()
        if adapter.partial and adapter.example().main_input_name == "pixel_values"
    ],
    ids=lambda adapter: adapter.name,
)


@pytest.fixture
def parents():
    return [vit(3, seed=1, num_hidden_layers=3), vit(2, seed=2, num_hidden_layers=3)]


def merge(models, method, stop_at, **more):
    values = images(models[0], 128, seed=7)["pixel_values"]
    return hf_zip.merge(
        models,
        method=method,
        tasks=["a", "b"],
        calibration=more.pop("calibration", values),
        stop_at=stop_at,
        unmerge=more.pop("unmerge", "exact"),
        dtype=str(models[0].dtype).removeprefix("torch."),
        labels="apart",
        force=True,
        progress=False,
        **more,
    )


def logits(model, **more):
    with torch.no_grad():
        return model(**images(model, 16, seed=3), **more).logits


def assert_answers(model, sources, atol=1e-8):
    for source, task in zip(sources, "ab", strict=True):
        torch.testing.assert_close(logits(model, task=task), logits(source), rtol=0, atol=atol)


def maps(model):
    return [name for name, _ in model.named_parameters() if "unmerge" in name]


def copy_for(method, model, adapter):
    """A copy of a model's function that the method finds again."""
    if method == "average":
        return model
    return permuted(model, 1) if method == "permute" else scrambled(model, adapter, 1)


@every_adapter
@pytest.mark.parametrize("method", EXACT)
def test_equal_functions_are_kept_at_every_depth(adapter, method):
    torch.manual_seed(0)
    model = randomise(adapter.example().double().eval())
    models = [model, copy_for(method, model, adapter)]
    for depth in range(model.config.num_hidden_layers):
        found = merge(models, method, depth).model
        assert_answers(found, models)
        assert not maps(found)


def test_models_without_attention_biases_receive_them_in_trunk_and_tails():
    model = vit(qkv_bias=False).double()
    models = [model, scrambled_without_biases(model)]
    found = merge(models, "rotate", 1).model
    assert found.config.trunk_config.qkv_bias is found.config.tail_config.qkv_bias is True
    assert_answers(found, models)


@every_adapter
@pytest.mark.parametrize("method", EXACT)
def test_unlike_models_are_rewritten_without_loss(adapter, method):
    torch.manual_seed(0)
    models = [randomise(adapter.example().double().eval(), seed) for seed in (0, 5)]
    inputs = inputs_for(models, adapter)
    tasks = resolve_tasks(
        [Source(name, model, name) for name, model in zip("ab", models, strict=True)]
    )
    for kept in (0, 1):
        # All the weight on one model: the trunk is that model's, in the merged features.
        weights = tuple(WeightOptions(float(k == kept)) for k in range(2))
        options = method_named(method).options()
        merged = method_named(method).run(replace(inputs, model_options=weights), options)
        found, explained = assemble_partial(
            merged, inputs.runtime, tasks, {}, 1, "exact", torch.float64
        )
        assert explained == ()
        answers = logits(found, task="ab"[kept])
        torch.testing.assert_close(answers, logits(models[kept]), rtol=0, atol=1e-8)
        assert (logits(found, task="ab"[1 - kept]) - logits(models[1 - kept])).abs().max() > 0.1


@pytest.mark.parametrize("method", EXACT)
def test_depth_0_is_the_ensemble(parents, method):
    assert_answers(merge(parents, method, 0).model, parents, atol=1e-5)


def test_there_are_fewer_parameters_than_with_maps(parents):
    exact, ridge = (merge(parents, "permute", 1, unmerge=how) for how in ("exact", "ridge"))
    assert len(maps(ridge.model)) == 4
    sizes = [sum(p.numel() for p in result.model.parameters()) for result in (exact, ridge)]
    assert sizes[1] - sizes[0] == 2 * (12 * 12 + 12)
    assert not [name for name in exact.report.explained if name.startswith("unmerge.")]


def test_without_a_choice_maps_are_fitted_where_there_are_inputs(parents):
    fitted = merge(parents, "average", 1, unmerge=None)
    assert maps(fitted.model)
    assert fitted.recipe.unmerge == "ridge"
    alone = merge(parents, "average", 1, unmerge=None, calibration=None)
    assert not maps(alone.model)
    assert alone.recipe.unmerge == "exact"
    assert merge(parents, "average", None, unmerge=None).recipe.unmerge is None


def test_what_is_saved_loads_with_and_without_hf_zip(parents, tmp_path):
    model = merge(parents, "rotate", 1, out=tmp_path / "out").model
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(reloaded), logits(model))
    torch.testing.assert_close(logits(for_task(reloaded, "b")), logits(model, task="b"))
    code = """
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("out", trust_remote_code=True)
found = model(**inputs).logits
"""
    found = without_hf_zip(code, tmp_path, inputs=images(model, 16, seed=3))
    assert torch.equal(found, logits(model))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "follow as they were, rewritten in the shared features." in card
    written = Recipe.from_yaml(tmp_path / "out" / "hf_zip_recipe.yaml")
    assert (written.stop_at, written.unmerge) == (1, "exact")


@pytest.mark.parametrize("method", INEXACT)
def test_methods_that_cannot_be_undone_are_refused_before_any_work(parents, method):
    message = f"unmerge is exact, but {method!r} merges features .* one of the methods .*average, "
    with pytest.raises(HfZipError, match=message):
        merge(parents, method, 1, calibration=["nowhere"])


def test_maps_without_inputs_are_refused(parents):
    with pytest.raises(
        HfZipError, match=r"through maps .* fitted on calibration inputs, and there"
    ):
        merge(parents, "average", 1, unmerge="ridge", calibration=None)


def test_an_unknown_way_is_refused():
    with pytest.raises(HfZipError, match="unknown unmerge 'exactly'"):
        Recipe.from_dict(
            {"merge_method": "permute", "models": [{"model": "a"}], "unmerge": "exactly"}
        )


def test_the_curve_says_what_exact_tails_read(parents):
    twin = copy.deepcopy(parents[0]).double()
    twins = [twin, permuted(twin, 1)]
    curves = [
        merge(models, "permute", "auto", unmerge=how, budget={"parameters": 9.0}).report.depths
        for models, how in ((twins, "exact"), (parents, "exact"), (parents, "ridge"))
    ]
    assert all(min(depth["explained"]) > 1 - 1e-9 for depth in curves[0])
    # A fitted map explains at least what a fixed one does, but for what is held out.
    for exact, ridge in zip(curves[1][1:], curves[2][1:], strict=True):
        assert max(exact["explained"]) < min(ridge["explained"])
    found = merge(parents, "permute", 2).model
    assert curves[1][2]["parameters"] == sum(p.numel() for p in found.parameters())
