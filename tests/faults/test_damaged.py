"""Samples that cannot be used: named one at a time, or left out and listed; and samples that are there twice."""

import io
from types import SimpleNamespace

import datasets
import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from PIL import Image

from cssoftmax.data import DataError, load_dataset, open_stream


def picture(seed, mode="RGB", size=(12, 12), kind="PNG", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, kind, **options)
    return content.getvalue()


def sound(channels, rate=8000):
    content = io.BytesIO()
    soundfile.write(content, channels, rate, format="WAV", subtype="FLOAT")
    return content.getvalue()


def bomb():
    """A picture of 30,000 x 30,000 pixels in under 200 kB."""
    content = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(content, "PNG")
    return content.getvalue()


NAN = np.full((4000, 1), np.nan, np.float32)
# Content, and what is said of it; None where it is used.
PICTURES = {
    "truncated.png": (picture(1)[:-60], "cannot be decoded"),
    "empty.png": (b"", "not an image"),
    "text.png": (b"<script>alert(1)</script>", "not an image"),
    "sound.png": (sound(np.zeros((100, 1))), "not an image"),
    "bomb.png": (bomb(), "too many pixels"),
    "jpeg-called.png": (picture(2, kind="JPEG"), None),
    "cmyk.jpg": (picture(3, "CMYK", kind="JPEG"), None),
    "palette.gif": (picture(4, "P", kind="GIF"), None),
    "1x1.png": (picture(5, size=(1, 1)), None),
    "wide.png": (picture(6, size=(300, 2)), None),
    "line\nbreak <b>.png": (picture(7)[:50], r"line\\nbreak <b>.png: cannot be decoded"),
    "Ελληνικά 日本.png": (picture(8), None),
}
SOUNDS = {
    "truncated.flac": (b"fLaC" + b"\0" * 40, "cannot be decoded"),
    "empty.wav": (b"", "cannot be decoded"),
    "none.wav": (sound(np.zeros((0, 1))), "an empty sound"),
    "nan.wav": (sound(NAN), "not numbers"),
    "silent.wav": (sound(np.zeros((4000, 1))), None),
    "one sample.wav": (sound(np.ones((1, 1))), None),
    "eight channels.wav": (sound(np.random.default_rng(0).normal(size=(48_000, 8)) / 8, 96_000), None),
    "loud.wav": (sound(np.full((4000, 1), 1e30)), None),
}


def folder(root, contents, good):
    """Two classes: good samples in both, the others in the first."""
    for name, content in {**contents, **good}.items():
        path = root / "first" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, content in good.items():
        (root / "second").mkdir(exist_ok=True)
        (root / "second" / name).write_bytes(content[:-8] + bytes(8) if name.endswith("wav") else content)
    return root


@pytest.mark.parametrize("kind", ["pictures", "sounds"])
def test_what_cannot_be_used_is_named_or_left_out_and_listed(tmp_path, kind):
    cases = PICTURES if kind == "pictures" else SOUNDS
    make = (lambda i: picture(100 + i)) if kind == "pictures" else (lambda i: sound(np.sin(np.arange(4000) / (i + 2))))
    good = {f"good {i}.{'png' if kind == 'pictures' else 'wav'}": make(i) for i in range(6)}
    usable = {name: content for name, (content, fault) in cases.items() if fault is None}
    for name, (content, fault) in cases.items():
        if fault is not None:
            alone = folder(tmp_path / f"alone {list(cases).index(name)}", {name: content}, good)
            with pytest.raises(DataError, match=fault) as caught:
                load_dataset(str(alone), cache_dir=tmp_path / "cache")
            assert "\n" not in str(caught.value)
    root = folder(tmp_path / "all", {name: content for name, (content, _) in cases.items()}, good)
    for _ in ("decoded", "from the cache"):
        dataset = load_dataset(str(root), cache_dir=tmp_path / "cache", on_error="skip")
        assert len(dataset.skipped) == sum(fault is not None for _, fault in cases.values())
        assert not any("\n" in line for line in dataset.skipped)
        assert len(dataset.train.target) + len(dataset.test.target) == 2 * len(good) + len(usable)
        assert dataset.train.inputs.isfinite().all() and dataset.test.inputs.isfinite().all()
    with pytest.raises(DataError):
        load_dataset(str(root), cache_dir=tmp_path / "cache")


def test_a_class_without_a_usable_sample_goes(tmp_path):
    good = {f"{i}.png": picture(i) for i in range(5)}
    root = folder(tmp_path / "data", {}, good)
    (root / "broken").mkdir()
    (root / "broken" / "0.png").write_bytes(b"")
    (root / "hollow").mkdir()
    with pytest.raises(DataError, match="hollow: no images or sounds in this class folder"):
        load_dataset(str(root), cache_dir=tmp_path)
    dataset = load_dataset(str(root), cache_dir=tmp_path, on_error="skip")
    assert dataset.classes == ("first", "second")
    for file in root.rglob("*.png"):
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="not one sample can be decoded .*; give other data"):
        load_dataset(str(root), cache_dir=tmp_path, on_error="skip")


def test_rows_without_a_label_or_a_file_are_left_out_of_a_parquet_file(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = [{"image": {"bytes": picture(i), "path": None}, "label": i % 2} for i in range(12)]
    table = datasets.Dataset.from_list(rows, features=features).data.table
    labels, images = table.column("label").to_pylist(), table.column("image").to_pylist()
    labels[3], labels[4], images[7] = None, 99, {"bytes": None, "path": "gone.png"}
    spoiled = pyarrow.table(
        [pyarrow.array(images, table.schema.field("image").type), pyarrow.array(labels, pyarrow.int64())], table.schema
    )
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(spoiled, path)
    with pytest.raises(DataError, match="row 3 has no label"):
        load_dataset(str(path), cache_dir=tmp_path)
    dataset = load_dataset(str(path), cache_dir=tmp_path, on_error="skip")
    assert [line.split(": ")[-1].split(" in ")[0] for line in dataset.skipped] == [
        "row 3 has no label",
        "row 4 has no label",
        "row 7 holds no encoded file",
    ]
    assert len(dataset.train.target) + len(dataset.test.target) == 9
    content = path.read_bytes()
    for damaged in (b"", content[:-20], content[:100], bytes(len(content)), content[: len(content) // 2] + bytes(99)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="train.parquet: not a readable parquet file"):
            load_dataset(str(path), cache_dir=tmp_path, on_error="skip")


def test_a_parquet_file_that_unpacks_to_more_than_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = [{"image": {"bytes": picture(0) + bytes(10**6), "path": None}, "label": i % 2} for i in range(40)]
    path = tmp_path / "train.parquet"
    table = datasets.Dataset.from_list(rows, features=features).data.table
    pyarrow.parquet.write_table(table, path, row_group_size=20, use_dictionary=False, compression="zstd")
    assert path.stat().st_size < 10**5
    free = 30 * 10**6
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    with pytest.raises(DataError, match=r"train.parquet: it takes 0.04 GB of memory, 0.03 are free; add --stream"):
        load_dataset(str(path), cache_dir=tmp_path)
    assert len(load_dataset(str(path), cache_dir=tmp_path, shuffle_buffer=4).classes) == 2
    free = 10**7
    for read in (lambda: load_dataset(str(path), shuffle_buffer=5), lambda: open_stream(str(path))):
        with pytest.raises(DataError, match=r"a row group takes 0.02 GB of memory, 0.01 are free; write it anew"):
            read()


def test_samples_in_both_splits_are_found(tmp_path):
    for split, seeds in (("train", range(8)), ("test", (20, 3, 21, 6))):
        for seed in seeds:
            path = tmp_path / "data" / split / "ab"[seed % 2] / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(seed))
    for _ in ("decoded", "from the cache"):
        dataset = load_dataset(str(tmp_path / "data"), cache_dir=tmp_path)
        assert dataset.repeated == ("test/a/6.png = train/a/6.png", "test/b/3.png = train/b/3.png")


def test_data_with_and_without_what_was_left_out_are_two_in_the_cache(tmp_path):
    root = folder(tmp_path / "data", {"bad.png": b""}, {f"{i}.png": picture(i) for i in range(5)})
    assert load_dataset(str(root), cache_dir=tmp_path / "cache", on_error="skip").skipped
    with pytest.raises(DataError, match="bad.png"):
        load_dataset(str(root), cache_dir=tmp_path / "cache")
