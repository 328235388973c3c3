"""Merges of merges: their tasks, their weights, and where they come from."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import hf_zip
from hf_zip import cli
from hf_zip.errors import HfZipError
from hf_zip.learned import learned
from hf_zip.lineage import (
    CONFIG_KEY,
    Ancestor,
    MergedTask,
    sources_of_merge,
    tasks_of_merge,
    tree,
    weight_of,
)
from hf_zip.report import read
from hf_zip.save import MARKER
from tests.models import images, processor, vit

LABELS = {"pets": ["cat", "dog", "cow"], "trees": ["oak", "elm"], "cars": ["audi", "fiat"]}
ALL = [label for labels in LABELS.values() for label in labels]


@pytest.fixture
def folders(tmp_path):
    """Three models that share an initialisation, in folders, and an average of the first two."""
    for seed, (name, labels) in enumerate(LABELS.items(), start=1):
        vit(seed=seed, names=labels).save_pretrained(tmp_path / name)
        processor().save_pretrained(tmp_path / name)
    both = [tmp_path / "pets", tmp_path / "trees"]
    hf_zip.merge(both, method="average", force=True, out=tmp_path / "both")
    return tmp_path


def average(folder, *names, **options):
    return hf_zip.merge([folder / n for n in names], method="average", force=True, **options)


def close(model, other):
    torch.testing.assert_close(learned(model), learned(other), rtol=1e-6, atol=1e-7)


def test_one_after_the_other_is_all_at_once(folders):
    again = average(folders, "both", "cars", out=folders / "again")
    close(again.model, average(folders, "pets", "trees", "cars").model)
    assert [task.name for task in again.report.tasks] == ["pets", "trees", "cars"]
    assert [task.members for task in again.report.tasks] == [(0,), (0,), (1,)]
    assert again.model.config.id2label == dict(enumerate(ALL))
    assert [spec.parameters["weight"] for spec in again.recipe.models] == [2.0, 1.0]
    assert [spec.task for spec in again.recipe.models] == [None, "cars"]
    # What is written says the same, and the order of merging does not matter.
    rerun = hf_zip.merge(folders / "again" / MARKER, force=True)
    close(rerun.model, again.model)
    other = average(folders, "cars", "both")
    assert weight_of(other.model.config) == weight_of(again.model.config) == 3.0


def test_weights_add_up_and_may_be_given(folders):
    recipe = {
        "merge_method": "average",
        "models": [
            {"model": str(folders / "pets"), "parameters": {"weight": 3.0}},
            {"model": str(folders / "trees")},
        ],
    }
    hf_zip.merge(recipe, force=True, out=folders / "uneven")
    again = average(folders, "uneven", "cars")
    weights = {"pets": 3, "trees": 1, "cars": 1}
    all_at_once = [
        {"model": str(folders / name), "parameters": {"weight": weight}}
        for name, weight in weights.items()
    ]
    close(again.model, hf_zip.merge({**recipe, "models": all_at_once}, force=True).model)
    given = [
        {"model": str(folders / "uneven"), "parameters": {"weight": 1.0}},
        {"model": str(folders / "cars")},
    ]
    equal = hf_zip.merge({**recipe, "models": given}, force=True)
    assert [source.weight for source in equal.report.family] == [1.0, 1.0]


def test_models_of_one_task_share_rows_by_their_weights(tmp_path):
    for seed in range(3):
        vit(seed=seed, names=LABELS["pets"]).save_pretrained(tmp_path / f"m{seed}")
    one = {"tasks": ["pets", "pets"]}
    average(tmp_path, "m0", "m1", out=tmp_path / "both", **one)
    again = average(tmp_path, "both", "m2", tasks=["pets", "pets"])
    close(again.model, average(tmp_path, "m0", "m1", "m2", tasks=["pets"] * 3).model)


def test_a_task_of_two_merges_has_one_head(folders):
    average(folders, "trees", "cars", out=folders / "others")
    result = average(folders, "both", "others")
    assert [(task.name, task.members) for task in result.report.tasks] == [
        ("pets", (0,)),
        ("trees", (0, 1)),
        ("cars", (1,)),
    ]
    assert list(result.model.config.id2label.values()) == ALL


def test_every_task_of_a_merge_is_evaluated_and_cut_out(folders):
    data = {
        name: [{**{k: v[0] for k, v in images(vit(), 1, i).items()}, "labels": i} for i in range(2)]
        for name in LABELS
    }
    result = average(folders, "both", "cars", evaluation=data)
    rows = {row.name: row for row in result.report.evaluation.rows}
    assert list(rows["both"].per_task) == ["pets", "trees", "cars"]
    assert rows["both"].per_task["cars"] is None
    assert None not in rows["average"].per_task.values()
    one = result.for_task("trees")
    inputs = images(vit(), 2)
    torch.testing.assert_close(one(**inputs).logits, result.model(**inputs).logits[:, 3:5])


def test_a_given_task_takes_a_merge_as_one_model(folders):
    result = average(folders, "both", "cars", tasks=["things", "cars"])
    assert [task.name for task in result.report.tasks] == ["things", "cars"]
    assert result.report.tasks[0].labels == (*LABELS["pets"], *LABELS["trees"])


def test_labels_that_a_merge_kept_apart_stay_apart(tmp_path):
    for seed, name in enumerate("abc"):
        vit(seed=seed, names=["yes", "no"]).save_pretrained(tmp_path / name)
    named = {"labels": "apart"}
    average(tmp_path, "a", "b", tasks=["a", "b"], out=tmp_path / "ab", **named)
    result = average(tmp_path, "ab", "c", tasks=[None, "c"], **named)
    labels = list(result.model.config.id2label.values())
    assert labels == ["a/yes", "a/no", "b/yes", "b/no", "c/yes", "c/no"]
    with pytest.raises(HfZipError, match="label 'yes' belongs to task 'a' and to task 'b'"):
        average(tmp_path, "ab", "c", tasks=[None, "c"])


def test_methods_without_weights_count_models(folders):
    inputs = images(vit(), 8)["pixel_values"]
    result = hf_zip.merge(
        [folders / "both", folders / "cars"], method="zipit", calibration=inputs, force=True
    )
    assert [source.weight for source in result.report.family] == [2.0, 1.0]


def test_the_family_is_in_config_report_card_and_inspection(folders):
    average(folders, "both", "cars", out=folders / "again")
    report = read(folders / "again")
    both, cars = report.family
    assert (both.name, both.merge_method, both.weight) == ("both", "average", 2.0)
    assert [source.name for source in both.sources] == ["pets", "trees"]
    assert (cars.sources, cars.merge_method) == ((), None)
    assert cars.digest == report.sources[1].sha256
    config = json.loads((folders / "again" / "config.json").read_text())
    assert str(folders) not in json.dumps(config)
    assert config[CONFIG_KEY]["sources"][0]["sources"][1]["name"] == "trees"
    card = (folders / "again" / "README.md").read_text()
    expected = tree(report.family)
    assert expected[0] == f"├─ both, weight 2, {both.digest[:12]}, merged by average"
    assert expected[2].startswith("│  └─ trees, weight 1, ")
    assert "\n".join(expected) in card
    assert "| both | a local model | pets, trees |" in card
    shown = CliRunner().invoke(cli.app, ["inspect", str(folders / "again")]).stdout
    assert all(f"    {line}" in shown for line in expected)
    assert "a merge by average of the tasks pets (3), trees (2), cars (2)" in shown
    plain = average(folders, "pets", "cars", out=folders / "plain").report
    assert "merges themselves" not in (folders / "plain" / "README.md").read_text()
    assert plain.family[0] == Ancestor("pets", None, plain.sources[0].sha256)


def test_a_source_on_the_hub_is_named_by_its_id(folders, server):
    for name in ("pets", "both"):
        content = {path.name: path.read_bytes() for path in (folders / name).iterdir()}
        commit = server.add(f"me/{name}", content)
    result = hf_zip.merge(["me/both", folders / "cars"], method="average", force=True)
    assert (result.report.family[0].model, result.report.family[0].digest) == ("me/both", commit)
    assert tree(result.report.family)[0].startswith("├─ me/both, weight 2, ")
    shown = CliRunner().invoke(cli.app, ["inspect", "me/both"]).stdout
    assert "├─ pets, weight 1, " in shown


def test_a_partial_zip_has_a_family_too(folders, server):
    inputs = images(vit(), 8)["pixel_values"]
    options = {"stop_at": 1, "calibration": inputs, "out": folders / "partial"}
    result = average(folders, "both", "cars", **options)
    assert [task.name for task in result.report.tasks] == ["pets", "trees", "cars"]
    shown = CliRunner().invoke(cli.app, ["inspect", str(folders / "partial")]).stdout
    assert "├─ both, weight 2, " in shown
    content = {path.name: path.read_bytes() for path in (folders / "partial").iterdir()}
    server.add("me/partial", content)
    result = CliRunner().invoke(cli.app, ["inspect", "me/partial"])
    assert result.exit_code == 0, result.exception
    assert "a partial zip by average" in result.stdout


def with_record(**values):
    config = vit(names=["a", "b", "c"]).config
    setattr(config, CONFIG_KEY, {"merge_method": "average", **values})
    return config


@pytest.mark.parametrize(
    ("read_it", "record", "message"),
    [
        (sources_of_merge, {"sources": 3}, r"config.hf_zip.sources should be a list, not int"),
        (sources_of_merge, {"sources": [{"nam": "x"}]}, r"key in config.hf_zip.sources.0"),
        (tasks_of_merge, {"tasks": [{"name": "x"}]}, r"config.hf_zip.tasks.0 lacks the key"),
        (
            tasks_of_merge,
            {"tasks": [{"name": "x", "labels": ["a"], "start": 1}]},
            r"gives the task 'x' rows from 1 on, but those before end at 0",
        ),
        (
            tasks_of_merge,
            {"tasks": [{"name": "x", "labels": ["a", "b"], "start": 0}]},
            r"names 2 rows, but the config has 3 labels.*Take the entry 'hf_zip' out",
        ),
    ],
)
def test_a_damaged_record_is_named(read_it, record, message):
    with pytest.raises(HfZipError, match=message):
        read_it(with_record(**record))


def test_a_record_of_little():
    assert sources_of_merge(with_record()) == tasks_of_merge(with_record()) == ()
    tasks = [{"name": "x", "labels": [], "start": 0, "kind": "masked-lm"}]
    assert tasks_of_merge(with_record(tasks=tasks)) == ()
    assert weight_of(with_record()) == 1.0
    for weights in ([1.0, -1.0], [-3.0], [1e308, 1e308]):
        sources = [{"name": "a", "weight": weight} for weight in weights]
        assert weight_of(with_record(sources=sources)) == 1.0
    config = with_record(tasks=[{"name": "x", "labels": ["a", "b", "c"], "start": 0}])
    assert tasks_of_merge(config) == (MergedTask("x", ("a", "b", "c"), 0),)
    setattr(config, CONFIG_KEY, ["not", "a", "mapping"])
    assert sources_of_merge(config) == ()


def test_a_tree_of_one_and_of_many():
    leaf = Ancestor("leaf", digest="0123456789abcdef")
    assert tree(()) == []
    assert tree((leaf,)) == ["└─ leaf, weight 1, 0123456789ab"]
    deep = replace(leaf, name="deep", merge_method="ties", sources=(leaf, leaf))
    assert tree((deep, leaf))[1:] == [
        "│  ├─ leaf, weight 1, 0123456789ab",
        "│  └─ leaf, weight 1, 0123456789ab",
        "└─ leaf, weight 1, 0123456789ab",
    ]
