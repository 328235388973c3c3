"""The benchmark of fine-tunes on other bases, with models that hardly learn."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import benchmark_transport
from benchmark_transport import FACTORS, HEADS, PARENTS, STARTS, TASKS, WAYS, digits, report


def cell(way, task, test, **more):
    return {"pair": 0, "way": way, "task": task, "test": test, "validation": test, **more}


def test_the_factor_is_chosen_on_validation_images():
    cells = [cell(name, task, 0.5) for name in PARENTS for task in TASKS]
    for way in WAYS:
        for head in HEADS:
            for factor in (0.0, *FACTORS):
                found = [cell(way, task, 0.1, head=head, factor=factor) for task in TASKS]
                if factor == 1.0:  # the best on validation, the worst on test images
                    found = [{**own, "validation": 0.9, "test": 0.05} for own in found]
                cells += found
    for way in STARTS.values():
        for steps in benchmark_transport.STEPS:
            cells += [cell(way, task, steps / 1000, steps=steps) for task in TASKS]
    lines = report({"cells": cells, "command": "x", "pairs": 1, "seconds": 1.0})
    rows = [line for line in lines if line.startswith("| rotate |")]
    assert rows == [f"| rotate | {HEADS[head]} | 1 | 5.0 | 5.0 | 5.0 |" for head in HEADS]
    assert sum(line.startswith("| none |") for line in lines) == 5
    for way in STARTS.values():
        wanted = f"| {way}, 25 steps | fitted, then trained |  | 2.5 | 2.5 | 2.5 |"
        assert wanted in lines


def test_the_splits_share_no_digit():
    parts = digits()
    assert sum(len(labels) for _, labels in parts.values()) == 1797
    seen = {name: {tuple(x.flatten().tolist()) for x in own} for name, (own, _) in parts.items()}
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_the_benchmark_writes_every_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_transport, "FACTORS", (1.0,))
    monkeypatch.setattr(benchmark_transport, "SAMPLES", 32)
    monkeypatch.setattr(benchmark_transport, "STEPS", (0, 1))
    line = [
        "--pairs",
        "1",
        "--epochs",
        "1",
        "--tuning-epochs",
        "1",
        "--width",
        "8",
        "--layers",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["x", *line, "--heads", "2", "--out", str(tmp_path)])
    benchmark_transport.main()
    record = json.loads((tmp_path / "transport.json").read_text())
    rooted = [own for own in record["cells"] if own["way"] in STARTS.values()]
    assert len(rooted) == len(TASKS) * len(STARTS) * 2
    cells = [own for own in record["cells"] if own["way"] in WAYS]
    assert len(cells) == len(TASKS) * len(WAYS) * len(HEADS) * 2
    assert all(0 <= own["test"] <= 1 for own in cells)
    base = {own["task"]: own["test"] for own in record["cells"] if own["way"] == PARENTS[1]}
    for own in cells:
        if own["head"] == "own" and own["factor"] == 0.0:  # without a task vector it is the base
            assert own["test"] == pytest.approx(base[own["task"]], abs=0.01)
    assert record["command"] in (tmp_path / "transport.md").read_text()
