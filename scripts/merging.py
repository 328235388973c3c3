"""What the accuracy benchmarks share: merges as rows of a table, made and measured."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import hf_zip
from hf_zip.calibration import from_memory
from hf_zip.candidates import Candidate, ensemble, merged, one_trunks, parent
from hf_zip.evaluate import evaluate
from hf_zip.inputs import Reader
from hf_zip.recipe import ModelSpec
from hf_zip.sources import Source, load_sources
from hf_zip.tasks import Task

BATCH = 128
ALL = "all tasks"


@dataclass(frozen=True)
class Merge:
    """One row of the table: a method, its options, and what it is calibrated on.

    Args:
        name: What the row is called.
        method: The merge method.
        parameters: Its options.
        calibration: Whose inputs.
        samples: How many, relative to the usual number.
        shared: Share of the blocks that the tasks have in common.
        unmerge: How the other blocks read these, see the recipe's key.
    """

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    calibration: str = ALL
    samples: int = 1
    shared: float = 1.0
    unmerge: str | None = None


def refitted(*methods: str) -> tuple[Merge, ...]:
    """Returns methods followed by everything that may be fitted after them, one fit at a time."""
    words = {
        "repair": "repaired",
        "head": "least-squares head",
        "all": "every layer refitted",
    }
    return tuple(
        Merge(f"{method}, {words[refit]}", method, {"refit": refit})
        for refit in words
        for method in methods
    )


def shown_command(script: str, options: Sequence[str]) -> str:
    """Returns the command line, files and folders by their names only, also behind a colon."""
    names = []
    for option in options:
        kind, colon, rest = option.rpartition(":")
        path = Path(rest)
        local = path.is_absolute() or path.exists()
        names.append(f"{kind}{colon}{path.name}" if local else option)
    return shlex.join(["python", f"scripts/{script}", *names])


def named_sources(folders: Mapping[str, Path]) -> list[Source]:
    """Returns the models in folders, called after the names of these."""
    sources = load_sources([ModelSpec(str(folder), name) for name, folder in folders.items()])
    return [replace(source, name=name) for source, name in zip(sources, folders, strict=True)]


def references(
    sources: Sequence[Source], tasks: Sequence[Task], calibration: Any, reader: Reader
) -> list[Candidate]:
    """Returns what merges are compared with: parents, ensemble, and all one-trunk controls."""
    inputs = from_memory(calibration, reader)
    return [
        *(parent(sources, k, tasks) for k in range(len(sources))),
        ensemble(sources, tasks),
        *one_trunks(sources, tasks, inputs, BATCH, progress=False),
    ]


def run_merge(
    sources: Sequence[Source],
    tasks: Sequence[Task],
    calibration: Mapping[str, Any],
    samples: int,
    merge: Merge,
    made: dict[str, Any],
) -> Candidate:
    """Returns a merge; notes in `made` how it was made.

    Args:
        sources: The models.
        tasks: Their tasks.
        calibration: Inputs, by whose they are.
        samples: The usual number of them.
        merge: What to do.
        made: Notes by the names of merges.
    """
    inputs = calibration[merge.calibration][: samples * merge.samples]
    started = time.perf_counter()
    stop_at = None
    if merge.shared < 1:
        stop_at = round(merge.shared * sources[0].model.config.num_hidden_layers)
    result = hf_zip.merge(
        [source.reference for source in sources],
        method=merge.method,
        tasks=[task.name for task in tasks],
        calibration=inputs,
        parameters=dict(merge.parameters),
        stop_at=stop_at,
        unmerge=merge.unmerge,
        force=True,  # the plain average of different initialisations is one of the rows
        progress=False,
    )
    made[merge.name] = {
        **asdict(merge),
        "samples": len(inputs),
        "seconds": time.perf_counter() - started,
    }
    return merged(result.model, tasks, merge.name)


def measure(
    candidates: Sequence[Candidate], tasks: Sequence[Task], data: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Returns one plain row per candidate."""
    evaluation = evaluate(candidates, tasks, data, BATCH, progress=False)
    return [asdict(row) for row in evaluation.rows]


def measure_missing(
    known: Sequence[dict[str, Any]],
    candidates: Mapping[str, Callable[[], Candidate]],
    tasks: Sequence[Task],
    data: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Returns one plain row per candidate; only those without a known row are made and measured."""
    rows = {row["name"]: row for row in known}
    missing = [make() for name, make in candidates.items() if name not in rows]
    rows |= {row["name"]: row for row in (measure(missing, tasks, data) if missing else [])}
    return [rows[name] for name in candidates]
