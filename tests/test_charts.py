"""What the pictures of a merge show, as numbers."""

from dataclasses import replace

import pytest

from hf_zip.charts import MOST_TASKS, OUTSIDE, charts, pareto
from hf_zip.evaluate import EvaluatedTask, Evaluation, Row
from hf_zip.report_records import SimilarityRecord
from tests.test_report import EVALUATION, REPORT


def row(name, kind, values, joint=None, parameters=1000, macs=2000):
    known = [value for value in values.values() if value is not None]
    mean = sum(known) / len(known) if len(known) == len(values) else None
    return Row(name, kind, values, mean, joint, parameters, macs)


def measured(*rows):
    return Evaluation(rows, tuple(EvaluatedTask(task, 4) for task in rows[0].per_task))


def named(report):
    return {chart.name: chart for chart in charts(report)}


def test_a_chart_per_finding_and_none_of_what_is_not_known():
    assert [*named(REPORT)] == ["accuracy", "matching"]
    bare = replace(REPORT, matching={}, evaluation=None, similarities=())
    assert charts(bare) == ()


def test_matching_by_block_and_part():
    matching = {
        "stream": 0.5,
        "layers.0.value": 0.25,
        "layers.0.mlp": 0.75,
        "text.layers.0.mlp": 0.125,
        "layers.1.mlp": 1.0,
    }
    chart = named(replace(REPORT, matching=matching))["matching"]
    assert chart.columns == (OUTSIDE, "value", "mlp", "text mlp")
    assert chart.rows == (
        ("stream", (0.5, None, None, None)),
        ("0", (None, 0.25, 0.75, 0.125)),
        ("1", (None, None, 1.0, None)),
    )
    assert chart.head == ("block", OUTSIDE, "value", "mlp", "text mlp")
    assert chart.cells[1] == ("0", "-", "0.25", "0.75", "0.12")
    assert chart.text == (
        "How well the merged features match, mean correlation: outside the blocks 0.50; value "
        "0.25; mlp 0.75 to 1.00; text mlp 0.12."
    )


def test_of_a_partial_zip_only_what_is_shared_is_shown():
    explained = {"stream": 1.0, "layers.0.mlp": 0.9, "layers.1.mlp": 0.8, "unmerge.cars": 0.7}
    report = replace(REPORT, explained=explained, recipe={"stop_at": 1})
    assert [name for name, _ in named(report)["explained"].rows] == ["stream", "0", "unmerge.cars"]
    whole = replace(report, recipe={"stop_at": None})
    assert "1" in [name for name, _ in named(whole)["explained"].rows]


def test_what_lies_outside_the_blocks_alone_is_no_line():
    found = named(replace(REPORT, explained={"unmerge.cars": 0.5, "unmerge.birds": 0.25}))
    chart = found["explained"]
    assert (chart.form, chart.head) == ("bars", ("place", OUTSIDE))
    assert chart.rows == (("unmerge.cars", (0.5,)), ("unmerge.birds", (0.25,)))
    assert found["matching"].form == "lines"


def test_what_every_depth_explains():
    depths = (
        {"blocks": 0, "explained": [1.0, 1], "parameters": 9},
        {"blocks": 1, "explained": [0.5, 0.75], "parameters": 8},
    )
    chart = named(replace(REPORT, depths=depths))["depths"]
    assert chart.columns == ("cars", "birds")
    assert chart.rows == (("0", (1.0, 1.0)), ("1", (0.5, 0.75)))


def test_accuracies_by_hand():
    chart = named(replace(REPORT, evaluation=EVALUATION))["accuracy"]
    assert chart.columns == ("parent", "zipit")
    assert chart.rows == (
        ("cars", (90.0, 75.0)),
        ("birds", (None, 100.0)),
        ("mean", (None, 87.5)),
        ("joint", (None, 50.0)),
    )
    assert (chart.axis, chart.emphasised) == ("accuracy, %", ("zipit",))


def test_the_mean_of_one_task_and_a_joint_that_none_has_are_left_out():
    evaluation = measured(row("a", "parent", {"a": 0.9}), row("m", "merge", {"a": 0.8}))
    evaluation = replace(evaluation, tasks=(EvaluatedTask("a", 4, metric="exact spans"),))
    chart = named(replace(REPORT, evaluation=evaluation))["accuracy"]
    assert [name for name, _ in chart.rows] == ["a (exact spans)"]
    assert chart.axis == "metrics, times 100"


def test_the_best_of_the_parents_of_a_task_and_of_many_controls():
    parents = [row(f"p{i}", "parent", {"a": 0.1 * i, "b": None}) for i in range(4)]
    controls = [row(f"c{i}", "control", {"a": 0.9, "b": 0.1 * (i % 3)}) for i in range(4)]
    merge = row("m", "merge", {"a": 0.5, "b": 0.5})
    chart = named(replace(REPORT, evaluation=measured(*parents, *controls, merge)))["accuracy"]
    assert chart.columns == ("best parent", "c2", "m")
    assert chart.rows[0] == ("a", pytest.approx((30.0, 90.0, 50.0)))
    some = named(replace(REPORT, evaluation=measured(*controls[:3], merge)))["accuracy"]
    assert some.columns == ("parent", "c0", "c1", "c2", "m")


def test_of_many_tasks_those_that_lose_most_are_shown():
    count = MOST_TASKS + 1
    ensemble = row("ensemble", "ensemble", {f"t{i}": 0.9 for i in range(count)})
    merge = row("m", "merge", {f"t{i}": 0.9 - 0.01 * (i % 7) for i in range(count)})
    chart = named(replace(REPORT, evaluation=measured(ensemble, merge)))["accuracy"]
    shown = [name for name, _ in chart.rows]
    assert shown == [f"t{i}" for i in range(count) if i % 7 > 1 or i == 1] + ["mean"]
    assert "the 10 that lose most" in chart.title
    alone = named(replace(REPORT, evaluation=measured(merge)))["accuracy"]
    assert len(alone.rows) == 11


PAIRS = (
    SimilarityRecord("a", "b", "weights", {"key": 0.5, "value": 0.25}, {"key": 0.125}),
    SimilarityRecord("a", "b", "task vectors", {"key": -0.5}, {"key": 0.75}),
)


def test_task_vectors_are_shown_where_the_base_is_known():
    found = named(replace(REPORT, shared_init=True, similarities=PAIRS))
    assert found["similarity"].title == "Cosines of the sources' task vectors"
    assert found["similarity"].rows == (("a / b", (-0.5,)),)
    assert found["signs"].rows == (("a / b", (0.75,)),)
    found = named(replace(REPORT, shared_init=None, similarities=PAIRS[:1]))
    assert found["similarity"].title == "Cosines of the sources' weights"
    assert found["signs"].columns == ("key", "value")
    assert found["signs"].rows == (("a / b", (0.125, None)),)


def test_similarities_of_unrelated_models_and_signs_that_are_not_known_are_not_shown():
    assert "similarity" not in named(replace(REPORT, shared_init=False, similarities=PAIRS))
    unknown = replace(PAIRS[0], sign_conflicts={})
    found = named(replace(REPORT, shared_init=True, similarities=(unknown,)))
    assert "similarity" in found
    assert "signs" not in found


def test_costs_and_metrics_of_a_sweep_by_hand():
    rows = (
        row("p", "parent", {"a": 0.9, "b": None}),
        row("e", "ensemble", {"a": 1.0, "b": 0.5}, 0.75, 20, 40),
        row("c", "control", {"a": 0.5, "b": None}),
        row("m 1", "merge", {"a": 0.5, "b": 0.5}, 0.25, 10, 20),
        row("m 2", "merge", {"a": 1.0, "b": 0.25}, None, 5, 10),
    )
    chart = pareto(measured(*rows))
    assert chart.columns == ("parameters", "MACs per input", "mean", "joint")
    assert chart.rows == (
        ("m 1", (10.0, 20.0, 50.0, 25.0)),
        ("m 2", (5.0, 10.0, 62.5, None)),
        ("e", (20.0, 40.0, 75.0, 75.0)),
    )
    assert chart.emphasised == ("m 1", "m 2")
    assert chart.shown(12_345_678.0) == "12,345,678"
