"""How the accuracy benchmarks are called, and where their results lie."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from training import add_setting
from transformers.utils.logging import disable_progress_bar


def parse_quietly(parser: argparse.ArgumentParser, setting: Any) -> argparse.Namespace:
    """Returns the arguments, those of all benchmarks among them, and settles bars and threads.

    Args:
        parser: What knows the benchmark's own options.
        setting: How parents are trained by default; every field is an option.
    """
    parser.add_argument("--cache", type=Path, required=True, help="folder of trained parents")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add_setting(parser, setting)
    arguments = parser.parse_args()
    disable_progress_bars()
    disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    return arguments


def read_results(folder: Path, name: str) -> dict[str, Any]:
    """Returns a benchmark's results so far."""
    path = folder / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write_results(
    folder: Path, name: str, results: Mapping[str, Any], lines: Sequence[str]
) -> None:
    """Writes a benchmark's results as data and as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
