"""The command line as a user types it, on small models and images in a temporary folder."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageClassification, pipeline
from typer.testing import CliRunner

import hf_zip
from hf_zip import cli
from hf_zip.save import MARKER
from tests.data import write_images, write_labelled
from tests.models import processor, vit

ROOT = Path(__file__).parent.parent
CATS, TREES = ["cat", "dog", "cow"], ["oak", "elm"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Two models of different initialisations, unlabelled images, and labelled test files."""
    folder = tmp_path_factory.mktemp("workshop")
    for name, labels, seed in (("pets", CATS, 1), ("trees", TREES, 2)):
        vit(seed=seed, names=labels).save_pretrained(folder / name)
        processor().save_pretrained(folder / name)
        write_labelled(folder / f"{name}.parquet", labels, count=12, seed=seed)
    write_images(folder / "images", count=20)
    return folder


@pytest.fixture
def run(workshop, monkeypatch):
    monkeypatch.chdir(workshop)

    def invoke(*arguments):
        return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])

    return invoke


def fails(result, message):
    """The command ended in the error that main() prints, with this message."""
    assert result.exit_code == 1
    assert isinstance(result.exception, cli.HfZipError), result.exception
    assert re.search(message, str(result.exception)), result.exception


def merged(run, out, *more):
    result = run(
        "merge",
        "pets",
        "trees",
        "--method",
        "zipit",
        "--calibration",
        "images",
        "--out",
        out,
        *more,
    )
    assert result.exit_code == 0, result.exception
    return result


def test_help_does_not_wait_for_heavy_imports():
    code = (
        "import sys, hf_zip.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_version_is_told(run):
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"hf_zip {hf_zip.__version__}\n")


def test_merge_two_folders_and_load_them_without_hf_zip(run, tmp_path):
    merged(run, tmp_path / "out")
    code = f"""
import sys
sys.modules["hf_zip"] = None  # importing it would fail
from transformers import pipeline
answers = pipeline("image-classification", {str(tmp_path / "out")!r})("images/0.png", top_k=9)
assert {{answer["label"] for answer in answers}} == {{*{CATS}, *{TREES}}}, answers
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_files_beside_the_model(run, tmp_path):
    out = tmp_path / "out"
    merged(run, out, "--seed", 3, "--samples", 7, "--evaluation", "pets=pets.parquet")
    recipe = yaml.safe_load((out / MARKER).read_text())
    assert (recipe["merge_method"], recipe["seed"]) == ("zipit", 3)
    assert recipe["calibration"]["samples"] == 7
    assert recipe["parameters"]["alpha"] == 0.1
    assert [model["task"] for model in recipe["models"]] == ["pets", "trees"]
    assert f"transformers {__import__('transformers').__version__}" in (out / MARKER).read_text()
    report = json.loads((out / "hf_zip_report.json").read_text())
    assert report["calibration"]["rows"] == 7
    assert {row["kind"] for row in report["evaluation"]["rows"]} == {
        "parent",
        "ensemble",
        "average",
        "control",
        "merge",
    }
    card = (out / "README.md").read_text()
    assert "base_model_relation: merge" in card
    assert str(tmp_path) not in card
    config = json.loads((out / "config.json").read_text())
    assert [task["name"] for task in config["hf_zip"]["tasks"]] == ["pets", "trees"]


def test_the_written_recipe_merges_the_same_again(run, tmp_path):
    merged(run, tmp_path / "once")
    recipe = tmp_path / "once" / MARKER
    copy = tmp_path / "again.yaml"
    copy.write_text(recipe.read_text())
    result = run("merge", copy, "--out", tmp_path / "again")
    assert result.exit_code == 0, result.exception
    once, again = (
        AutoModelForImageClassification.from_pretrained(tmp_path / name)
        for name in ("once", "again")
    )
    for name, parameter in once.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))


def test_options_reach_the_model(run, tmp_path):
    merged(
        run, tmp_path / "out", "--dtype", "bfloat16", "--task", "a", "--task", "b", "--stop-at", 2
    )
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert [task["name"] for task in model.config.hf_zip["tasks"]] == ["a", "b"]


def test_evaluation_table_names_every_candidate(run, tmp_path):
    result = merged(
        run,
        tmp_path / "out",
        "--evaluation",
        "pets=pets.parquet",
        "--evaluation",
        "trees=trees.parquet",
    )
    for name in ("pets", "trees", "ensemble", "weight average", "one trunk", "zipit"):
        assert name in result.output


def test_evaluate_a_folder_later(run, tmp_path):
    out = tmp_path / "out"
    merged(run, out)
    assert json.loads((out / "hf_zip_report.json").read_text())["evaluation"] is None
    result = run("evaluate", out, "--evaluation", "trees=trees.parquet")
    assert result.exit_code == 0, result.exception
    rows = json.loads((out / "hf_zip_report.json").read_text())["evaluation"]["rows"]
    assert [row["name"] for row in rows if row["kind"] == "merge"] == ["zipit"]
    assert "trees.parquet" in (out / MARKER).read_text()
    assert "model-index" in (out / "README.md").read_text()


def test_evaluate_without_data_says_how_to_give_them(run, tmp_path):
    merged(run, tmp_path / "out")
    fails(run("evaluate", tmp_path / "out"), "names no evaluation data; give them, such as")
    fails(run("evaluate", "pets"), f"holds no {re.escape(MARKER)}")


def test_export_one_task(run, tmp_path):
    merged(run, tmp_path / "out")
    result = run("export", tmp_path / "out", "--task", "trees", "--out", tmp_path / "trees")
    assert result.exit_code == 0, result.exception
    answers = pipeline("image-classification", str(tmp_path / "trees"))("images/0.png")
    assert {answer["label"] for answer in answers} == set(TREES)
    fails(
        run("export", tmp_path / "out", "--task", "tree", "--out", tmp_path / "x"),
        "unknown task 'tree'. Did you mean 'trees'",
    )
    fails(
        run("export", "pets", "--task", "cat", "--out", tmp_path / "x"), "was not merged by hf_zip"
    )


def test_card_is_rendered_again_from_the_report(run, tmp_path):
    merged(run, tmp_path / "out")
    card = tmp_path / "out" / "README.md"
    before = card.read_text()
    card.write_text("lost")
    assert run("card", tmp_path / "out").exit_code == 0
    assert card.read_text() == before


def test_inspect_shows_groups_diagnosis_and_suggestion(run):
    result = run("inspect", "pets", "trees")
    assert result.exit_code == 0, result.exception
    for word in (
        "stream: 1 x 12 features",
        "value: 2 x 12 features in 3 heads",
        "different",
        "zipfit",
    ):
        assert word in result.output
    assert "initialisation" not in run("inspect", "pets").output


def test_inspect_knows_a_merge(run, tmp_path):
    merged(run, tmp_path / "out")
    assert (
        "a merge by zipit of the tasks pets (3), trees (2)"
        in run("inspect", tmp_path / "out").output
    )


def test_inspect_shows_the_parts_of_a_partial_zip(run, tmp_path):
    merged(run, tmp_path / "out", "--stop-at", 1)
    shown = run("inspect", tmp_path / "out").output
    for line in (
        "HfZipForImageClassification, 4.64 k parameters",
        "a partial zip by zipit",
        "trunk: 1 of 2 blocks, width 12, 1.84 k parameters",
        "tail 1: 1 of 2 blocks, 2 labels, 1.39 k parameters",
        "task trees, tail 1: oak, elm",
    ):
        assert line in shown
    fails(
        run("inspect", tmp_path / "out", "pets"), "is a partial zip, which cannot be merged again"
    )


def test_lists():
    runner = CliRunner()
    assert "zipit: ZipIt!" in runner.invoke(cli.app, ["methods"]).output
    assert "deit" in runner.invoke(cli.app, ["adapters"]).output


ZIPIT = ["--method", "zipit", "--calibration", "images"]
BAD = {
    "missing folder": (["nowhere", "trees", *ZIPIT], r"'nowhere' is .*"),
    "not a model": (["images", "trees", *ZIPIT], r"config\.json"),
    "unknown method": (
        ["pets", "trees", "--method", "zipt"],
        "unknown merge method 'zipt'. Did you",
    ),
    "no method": (["pets", "trees"], "no merge method; give --method"),
    "no calibration": (["pets", "trees", "--method", "zipit"], "needs unlabelled inputs"),
    "different inits": (["pets", "trees", "--method", "average"], "initialisation"),
    "too few tasks": (
        ["pets", "trees", "--method", "zipit", "--task", "a"],
        "2 models but 1 times",
    ),
    "samples of nothing": (
        ["pets", "trees", "--method", "zipit", "--samples", "3"],
        "--calibration",
    ),
    "evaluation without task": (
        ["pets", "trees", "--method", "zipit", "--evaluation", "x.parquet"],
        "--evaluation takes TASK=DATA",
    ),
    "recipe and options": (["r.yaml", "--seed", "1"], "--seed and a recipe exclude each other"),
    "recipe and models": (["r.yaml", "pets"], "give one recipe and nothing else"),
    "missing recipe": (["r.yaml"], r"recipe 'r\.yaml' is not a file"),
    "empty calibration": (
        ["pets", "trees", "--method", "zipit", "--calibration", "empty"],
        "empty",
    ),
    "unknown evaluation task": (
        ["pets", "trees", *ZIPIT, "--evaluation", "tree=trees.parquet"],
        "unknown task under 'evaluation' 'tree'. Did you mean 'trees'",
    ),
    "too deep": (
        ["pets", "trees", *ZIPIT, "--stop-at", "3"],
        "stop_at is 3, but ViTForImageClassification has 2 blocks",
    ),
    "unknown option of the method": (
        ["pets", "trees", *ZIPIT, "--set", "parameters.alfa=1"],
        "unknown key in parameters 'alfa'. Did you mean 'alpha'",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_error_and_nothing_is_written(run, tmp_path, arguments, message):
    Path("empty").mkdir(exist_ok=True)
    fails(run("merge", *arguments, "--out", tmp_path / "out"), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_so_and_leaves_nothing(workshop, tmp_path, stop, code):
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from hf_zip import cli, save
def wait(*_):
    print("staged", flush=True)
    signal.pause()
save.check_reload = wait
sys.argv = ["hf-zip", "merge", "pets", "trees", *{ZIPIT}, "--out", {str(tmp_path / "out")!r}]
cli.main()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=workshop,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "staged\n"
        process.send_signal(stop)
        errors = process.stderr.read()
    assert process.returncode == code
    assert "stopped; folders are as they were, or whole" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_one_line_without_a_traceback(workshop):
    command = [
        sys.executable,
        "-m",
        "hf_zip",
        "merge",
        "nowhere",
        "--method",
        "zipit",
        "--out",
        "o",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=workshop, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
