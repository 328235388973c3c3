"""The benchmark of rooting, on images and sentences that are made here."""

import json
from types import SimpleNamespace

import pytest
from transformers import BertForMaskedLM

from tests.test_benchmark_text import TINY as TINY_BERT
from tests.test_benchmark_text import call
from tests.test_benchmark_text import folder as sentences  # noqa: F401 - a fixture
from tests.test_benchmark_zip import TINY as TINY_VIT
from tests.test_benchmark_zip import folder as pictures  # noqa: F401 - a fixture
from tests.texts import bert, tokenizer

# isort: split
import benchmark_rooting
import benchmark_text
import rooting_rows
import rooting_tables
import train_bert

ROOTED = (
    "rooted in the first, average",
    "rooted in the first without anchor, zipfit",
    "rooted in zipfit, task arithmetic",
)


def options_for(folder, **more):
    return {
        "--cache": folder / "cache",
        "--out": folder / "out",
        "--groups": 1,
        "--samples": 24,
        "--few": 16,
        "--steps": 3,
        "--rows": ["weight average", "zipfit", *(f"{name}:" for name in ROOTED)],
        **more,
    }


def read(folder):
    return json.loads((folder / "out" / "rooting.json").read_text())


def test_every_row_is_measured_once_and_kept(pictures, monkeypatch):  # noqa: F811
    options = options_for(
        pictures,
        **{
            "--data": pictures / "shapes",
            "--classes": ["0,1", "2,3"],
            "--proxy": pictures / "colours",
            "--generated": ["generated:noise", "synthesised:parents"],
        },
    )
    call(benchmark_rooting.main, monkeypatch, options, TINY_VIT)
    first = read(pictures)["shapes, 2 tasks"]
    (group,) = first["groups"]
    names = [row["name"] for row in group["test"]]
    assert names[:3] == ["classes 0,1", "classes 2,3", "ensemble"]
    budgets = ("", ", colours", ", generated:noise", ", synthesised:parents")
    budgets = [f"3 steps{data}" for data in budgets]
    rooted = {f"{name}: {budget}" for name in ROOTED for budget in budgets}
    assert rooted == {name for name in names if name.startswith("rooted")}
    assert "zipfit, all inputs of generated:noise" in names
    assert "zipfit, all inputs of synthesised:parents" in names
    assert names == [row["name"] for row in group["validation"]]
    beside, free, merged = (group["made"][f"{name}: 3 steps"] for name in ROOTED)
    counts = [len(own["barriers"]) for own in (beside, free, merged)]
    assert counts == [1, 1, 2]  # of one model, or of both
    assert beside["seconds"] > beside["training"] > 0
    assert group["made"]["zipfit"]["training"] == 0
    text = (pictures / "out" / "rooting.md").read_text()
    assert str(pictures) not in text + json.dumps(first)
    assert "\n| rooted in the first, average: 3 steps, colours | 1 |" in text

    lost = group["test"].pop()
    group["validation"].pop()
    path = pictures / "out" / "rooting.json"
    path.write_text(json.dumps({"shapes, 2 tasks": first}))
    calls = []
    measure = benchmark_rooting.measure
    monkeypatch.setattr(
        benchmark_rooting, "measure", lambda c, *a: calls.append(c[0].name) or measure(c, *a)
    )
    call(benchmark_rooting.main, monkeypatch, options, TINY_VIT)
    assert calls == [lost["name"]] * 2  # on test and on validation images
    assert read(pictures)["shapes, 2 tasks"]["groups"][0]["test"][-1] == lost


def test_models_of_texts_are_rooted_too(sentences, monkeypatch):  # noqa: F811
    folders = [sentences / "asked", sentences / "named"]
    options = options_for(sentences, **{"--data": folders, "--steps": 2})
    call(benchmark_rooting.main, monkeypatch, options, TINY_BERT)
    (group,) = read(sentences)["asked + named"]["groups"]
    rows = {row["name"]: row for row in group["test"]}
    assert rows["rooted in the first, average: 2 steps"]["per_task"].keys() == {"asked", "named"}
    assert str(sentences) not in (sentences / "out" / "rooting.md").read_text()


def test_models_may_start_from_a_pretrained_one_that_draws_texts(sentences, monkeypatch):  # noqa: F811
    base, drawn = sentences / "base", []
    bert(cls=BertForMaskedLM, seed=4).save_pretrained(base)
    tokenizer().save_pretrained(base)
    draw = benchmark_rooting.sampled_texts

    def counted(model, *given, **more):
        drawn.append((model, *given))
        return draw(model, *given, **more)

    monkeypatch.setattr(benchmark_rooting, "sampled_texts", counted)
    rooting = "rooted in the first, average: 2 steps, "
    options = {"--data": [sentences / "asked", sentences / "named"], "--steps": 2, "--init": base}
    options |= {"--scratch": "named", "--scratch-epochs": 2, "--generated": f"sampled:{base}"}
    options |= {"--rows": [rooting, "zipfit, all inputs of sampled"]}
    call(benchmark_rooting.main, monkeypatch, options_for(sentences, **options), TINY_BERT)
    found = read(sentences)["asked (base) + named (new weights)"]
    assert list(found["groups"][0]["made"]) == [
        "zipfit, all inputs of sampled:base",
        f"{rooting}sampled:base",
    ]
    assert drawn == [(str(base), 24, 0, TINY_BERT.longest)]  # once for all rows
    assert (found["setting"]["epochs"], found["setting"]["named"]["epochs"]) == (8, 2)


def test_texts_are_of_all_tasks_in_turn():
    def data(name, count):
        texts = train_bert.Texts([f"{name} {i}" for i in range(count)], [0] * count, ("x",))
        return benchmark_text.Data(texts, texts, texts)

    both = {"a": data("a", 9), "b": data("b", 5)}
    found = benchmark_rooting.training_texts(both, {"c": ["c 0", "c 1"]}, 12, 0)
    assert [text[0] for text in found["all tasks"]] == ["a", "b"] * 5  # as many as the fewer
    assert len(set(found["all tasks"])) == 10
    assert sorted(found["c"]) == ["c 0", "c 1"]
    other = benchmark_rooting.training_texts(both, {}, 12, 1)
    assert other["all tasks"] != found["all tasks"]


@pytest.mark.parametrize(("steps", "models", "whole"), [(10, 2, 10), (10, 3, 20)])
def test_what_learns_from_all_at_once_has_the_steps_of_all_rootings(steps, models, whole):
    group = rooting_rows.Group([None] * models, [], {}, 4, {"learning_rate": 0.1}, None)
    thens = rooting_rows._at_once(group, rooting_rows.Budget(steps))
    ways = {then.name: then.parameters for then in thens}
    assert ways["distilled from zipfit"]["training"] == {"learning_rate": 0.1, "steps": whole}
    assert ways["fs_merge"]["training"] == {"steps": whole}
    staged = ways["rooted in the first, average, distilled"]
    both = (models - 1) * staged["training"]["steps"] + staged["second_stage"]["steps"]
    assert both == whole


@pytest.mark.parametrize("models", [2, 3])
def test_what_learns_from_all_at_once_has_the_seconds_of_all_rootings(models):
    group = rooting_rows.Group([None] * models, [], {}, 4, {"learning_rate": 0.1}, None)
    thens = rooting_rows._at_once(group, rooting_rows.Budget(5.0, unit="seconds"))
    ways = {then.name: then.parameters for then in thens}
    whole = {"seconds": 5.0 * (models - 1), "steps": 10**6}
    assert ways["distilled from zipfit"]["training"] == {"learning_rate": 0.1, **whole}
    assert ways["fs_merge"]["training"] == whole
    staged = ways["rooted in the first, average, distilled"]
    assert staged["training"]["seconds"] == 2.5
    assert 2 * staged["second_stage"]["seconds"] == whole["seconds"]


def test_budgets_in_seconds_have_rows_of_their_own(pictures, monkeypatch):  # noqa: F811
    name = "rooted in the first, average"
    options = {"--data": pictures / "shapes", "--classes": ["0,1", "2,3"], "--steps": []}
    options |= {"--seconds": [0.01, 0.02], "--rows": [name]}
    call(benchmark_rooting.main, monkeypatch, options_for(pictures, **options), TINY_VIT)
    (group,) = read(pictures)["shapes, 2 tasks"]["groups"]
    assert list(group["made"]) == [
        f"{start}: {budget} seconds"
        for budget in ("0.02", "0.01")
        for start in (name, f"{name}, distilled")
    ]
    assert all(own["steps"] > 0 for own in group["made"].values())
    text = (pictures / "out" / "rooting.md").read_text()
    assert "| seconds | trained | steps | barrier |" in text


def test_budgets_are_of_steps_if_nothing_is_said():
    def budgets(steps=(), seconds=()):
        given = SimpleNamespace(steps=list(steps), seconds=list(seconds), proxy=[], generated=[])
        return [str(budget) for budget in benchmark_rooting.budgets_of(given)]

    assert budgets() == ["1000 steps"]
    assert budgets(seconds=[30.0]) == ["30 seconds"]
    assert budgets([1, 3, 2], [0.5]) == ["3 steps", "1 steps", "2 steps", "0.5 seconds"]
    others = SimpleNamespace(steps=[], seconds=[1, 2], proxy=[], generated=["generated:noise"])
    found = [str(budget) for budget in benchmark_rooting.budgets_of(others)]
    assert found == ["2 seconds", "2 seconds, generated:noise", "1 seconds"]


def test_closed_forms_have_few_of_the_same_data():
    drawn = {"data": ["generated:noise"], "samples": 9}
    group = rooting_rows.Group([], [], {"a": [1, 2, 3], "b": drawn}, 2, {}, None)
    assert group.few_of("a") == [1, 2]
    assert group.few_of("b") == {"data": ["generated:noise"], "samples": 2}


def test_a_row_says_how_many_groups_have_it():
    def group(*names):
        rows = [{"name": n, "per_task": {"a": 0.5}, "mean": 0.5, "joint": None} for n in names]
        return {"test": rows, "validation": rows, "made": {"x": _made(0.1), "y": _made()}}

    def _made(*barriers):
        return {"seconds": 12.0, "training": 0.0, "barriers": list(barriers)}

    record = {"samples": 8, "few": 4, "groups": [group("x"), group("x", "y")]}
    assert rooting_tables.table("data", record)[-2:] == [
        "| x | 2 | 50.0 ± 0.0 | 50.0 ± 0.0 |  | 50.0 ± 0.0 | 12 |  | 10 |",
        "| y | 1 | 50.0 | 50.0 |  | 50.0 | 12 |  |  |",
    ]


def test_of_more_than_two_models_the_table_says_what_the_last_takes():
    rows = [{"name": "x", "per_task": dict.fromkeys("abc", 0.5), "mean": 0.5, "joint": None}]
    notes = {"seconds": 12.0, "processors": 9.0, "last": 7.0, "training": 3.0, "barriers": []}
    made = {"x": notes}
    groups = [{"test": rows, "validation": rows, "made": made}]
    *_, head, _, row = rooting_tables.table("d", {"samples": 8, "few": 4, "groups": groups})
    assert head.endswith("| seconds | trained | processors | last | barrier |")
    assert row.endswith("| 12 | 3 | 9 | 7 |  |")


@pytest.mark.parametrize(("home", "last"), [("a", 3.0), ("a merge", 106.0)])
def test_a_last_model_is_rooted_alone_where_the_root_stays(home, last):
    class Rooted(rooting_rows.Group):
        def root(self, position, root, budget, training):
            assert training == {"anchor": 0.0}
            spent = float(1 + position)
            notes = {"seconds": 2 * spent, "processors": spent, "training": 0.5}
            return f"{position} in {root}", {**notes, "barriers": []}

    group = Rooted([SimpleNamespace(reference=name) for name in "abc"], [], {}, 4, {}, None)
    notes = {} if home == "a" else {"seconds": 200.0, "processors": 100.0}
    found, root, added = rooting_rows._siblings(
        group, lambda: (home, notes), rooting_rows.Budget(1), {"anchor": 0.0}
    )
    assert root == home
    assert found[-1] == f"2 in {home}"
    assert added["last"] == last
    assert added["seconds"] == 2 * added["processors"]
