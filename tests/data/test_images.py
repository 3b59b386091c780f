"""Image folders and parquet files become the right pixels, classes and splits; mistakes get one clear line."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cssoftmax.data import DataError, load_dataset
from cssoftmax.data.image import MOST_PIXELS, open_image
from cssoftmax.data.sources import find_source

datasets = pytest.importorskip("datasets")

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CSSOFTMAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CSSOFTMAX_DATA", raising=False)


def pixels(number, height=32, width=32, channels=3, seed=0):
    shape = (number, height, width, channels)[: 4 if channels > 1 else 3]
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(array, format="PNG", **options):
    buffer = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(buffer, format, **options)
    return buffer.getvalue()


def write_parquet(path, images, labels, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features(
        {
            "img": datasets.Image(),
            **{name: datasets.Value("int64") for name in columns},
            "label": datasets.ClassLabel(names=list(CLASSES)),
        }
    )
    rows = {"img": [{"bytes": encode(image), "path": None} for image in images], **columns, "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))


def write_folder(root, counts, size=(32, 32), suffix=".png"):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index, image in enumerate(pixels(count, *size, seed=len(name))):
            Image.fromarray(image).save(root / name / f"{index}{suffix}")


def message(source, **options):
    with pytest.raises(DataError) as caught:
        load_dataset(str(source), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parquet_round_trip_is_pixel_exact(tmp_path):
    train, test = pixels(12), pixels(6, seed=1)
    labels = [index % 3 for index in range(12)]
    write_parquet(tmp_path / "cifar10/train-00000-of-00002.parquet", train[:5], labels[:5])
    write_parquet(tmp_path / "cifar10/train-00001-of-00002.parquet", train[5:], labels[5:])
    write_parquet(tmp_path / "cifar10/test-00000-of-00001.parquet", test, labels[:6])
    for source, root in ((str(tmp_path / "cifar10"), None), ("cifar10", tmp_path)):
        dataset = load_dataset(source, data_root=root)
        assert (dataset.name, dataset.kind, dataset.classes) == ("cifar10", "image", CLASSES)
        assert dataset.train.inputs.dtype == torch.uint8
        assert np.array_equal(dataset.train.inputs.permute(0, 2, 3, 1), train)
        assert np.array_equal(dataset.test.inputs.permute(0, 2, 3, 1), test)
        assert dataset.train.target.tolist() == labels
        assert dataset.train.groups is None


def test_grey_parquet_file_keeps_one_channel_and_is_split_in_strata(tmp_path):
    images = pixels(60, 28, 28, channels=1)
    write_parquet(tmp_path / "some.parquet", images, [index % 3 for index in range(60)])
    dataset = load_dataset(str(tmp_path / "some.parquet"))
    assert dataset.train.inputs.shape == (48, 1, 28, 28)
    assert dataset.test.target.bincount().tolist() == [4, 4, 4]


def test_parquet_with_text_labels_and_bare_bytes(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [encode(image) for image in pixels(10)], "category": ["b", "a"] * 5})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    dataset = load_dataset(str(tmp_path / "x.parquet"))
    assert dataset.classes == ("a", "b")
    assert len(dataset.train.target) == 8


def test_groups_are_left_out_whole(tmp_path):
    folds = [1, 2, 10] * 6
    write_parquet(tmp_path / "train.parquet", pixels(18), [index // 6 for index in range(18)], fold=folds)
    default = load_dataset(str(tmp_path))
    assert set(default.test.groups) == {"1"}
    tenth = load_dataset(str(tmp_path), test_group="10")
    assert set(tenth.test.groups) == {"10"}
    assert set(tenth.train.groups) == {"1", "2"}
    assert len(tenth.train.target) + len(tenth.test.target) == 18
    assert default.fingerprint != tenth.fingerprint
    assert "choose from 1, 2, 10" in message(tmp_path, test_group="3")


def test_folder_of_classes_is_split_by_file_name(tmp_path):
    write_folder(tmp_path / "pets", {"cat": 20, "dog": 10})
    first = load_dataset(str(tmp_path / "pets"))
    assert first.classes == ("cat", "dog")
    assert first.test.target.bincount().tolist() == [4, 2]
    (tmp_path / "pets").rename(tmp_path / "moved")
    moved = load_dataset(str(tmp_path / "moved"))
    assert torch.equal(first.test.inputs, moved.test.inputs)
    other = load_dataset(str(tmp_path / "moved"), seed=1)
    assert not torch.equal(first.test.inputs, other.test.inputs)
    assert first.test.target.bincount().tolist() == other.test.target.bincount().tolist()


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
def test_folder_with_its_own_split(tmp_path, held_out):
    write_folder(tmp_path / "train", {"cat": 4, "dog": 3})
    write_folder(tmp_path / held_out, {"cat": 2, "dog": 1})
    dataset = load_dataset(str(tmp_path))
    assert dataset.train.target.tolist() == [0] * 4 + [1] * 3
    assert dataset.test.target.tolist() == [0, 0, 1]


def test_a_class_may_be_called_train(tmp_path):
    write_folder(tmp_path / "vehicles", {"train": 5, "ship": 5})
    assert load_dataset(str(tmp_path / "vehicles")).classes == ("ship", "train")


def test_sizes(tmp_path):
    write_folder(tmp_path / "wide", {"cat": 5, "dog": 5}, size=(20, 40))
    write_folder(tmp_path / "mixed/a", {"cat": 5}, size=(20, 40))
    write_folder(tmp_path / "mixed/b", {"dog": 5}, size=(50, 30))
    assert load_dataset(str(tmp_path / "wide")).train.inputs.shape == (8, 3, 20, 40)
    assert load_dataset(str(tmp_path / "mixed")).train.inputs.shape == (8, 3, 32, 32)
    assert load_dataset(str(tmp_path / "mixed"), image_size=96).train.inputs.shape == (8, 3, 96, 96)
    assert "--image-size 0" in message(tmp_path / "wide", image_size=0)


def test_digits():
    dataset = load_dataset("digits")
    assert dataset.train.inputs.shape == (1258, 1, 8, 8)
    assert dataset.test.inputs.shape == (539, 1, 8, 8)
    assert dataset.train.inputs.max() == 255
    assert load_dataset("digits").fingerprint == dataset.fingerprint
    assert load_dataset("digits", image_size=16).train.inputs.shape == (1258, 1, 16, 16)


def test_modes_of_images():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colour = np.stack([ramp, ramp.T, 255 - ramp], axis=-1)
    assert np.array_equal(open_image(encode(ramp), "x"), ramp)
    assert np.array_equal(open_image(encode((ramp.astype(np.uint16) << 8) + 7), "x"), ramp)
    cmyk = np.asarray(open_image(encode(Image.fromarray(colour).convert("CMYK"), "JPEG", quality=100), "x"), int)
    assert cmyk.shape == (16, 16, 3)
    assert np.abs(cmyk - colour).mean() < 12
    palette = Image.fromarray(colour).quantize(16)
    assert np.array_equal(open_image(encode(palette), "x"), palette.convert("RGB"))
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(open_image(encode(clear), "x")).min() == 255
    assert open_image(encode(clear.convert("LA")), "x").mode == "L"
    assert np.asarray(open_image(encode(Image.fromarray(ramp > 127)), "x")).max() == 255


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(open_image(data, "x"), frames[0])


def test_orientation_tag_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encode(pixels(1, 8, 16)[0], "JPEG", exif=exif), "x").size == (8, 16)


def test_mixed_grey_and_colour_become_colour(tmp_path):
    for name, channels in (("grey", 1), ("colour", 3)):
        (tmp_path / name).mkdir()
        for index, image in enumerate(pixels(5, channels=channels)):
            Image.fromarray(image).save(tmp_path / name / f"{index}.png")
    dataset = load_dataset(str(tmp_path))
    assert dataset.train.inputs.shape == (8, 3, 32, 32)
    grey = dataset.train.inputs[dataset.train.target == 1]
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_bombs_are_refused():
    side = int(MOST_PIXELS**0.5) + 1
    with pytest.raises(DataError, match=r"bomb\.png.*too large"):
        open_image(encode(Image.new("1", (side, side))), "bomb.png")


@pytest.mark.parametrize("content", [b"", b"not an image", encode(pixels(1)[0])[:200]], ids=["empty", "text", "cut"])
def test_damaged_image_is_named(tmp_path, content):
    write_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    (tmp_path / "pets/cat/1.png").write_bytes(content)
    assert "pets/cat/1.png: cannot be decoded" in message(tmp_path / "pets")


def test_mistakes_get_one_line(tmp_path, monkeypatch):
    for source in ("mnits", "", "hf:", "~/no-such-folder"):
        assert f"unknown data set {source!r}" in message(source, data_root=tmp_path)
    assert "--data-root" in message("mnist", data_root=tmp_path / "missing")
    (tmp_path / "none").mkdir()
    assert "no class folders" in message(tmp_path / "none")
    write_folder(tmp_path / "one", {"cat": 3})
    assert "only one class (cat)" in message(tmp_path / "one")
    write_folder(tmp_path / "hollow", {"cat": 3, "dog": 0})
    assert "hollow/dog: no images or sounds" in message(tmp_path / "hollow")
    (tmp_path / "notes.txt").write_text("x")
    assert "not a parquet file" in message(tmp_path / "notes.txt")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    assert "bad.parquet: not a readable parquet file" in message(tmp_path / "bad.parquet")
    write_folder(tmp_path / "strange/train", {"cat": 3, "dog": 3})
    write_folder(tmp_path / "strange/test", {"cat": 3, "owl": 3})
    assert "no training samples of the tested classes owl" in message(tmp_path / "strange")
    assert "--test-group x: unknown; one has no groups" in message(tmp_path / "one", test_group="x")


def test_parquet_without_labels_or_images(tmp_path):
    import pyarrow
    import pyarrow.parquet

    image = encode(pixels(1)[0])
    tables = {
        "no label column among image": {"image": [image]},
        "no image or audio column among label": {"label": [1]},
        "row 1 has no label": {"image": [image] * 2, "label": [1, None]},
        "row 0 holds no encoded file": {"image": [None], "label": [1]},
        "no rows": {"image": pyarrow.array([], pyarrow.binary()), "label": pyarrow.array([], pyarrow.int64())},
    }
    for expected, columns in tables.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
        assert expected in message(tmp_path / "x.parquet")


def test_hub_reads_what_parquet_reads(tmp_path, monkeypatch):
    import huggingface_hub

    images, labels = pixels(9), [index % 3 for index in range(9)]
    write_parquet(tmp_path / "set/train-0.parquet", images, labels)
    write_parquet(tmp_path / "set/test-0.parquet", images[:3], labels[:3])
    splits = {
        split: datasets.Dataset.from_parquet(str(tmp_path / f"set/{split}-0.parquet"), cache_dir=str(tmp_path / "hf"))
        for split in ("train", "test")
    }
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda hub_id: splits)
    hub, local = load_dataset("hf:someone/set"), load_dataset(str(tmp_path / "set"))
    assert (hub.name, hub.classes) == (local.name, local.classes)
    assert torch.equal(hub.train.inputs, local.train.inputs)
    assert torch.equal(hub.test.target, local.test.target)
    assert find_source("hf:someone/set", None).digest == find_source("hf:someone/set", None).digest


def test_no_connection_is_one_line_with_the_remedy(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("Name or service not known\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    for source, folder in (("mnist", "mnist"), ("hf:someone/set", "set")):
        text = message(source)
        assert f"DIR/{folder} and give --data-root DIR" in text
        assert "Name or service not known" in text
    assert not datasets.config.HF_HUB_OFFLINE


def test_photographs_decode_in_threads_to_the_same(tmp_path):
    write_folder(tmp_path / "photos", {"cat": 5, "dog": 5}, size=(120, 160))
    dataset = load_dataset(str(tmp_path / "photos"))
    expected = np.asarray(Image.open(Path(tmp_path / "photos/dog/0.png")))
    stored = torch.cat([dataset.train.inputs, dataset.test.inputs]).permute(0, 2, 3, 1).numpy()
    assert any(np.array_equal(image, expected) for image in stored)
