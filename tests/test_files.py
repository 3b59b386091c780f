"""Whoever opens a file sees the old or the new, never half of it."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cssoftmax import files


def test_written_files_read_back_and_nothing_is_left_beside_them(tmp_path):
    files.write_json(tmp_path / "new" / "a.json", {"ä": [1, 2.5, None]})
    shared = torch.arange(6.0).view(2, 3)
    files.write_tensors(tmp_path / "b.safetensors", {"x": shared, "y": shared.T, "z": shared[0]})
    files.write_bytes(tmp_path / "b.bin", b"1")
    files.write_bytes(tmp_path / "b.bin", b"2")
    files.append_line(tmp_path / "c.jsonl", "one")
    files.append_line(tmp_path / "c.jsonl", "two")
    assert json.loads((tmp_path / "new" / "a.json").read_text(encoding="utf-8")) == {"ä": [1, 2.5, None]}
    assert torch.equal(load_file(tmp_path / "b.safetensors")["y"], shared.T)
    assert (tmp_path / "b.bin").read_bytes() == b"2"
    assert (tmp_path / "c.jsonl").read_text() == "one\ntwo\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.bin", "b.safetensors", "c.jsonl", "new"]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    files.write_bytes(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"weights: cannot be written \(No space left on device\); free the disk"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda path: files.write_bytes(path, b""), lambda path: files.append_line(path, "")):
        with pytest.raises(OSError, match=r"file/run/x: cannot be written \(Not a directory\)"):
            write(tmp_path / "file" / "run" / "x")


def test_what_a_killed_process_left_aside_is_removed(tmp_path):
    (tmp_path / ".weights.safetensors.123.tmp").write_bytes(b"half")
    (tmp_path / "weights.safetensors").write_bytes(b"whole")
    files.remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path):
    path = tmp_path / "weights.safetensors"
    files.write_tensors(
        path, {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bool)}, {"kind": "test"}
    )
    metadata, tensors = files.read_tensors(path)
    assert metadata["kind"] == "test" and torch.equal(tensors["a"], torch.arange(6.0).view(2, 3))
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="weights.safetensors: damaged .*checksum"):
        files.read_tensors(path)
    path.write_bytes(content[:-5])
    with pytest.raises(ValueError, match="weights.safetensors: damaged"):
        files.read_tensors(path)


def test_tensors_are_of_one_file_while_others_take_its_place(tmp_path):
    path, done = tmp_path / "weights.safetensors", threading.Event()
    ready = [tmp_path / name for name in ("one", "other")]
    for value, file in enumerate(ready):
        files.write_tensors(file, {"a": torch.full((1000,), float(value))})
    os.link(ready[1], path)

    def replace():
        while not done.is_set():
            for file in ready:
                os.link(file, tmp_path / "next")
                (tmp_path / "next").replace(path)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(300):
            assert len(files.read_tensors(path)[1]["a"].unique()) == 1
    finally:
        done.set()
        writer.join()


def test_what_reads_back_differently_does_not_replace_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"spoiled")
    with pytest.raises(OSError, match="file: cannot be written .it reads back differently."):
        files.write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path):
    metadata = {str(number): "value" for number in range(20)}
    contents = set()
    for _ in range(5):
        files.write_tensors(tmp_path / "file", {"b": torch.ones(3), "a": torch.zeros(2, 2)}, metadata)
        contents.add((tmp_path / "file").read_bytes())
    assert len(contents) == 1
    assert load_file(tmp_path / "file")["b"].tolist() == [1, 1, 1]
