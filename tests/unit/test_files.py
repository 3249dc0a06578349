"""Files written whole or not at all, by one run at a time."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from course_utils.files import check_room, only_run, read_json, replacing
from course_utils.weights import artifacts
from course_utils.weights.artifacts import write_safely

ROOT = Path(__file__).resolve().parents[2]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "card.json"
    with replacing(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half of the sec")
        raise RuntimeError
    assert path.read_text() == "first" and os.listdir(path.parent) == ["card.json"]


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one" and os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o077, 0o600)])
def test_weights_have_the_rights_of_any_new_file(tmp_path, mask, rights):
    before = os.umask(mask)
    try:
        write_safely(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == rights


def test_a_full_disk_leaves_the_old_weights_and_is_an_ordinary_error(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_safely(path, {"x": torch.ones(2)}, {})

    def full(tensors, file, metadata):
        Path(file).write_bytes(b"the beginning")
        raise artifacts.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(artifacts, "save_file", full)
    with pytest.raises(OSError, match=r"a.safetensors cannot be written .*No space left.*free some room"):
        write_safely(path, {"x": torch.zeros(2)}, {})
    with safe_open(path, "pt") as file:
        assert file.get_tensor("x").tolist() == [1, 1]
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_folder_is_tried_before_it_is_needed(tmp_path, monkeypatch):
    check_room(tmp_path / "new", 1000)
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file cannot be written to .*choose another folder"):
        check_room(tmp_path / "file", 1)

    def read_only(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", read_only)
        with pytest.raises(OSError, match="cannot be written to .Read-only file system.: choose another folder"):
            check_room(tmp_path, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(OSError, match="has room for 1.0 MB and 20.0 MB are needed: free some"):
        check_room(tmp_path, 20_000_000)


def test_one_run_at_a_time(tmp_path):
    lock = tmp_path / "new" / ".lock"
    with only_run(lock):
        with pytest.raises(BlockingIOError, match="another run is writing to .*new: wait until it is done, stop it"):
            with only_run(lock):
                raise AssertionError("both hold it")
    with only_run(lock):  # given back
        pass
    assert os.name == "nt" or not lock.exists()


def test_a_run_that_was_killed_holds_nothing(tmp_path):
    code = f"""
from pathlib import Path
from course_utils.files import only_run
with only_run(Path({str(tmp_path)!r}) / ".lock"):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), only_run(tmp_path / ".lock"):
            pass
        other.kill()
    with only_run(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "x.json is not JSON .*: mend it"),
        (b"\xff{}", "x.json is not JSON .*: mend it"),
        (b"[" * 100_000, "x.json is nested too deeply: mend it"),
        (b'{"a": ' + b"1" * 5000 + b"}", "x.json is not JSON .*: mend it"),
        (b"[1]", "x.json holds a list, not an object: mend it"),
    ],
)
def test_json_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(path, "mend it")
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')  # as some editors save it
    assert read_json(path, "mend it") == {"a": 1}
