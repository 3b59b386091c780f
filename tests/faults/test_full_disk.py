"""A disk that is really full: one line, nothing lost, and once there is room the same command goes on."""

import json

import pytest
from processes import QUICK, command, left_aside

from cssoftmax import files

SIZES = [2**13, 2**15, 2**17, 2**25]


def is_whole(folder):
    """Every file can be read, and none was left half-written."""
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text().splitlines())
        elif path.suffix == ".safetensors":
            files.read_tensors(path)
    return not left_aside(folder)


def until_done(small_disk, next_command):
    """Runs the command with more and more room; returns what it said while there was too little."""
    told = []
    for size in SIZES:
        disk = small_disk(size)
        kept = {path: path.read_bytes() for path in disk.rglob("*.safetensors")}
        done = command(*next_command())
        assert is_whole(disk)
        if done.code == 0:
            return told
        assert f"{disk}/" in done.error and "No space left on device" in done.error
        assert all(path.exists() for path in kept if path.name != "checkpoint.safetensors")
        told.append(done.error)
    raise AssertionError(told)


def test_a_training_whose_disk_fills_up_goes_on_when_there_is_room(small_disk, photos, tmp_path):
    run = small_disk(SIZES[0]) / "run"

    def next_command():
        if (run / "summary.json").exists():
            return "evaluate", run, "--quiet"
        if (run / "checkpoint.safetensors").exists() or (run / "weights.safetensors").exists():
            return "train", "--resume", run, "--quiet"
        return "train", photos, "--output", run, "--quiet", *QUICK

    told = until_done(small_disk, next_command)
    assert any("checkpoint.safetensors: cannot be written" in line for line in told), told
    assert command("train", photos, "--output", tmp_path / "run", "--quiet", *QUICK).code == 0
    _, expected = files.read_tensors(tmp_path / "run" / "weights.safetensors")
    _, found = files.read_tensors(run / "weights.safetensors")
    assert all(found[name].equal(value) for name, value in expected.items())


def test_a_comparison_whose_disk_fills_up_goes_on_when_there_is_room(small_disk, photos):
    output = small_disk(SIZES[0]) / "compared"
    arguments = ["compare", photos, "--losses", "softmax,cs-softmax", "--seeds", "1", "--output", output, "--quiet"]
    told = until_done(small_disk, lambda: [*arguments, *QUICK])
    assert told
    assert len((output / "runs.jsonl").read_text().splitlines()) == 2


def test_embeddings_exports_and_reports_on_a_full_disk_are_there_whole_or_not_at_all(small_disk, trained, tmp_path):
    disk = small_disk(4096)
    for words in (
        ("embed", trained, trained.parent / "photos", "--output", disk / "new.parquet"),
        ("export", trained, "--format", "torch-export", "--output", disk / "new.pt2"),
        ("export", trained, "--format", "safetensors", "--output", disk / "new.safetensors"),
        ("report", trained, "--output", disk / "new.html"),
    ):
        small_disk(4096)
        (disk / "ballast").write_bytes(bytes(4096))
        assert f"{disk}/" in (done := command(*words)).error and "No space left on device" in done.error
        assert not left_aside(disk) and not list(disk.glob("new*"))
        small_disk(2**25)
        assert command(*words).code == 0
        (path,) = disk.glob("new*")
        path.unlink()


def test_a_full_disk_costs_the_cache_not_the_training(small_disk, photos, tmp_path):
    disk = small_disk(4096)
    (disk / "ballast").write_bytes(bytes(4096))
    words = ("train", photos, "--cache-dir", disk / "cache", "--quiet", "--output")
    done = command(*words, tmp_path / "run", *QUICK)
    assert done.code == 0 and "cannot write the cache" in done.err and not left_aside(disk)
    small_disk(2**20)
    assert command(*words, tmp_path / "again", *QUICK).err == ""
    assert len(list((disk / "cache").glob("*.safetensors"))) == 1


def test_a_line_that_finds_no_room_leaves_the_log_as_it_was(small_disk):
    log = small_disk(4096) / "log.jsonl"
    files.append_line(log, "first")
    with pytest.raises(OSError, match="log.jsonl: cannot be written .No space left on device."):
        files.append_line(log, 5000 * "x")
    assert log.read_text() == "first\n"
    files.append_line(log, "second")
    assert log.read_text() == "first\nsecond\n"
