"""Times merges of files of BERT-base, ViT-B/16 and a Llama of 1.2 billion numbers, beside a copy.

    python scripts/bench_merge.py                               # all: an hour where others work too
    python scripts/bench_merge.py --cases bert-3 --methods average ties --repeats 1
    python scripts/bench_merge.py --mergekit VENV/bin/mergekit-yaml

Weights are random, of fine-tunes near a base. Every merge runs in a process of its own, right after
a copy: all inputs are read once, and as many bytes as the output has are written. Reported are the
medians, and ratios within such a pair; where others use the processors too, the seconds of
processors say more than those of a clock. The time of a merge is told with and without what the
process takes to import its libraries, and its peak of resident memory beside the peak after these
imports: they end with a merge of tiny models.

The same merges by mergekit (0.1.5) and FusionBench (0.2.33) are measured where a program in an
environment of theirs is given. Mergekit has no model of images. FusionBench holds all models in
memory, for TIES several times: eight fine-tunes of BERT-base may take 25 GB.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from merge_peers import PEERS, Job, installed, run_peer

RESULTS = Path("benchmarks/merge.json")
BLOCK = 1 << 22
_WRITER = Path(__file__).with_name("merge_models.py")


@dataclass(frozen=True)
class Method:
    """One row of a table: a method with its options, here and elsewhere.

    Args:
        name: What the row is called.
        method: The merge method.
        parameters: Its options.
        needs_base: Whether it takes the base model.
        models: How many it merges; nothing for all.
        peers: The same in others by their names: the method there, and its options.
    """

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    needs_base: bool = True
    models: int | None = None
    peers: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)


METHODS = {
    "average": Method(
        "average",
        "average",
        needs_base=False,
        peers={
            "mergekit": ("linear", {"weight": 1.0}),
            "fusion_bench": ("SimpleAverageAlgorithm", {}),
        },
    ),
    "task_arithmetic": Method(
        "task arithmetic",
        "task_arithmetic",
        peers={
            "mergekit": ("task_arithmetic", {"weight": 0.4}),
            "fusion_bench": ("TaskArithmeticAlgorithm", {"scaling_factor": 0.4}),
        },
    ),
    "ties": Method(
        "TIES, global",
        "ties",
        peers={
            "fusion_bench": (
                "TiesMergingAlgorithm",
                {"scaling_factor": 1.0, "threshold": 20, "remove_keys": [], "merge_func": "mean"},
            )
        },
    ),
    "ties_tensor": Method(
        "TIES, per tensor",
        "ties",
        {"trim": "tensor"},
        peers={"mergekit": ("ties", {"weight": 1.0, "density": 0.2})},
    ),
    "dare_ties": Method(
        "DARE-TIES",
        "dare",
        {"merge": "ties", "drop_rate": 0.5},
        peers={"mergekit": ("dare_ties", {"weight": 1.0, "density": 0.5})},
    ),
    "slerp": Method(
        "SLERP of two",
        "slerp",
        needs_base=False,
        models=2,
        peers={
            "mergekit": ("slerp", {"t": 0.5}),
            "fusion_bench": ("SlerpMergeAlgorithm", {"t": 0.5}),
        },
    ),
}


@dataclass(frozen=True)
class Case:
    """Models to merge.

    Args:
        family: What shape they have.
        models: How many fine-tunes there are.
        layers: How many blocks each has.
        dtype: Their precision, and that of the merge.
    """

    family: str
    models: int
    layers: int = 12
    dtype: str = "float32"


CASES = {
    "bert-3": Case("bert", 3),
    "bert-8": Case("bert", 8),
    "vit-8": Case("vit", 8),
    "llama-2": Case("llama", 2, layers=16, dtype="bfloat16"),
}


def main() -> None:
    """Measures what is asked for and writes the results beside those that are known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=3, help="pairs of copy and merge (3)")
    parser.add_argument(
        "--mergekit", help="its program mergekit-yaml, in an environment of its own"
    )
    parser.add_argument(
        "--fusion-bench", help="the program python of an environment that has FusionBench"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for the models (default: a temporary one)"
    )
    parser.add_argument("--layers", type=int, help="blocks of a model (as the case has)")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"default: {RESULTS}")
    args = parser.parse_args()
    found = {name: installed(PEERS[name], getattr(args, name)) for name in PEERS}
    programs = {name: program for name, program in found.items() if program is not None}
    known = json.loads(args.out.read_text()) if args.out.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        for case in args.cases:
            what = CASES[case]
            if args.layers is not None:
                what = replace(what, layers=args.layers)
            base, models = make_models(work / f"{what.family}-{what.layers}", what)
            tiny = make_models(work / f"{what.family}-tiny", replace(what, models=2, layers=0))
            for name in args.methods:
                before = known.get(case, {}).get(name, {})
                job = Job(what.family, what.dtype, base, models, work / "out")
                row = {
                    **peers_of(before),
                    **measure(METHODS[name], job, tiny, programs, args.repeats),
                }
                known.setdefault(case, {})[name] = row
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(known, indent=1) + "\n")
                print(case, row["name"], json.dumps(summary(row)), flush=True)
    from merge_tables import report  # not at the top: merges are timed in processes of this script

    args.out.with_suffix(".md").write_text(report(known))


def make_models(folder: Path, case: Case) -> tuple[Path, list[Path]]:
    """Returns folders of a base and of fine-tunes near it; those that are missing are written."""
    places = [folder / "base", *(folder / f"model_{i}" for i in range(case.models))]
    missing = [i for i, place in enumerate(places) if not (place / "model.safetensors").is_file()]
    if missing:
        order = [str(case.layers), case.family, case.dtype]
        order += [f"{i}:{places[i]}" for i in missing]
        subprocess.run([sys.executable, str(_WRITER), *order], check=True)
    return places[0], places[1:]


def peers_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of other programs in a row, which are not measured each time."""
    return {name: row[name] for name in PEERS if name in row}


def measure(
    method: Method,
    job: Job,
    tiny: tuple[Path, Sequence[Path]],
    programs: Mapping[str, str],
    repeats: int,
) -> dict[str, Any]:
    """Returns what pairs of a copy and a merge took, one after the other.

    Args:
        method: The method.
        job: All models there are, their base and where the merge goes.
        tiny: A base and models of the same kind that are merged before, see `merge_once`.
        programs: What merges by other programs are called by.
        repeats: How many pairs.
    """
    job = replace(
        job, base=job.base if method.needs_base else None, models=job.models[: method.models]
    )
    inputs = [*([] if job.base is None else [job.base]), *job.models]
    base, few = tiny
    order = {
        "models": [str(model) for model in job.models],
        "tiny_models": [str(model) for model in few],
        "method": method.method,
        "base_model": None if job.base is None else str(job.base),
        "tiny_base_model": None if job.base is None else str(base),
        "parameters": dict(method.parameters),
        "dtype": job.dtype,
        "out": str(job.out),
    }
    row: dict[str, Any] = {"name": method.name, "models": len(job.models), "pairs": []}
    called = [
        (name, program)
        for name, program in programs.items()
        if name in method.peers and job.family in PEERS[name].families
    ]
    for _ in range(repeats):
        row["pairs"].append({**copied(inputs, job), **run_child(order)})
        shutil.rmtree(job.out)
        for name, program in called:
            pair = copied(inputs, job)
            pair |= run_peer(PEERS[name], program, job, *method.peers[name])
            row.setdefault(name, []).append(pair)
    return row


def copied(inputs: Sequence[Path], job: Job) -> dict[str, float]:
    """Returns what a copy takes, and how many processes were at work at its beginning."""
    load, own = os.getloadavg()[0], time.process_time()
    seconds = copy_bytes(inputs, job.models[0], job.out.with_name("copy"))
    return {"load": load, "copy": seconds, "copy_cpu": time.process_time() - own}


def copy_bytes(inputs: Sequence[Path], like: Path, out: Path) -> float:
    """The seconds that it takes to read all inputs, and to write one file of the output's size."""
    buffer = bytearray(BLOCK)
    files = [file for folder in inputs for file in folder.glob("*.safetensors")]
    left = sum(file.stat().st_size for file in like.glob("*.safetensors"))
    started = time.perf_counter()
    with out.open("wb") as written:
        for file in files:
            with file.open("rb", buffering=0) as read:
                while count := read.readinto(buffer):
                    part = min(count, left)
                    written.write(memoryview(buffer)[:part])
                    left -= part
    seconds = time.perf_counter() - started
    out.unlink()
    return seconds


def run_child(order: Mapping[str, Any]) -> dict[str, float]:
    """What a merge takes in a process of its own."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--merge", json.dumps(order)],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {"process": time.perf_counter() - started, **found}


def merge_once(order: str) -> None:
    """Merges, and prints seconds and peaks as JSON.

    Libraries are imported where they are first needed, many in the midst of a merge. So tiny models
    of the same kind are merged before, and count as imports.
    """
    given = json.loads(order)
    tiny = {key: given.pop(f"tiny_{key}") for key in ("models", "base_model")}
    started = time.perf_counter()
    import hf_zip

    common: dict[str, Any] = {"progress": False, "lane": "stream"}
    hf_zip.merge(**common, **{**given, **tiny, "out": f"{given['out']}_tiny"})
    shutil.rmtree(f"{given['out']}_tiny")
    imported = {"imports": time.perf_counter() - started, "imports_peak": peak()}
    started, own = time.perf_counter(), time.process_time()
    hf_zip.merge(**common, **given)
    seconds = time.perf_counter() - started
    found = {"merge": seconds, "merge_cpu": time.process_time() - own, "peak": peak()}
    print(json.dumps({**imported, **found, "process_cpu": time.process_time()}))


def peak() -> float:
    """The largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def summary(row: Mapping[str, Any]) -> dict[str, float]:
    """The medians of a row."""
    pairs = row["pairs"]
    found = {key: median(pair[key] for pair in pairs) for key in pairs[0]}
    found["merge / copy"] = median(pair["merge"] / pair["copy"] for pair in pairs)
    found["process / copy"] = median(pair["process"] / pair["copy"] for pair in pairs)
    for name in PEERS:
        if peers := [pair for pair in row.get(name, ()) if "process" in pair]:
            found[name] = median(pair["process"] for pair in peers)
            found[f"{name} / copy"] = median(pair["process"] / pair["copy"] for pair in peers)
    return {key: round(value, 3) for key, value in found.items()}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--merge"]:
        merge_once(sys.argv[2])
    else:
        main()
