"""Folders that must not be written to, by mount, permission or quota: one line, nothing left, and later it works."""

import resource
from functools import partial

import pytest
from processes import QUICK, as_anybody, command, left_aside, on_reading


def commands(trained, folder):
    """Every command that writes, into a folder."""
    photos = trained.parent / "photos"
    losses = ["--losses", "softmax,cs-softmax", "--seeds", "1"]
    return [
        ["train", photos, "--output", folder / "run", "--quiet", *QUICK],
        ["compare", photos, "--output", folder / "compared", "--quiet", *losses, *QUICK],
        ["embed", trained, photos, "--output", folder / "embeddings.parquet", "--quiet"],
        ["export", trained, "--format", "safetensors", "--output", folder / "model.safetensors"],
        ["report", trained, "--output", folder / "report", "--quiet"],
    ]


def test_a_read_only_file_system_is_named(trained, small_disk):
    disk = small_disk(2**25)
    small_disk(0, read_only=True)
    for words in commands(trained, disk):
        assert f"{disk}/" in (done := command(*words)).error and "Read-only file system" in done.error
    small_disk(2**25)
    assert not list(disk.iterdir())
    assert command(*commands(trained, disk)[2]).code == 0


def test_a_folder_without_permission_is_named(trained, tmp_path):
    folder = tmp_path / "others"
    folder.mkdir(mode=0o555)
    for words in commands(trained, folder):
        done = command(*words, first=as_anybody)
        assert f"{folder}/" in done.error and "Permission denied" in done.error
    assert not list(folder.iterdir())
    folder.chmod(0o755)
    assert command(*commands(trained, folder)[3], first=as_anybody).code == 0


def test_a_quota_on_the_size_of_files_is_a_line(trained, tmp_path):
    limited = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    for words in commands(trained, tmp_path / "new"):
        done = command(*words, first=limited)
        assert "cannot be written (File too large)" in done.error
    assert not left_aside(tmp_path)
    assert command(*commands(trained, tmp_path / "new")[4]).code == 0


def test_pictures_without_permission_are_named(photos, tmp_path):
    (photos / "day" / "3.png").chmod(0)
    done = command("train", photos, "--output", tmp_path / "run", *QUICK, first=as_anybody)
    assert "day/3.png: cannot be read (Permission denied)" in done.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["train", "NOWHERE"], ["embed", "RUN", "NOWHERE"], ["report", "NOWHERE"],
                                   ["export", "NOWHERE"], ["compare", "NOWHERE"]])  # fmt: skip
def test_what_is_missing_is_named(words, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"NOWHERE": tmp_path / "nowhere", "RUN": trained}
    assert f"{tmp_path}/nowhere" in command(*(places.get(word, word) for word in words)).error
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


@pytest.mark.parametrize("number", [5, 25])
def test_a_folder_renamed_while_it_is_read_is_named(number, trained, photos, tmp_path):
    """It has twenty files: the fifth that is opened is hashed, the twenty-fifth decoded."""
    away = photos.with_name("renamed")
    run, vectors = tmp_path / "run", tmp_path / "embeddings.parquet"
    for words, output in (
        (["train", photos, "--output", run, "--quiet", *QUICK], run),
        (["embed", trained, photos, "--output", vectors, "--quiet"], vectors),
    ):
        done = command(*words, first=partial(on_reading, photos, number, partial(photos.rename, away)))
        assert f"{photos}/" in done.error and "No such file" in done.error
        assert not output.exists()
        away.rename(photos)
        assert command(*words).code == 0
