"""Scripts run by torchrun on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

END = """
if torch.distributed.is_initialized():  # a process that leaves early takes the others down
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""
SAVE = """
import sys, torch
if accelerator.is_main_process:
    torch.save({"processes": accelerator.num_processes, **found}, sys.argv[1])
"""


def torchrun(script, *arguments, processes):
    """Runs a script in so many gloo processes; torchrun finds a free port itself."""
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "yes",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    launcher += ["--local-addr", "127.0.0.1"]
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr[-4000:]
    return result


def run_in(processes, script, folder):
    """What a script, which has an `accelerator`, has put into a dict `found` in the main process."""
    path, out = folder / "script.py", folder / f"{processes}.pt"
    path.write_text(script + SAVE + END)
    torchrun(path, out, processes=processes)
    result = torch.load(out)
    assert result["processes"] == processes
    return result


def assert_same_states(one, two):
    """Asserts that two lists of states are the same but for rounding in float64."""
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name] - b[name]).abs().max() <= 1e-8 * a[name].abs().max().clamp(min=1), name


def assert_same_fit(one, two):
    """Asserts that the fields of two `Fitted` are the same but for rounding in float64."""
    assert_same_states((one["state"], *one["heads"]), (two["state"], *two["heads"]))
    assert two["explained"] == pytest.approx(one["explained"], abs=1e-10)
