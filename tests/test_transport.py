"""Transport: what fine-tuning added to one base, brought to another one."""

import copy
from dataclasses import replace

import datasets
import pytest
import torch
from transformers import BertForMaskedLM
from typer.testing import CliRunner

import hf_zip
from hf_zip import cli
from hf_zip.adapters import adapter_for, adapter_of, adapters
from hf_zip.align import align
from hf_zip.arguments import recipe_from
from hf_zip.asked import read_request
from hf_zip.axes import Axis, MergeGroup
from hf_zip.card import render_card
from hf_zip.collect import make_accelerator
from hf_zip.errors import HfZipError
from hf_zip.groups import head_names, merge_groups
from hf_zip.match import Matching
from hf_zip.matching.merge_map import MergeMap
from hf_zip.methods import method_named
from hf_zip.methods.transport import TransportOptions
from hf_zip.needs import check_needs
from hf_zip.page import render_page
from hf_zip.preparation import prepare
from hf_zip.recipe import Recipe
from hf_zip.redact import published
from hf_zip.report import Report
from hf_zip.transport import bring, pretrained, transported
from hf_zip.vocabulary import reorder_vocabulary
from tests.models import outputs, permuted, random_inputs, randomise, rows, vit, with_parameters
from tests.siblings import finetuned
from tests.test_rotation import PRE_NORM, random_maps, scrambled
from tests.test_rotation import example as without_pool
from tests.texts import SPECIAL, VOCABULARY, WORDS, bert, sentences, tokenizer

ACCELERATOR = make_accelerator()
WHOLE = {"then_parameters": {"scaling": 1.0}}


def example(adapter):
    torch.manual_seed(0)
    return randomise(adapter.example().double().eval())


def moved(base, seed=3, amount=0.05):
    """A fine-tune of a base: every parameter moved a little."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(amount * noise.to(parameter.dtype))
    return model


def merge(models, base, own_bases, tasks=None, **parameters):
    return hf_zip.merge(
        models,
        method="transport",
        tasks=tasks or [f"task {i}" for i in range(len(models))],
        base_model=base,
        own_bases=own_bases,
        calibration=rows(random_inputs(models[0], 64, seed=7)),
        dtype="float64",
        parameters={**WHOLE, **parameters},
        progress=False,
    )


def error(model, other):
    with torch.no_grad():
        a, b = (outputs(m, random_inputs(model, 32, seed=2)) for m in (model, other))
    return ((a - b).abs().max() / a.abs().max()).item()


def trunk_state(model, adapter):
    heads = tuple(f"{name}." for name in head_names(model, adapter))
    return {n: p.detach() for n, p in model.named_parameters() if not n.startswith(heads or ("-",))}


def brought(model, own_base, base, alignment="rotate"):
    """What `bring` makes of a model; all three have the same class."""
    adapter = adapter_of(model)
    target = pretrained(model, trunk_state(base, adapter), adapter, alignment)
    return bring(
        model,
        trunk_state(own_base, adapter),
        target,
        adapter,
        rows(random_inputs(base, 64, seed=7)),
        alignment=alignment,
        batch_size=64,
        accelerator=ACCELERATOR,
        progress=False,
    )


# The law: what was fine-tuned from a scrambled copy of the base comes back exactly.


@pytest.mark.parametrize(
    ("name", "alignment"),
    [
        *((name, "permute") for name in adapters()),
        *((name, "rotate") for name in ("bert", "siglip", "vit")),
    ],
)
def test_a_fine_tune_of_a_permuted_base_comes_back(name, alignment):
    base = example(adapters()[name])
    model = moved(base)
    found = brought(permuted(model, 5), permuted(base, 5), base, alignment)
    assert error(model, found.model) <= 1e-8
    assert min(found.matching.correlations.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("adapter", PRE_NORM, ids=lambda adapter: adapter.name)
def test_a_fine_tune_of_a_rotated_base_comes_back(adapter):
    base = without_pool(adapter)
    model = moved(base)
    others = [scrambled(m, adapter, seed=5) for m in (model, base)]
    assert error(model, brought(*others, base).model) <= 1e-8
    # Reordering is not enough.
    assert error(model, brought(*others, base, "permute").model) > 0.01


@pytest.mark.parametrize("make", [vit, bert])
def test_a_merge_of_one_model_is_that_model_at_another_base(make):
    base = make(3, 1).double()
    model = moved(base)
    result = merge([permuted(model, 5)], base, [permuted(base, 5)])
    assert error(model, result.model) <= 1e-8
    assert not any("nothing to merge it with" in text for text in result.report.findings)


def test_heads_are_rotated_where_the_stream_cannot_be():
    base, adapter = bert(3, 1).double(), adapter_for("bert")
    model = moved(base)
    groups = merge_groups(base, adapter)
    maps = random_maps([g for g in groups if g.role in ("value", "query_key")], 4)
    others = [
        with_parameters(m, align(dict(m.named_parameters()), groups, maps, 0))
        for m in (permuted(model, 5), permuted(base, 5))
    ]
    assert error(model, brought(*others, base).model) <= 1e-8
    assert error(model, brought(*others, base, "permute").model) > 0.01


def test_what_only_fine_tunes_have_is_rewritten_whole():
    """A pooler that no base has: its units are not matched, what they read is."""
    base = bert(3, 1).double()
    model = moved(base)
    others = [permuted(m, seed=5) for m in (model, base)]
    bases = []
    for seed, whole in enumerate((base, others[1])):
        bare = bert(seed=seed, cls=BertForMaskedLM).double()
        bare.bert.load_state_dict(
            {k: v for k, v in whole.bert.state_dict().items() if not k.startswith("pooler")}
        )
        bases.append(bare)
    result = merge([others[0]], bases[0], [bases[1]])
    groups = merge_groups(base, adapter_for("bert"))
    matched = [group.role for group in groups if group.name in result.report.matching]
    assert "pooler" not in matched
    assert "stream" in matched
    assert error(model, result.model) <= 1e-8


# What is added.


def test_transported_by_hand():
    group = MergeGroup("g", "mlp", 2, (), (Axis("in", 0),), (Axis("out", 1), Axis("head", 1)))
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    eye = torch.eye(2)
    maps = {"g": MergeMap(torch.stack([eye, swap]), torch.stack([eye, swap.T]))}
    own = {"in": torch.tensor([[1.0], [2.0]]), "out": torch.tensor([[3.0, 4.0]])}
    own["zero"] = torch.zeros(1)
    state = {
        "in": own["in"] + torch.tensor([[1.0], [0.0]]),
        "out": own["out"] + torch.tensor([[0.0, 2.0]]),
        "zero": torch.ones(1),
        "head": torch.tensor([[5.0, 6.0]]),
    }
    target = {"in": 2 * own["in"], "out": torch.tensor([[4.0, 3.0]]), "zero": torch.ones(1)}
    given = (state, own, target, [group], Matching(maps, {}))
    plain = transported(*given)
    assert plain["in"].tolist() == [[2.0], [5.0]]
    assert plain["out"].tolist() == [[6.0, 3.0]]
    assert plain["head"].tolist() == [[6.0, 5.0]]
    half = transported(*given, scaling=0.5, rescale=True)
    assert half["in"].tolist() == [[2.0], [5.0]]  # the norm of the target's is twice the other's
    assert half["out"].tolist() == [[5.0, 3.0]]
    assert half["zero"].tolist() == [1.5]  # no norm to divide by
    assert half["head"].tolist() == [[6.0, 5.0]]


def test_siblings_stay_and_are_merged_with_what_is_brought():
    base = vit(2, 1).double()
    models = [moved(base, 3), moved(base, 4)]
    own_base, own = permuted(base, 5), permuted(models[1], 5)
    tasks = ["one", "one"]
    result = merge(
        [models[0], own], base, [None, own_base], tasks, alignment="permute", scaling=0.5
    )
    head = (models[0].classifier.weight + models[1].classifier.weight) / 2
    torch.testing.assert_close(result.model.classifier.weight, head, rtol=0, atol=1e-12)
    for name, parameter in result.model.named_parameters():
        if not name.startswith("classifier"):
            origin = base.get_parameter(name)
            first, second = (m.get_parameter(name) - origin for m in models)
            wanted = origin + first + 0.5 * second
            torch.testing.assert_close(parameter, wanted, rtol=0, atol=1e-12)


def test_any_method_for_siblings_may_follow():
    base = bert(2, 1).double()
    models = [moved(base, 3), moved(base, 4)]
    others = [permuted(m, 5) for m in (models[1], base)]
    keys = {"calibration": rows(random_inputs(models[0], 64, seed=7)), "dtype": "float64"}
    keys |= {"tasks": ["one", "one"], "progress": False}
    for then in ("ties", "regmean", "fisher"):
        parameters = {"then": then, "then_parameters": {}}
        found = merge([models[0], others[0]], base, [None, others[1]], keys["tasks"], **parameters)
        origin = base if method_named(then).requires.base else None
        wanted = hf_zip.merge(models, method=then, base_model=origin, **keys)
        assert error(wanted.model, found.model) <= 1e-6, then


def test_models_of_one_base_are_matched_once(monkeypatch):
    base = vit(2, 1).double()
    own_base = vit(2, 9).double()
    models = [moved(own_base, 3), moved(own_base, 4)]
    runs = []
    found = hf_zip.transport.match_pretrained
    monkeypatch.setattr(
        "hf_zip.transport.match_pretrained", lambda *a, **k: runs.append(1) or found(*a, **k)
    )
    result = merge(models, base, [own_base, own_base], ["one", "one"])
    assert len(runs) == 1
    assert [own.base.name for own in result.report.own_bases] == ["base_0", "base_0"]
    merge(models, base, [own_base, copy.deepcopy(own_base)], ["one", "one"])
    assert len(runs) == 3


def test_a_head_can_be_fitted_to_what_the_model_itself_answers():
    base, own_base = vit(3, 1).double(), vit(3, 9).double()
    model = moved(own_base)
    inputs = random_inputs(model, 96, seed=7)
    errors = []
    for refit in ("none", "head"):
        result = merge([model], base, [own_base], refit=refit)
        with torch.no_grad():
            wanted, found = (m(**inputs).logits for m in (model, result.model))
        errors.append((wanted - found).square().mean().item())
    assert errors[1] < 0.5 * errors[0]


def test_heads_that_stay_apart_read_what_is_merged():
    """Without a head there is no canonical form, so their streams are reordered."""
    base, own_base = vit(2, 1).double(), vit(2, 9).double()
    models = [moved(base, 3), moved(own_base, 4)]
    models[1].config.problem_type = "multi_label_classification"
    result = merge(models, base, [None, own_base])
    assert type(result.model).__name__ == "HfZipMultiHeadModel"


# How it is asked for, and recorded.


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A base, a fine-tune of it, and a fine-tune of another base."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    bases = [bert(seed=seed, cls=BertForMaskedLM) for seed in (1, 2)]
    saved = dict(zip(("base", "other"), bases, strict=True))
    saved |= {"intent": finetuned(bases[0], 3), "mood": finetuned(bases[1], 4)}
    for name, model in saved.items():
        model.save_pretrained(tmp_path / "models" / name)
        tokenizer().save_pretrained(tmp_path / "models" / name)
    (tmp_path / "texts.txt").write_text("\n".join(sentences(30)))
    return tmp_path


def recipe(folder, **keys):
    paths = {name: str(folder / "models" / name) for name in ("base", "other", "intent", "mood")}
    return {
        "merge_method": "transport",
        "base_model": paths["base"],
        "models": [
            {"model": paths["intent"], "task": "intent"},
            {"model": paths["mood"], "task": "mood", "base_model": paths["other"]},
        ],
        "calibration": {"data": "texts.txt"},
        **keys,
    }


def test_recipe_python_and_command_line_say_the_same(workshop):
    values = recipe(workshop)
    first = hf_zip.merge(values, out="merged", progress=False)
    names = [spec["model"] for spec in values["models"]]
    other = values["models"][1]["base_model"]
    second = read_request(
        names,
        method="transport",
        tasks=["intent", "mood"],
        calibration="texts.txt",
        recipe_keys={"base_model": values["base_model"]},
        own_bases=[None, other],
    )
    assert second.recipe == Recipe.from_dict(values)
    line = ["merge", *names, "--method", "transport", "--out", "by_line"]
    line += ["--task", "intent", "--task", "mood", "--base", values["base_model"]]
    line += ["--own-base", f"mood={other}", "--calibration", "texts.txt"]
    assert CliRunner().invoke(cli.app, line, catch_exceptions=False).exit_code == 0
    written = Recipe.from_yaml("by_line/hf_zip_recipe.yaml")
    assert written == first.recipe
    assert [spec.base_model for spec in written.models] == [None, other]

    report = first.report
    assert Report.from_json(report.to_json()) == report
    (own,) = report.own_bases
    assert (own.source, own.base.name, own.base.reference) == ("mood", "other", other)
    assert len(own.base.sha256) == 64
    sentence = "mood was fine-tuned from other"
    for text in ((workshop / "merged" / "README.md").read_text(), render_page(report)):
        assert sentence in text
        assert "Those that are not named below were fine-tuned from the base model base" in text
        assert str(workshop) not in text
    assert str(workshop) not in published(report).to_json()
    assert sentence not in render_card(replace(report, own_bases=()))


def test_words_in_another_order_are_put_into_one(workshop):
    """The own base has its words in another order than all others."""
    path = workshop / "models" / "other"
    expected = hf_zip.merge(recipe(workshop), progress=False).model
    model = BertForMaskedLM.from_pretrained(path)
    vocabulary = [*SPECIAL, *reversed(WORDS)]
    order = torch.tensor([VOCABULARY.index(word) for word in vocabulary])
    reorder_vocabulary(model, order)
    model.save_pretrained(path)
    tokenizer(vocabulary).save_pretrained(path)
    found = hf_zip.merge(recipe(workshop), progress=False).model
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(parameter, found.get_parameter(name), rtol=0, atol=1e-5)


# What is refused.


def prepared(models, base, own_bases, force=False):
    keys = {"base_model": base}
    given = read_request(
        models, "transport", ["one"] * len(models), recipe_keys=keys, own_bases=own_bases
    )
    method = method_named("transport")
    return prepare(given, method, force, make_accelerator(), progress=False)


def test_a_base_that_is_not_a_models_own_is_refused():
    base, own_base = vit(2, 1), vit(2, 9)
    model = moved(own_base)
    with pytest.raises(HfZipError, match=r"base_model 'base_model' and of 'model_0' are unrelated"):
        prepared([model], base, None)
    with pytest.raises(HfZipError, match=r"base_model 'base_0' and of 'model_0' are unrelated"):
        prepared([model], base, [base])
    with pytest.raises(HfZipError, match=r"base_model 'base_0' is of type bert, but 'model_0'"):
        prepared([model], base, [bert()])
    with pytest.raises(HfZipError, match=r"base_model 'base_0' and 'model_0' differ in"):
        prepared([model], base, [vit(2, 9, intermediate_size=24)])
    forced = prepared([model], base, [base], force=True)
    assert any("their difference is taken for one" in x.message for x in forced.findings.findings)
    fine = prepared([model], base, [own_base])
    assert not any("unrelated" in finding.message for finding in fine.findings.findings)


def test_task_vectors_from_different_bases_are_not_compared():
    base, own_base = vit(2, 1), vit(2, 9)
    models = [moved(base, 3), moved(base, 4), moved(own_base, 5)]
    models[2].config.id2label = base.config.id2label
    found = prepared(models, base, [None, None, own_base]).findings.task_vectors
    assert [(pair.first, pair.second) for pair in found] == [("model_0", "model_1")]


def test_methods_that_bring_nothing_refuse_bases_of_models():
    request = read_request(["a", "b"], "ties", own_bases=[None, "c"])
    with pytest.raises(HfZipError, match=r"models\.1 has its own 'base_model', but 'ties' brings"):
        check_needs(method_named("ties"), request)


def test_the_base_to_bring_to_must_be_named():
    request = read_request(["a", "b"], "transport", calibration="x.txt", own_bases=[None, "c"])
    with pytest.raises(HfZipError, match="'transport' needs the model that the others"):
        check_needs(method_named("transport"), request)


def test_arguments_that_contradict_one_another_are_refused():
    with pytest.raises(HfZipError, match="2 models but 1 entries of own_bases"):
        read_request(["a", "b"], "transport", own_bases=["c"])
    with pytest.raises(HfZipError, match="the recipe decides own_bases"):
        read_request({"merge_method": "transport", "models": [{"model": "a"}]}, own_bases=["c"])
    options = dict.fromkeys(
        ("--calibration", "--own-calibration", "--samples", "--stop-at", "--budget", "--labels",
         "--base", "--evaluation", "--validation")
    )  # fmt: skip
    options |= {"--method": "transport", "--task": ["x", "x"]}
    with pytest.raises(HfZipError, match="the task 'y', which 0 of the models have"):
        recipe_from(["a", "b"], {**options, "--own-base": ["y=c"]})
    with pytest.raises(HfZipError, match="the task 'x', which 2 of the models have"):
        recipe_from(["a", "b"], {**options, "--own-base": ["x=c"]})
    with pytest.raises(HfZipError, match="--own-base takes TASK=MODEL, not 'c'"):
        recipe_from(["a", "b"], {**options, "--own-base": ["c"]})


def test_options_that_cannot_be_meant_are_refused():
    with pytest.raises(HfZipError, match="then is 'zipit', which does not merge fine-tunes"):
        TransportOptions(then="zipit")
    with pytest.raises(HfZipError, match="then is 'emr', which does not merge fine-tunes"):
        TransportOptions(then="emr")
    with pytest.raises(HfZipError, match=r"unknown key in parameters\.then_parameters 'alpha'"):
        TransportOptions(then_parameters={"alpha": 1.0})
    with pytest.raises(HfZipError, match="but only one of them can come last"):
        TransportOptions(refit="head", then_parameters={"refit": "repair"})
    base = vit(2, 1)
    with pytest.raises(HfZipError, match="which merges 2 models, but there are 3"):
        merge([base] * 3, base, None, ["one"] * 3, then="slerp", then_parameters={})
