import json
import re

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from hf_zip.candidates import Candidate
from hf_zip.errors import HfZipError
from hf_zip.evaluate import evaluate
from hf_zip.metrics import METRICS, hub_metric, metric_of
from hf_zip.tables import markdown_table, table
from hf_zip.tasks import Task
from tests.launch import torchrun

KINDS = list(METRICS)


def task(kind, labels=("x", "y", "z"), name="t"):
    return Task(name, tuple(labels), 0, (0,), (tuple(range(len(labels))),), kind)


def data(kind, count=21, tokens=5, labels=3, seed=0):
    """Answers to a kind of question as inputs, with what is right."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(count, *shape, generator=draw)

    def whole(stop, *shape):
        return torch.randint(0, stop, (count, *shape), generator=draw)

    per_token = {"inputs": normal(tokens, labels), "labels": whole(labels, tokens)}
    per_token["labels"][whole(3, tokens) == 0] = -100
    spans = {"start_positions": whole(tokens), "end_positions": whole(tokens)}
    columns = {
        "classification": {"inputs": normal(labels), "labels": whole(labels)},
        "multi-label-classification": {"inputs": normal(labels), "labels": whole(2, labels)},
        "regression": {"inputs": normal(labels), "labels": normal(labels)},
        "token-classification": per_token,
        "masked-lm": per_token,
        "question-answering": {"inputs": normal(tokens, 2), **spans},
    }[kind]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def stub(name="stub", *tasks):
    """A candidate whose input is its answer to the tasks."""
    names = tasks or ("t",)
    return Candidate(name, "merge", (), lambda batch: dict.fromkeys(names, batch["inputs"]))


def measured(kind, rows, batch_size=4, **options):
    found = evaluate([stub()], [task(kind, **options)], {"t": rows}, batch_size, progress=False)
    return found.rows[0].per_task["t"]


def column(rows, name):
    return torch.stack([row[name] for row in rows])


def test_token_accuracy_counts_labelled_tokens_only():
    rows = data("token-classification")
    right = column(rows, "inputs").argmax(-1) == column(rows, "labels")
    labelled = column(rows, "labels") != -100
    assert 0 < labelled.sum() < labelled.numel()
    for kind in ("token-classification", "masked-lm"):
        assert measured(kind, rows) == float(right[labelled].double().mean())


def test_exact_spans_need_start_and_end():
    rows = data("question-answering", count=200, tokens=3)
    best = column(rows, "inputs").argmax(dim=1)
    starts, ends = (
        best[:, i] == column(rows, f"{n}_positions") for i, n in ((0, "start"), (1, "end"))
    )
    found = measured("question-answering", rows)
    assert found == float((starts & ends).double().mean())
    assert found < min(float(x.double().mean()) for x in (starts, ends))


def test_padding_is_no_answer_to_a_question():
    answer = torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    row = {"inputs": answer, "start_positions": 1, "end_positions": 1}
    assert measured("question-answering", [row]) == 0
    mask = torch.tensor([1, 1, 0])
    assert measured("question-answering", [{**row, "attention_mask": mask}]) == 1


def test_label_accuracy_decides_at_zero():
    rows = data("multi-label-classification")
    right = (column(rows, "inputs") > 0) == (column(rows, "labels") == 1)
    assert measured("multi-label-classification", rows) == float(right.double().mean())


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_pearson_is_that_of_scipy(columns, offset):
    rows = data("regression", labels=columns)
    for row in rows:
        row["inputs"], row["labels"] = row["inputs"] + offset, row["labels"] - offset
    found, wanted = (column(rows, name).double().numpy() for name in ("inputs", "labels"))
    expected = np.mean([pearsonr(found[:, i], wanted[:, i])[0] for i in range(columns)])
    labels = ["x", "y", "z"][:columns]
    assert measured("regression", rows, labels=labels) == pytest.approx(expected, abs=1e-8)
    flat = [{**row, "labels": row["labels"][0]} for row in rows]
    if columns == 1:  # one number for every input needs no list
        assert measured("regression", flat, labels=labels) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("sign", [1, -1])
def test_pearson_of_a_line_is_one(sign):
    rows = [{"inputs": torch.tensor([sign * x * 2.0 + 1]), "labels": float(x)} for x in range(5)]
    assert measured("regression", rows, labels="x") == pytest.approx(sign, abs=1e-12)


def test_an_answer_that_does_not_vary_correlates_with_nothing():
    rows = [{"inputs": torch.tensor([0.1]), "labels": float(x)} for x in range(5)]
    assert measured("regression", rows, labels="x") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_change_the_numbers(kind):
    rows = data(kind, count=61)
    alone = measured(kind, rows, batch_size=1)
    assert alone not in (0, 1)
    for batch_size in (5, 100):
        assert measured(kind, rows, batch_size) == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "classification"])
def test_joint_accuracy_is_for_tasks_that_ask_for_one_label(kind):
    tasks = [task("classification"), Task("u", ("u",), 3, (1,), ((0,),), kind)]
    rows = {"t": data("classification")}
    (row,) = evaluate([stub("s", "t", "u")], tasks, rows, 4, progress=False).rows
    assert row.joint is None
    assert row.mean == row.per_task["t"]


def test_tables_name_what_is_no_accuracy():
    tasks = [task("classification"), task("regression", "xyz", "score")]
    given = {"t": data("classification"), "score": data("regression")}
    found = evaluate([stub("s", "t", "score")], tasks, given, 4, progress=False)
    assert [done.metric for done in found.tasks] == ["accuracy", "Pearson r"]
    head = markdown_table(found).splitlines()[0]
    assert head == "| model | kind | t | score (Pearson r) | mean | parameters | MACs |"
    assert "score (Pearson r)" in table(found)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "token-classification",
            {"labels": torch.zeros(4, dtype=torch.int64)},
            "one label per tok",
        ),
        ("token-classification", {"labels": torch.full((5,), -100)}, "no token of the evaluation"),
        (
            "token-classification",
            {"labels": torch.full((5,), 3)},
            "has label 3, but its labels are",
        ),
        (
            "masked-lm",
            {"labels": torch.full((5,), -1)},
            "has label -1, but its labels are numbered",
        ),
        ("question-answering", {"end_positions": 5}, "has position 5, but its positions are numb"),
        ("multi-label-classification", {"labels": torch.tensor([0, 1, 2])}, "3 zeros and ones for"),
        ("multi-label-classification", {"labels": 1}, "3 zeros and ones for every input, one per"),
        ("regression", {"labels": torch.tensor([0.0, torch.nan, 0.0])}, "3 finite numbers for ev"),
        ("regression", {"labels": 1.0}, "3 finite numbers for every input"),
        ("regression", {"labels": torch.ones(3)}, "the labels of task 't' do not vary, so nothing"),
    ],
)
def test_labels_of_another_form_are_refused(kind, change, message):
    rows = [{**row, **change} for row in data(kind)]
    with pytest.raises(HfZipError, match=re.escape(message)):
        measured(kind, rows)


def test_kinds_without_a_metric_and_inputs_without_targets_are_refused():
    with pytest.raises(
        HfZipError, match="task 't' are of the kind 'other', which no metric is know"
    ):
        measured("other", data("classification"))
    without_end = [{k: row[k] for k in list(row)[:2]} for row in data("question-answering")]
    with pytest.raises(HfZipError, match="have no 'end_positions'; for question-answering give ev"):
        measured("question-answering", without_end)


def test_metrics_have_names_on_the_hub():
    assert hub_metric("Pearson r") == "pearsonr"
    assert hub_metric("my own") == "my own"
    assert len({metric.name for metric in METRICS.values()}) == len(METRICS)
    assert metric_of(task("regression")).size(3) == 18


SCRIPT = """
import json
import sys

import torch

from hf_zip.collect import make_accelerator
from hf_zip.evaluate import evaluate
from hf_zip.metrics import METRICS
from tests.test_metrics import data, stub, task

torch.set_num_threads(1)
accelerator = make_accelerator()
kinds = list(METRICS)
tasks = [task(kind, name=kind) for kind in kinds]
# One batch of regression: one process has no share in it.
given = {kind: data(kind, count=4 if kind == "regression" else 21) for kind in kinds}
rows = [
    evaluate([stub("s", kind)], tasks, {kind: given[kind]}, 4, accelerator, progress=False).rows
    for kind in kinds
]
found = {kind: row.per_task[kind] for kind, (row,) in zip(kinds, rows)}
text = json.dumps({"processes": accelerator.num_processes, "found": found})
open(f"{sys.argv[1]}/{accelerator.process_index}.json", "w").write(text)
accelerator.end_training()
if torch.distributed.is_initialized():  # a process that leaves early takes the others down
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    (tmp_path / "measure.py").write_text(SCRIPT)
    reports = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        torchrun(tmp_path / "measure.py", folder, processes=processes)
        reports[processes] = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    assert [report["processes"] for report in reports[2]] == [2, 2]
    (alone,) = reports[1]
    for report in reports[2]:
        assert report["found"] == pytest.approx(alone["found"], rel=0, abs=1e-12)
