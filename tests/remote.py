"""Checkpoints whose code travels with them, loaded where hf_zip is not."""

import re
import subprocess
import sys

import torch

START = """
import sys
sys.modules["hf_zip"] = None  # importing it fails, as if it were not installed
import torch
globals().update(torch.load("given.pt"))
"""
END = """
torch.save(globals().get("found"), "found.pt")
"""


def without_hf_zip(code, folder, **given):
    """What code calls `found`; it runs in a folder, in a fresh interpreter, with given names."""
    torch.save(given, folder / "given.pt")
    command = [sys.executable, "-c", START + code + END]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return torch.load(folder / "found.pt")


def code_files(folder):
    """Names of the code files in a folder, of which none imports hf_zip."""
    paths = sorted(folder.glob("*.py"))
    for path in paths:
        lines = path.read_text().splitlines()
        assert not [line for line in lines if re.match(r"(from|import) hf_zip", line)]
    return [path.stem for path in paths]
