"""The benchmark of merges from files to files: its table, and other programs."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

SCRIPTS = str(Path(__file__).parent.parent / "scripts")


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    names = ("bench_merge", "merge_peers", "merge_tables")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def pair(copy, merge, peak):
    return {
        "load": 1.0,
        "copy": copy,
        "copy_cpu": 0.5,
        "merge": merge,
        "process": 2 * merge,
        "merge_cpu": 3 * merge,
        "process_cpu": 4 * merge,
        "peak": peak,
        "imports_peak": 400.0,
    }


def test_ratios_are_those_of_pairs_and_medians_are_shown(scripts):
    row = {
        "name": "TIES, global",
        "pairs": [pair(1.0, 3.0, 450.0), pair(2.0, 4.0, 460.0), pair(4.0, 16.0, 500.0)],
        "fusion_bench": [
            {"copy": 2.0, "process": 10.0, "cpu": 7.0, "peak": 900.0, "load": 3.0},
            {"copy": 2.0, "failed": "no"},
        ],
    }
    alone = {**row, "name": "average", "fusion_bench": [{"copy": 2.0, "failed": "no"}]}
    lines = scripts.merge_tables.report({"bert-3": {"ties": row, "average": alone}}).splitlines()
    assert "## BERT-base and 3 fine-tunes" in lines
    cells = "2.00 | 4.0 | 3.0 | 6.0 | 0.5 | 12.0 | 16.0 | 460 | 60 | 1.0"
    assert lines[-6:-4] == [f"| TIES, global | {cells} |", f"| average | {cells} |"]
    assert lines[-1] == "| TIES, global | FusionBench | 2.00 | 5.0 | 7.0 | 900 | 3.0 |"


def job(scripts, folder, base, family="bert"):
    models = [folder / "one", folder / "two"]
    return scripts.merge_peers.Job(family, "float32", base, models, folder / "out")


def test_other_programs_are_left_out_where_they_are_not_there(scripts, capsys):
    peers, installed = scripts.merge_peers.PEERS, scripts.merge_peers.installed
    assert installed(peers["fusion_bench"], None) is None
    assert installed(peers["mergekit"], "no/such/program") is None
    assert installed(peers["mergekit"], sys.executable) == sys.executable
    first, second = capsys.readouterr().out.splitlines()
    assert first == "FusionBench is not measured; give its program by --fusion-bench"
    assert second == "mergekit is not measured; no/such/program is no program"


def test_other_programs_are_told_what_to_merge(scripts, tmp_path):
    peers = scripts.merge_peers.PEERS
    both, one = (job(scripts, tmp_path, base) for base in (tmp_path / "base", None))
    for found in scripts.bench_merge.METHODS.values():
        assert {*found.peers} <= {*peers}
    _, script, order = peers["fusion_bench"].command("python", both, "Algorithm", {"t": 0.5})
    assert Path(script).is_file()
    known = json.loads(order)
    assert known["models"] == [str(model) for model in both.models]
    assert (known["base"], known["options"]) == (str(both.base), {"t": 0.5})
    peers["mergekit"].command("mergekit-yaml", both, "ties", {"weight": 1.0})
    recipe = yaml.safe_load((tmp_path / "mergekit.yaml").read_text())
    assert recipe["base_model"] == str(both.base)
    assert recipe["models"][0] == {"model": str(tmp_path / "one"), "parameters": {"weight": 1.0}}
    peers["mergekit"].command("mergekit-yaml", one, "slerp", {"t": 0.5})
    recipe = yaml.safe_load((tmp_path / "mergekit.yaml").read_text())
    assert (recipe["base_model"], recipe["parameters"]) == (str(tmp_path / "one"), {"t": 0.5})


def test_what_other_programs_take_is_measured_and_failures_are_told(scripts, tmp_path):
    peer = replace(
        scripts.merge_peers.PEERS["mergekit"],
        command=lambda program, job, method, options: [program, "-c", method],
    )
    what = job(scripts, tmp_path, None)
    found = scripts.merge_peers.run_peer(peer, sys.executable, what, "pass", {})
    assert found["process"] > 0
    failing = "raise ValueError('no room')"
    found = scripts.merge_peers.run_peer(peer, sys.executable, what, failing, {})
    assert found == {"failed": "ValueError: no room"}
