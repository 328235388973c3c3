import dataclasses
import re

import pytest
import yaml

from hf_zip.errors import HfZipError
from hf_zip.recipe import CalibrationSpec, EvaluationSpec, ModelSpec, Recipe

FULL = """
merge_method: zipit
models:
  - model: org/a@main
    task: cars
    parameters: {weight: 2}
  - model: folder/b
parameters: {alpha: 0.5}
dtype: bfloat16
calibration: {data: [images, more.parquet], column: picture, samples: 100}
evaluation:
  - {task: cars, data: cars.parquet, label_column: kind}
seed: 3
"""


def recipe(**values):
    return Recipe.from_dict({"merge_method": "average", "models": [{"model": "a"}], **values})


def test_yaml_becomes_the_dataclass(tmp_path):
    (tmp_path / "recipe.yaml").write_text(FULL)
    assert Recipe.from_yaml(tmp_path / "recipe.yaml") == Recipe(
        merge_method="zipit",
        models=(ModelSpec("org/a@main", "cars", {"weight": 2}), ModelSpec("folder/b")),
        parameters={"alpha": 0.5},
        dtype="bfloat16",
        calibration=CalibrationSpec(("images", "more.parquet"), column="picture", samples=100),
        evaluation=(EvaluationSpec("cars", "cars.parquet", label_column="kind"),),
        seed=3,
    )


def test_yaml_written_and_read_is_the_same_recipe(tmp_path):
    first = Recipe.from_dict(yaml.safe_load(FULL))
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    assert Recipe.from_yaml(tmp_path / "again.yaml") == first


def test_the_written_recipe_holds_every_default():
    written = yaml.safe_load(recipe().to_yaml())
    assert set(written) == {field.name for field in dataclasses.fields(Recipe)}
    assert written["dtype"] == "float32"
    (model,) = written["models"]
    absent = dict.fromkeys(("task", "calibration", "base_model"))
    assert model == {"model": "a", "parameters": {}, **absent}


def test_one_data_set_may_stand_without_a_list():
    assert recipe(calibration={"data": "images"}).calibration.data == ("images",)


def test_overrides_reach_nested_keys_lists_and_absent_mappings():
    changed = recipe().with_overrides(
        ["seed=7", "models.0.task=cars", "parameters.alpha=0.25", "calibration.samples=5"]
    )
    assert changed == recipe(
        seed=7,
        models=[{"model": "a", "task": "cars"}],
        parameters={"alpha": 0.25},
        calibration={"samples": 5},
    )


def test_no_overrides_change_nothing():
    assert recipe().with_overrides([]) == recipe()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"merge_methd": "x"}, "unknown key in recipe 'merge_methd'. Did you mean 'merge_method'?"),
        ({"models": [{"modle": "a"}]}, "unknown key in models.0 'modle'. Did you mean 'model'?"),
        (
            {"models": [{"model": "a", "data": "images"}]},
            "models.0 has its own 'data', but data are named by 'calibration: {data: [...]}'",
        ),
        ({"models": [{}]}, "models.0 lacks the key 'model'"),
        ({"models": []}, "the recipe names no models"),
        ({"models": ["a"]}, "models.0 should be a mapping of keys to values, not 'a'"),
        ({"models": {"model": "a"}}, "models should be a list, not a mapping"),
        ({"parameters": [1]}, "parameters should be a mapping of keys to values, not a list"),
        ({"seed": "one"}, "seed should be a whole number, not 'one'"),
        ({"seed": True}, "seed should be a whole number, not True"),
        ({"seed": 1.5}, "seed should be a whole number, not 1.5"),
        ({"merge_method": None}, "merge_method should be text, not nothing"),
        ({"dtype": "float23"}, "unknown dtype 'float23'. Did you mean 'float32'?"),
        ({"seed": -1}, "seed is -1; it should be at least 0"),
        ({"max_shard_size": "5 gigabytes"}, "max_shard_size is '5 gigabytes'; it should be a num"),
        ({"max_shard_size": "0.0GB"}, "max_shard_size is '0.0GB'; it should be a number above 0"),
        ({"max_shard_size": 5}, "max_shard_size should be text, not 5"),
        ({"max_shard_size": "1GB", "output": "lora"}, "max_shard_size is that of a model's files"),
        ({"stop_at": -1}, "stop_at is -1; it should be at least 0"),
        ({"calibration": {"samples": 0}}, "calibration.samples is 0; it should be at least 1"),
        ({"calibration": {"batch_size": 0}}, "calibration.batch_size is 0; it should be"),
        ({"evaluation": [{"task": "a"}]}, "evaluation.0 lacks the key 'data'"),
        (
            {"evaluation": [{"task": "a", "data": "d", "samples": 0}]},
            "evaluation.samples is 0; it should be at least 1",
        ),
        (
            {"evaluation": [{"task": "a", "data": "d", "batch_size": 0}]},
            "evaluation.batch_size is 0; it should be at least 1",
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(values, message):
    with pytest.raises(HfZipError, match=re.escape(message)):
        recipe(**values)


def test_empty_mappings_may_be_left_blank():
    assert recipe(parameters=None) == recipe()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "--set takes key=value"),
        ("=1", "--set takes key=value"),
        ("sead=1", "unknown key in recipe 'sead'. Did you mean 'seed'?"),
        ("models.3.task=a", "'3' should be a position from 0 to 0"),
        ("seed.deep=1", "'deep' is below a value that holds no keys"),
        ("seed=[", "'[' is not a YAML value"),
    ],
)
def test_a_wrong_override_is_refused(assignment, message):
    with pytest.raises(HfZipError, match=re.escape(message)):
        recipe().with_overrides([assignment])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a file; give the path of a YAML recipe"),
        ("a: [", "is not valid YAML"),
        ("- a", "holds a list, but should be a mapping"),
        ("", "holds nothing, but should be a mapping"),
        ("models: [{model: a}]", "recipe lacks the key 'merge_method'"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(HfZipError, match=re.escape(message)):
        Recipe.from_yaml(path)
