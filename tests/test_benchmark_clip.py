"""The accuracy benchmark of CLIPs' zero-shot classifiers, on images that are made here."""

import json
import sys
from pathlib import Path

import pytest

from tests.data import write_labelled

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import benchmark_clip
import train_clip
import training

NAMES = ["bag", "T-shirt/top", "ankle boot", "coat"]
TINY = train_clip.Setting(
    width=16, layers=1, heads=2, patch=4, text_width=8, text_layers=1, projection=6, epochs=1,
    batch=16, shift=1,
)  # fmt: skip


def test_the_tokenizer_knows_the_words_and_their_end():
    tokenizer = train_clip.train_tokenizer(NAMES)
    for name in NAMES:
        ids = tokenizer(f"a photo of a {name}")["input_ids"]
        assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert len(ids) <= 2 + 4 + 5
        assert tokenizer.unk_token_id not in ids[1:-1]


@pytest.mark.slow
def test_the_benchmark_writes_every_row_and_no_folder(tmp_path, monkeypatch):
    (tmp_path / "clothes").mkdir()
    for split, count in (("train", 80), ("test", 24)):
        write_labelled(tmp_path / "clothes" / f"{split}.parquet", NAMES, count)
    monkeypatch.setattr(benchmark_clip, "MERGES", benchmark_clip.MERGES[::7])
    options = {"--data": tmp_path / "clothes", "--cache": tmp_path / "cache", "--samples": 40}
    options |= {"--out": tmp_path / "out"}
    options |= {f"--{key.replace('_', '-')}": value for key, value in vars(TINY).items()}
    flat = [str(x) for pair in options.items() for x in pair]
    monkeypatch.setattr(sys, "argv", ["x", *flat, "--classes", "0-1", "2-3"])
    benchmark_clip.main()
    folder = tmp_path / "cache" / "clothes" / "0-1_seed0"
    assert training.read_record(folder)["setting"] == vars(TINY)
    text = (tmp_path / "out" / "clip.md").read_text()
    (group,) = json.loads((tmp_path / "out" / "clip.json").read_text())["clothes"]["groups"]
    assert str(tmp_path) not in text + json.dumps(group)
    names = [row["name"] for row in group["test"]]
    assert names[:3] == ["classes 0-1", "classes 2-3", "ensemble"]
    assert names[-1] == "zipfit 1.0"
    assert all(text.count(f"\n| {name} |") >= 1 for name in names)
