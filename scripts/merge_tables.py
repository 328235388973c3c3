"""The results of `bench_merge.py` in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from zip_tables import line

_TITLES = {
    "bert-3": "BERT-base and 3 fine-tunes",
    "bert-8": "BERT-base and 8 fine-tunes",
    "vit-8": "ViT-B/16 and 8 fine-tunes",
    "llama-2": "A Llama of 1.2 billion numbers in bfloat16 and 2 fine-tunes",
}
_PEERS = {"mergekit": "mergekit", "fusion_bench": "FusionBench"}
_COLUMNS = (
    "method",
    "copy, s",
    "merge, s",
    "merge / copy",
    "process / copy",
    "copy, s of processors",
    "merge, s of processors",
    "process, s of processors",
    "peak, MB",
    "above imports, MB",
    "load",
)
_PEER_COLUMNS = (
    "method",
    "by",
    "copy, s",
    "process / copy",
    "process, s of processors",
    "peak, MB",
    "load",
)


def report(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the results of all cases in Markdown."""
    lines = [
        "# Merges from files to files",
        "",
        "```sh",
        "python scripts/bench_merge.py --mergekit VENV/bin/mergekit-yaml "
        "--fusion-bench VENV/bin/python",
        "```",
        "",
        "Random weights, in float32 if nothing else is said. *copy* reads all files that a merge",
        "reads, and writes as many bytes as it does; every merge follows one. *merge* is the time",
        "within a process that has imported all libraries, as a merge of tiny models does;",
        "*process* is all of it, that one too. Seconds of processors are what was computed,",
        "whatever others did meanwhile. The peak of resident memory counts libraries and mapped",
        "files; beside it is what it exceeds the peak after the imports by. Medians of pairs of",
        "copy and merge, on a machine of two processors that had other work, as the load at the",
        "beginning of a pair shows. Of other programs the whole process is compared, with a copy",
        "before it of its own; they write no report or card and compare no models. Mergekit",
        "(0.1.5) has no table of ViTs and trims tensors one by one, FusionBench (0.2.33) all",
        "numbers of a model at once; it averages heads.",
    ]
    for case, rows in results.items():
        lines += ["", f"## {_TITLES.get(case, case)}", "", *table([*rows.values()])]
        others = [cells for row in rows.values() for cells in _peers(row)]
        if others:
            right = ["---:"] * (len(_PEER_COLUMNS) - 2)
            lines += ["", line(_PEER_COLUMNS), line(["---", "---", *right]), *map(line, others)]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns one line per method, as lines of Markdown."""
    lines = [line(_COLUMNS), line(["---", *["---:"] * (len(_COLUMNS) - 1)])]
    return [*lines, *(line(_cells(row)) for row in rows)]


def _cells(row: Mapping[str, Any]) -> list[str]:
    pairs = row["pairs"]
    return [
        row["name"],
        _median(pairs, "copy", 2),
        _median(pairs, "merge", 1),
        _of_copy(pairs, "merge"),
        _of_copy(pairs, "process"),
        *(_median(pairs, key, 1) for key in ("copy_cpu", "merge_cpu", "process_cpu")),
        _median(pairs, "peak", 0),
        f"{median(pair['peak'] - pair['imports_peak'] for pair in pairs):.0f}",
        _median(pairs, "load", 1),
    ]


def _peers(row: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields a line for every other program that a merge was made with."""
    for key, name in _PEERS.items():
        pairs = [pair for pair in row.get(key, ()) if "process" in pair]
        if pairs:
            yield [
                row["name"],
                name,
                _median(pairs, "copy", 2),
                _of_copy(pairs, "process"),
                _median(pairs, "cpu", 1),
                _median(pairs, "peak", 0),
                _median(pairs, "load", 1),
            ]


def _median(pairs: Sequence[Mapping[str, float]], key: str, digits: int) -> str:
    known = [pair[key] for pair in pairs if key in pair]
    return f"{median(known):.{digits}f}" if known else ""


def _of_copy(pairs: Sequence[Mapping[str, float]], key: str) -> str:
    return f"{median(pair[key] / pair['copy'] for pair in pairs):.1f}"
