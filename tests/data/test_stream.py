"""Samples one after the other: the same as whole, labelled or not."""

import shutil

import pyarrow
import pyarrow.parquet
import pytest

from cssoftmax.data import DataError, open_stream
from cssoftmax.data.sources import find_source


def test_a_folder_of_classes_gives_every_file_its_class(make_photos):
    stream = open_stream(str(make_photos(number=3)))
    items = list(stream.items())
    assert stream.total == len(items) == 6
    assert [item.id for item in items] == [f"{c}/{i}.png" for c in ("day", "night") for i in range(3)]
    assert [item.label for item in items] == ["day"] * 3 + ["night"] * 3


def test_a_folder_without_classes_and_a_single_file_have_no_labels(make_photos):
    day = make_photos(number=3) / "day"
    assert [(item.id, item.label) for item in open_stream(str(day)).items()] == [(f"{i}.png", None) for i in range(3)]
    assert [item.id for item in open_stream(str(day / "1.png")).items()] == ["1.png"]


def test_parquet_files_are_read_as_they_are_whole(make_photos, tmp_path):
    files = sorted(make_photos(number=3).rglob("*.png"))
    rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "label": file.parent.name} for file in files]
    folder = tmp_path / "parquet"
    folder.mkdir()
    for name, part in (("train", rows[:4]), ("test", rows[4:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), folder / f"{name}-0.parquet")
    table, stream = find_source(str(folder), None).read(), open_stream(str(folder))
    items = list(stream.items())
    assert stream.total == len(items)
    assert [item.id for item in items] == list(table.names)
    assert [item.data for item in items] == list(table.data)
    assert [item.label for item in items] == [table.classes[label] for label in table.target]
    unlabelled = pyarrow.Table.from_pylist([{"image": row["image"]} for row in rows])
    pyarrow.parquet.write_table(unlabelled, tmp_path / "unlabelled.parquet")
    assert {item.label for item in open_stream(str(tmp_path / "unlabelled.parquet")).items()} == {None}


def test_the_digest_follows_the_content(make_photos):
    photos = make_photos(number=3)
    before = open_stream(str(photos)).digest
    assert open_stream(str(photos)).digest == before
    shutil.copy(photos / "day" / "0.png", photos / "day" / "1.png")
    assert open_stream(str(photos)).digest != before


def test_what_holds_nothing_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no images or sounds in it"):
        open_stream(str(tmp_path / "empty"))
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad.parquet: not a readable parquet file"):
        open_stream(str(tmp_path / "bad.parquet"))
