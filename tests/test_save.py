import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, ViTForImageClassification

from hf_zip import save
from hf_zip.errors import HfZipError
from hf_zip.save import MARKER, check_replaceable, save_checked, write_file
from tests.models import processor, vit

TEXTS = {MARKER: "seed: 0\n", "README.md": "a model\n"}


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_saved_loads_as_it_was(tmp_path, dtype):
    model = vit().to(dtype)
    folder = save_checked(model, tmp_path / "deep" / "out", processor(), TEXTS)
    reloaded = AutoModelForImageClassification.from_pretrained(folder)
    assert reloaded.dtype == dtype
    for name, parameter in model.named_parameters():
        assert torch.equal(reloaded.get_parameter(name), parameter)
    assert (folder / "preprocessor_config.json").is_file()
    assert (folder / "README.md").read_text() == "a model\n"
    assert hidden(folder.parent) == []


def test_an_earlier_merge_is_replaced_as_a_whole(tmp_path):
    save_checked(vit(), tmp_path / "out", processor(), {**TEXTS, "old.txt": ""})
    save_checked(vit(labels=5), tmp_path / "out", None, TEXTS)
    assert not (tmp_path / "out" / "old.txt").exists()
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
    assert hidden(tmp_path) == []


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    save_checked(vit(), tmp_path / "out", None, TEXTS)
    assert (tmp_path / "out" / MARKER).is_file()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def full_disk(self, folder, **_):
    (Path(folder) / "model.safetensors").write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_old_folder(tmp_path, monkeypatch):
    save_checked(vit(), tmp_path / "out", None, TEXTS)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(ViTForImageClassification, "save_pretrained", full_disk)
    with pytest.raises(HfZipError, match=r"cannot write .*No space left.*left as it was"):
        save_checked(vit(labels=5), tmp_path / "out", None, TEXTS)
    assert contents(tmp_path / "out") == before
    assert hidden(tmp_path) == []


def test_a_full_disk_leaves_nothing_where_nothing_was(tmp_path, monkeypatch):
    monkeypatch.setattr(ViTForImageClassification, "save_pretrained", full_disk)
    with pytest.raises(HfZipError, match="No space left"):
        save_checked(vit(), tmp_path / "out", None, TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_exchange_brings_the_old_folder_back(tmp_path, monkeypatch):
    save_checked(vit(), tmp_path / "out", None, TEXTS)
    before = contents(tmp_path / "out")
    rename = Path.rename

    def fails_for_the_new(self, target):
        if ".new-" in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_new)
    with pytest.raises(HfZipError, match="Input/output error"):
        save_checked(vit(labels=5), tmp_path / "out", None, TEXTS)
    assert contents(tmp_path / "out") == before
    assert hidden(tmp_path) == []


KILLED = """
import sys, time
from hf_zip import save
from tests.models import vit

def stuck(model, folder):
    print("staged", flush=True)
    time.sleep(60)

save.check_reload = stuck
save.save_checked(vit(labels=5), sys.argv[1], None, {save.MARKER: ""})
"""


def test_a_kill_in_the_middle_leaves_the_old_folder_and_the_next_run_tidies(tmp_path):
    out = tmp_path / "out"
    save_checked(vit(), out, None, TEXTS)
    before = contents(out)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE, env=environment
    )
    with process:
        assert process.stdout.readline() == b"staged\n"
        process.send_signal(signal.SIGKILL)
    assert contents(out) == before
    assert len(hidden(tmp_path)) == 1  # nobody can clean up after SIGKILL …
    save_checked(vit(labels=4), out, None, TEXTS)
    assert hidden(tmp_path) == []  # … but the next run does


def test_a_kill_between_the_two_renames_is_healed_by_the_next_run(tmp_path):
    save_checked(vit(), tmp_path / "out", None, TEXTS)
    before = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    with save.staged(tmp_path / "out"):
        assert contents(tmp_path / "out") == before


def test_a_running_neighbours_staging_is_left(tmp_path):
    staging = tmp_path / f".out.new-{os.getpid()}-abc"
    staging.mkdir()
    save_checked(vit(), tmp_path / "out", None, TEXTS)
    assert staging.is_dir()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(
        HfZipError, match=r"cannot write '.*deep': '.*notes.txt' is a file; give an"
    ):
        check_replaceable(tmp_path / "notes.txt" / "deep")
    check_replaceable(tmp_path / "new" / "deep")
    monkeypatch.setattr(save.os, "access", lambda place, mode: place != tmp_path)
    with pytest.raises(HfZipError, match=r"cannot write '.*deep': '.*' cannot be written to; give"):
        check_replaceable(tmp_path / "new" / "deep")


def test_a_place_that_cannot_be_made_ends_in_a_message(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with (
        pytest.raises(HfZipError, match=r"cannot write '.*deep': .*File exists.*; give another"),
        save.staged(tmp_path / "notes.txt" / "deep"),
    ):
        pass


def test_of_a_link_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "far" / "real")
    for text in ("first", "second"):
        with save.staged(tmp_path / "out") as staging:
            (staging / "a.txt").write_text(text)
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "far" / "real" / "a.txt").read_text() == text
    assert hidden(tmp_path) == hidden(tmp_path / "far") == []


def test_other_peoples_folders_and_files_are_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(HfZipError, match=f"is not empty and holds no {re.escape(MARKER)}"):
        save_checked(vit(), tmp_path, None, TEXTS)
    with pytest.raises(HfZipError, match="is a file; give the name of a folder"):
        check_replaceable(tmp_path / "notes.txt")
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_model_that_does_not_reload_is_not_put_in_place(tmp_path, monkeypatch):
    real = ViTForImageClassification.save_pretrained

    def loses_a_tensor(self, folder, **_):
        state = {k: v for k, v in self.state_dict().items() if "layers.1.mlp.fc1" not in k}
        real(self, folder, state_dict=state)

    monkeypatch.setattr(ViTForImageClassification, "save_pretrained", loses_a_tensor)
    with pytest.raises(HfZipError, match=r"does not load as it was: .*fc1"):
        save_checked(vit(), tmp_path / "out", None, TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_other_weights_is_not_put_in_place(tmp_path, monkeypatch):
    real = ViTForImageClassification.save_pretrained

    def changes_a_weight(self, folder, **_):
        state = {k: v.clone() for k, v in self.state_dict().items()}
        state["classifier.bias"] += 1
        real(self, folder, state_dict=state)

    monkeypatch.setattr(ViTForImageClassification, "save_pretrained", changes_a_weight)
    with pytest.raises(HfZipError, match=r"saved parameters classifier\.bias differ"):
        save_checked(vit(), tmp_path / "out", None, TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_changes_the_function_is_not_put_in_place(tmp_path):
    model = vit()
    model.config.hidden_act = "relu"  # the loaded modules still hold GELU
    with pytest.raises(HfZipError, match="outputs differ by up to"):
        save_checked(model, tmp_path / "out", None, TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_write_file_replaces_all_at_once(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_file(path, "old")
    write_file(path, "new")
    assert path.read_text() == "new"
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_file(path, "newer")
    assert contents(tmp_path) == {"report.json": b"new"}
