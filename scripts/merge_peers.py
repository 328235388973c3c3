"""Merges by other programs, each in a process of an environment of its own."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FUSION_BENCH = Path(__file__).with_name("fusion_bench_merge.py")
_CLASSES = {
    "bert": "AutoModelForSequenceClassification",
    "vit": "AutoModelForImageClassification",
    "llama": "AutoModelForCausalLM",
}


@dataclass(frozen=True)
class Job:
    """Models to merge.

    Args:
        family: What shape they have.
        dtype: The precision of the merge.
        base: Their base model, where the merge takes it.
        models: The fine-tunes.
        out: Where the merge goes.
    """

    family: str
    dtype: str
    base: Path | None
    models: Sequence[Path]
    out: Path


@dataclass(frozen=True)
class Peer:
    """Another program.

    Args:
        name: What it is called.
        option: How its program is given.
        families: What shapes it merges.
        command: Takes the program, a job, a method's name there and its options. Returns what to
            run; a file that this reads is written beside the job's folder.
    """

    name: str
    option: str
    families: Sequence[str]
    command: Callable[[str, Job, str, Mapping[str, Any]], list[str]]


def _mergekit(program: str, job: Job, method: str, options: Mapping[str, Any]) -> list[str]:
    own = {} if method == "slerp" else {"parameters": dict(options)}
    recipe: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(model), **own} for model in job.models],
        "dtype": job.dtype,
    }
    if method == "slerp":
        recipe |= {"base_model": str(job.models[0]), "parameters": dict(options)}
    elif job.base is not None:
        recipe["base_model"] = str(job.base)
    path = job.out.with_name("mergekit.yaml")
    path.write_text(yaml.safe_dump(recipe))
    return [program, str(path), str(job.out), "--quiet"]


def _fusion_bench(program: str, job: Job, method: str, options: Mapping[str, Any]) -> list[str]:
    order = {
        "algorithm": method,
        "options": dict(options),
        "class": _CLASSES[job.family],
        "dtype": job.dtype,
        "base": None if job.base is None else str(job.base),
        "models": [str(model) for model in job.models],
        "out": str(job.out),
    }
    return [program, str(_FUSION_BENCH), json.dumps(order)]


PEERS = {
    "mergekit": Peer("mergekit", "--mergekit", ("bert", "llama"), _mergekit),
    "fusion_bench": Peer("FusionBench", "--fusion-bench", ("bert", "vit", "llama"), _fusion_bench),
}


def run_peer(
    peer: Peer, program: str, job: Job, method: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns seconds and peak of a merge by another program, or what it says where it fails."""
    timed = [tool, "-f", "%U %S %M"] if (tool := shutil.which("time")) else []
    started = time.perf_counter()
    done = subprocess.run(
        [*timed, *peer.command(program, job, method, options)],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    shutil.rmtree(job.out, ignore_errors=True)
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        return {"failed": next((one for one in lines[::-1] if "Error" in one), "?")[:300]}
    if not timed:
        return {"process": seconds}
    user, system, peak = map(float, lines[-1].split())
    return {"process": seconds, "cpu": user + system, "peak": peak / 1e3}


def installed(peer: Peer, program: str | None) -> str | None:
    """Returns the program of a peer, and says so where there is none."""
    if program is None:
        print(f"{peer.name} is not measured; give its program by {peer.option}")
    elif shutil.which(program) is None:
        print(f"{peer.name} is not measured; {program} is no program")
        program = None
    return program
