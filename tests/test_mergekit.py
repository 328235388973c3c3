"""Configurations of mergekit: what they mean here, and what is refused."""

import logging

import pytest
import torch
import yaml

import hf_zip
from hf_zip.choices import choices
from hf_zip.errors import HfZipError
from hf_zip.mergekit import is_mergekit, translated
from hf_zip.methods import method_named
from hf_zip.recipe import Recipe
from tests.siblings import combined, family, tensors


def config(method, *models, base="base", **keys):
    """A configuration; of every model its parameters."""
    listed = [{"model": f"m{i}", "parameters": own} for i, own in enumerate(models, start=1)]
    values = {"merge_method": method, "models": listed, "base_model": base, **keys}
    return {key: value for key, value in values.items() if value is not None}


def models(*own):
    return [{"model": f"m{i}", "parameters": each} for i, each in enumerate(own, start=1)]


ONE, TWO = {"weight": 1.0}, {"weight": 3.0}
TRANSLATIONS = {
    "linear": (
        config("linear", {"weight": 1}, {"weight": 3}, base=None),
        {"merge_method": "average", "models": models(ONE, TWO)},
    ),
    "linear, one weight for all, the base among them": (
        {
            "merge_method": "linear",
            "models": [{"model": "base"}, {"model": "m1"}],
            "base_model": "base",
            "parameters": {"weight": 0.5, "normalize": False},
        },
        {
            "merge_method": "average",
            "models": [
                {"model": "base", "parameters": {"weight": 0.5}},
                {"model": "m1", "parameters": {"weight": 0.5}},
            ],
        },
    ),
    "slerp": (
        {
            "merge_method": "slerp",
            "base_model": "m2",
            "models": [{"model": "m1"}, {"model": "m2"}],
            "parameters": {"t": [{"value": 0.25}]},
        },
        {
            "merge_method": "slerp",
            "models": [{"model": "m2"}, {"model": "m1"}],
            "parameters": {"t": 0.25},
        },
    ),
    "karcher": (
        config("karcher", {}, {}, base=None, parameters={"max_iter": 20, "tol": 1e-6}),
        {
            "merge_method": "karcher",
            "models": models(ONE, ONE),
            "parameters": {"max_iterations": 20, "tolerance": 1e-6},
        },
    ),
    "linear, from one model to the other": (
        config("linear", {"weight": [1, 0]}, {"weight": [0, 0.5, 1]}, base=None),
        {
            "merge_method": "average",
            "models": models({"weight": [1.0, 0.0]}, {"weight": [0.0, 0.5, 1.0]}),
        },
    ),
    "slerp by parts of names, as in most configurations": (
        {
            "merge_method": "slerp",
            "base_model": "m1",
            "models": [{"model": "m1"}, {"model": "m2"}],
            "parameters": {
                "t": [
                    {"filter": "self_attn", "value": [0, 0.5, 1]},
                    {"filter": "mlp", "value": [0.5, 0.5]},
                    {"value": 0.25},
                    {"filter": "never", "value": 1},
                ]
            },
        },
        {
            "merge_method": "slerp",
            "models": [{"model": "m1"}, {"model": "m2"}],
            "parameters": {
                "t": [
                    {"filter": "self_attn", "value": [0.0, 0.5, 1.0]},
                    {"filter": "mlp", "value": 0.5},
                    {"value": 0.25},
                ]
            },
        },
    ),
    "ties, of which filters fall back to what is for all models": (
        config(
            "ties",
            {"weight": {"filter": "mlp", "value": 2}, "density": {"filter": "mlp", "value": 0.5}},
            {"density": [0.25, 0.75]},
            parameters={
                "weight": [{"filter": "*", "value": 1}],
                "density": {"filter": "attn", "value": 0.75},
            },
        ),
        {
            "merge_method": "ties",
            "models": models(
                {
                    "weight": [{"filter": "mlp", "value": 2.0}, {"value": 1.0}],
                    "density": [
                        {"filter": "mlp", "value": 0.5},
                        {"filter": "attn", "value": 0.75},
                        {"value": 1.0},
                    ],
                },
                {"weight": 1.0, "density": [0.25, 0.75]},
            ),
            "base_model": "base",
            "parameters": {"scaling": 1.0, "trim": "tensor", "merge": "mean"},
        },
    ),
    "breadcrumbs that keep more and more": (
        config(
            "breadcrumbs",
            ONE,
            parameters={"density": [0.25, 0.5], "gamma": 0.25, "lambda": [0, 1]},
        ),
        {
            "merge_method": "breadcrumbs",
            "models": models(ONE),
            "base_model": "base",
            "parameters": {
                "scaling": [0.0, 1.0],
                "merge": "linear",
                "beta": [0.5, 0.25],
                "gamma": 0.75,
            },
        },
    ),
    "dare and della that drop less and less": (
        config("della_linear", ONE, parameters={"density": [0.25, 0.5], "epsilon": 0.125}),
        {
            "merge_method": "della",
            "models": models(ONE),
            "base_model": "base",
            "parameters": {
                "scaling": 1.0,
                "merge": "linear",
                "drop_rate": [0.75, 0.5],
                "window_size": 0.25,
                "rescale": True,
            },
        },
    ),
    "sce": (
        config("sce", {}, {}, parameters={"select_topk": 0.5, "int8_mask": False}),
        {
            "merge_method": "sce",
            "models": [{"model": "m1"}, {"model": "m2"}],
            "base_model": "base",
            "parameters": {"select_topk": 0.5},
        },
    ),
    "sce that keeps all": (
        config("sce", {}, {}),
        {
            "merge_method": "sce",
            "models": [{"model": "m1"}, {"model": "m2"}],
            "base_model": "base",
            "parameters": {"select_topk": 1.0},
        },
    ),
    "multislerp": (
        config("multislerp", ONE, {"weight": [0, 1]}, base=None),
        {
            "merge_method": "multi_slerp",
            "models": models(ONE, {"weight": [0.0, 1.0]}),
            "parameters": {"origin": "zero", "tangent": "plane"},
        },
    ),
    "multislerp around the base": (
        config(
            "multislerp",
            {"weight": 0.25},
            {"weight": 0.75},
            parameters={"normalize_weights": False, "eps": 1e-8},
        ),
        {
            "merge_method": "multi_slerp",
            "models": models({"weight": 0.25}, {"weight": 0.75}),
            "base_model": "base",
            "parameters": {"origin": "base", "tangent": "plane"},
        },
    ),
    "nuslerp": (
        config("nuslerp", ONE, TWO, base=None),
        {
            "merge_method": "slerp",
            "models": [{"model": "m1"}, {"model": "m2"}],
            "parameters": {"origin": "zero", "t": 0.75},
        },
    ),
    "nuslerp around the base, of weights that cancel": (
        config("nuslerp", ONE, {"weight": -1}, parameters={"nuslerp_flatten": True}),
        {
            "merge_method": "slerp",
            "models": [{"model": "m1"}, {"model": "m2"}],
            "base_model": "base",
            "parameters": {"origin": "base", "t": 0.5},
        },
    ),
    "model_stock": (
        config("model_stock", {}, {}, parameters={"filter_wise": False}),
        {
            "merge_method": "model_stock",
            "models": [{"model": "m1"}, {"model": "m2"}],
            "base_model": "base",
        },
    ),
    "task_arithmetic": (
        config("task_arithmetic", ONE, TWO, parameters={"lambda": 0.5}),
        {
            "merge_method": "task_arithmetic",
            "models": models(ONE, TWO),
            "base_model": "base",
            "parameters": {"scaling": 0.5},
        },
    ),
    "task_arithmetic, normalized": (
        config("task_arithmetic", ONE, TWO, parameters={"normalize": True, "int8_mask": True}),
        {
            "merge_method": "task_arithmetic",
            "models": models(ONE, TWO),
            "base_model": "base",
            "parameters": {"scaling": 0.25},
        },
    ),
    "ties": (
        config("ties", {"weight": [1, 1], "density": 0.5}, TWO, parameters={"density": 0.25}),
        {
            "merge_method": "ties",
            "models": models({**ONE, "density": 0.5}, {**TWO, "density": 0.25}),
            "base_model": "base",
            "parameters": {"scaling": 1.0, "trim": "tensor", "merge": "mean"},
        },
    ),
    "ties, not normalized": (
        config("ties", ONE, parameters={"normalize": False}),
        {
            "merge_method": "ties",
            "models": models({**ONE, "density": 1.0}),
            "base_model": "base",
            "parameters": {"scaling": 1.0, "trim": "tensor", "merge": "sum"},
        },
    ),
    "dare_linear": (
        config("dare_linear", {"weight": 1, "density": 0.75}, TWO, parameters={"rescale": False}),
        {
            "merge_method": "dare",
            "models": models({**ONE, "drop_rate": 0.25}, {**TWO, "drop_rate": 0.0}),
            "base_model": "base",
            "parameters": {"scaling": 1.0, "merge": "linear", "rescale": False},
        },
    ),
    "dare_ties": (
        config("dare_ties", ONE, parameters={"density": 0.75}),
        {
            "merge_method": "dare",
            "models": models({**ONE, "drop_rate": 0.25}),
            "base_model": "base",
            "parameters": {"scaling": 1.0, "merge": "ties_sum", "rescale": True},
        },
    ),
    "dare_ties, normalized": (
        config("dare_ties", ONE, parameters={"normalize": True}),
        {
            "merge_method": "dare",
            "models": models({**ONE, "drop_rate": 0.0}),
            "base_model": "base",
            "parameters": {"scaling": 1.0, "merge": "ties", "rescale": True},
        },
    ),
    "breadcrumbs": (
        config("breadcrumbs", ONE, TWO, parameters={"density": 0.75, "gamma": 0.125}),
        {
            "merge_method": "breadcrumbs",
            "models": models(ONE, TWO),
            "base_model": "base",
            "parameters": {"scaling": 1.0, "merge": "linear", "beta": 0.125, "gamma": 0.875},
        },
    ),
    "breadcrumbs_ties, more outliers than are to go": (
        config("breadcrumbs_ties", ONE, parameters={"density": 0.75, "gamma": 0.5}),
        {
            "merge_method": "breadcrumbs",
            "models": models(ONE),
            "base_model": "base",
            "parameters": {"scaling": 1.0, "merge": "ties_sum", "beta": 0.0, "gamma": 0.75},
        },
    ),
    "breadcrumbs that keep all": (
        config("breadcrumbs", ONE, parameters={"normalize": False, "lambda": 1}),
        {
            "merge_method": "breadcrumbs",
            "models": models(ONE),
            "base_model": "base",
            "parameters": {"scaling": 1, "merge": "linear", "beta": 0.0, "gamma": 1.0},
        },
    ),
    "della": (
        config("della", ONE, parameters={"density": 0.5, "epsilon": 0.125}),
        {
            "merge_method": "della",
            "models": models(ONE),
            "base_model": "base",
            "parameters": {
                "scaling": 1.0,
                "merge": "ties",
                "drop_rate": 0.5,
                "window_size": 0.25,
                "rescale": True,
            },
        },
    ),
    "della_linear that keeps all": (
        config("della_linear", ONE, TWO, parameters={"normalize": True}),
        {
            "merge_method": "della",
            "models": models(ONE, TWO),
            "base_model": "base",
            "parameters": {
                "scaling": 0.25,
                "merge": "linear",
                "drop_rate": 0.0,
                "window_size": 0.0,
                "rescale": True,
            },
        },
    ),
}


@pytest.mark.parametrize(("given", "expected"), TRANSLATIONS.values(), ids=[*TRANSLATIONS])
def test_every_method_means_the_same(given, expected):
    recipe, _ = translated(given)
    assert recipe == expected
    choices(method_named(recipe["merge_method"]), Recipe.from_dict(recipe))


def test_the_base_among_the_models_has_no_task_vector():
    given = config("ties", ONE)
    given["models"].append({"model": "base"})
    assert [model["model"] for model in translated(given)[0]["models"]] == ["m1"]


def test_the_precision_is_the_written_one():
    assert "dtype" not in translated(config("ties", ONE))[0]
    assert translated(config("ties", ONE, dtype="float16"))[0]["dtype"] == "float16"
    both = config("ties", ONE, dtype="float32", out_dtype="bfloat16")
    assert translated(both)[0]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("keys", "note"),
    [
        ({}, "weights are written in float32"),
        ({}, "task heads stay apart"),
        ({"parameters": {"int8_mask": True}}, "int8_mask saves memory"),
        ({"tokenizer_source": "base"}, "tokenizer_source: base has no counterpart"),
        ({"tokenizer": {"source": "org/a"}}, "tokenizer_source: org/a has no counterpart"),
        ({"chat_template": "auto"}, "chat_template is left out"),
    ],
)
def test_what_may_differ_is_said(keys, note):
    _, notes = translated(config("ties", ONE, **keys))
    assert any(text.startswith(note) for text in notes)
    _, plain = translated(config("ties", ONE, dtype="float32"))
    assert len(plain) == 1


@pytest.mark.parametrize(
    ("weight", "gradient", "filters"),
    [
        (1, False, False),
        ([1, 1], False, False),
        ([1, 2], True, False),
        ([{"filter": "mlp", "value": 1}, {"value": 2}], False, True),
        ([{"filter": "mlp", "value": [1, 2]}, {"value": 2}], True, True),
    ],
)
def test_where_gradients_and_filters_differ_is_said(weight, gradient, filters):
    _, notes = translated(config("ties", {"weight": weight}))
    assert any("last value of a gradient" in note for note in notes) == gradient
    assert any("filters are looked for" in note for note in notes) == filters


def test_how_small_task_vectors_are_weighed_is_said():
    for method, expected in (("sce", True), ("model_stock", False)):
        _, notes = translated(config(method, {}, {}))
        assert any("less than 1e-6" in note for note in notes) == expected


def test_what_is_drawn_is_said():
    for method, expected in (("dare_ties", True), ("ties", False), ("della_linear", True)):
        _, notes = translated(config(method, ONE))
        assert any("other random numbers" in note for note in notes) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"merge_method": "linear"}, True),
        ({"merge_method": "dare_ties"}, True),
        ({"merge_method": "multislerp"}, True),
        ({"merge_method": "passthrough"}, True),
        ({"merge_method": "della", "parameters": {"density": 0.5}}, True),
        ({"merge_method": "sce", "models": [{"model": "a"}], "base_model": "b"}, False),
        ({"merge_method": "ties", "parameters": {"lambda": 1}}, True),
        ({"merge_method": "ties", "parameters": {"normalize": True}}, True),
        ({"merge_method": "ties", "tokenizer_source": "base"}, True),
        ({"merge_method": "slerp", "slices": []}, True),
        ({"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}]}, True),
        ({"merge_method": "slerp", "models": [{"model": "a"}], "parameters": {"t": 1}}, False),
        ({"merge_method": "ties", "base_model": "a", "models": [{"model": "b"}]}, False),
        ({"merge_method": "breadcrumbs", "parameters": {"gamma": 0.9}}, False),
        ({"merge_method": "zipfit", "models": "a", "parameters": None}, False),
    ],
)
def test_which_files_are_those_of_mergekit(values, expected):
    assert is_mergekit(values) == expected


REFUSED = [
    (config("ties", ONE, slices=[{"sources": []}]), "has 'slices': layers of models would be put"),
    (config("ties", ONE, modules={"a": {}}), "has 'modules': the parts of a model would be merged"),
    (config("ties", ONE, modles=[]), "unknown key in the mergekit configuration 'modles'. Did you"),
    (config("passthrough", ONE), "mergekit's 'passthrough' copies the tensors of one model"),
    (config("nearswap", {}, parameters={"t": 0.1}), "mergekit's 'nearswap' moves every number"),
    (config("arcee_fusion", {}), "mergekit's 'arcee_fusion' takes the numbers of one model"),
    (config("ram", {}), "mergekit's 'ram' tells common from own changes"),
    (config("ramplus_tl", {}), "mergekit's 'ramplus_tl' rescales what only one model has changed"),
    (config("tise", ONE), "unknown merge_method of mergekit 'tise'. Did you mean 'ties'"),
    ({"merge_method": "linear", "models": "a"}, "models should be a list, not 'a'"),
    ({"merge_method": "linear", "models": ["a"]}, "models.0 should be a mapping with the key 'mod"),
    (
        {"merge_method": "linear", "models": [{"model": "a", "layer_range": [0, 1]}]},
        "unknown key in models.0 'layer_range'. Known: model, parameters",
    ),
    (config("ties", [1]), "models.0.parameters should be a mapping of keys to values, not a list"),
    (
        config("ties", {"weight": {"filter": "mlp", "value": 1}}),
        "weight of 'm1' has no value for tensors that none of its filters is for; end it with",
    ),
    (
        config("ties", {"weight": [1, {"value": 0}]}),
        "models.0.parameters.weight should be a value, a list of values, or a list of mappings",
    ),
    (
        config("ties", {"weight": [{"filter": "mlp"}]}),
        "models.0.parameters.weight should be a value, a list of values, or a list of mappings",
    ),
    (config("ties", {"weight": ["a", 1]}), "weight of 'm1' should be a number, not 'a'"),
    (
        config("task_arithmetic", {"weight": [0, 1]}, parameters={"normalize": True}),
        "weight of 'm1' differs between layers or tensors, which has no counterpart here",
    ),
    (
        config("karcher", {}, {}, base=None, parameters={"tol": [0, 1]}),
        "parameters.tol differs between layers or tensors",
    ),
    (
        config("della", ONE, parameters={"density": [0.5, 1.0]}),
        "density varies and is 1 somewhere, where mergekit's della drops nothing",
    ),
    (
        config("breadcrumbs", ONE, parameters={"density": [0.5, 0.95], "gamma": 0.1}),
        r"density varies and is 0.95 somewhere, more than gamma \(0.1\) leaves",
    ),
    (config("nuslerp", ONE), "mergekit's nuslerp merges two models, but there are 1"),
    (
        config("nuslerp", ONE, ONE, parameters={"nuslerp_flatten": False}),
        "nuslerp_flatten: false gives every row or column an arc of its own",
    ),
    (
        config("multislerp", ONE, TWO, parameters={"normalize_weights": False}),
        "normalize_weights is false and the weights sum up to 4; here a mean has weights",
    ),
    (
        config("ties", {"wieght": 1}),
        "parameter of mergekit's 'ties' in parameters of 'm1' 'wieght'",
    ),
    (config("ties", ONE, parameters={"t": 1}), "parameter of mergekit's 'ties' in parameters 't'"),
    (
        config("task_arithmetic", {"weight": 1, "density": 1}),
        "'task_arithmetic' in param.*'density'",
    ),
    (config("ties", {}), "weight of 'm1' should be a number, not nothing"),
    (config("linear", {"weight": "a"}), "weight of 'm1' should be a number, not 'a'"),
    (config("linear", {"weight": True}), "weight of 'm1' should be a number, not True"),
    (
        config("linear", ONE, TWO, parameters={"normalize": False}),
        "normalize is false and the weights sum up to 4; here a mean has weights",
    ),
    (config("slerp", {}, {}, parameters={"t": 1}), "base_model is 'base' and there are 2 others"),
    (config("slerp", {}, base=None, parameters={"t": 1}), "base_model is None and there are 1"),
    (config("slerp", {}), "t of 'm1' should be a number, not nothing"),
    (
        config("model_stock", {}, parameters={"filter_wise": True}),
        "filter_wise gives every row a r",
    ),
    (config("ties", ONE, parameters={"rescale": True}), "'ties' with rescale has no counterpart"),
    (
        config("breadcrumbs", {**ONE, "gamma": 0.1}, ONE),
        "gamma is 0.1, 0.01, but 'breadcrumbs' has one for all models",
    ),
    (config("della", {**ONE, "density": 0.5}, ONE), "density is 0.5, 1.0, but 'della' has one for"),
    (config("ties", ONE, parameters={"normalize": "no"}), "normalize should be true or false, not"),
    (config("ties"), "names no models but the base; list some"),
    (config("ties", ONE, tokenizer_source="union"), "tokenizer_source: union adds rows for tokens"),
    (config("ties", ONE, tokenizer={"source": "union"}), "tokenizer_source: union adds rows"),
    (config("ties", ONE, tokenizer={"tokens": {}}), "tokenizer.tokens builds another vocabulary"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_has_no_counterpart_is_refused(values, message):
    with pytest.raises(HfZipError, match=message):
        translated(values)


# Numbers, against what mergekit's documentation says, written out.

SHAPES = {"first": (4, 6), "second": (8,), "third": (3, 2, 2)}
BASE, STATES = tensors(3, seed=3, dtype=torch.float64, **SHAPES)
WEIGHTS = [1.0, 0.5, 2.0]


def kept(vector, density, top=0):
    """A vector with the largest numbers but for some, and zeros."""
    order = vector.abs().flatten().argsort(descending=True)
    result = torch.zeros_like(vector).flatten()
    chosen = order[top : top + int(density * len(order))]
    result[chosen] = vector.flatten()[chosen]
    return result.reshape(vector.shape)


def by_hand(elect, normalize, density, factor=1.0, top=0.0):
    merged = {}
    for name, origin in BASE.items():
        count = origin.numel()
        pairs = [
            (w, kept(state[name] - origin, density, int(top * count)))
            for w, state in zip(WEIGHTS, STATES, strict=True)
        ]
        votes = sum(w * v for w, v in pairs)
        total, share = torch.zeros_like(origin), torch.zeros_like(origin)
        for weight, vector in pairs:
            agrees = (vector.sign() == votes.sign()) if elect else torch.ones_like(vector).bool()
            total += agrees * weight * vector
            share += agrees * weight
        delta = total / torch.where(share > 0, share, 1) if normalize else total
        merged[name] = origin + factor * delta
    return merged


@pytest.mark.parametrize(
    ("method", "parameters", "expected"),
    [
        ("ties", {"density": 1.0}, by_hand(True, True, 1.0)),
        ("ties", {"density": 0.5, "lambda": 0.5}, by_hand(True, True, 0.5, 0.5)),
        ("task_arithmetic", {"lambda": 0.5}, by_hand(False, False, 1.0, 0.5)),
        ("task_arithmetic", {"normalize": True}, by_hand(False, True, 1.0)),
        ("dare_ties", {}, by_hand(True, False, 1.0)),
        ("dare_ties", {"normalize": True}, by_hand(True, True, 1.0)),
        ("dare_linear", {}, by_hand(False, False, 1.0)),
        ("della", {}, by_hand(True, True, 1.0)),
        ("breadcrumbs_ties", {"density": 0.5, "gamma": 0.25}, by_hand(True, False, 0.5, top=0.25)),
    ],
)
def test_numbers_are_those_of_the_definitions(method, parameters, expected):
    # All shares of 24, 8 and 12 numbers are whole, so that rounding does not matter.
    own = [{"weight": weight} for weight in WEIGHTS]
    recipe, _ = translated(config(method, *own, parameters=parameters))
    found = combined(
        recipe["merge_method"],
        BASE,
        STATES,
        [model["parameters"] for model in recipe["models"]],
        **recipe["parameters"],
    )
    for name in BASE:
        assert torch.allclose(found[name], expected[name], rtol=1e-12, atol=1e-12), name


def test_a_file_of_mergekit_is_merged(tmp_path, caplog):
    base, tuned = family(2)
    base.save_pretrained(tmp_path / "base")
    for name, model in zip(("one", "two"), tuned, strict=True):
        model.save_pretrained(tmp_path / name)
    values = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [
            {"model": str(tmp_path / "base")},
            {"model": str(tmp_path / "one"), "parameters": {"weight": 1}},
            {"model": str(tmp_path / "two"), "parameters": {"weight": 1}},
        ],
        "parameters": {"normalize": True, "int8_mask": True},
        "dtype": "float32",
    }
    (tmp_path / "mergekit.yml").write_text(yaml.safe_dump(values))
    with caplog.at_level(logging.INFO, logger="hf_zip"):
        result = hf_zip.merge(tmp_path / "mergekit.yml", progress=False)
    assert "int8_mask saves memory" in caplog.text
    weight = "encoder.layer.0.output.dense.weight"
    expected = (tuned[0].bert.get_parameter(weight) + tuned[1].bert.get_parameter(weight)) / 2
    assert torch.allclose(result.model.bert.get_parameter(weight), expected, atol=1e-6)
