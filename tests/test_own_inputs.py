"""Inputs of each model's own: in recipes, in Python and on the command line."""

import datasets
import pytest
import torch
from typer.testing import CliRunner

import hf_zip
from hf_zip import cli
from hf_zip.arguments import recipe_from
from hf_zip.asked import read_request
from hf_zip.calibration import from_memory
from hf_zip.errors import HfZipError
from hf_zip.inputs import joined_inputs
from hf_zip.methods import method_named
from hf_zip.needs import check_needs
from hf_zip.page import render_page
from hf_zip.recipe import Recipe
from hf_zip.texts import TextReader
from tests.texts import bert, sentences, tokenizer

NAMES = ("intent", "mood")
FILES = [f"{name}.txt" for name in NAMES]


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """Two models of one initialisation, and texts of each one's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    for seed, name in enumerate(NAMES):
        bert(seed=seed).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        (tmp_path / f"{name}.txt").write_text("\n\n".join(sentences(9, seed=seed)))
    return tmp_path


def recipe(own, **keys):
    specs = [{"data": file, "samples": 6, "batch_size": 4} for file in own]
    models = [
        {"model": name, "task": name, "calibration": spec}
        for name, spec in zip(NAMES, specs, strict=True)
    ]
    return {"merge_method": "regmean", "models": models, **keys}


def parameters(result):
    return dict(result.model.named_parameters())


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name, parameter in one.items():
        torch.testing.assert_close(parameter, two[name], rtol=0, atol=0)


def test_each_model_runs_on_inputs_of_its_own(workshop):
    own = hf_zip.merge(recipe(FILES), out="merged", force=True, progress=False)
    crossed = hf_zip.merge(recipe(FILES[::-1]), force=True, progress=False)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(parameters(own)[name], parameters(crossed)[name])

    written = Recipe.from_yaml("merged/hf_zip_recipe.yaml")
    assert [spec.calibration.data for spec in written.models] == [(file,) for file in FILES]
    again = hf_zip.merge(written, force=True, progress=False)
    assert_same(parameters(own), parameters(again))

    report = own.report
    assert {name: found["rows"] for name, found in report.own_calibration.items()} == {
        "intent": 6,
        "mood": 6,
    }
    assert report.calibration["rows"] == 12  # of both together, for the controls
    for text in ((workshop / "merged" / "README.md").read_text(), render_page(report)):
        for name, file in zip(NAMES, FILES, strict=True):
            assert f"{name}: data: {file}" in text.replace("\\", "")


def test_python_and_the_command_line_say_the_same(workshop):
    own = hf_zip.merge(recipe(FILES), force=True, progress=False)
    reader = TextReader(tokenizer(), 16, 128)
    read = {i: from_memory(sentences(9, seed=i), reader) for i in range(2)}
    assert [len(inputs) for inputs in read.values()] == [9, 9]
    keys = {"method": "regmean", "tasks": NAMES, "force": True, "progress": False}
    specs = [{"data": file, "samples": 6, "batch_size": 4} for file in FILES]
    assert_same(parameters(own), parameters(hf_zip.merge(NAMES, own_calibration=specs, **keys)))

    in_memory = hf_zip.merge(NAMES, own_calibration=list(read.values()), **keys)
    named = hf_zip.merge(NAMES, own_calibration=FILES, **keys)
    for name, parameter in parameters(in_memory).items():  # the same rows in another order
        torch.testing.assert_close(parameter, parameters(named)[name], rtol=0, atol=1e-6)

    line = ["merge", *NAMES, "--method", "regmean", "--out", "merged", "--force", "--samples", "6"]
    for name, file in zip(NAMES, FILES, strict=True):
        line += ["--task", name, "--own-calibration", file]
    found = CliRunner().invoke(cli.app, line, catch_exceptions=False)
    assert found.exit_code == 0
    written = Recipe.from_yaml("merged/hf_zip_recipe.yaml")
    assert [spec.calibration.samples for spec in written.models] == [6, 6]


def test_a_model_without_inputs_of_its_own_has_those_of_all():
    models = [bert(seed=seed) for seed in (1, 2)]
    shared, other = ([{"input_ids": torch.tensor([i, 6, 7])}] * 3 for i in (5, 8))
    request = read_request(
        models, "regmean", calibration=shared, own_calibration=[None, other], processor=tokenizer()
    )
    check_needs(method_named("regmean"), request)
    sources = request.load_sources()
    first, second = own = request.load_own_calibration(sources[0])
    assert first is None
    assert second.inputs[0]["input_ids"] == [8, 6, 7]
    assert len(request.load_calibration(sources[0], own)) == 3


def test_inputs_of_all_models_are_those_of_each_together():
    texts = TextReader(tokenizer(), 16, 128)
    one, two = (from_memory(sentences(count, seed=count), texts) for count in (2, 3))
    both = joined_inputs([one, joined_inputs([two, one])])
    assert len(both) == 7
    assert both[4]["input_ids"] == two[2]["input_ids"]
    assert [part["rows"] for part in both.description["parts"]] == [2, 3, 2]
    assert both.collate == one.collate


def test_what_compares_models_refuses_inputs_of_their_own():
    request = read_request(recipe(FILES) | {"merge_method": "zipit"})
    with pytest.raises(HfZipError, match=r"models\.0 has its own 'calibration', but 'zipit' comp"):
        check_needs(method_named("zipit"), request)


def test_some_models_without_inputs_are_refused():
    models = [bert(seed=seed) for seed in (1, 2)]
    request = read_request(models, "regmean", own_calibration=["a.txt", None])
    with pytest.raises(HfZipError, match="or some of its own for every model"):
        check_needs(method_named("regmean"), request)


def test_arguments_that_contradict_one_another_are_refused():
    with pytest.raises(HfZipError, match="2 models but 1 entries of own_calibration"):
        read_request(["a", "b"], "regmean", own_calibration=["a.txt"])
    with pytest.raises(HfZipError, match="the recipe decides own_calibration"):
        read_request(recipe(FILES), own_calibration=FILES)
    options = dict.fromkeys(
        ("--task", "--calibration", "--samples", "--stop-at", "--budget", "--labels", "--base",
         "--evaluation", "--validation", "--own-base")
    )  # fmt: skip
    options |= {"--method": "regmean", "--own-calibration": ["a.txt"]}
    with pytest.raises(HfZipError, match="2 models but 1 times --own-calibration"):
        recipe_from(["a", "b"], options)
