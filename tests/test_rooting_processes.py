"""Rootings and transport in two processes: the weights that one process gives."""

import pytest
import torch

from tests.launch import run_in

SCRIPT = """
import hf_zip
from hf_zip.collect import make_accelerator
from tests.models import random_inputs, rows, vit
from tests.siblings import near

accelerator = make_accelerator()
SHORT = {"steps": 3, "batch_size": 8, "held_out": 0.2, "every": 2}
base, own_base = vit(2, 9).double(), vit(2, 8).double()
models = [near(base.float(), 1, 2).double(), near(own_base.float(), 2, 3).double()]
WAYS = {
    "second stage": ("rooting", {"training": SHORT, "then": "average", "second_stage": SHORT}),
    "root: merge": ("rooting", {"training": SHORT, "root": "merge", "then": "task_arithmetic"}),
    "lora": ("rooting", {"training": SHORT, "then": "average", "lora_rank": 2}),
    "start: transport": (
        "rooting", {"training": SHORT, "start": "transport", "then": "average"}
    ),
    "transport": ("transport", {"then_parameters": {"scaling": 0.4}}),
}
found = {"states": {}, "losses": {}}
for name, (method, parameters) in WAYS.items():
    brought = "transport" in name
    result = hf_zip.merge(
        models,
        method=method,
        tasks=["one", "two"],
        base_model=base if name == "transport" else None,
        own_bases=[None, own_base] if brought else None,
        calibration=rows(random_inputs(base, 41, seed=5)),
        parameters=parameters,
        dtype="float64",
        progress=False,
    )
    found["states"][name] = result.model.state_dict()
    found["losses"][name] = [
        value for own in result.report.trainings for _, value in own.losses
    ]
"""


@pytest.mark.slow
def test_two_processes_root_and_bring_as_one(tmp_path):
    one, two = (run_in(processes, SCRIPT, tmp_path) for processes in (1, 2))
    assert [len(own) > 0 for own in one["losses"].values()] == [True] * 4 + [False]
    for name, losses in one["losses"].items():
        assert two["losses"][name] == pytest.approx(losses, abs=1e-6), name
        for key, tensor in one["states"][name].items():
            other = two["states"][name][key]
            assert torch.allclose(tensor, other, rtol=0, atol=1e-6), (name, key)
