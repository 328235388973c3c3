"""Digests of files, and pictures that are drawn while these are worked out."""

import hashlib
import mmap
from concurrent.futures import Future

import pytest

import hf_zip
from hf_zip import mapped
from hf_zip.drawing import png
from hf_zip.report import read
from tests.siblings import family

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, 2 * PAGE, 5 * PAGE + 7])
def test_a_file_is_digested_in_parts(size, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "_MOST", 2 * PAGE)
    data = bytes(i % 251 for i in range(size))
    (tmp_path / "x").write_bytes(data)
    assert mapped.sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_pictures_are_drawn_before_digests_are_waited_for(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    done = []
    result = Future.result
    monkeypatch.setattr("hf_zip.drawing.png", lambda chart: done.append("drawn") or png(chart))

    def waited(self, *given):
        found = result(self, *given)
        if isinstance(found, str) and len(found) == 64:
            done.append("digested")
        return found

    monkeypatch.setattr(Future, "result", waited)
    _, models = family(2)
    paths = [tmp_path / f"model {i}" for i in range(2)]
    for path, model in zip(paths, models, strict=True):
        model.save_pretrained(path)
    hf_zip.merge(paths, method="average", out=tmp_path / "out", lane="stream", progress=False)
    assert done == ["drawn", "drawn", "digested", "digested"]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "hf_zip_similarity.png",
        "hf_zip_signs.png",
    }
    digests = [mapped.sha256(path / "model.safetensors") for path in paths]
    assert [source.sha256 for source in read(tmp_path / "out").sources] == digests
