"""The cache gives back what was decoded, or nothing."""

import logging
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from cssoftmax.data import load_dataset
from cssoftmax.data.cache import Samples, read_cache, write_cache


def samples(seed=0, number=40):
    generator = torch.Generator().manual_seed(seed)
    return Samples(
        kind="image",
        classes=("a", "ä"),
        inputs=torch.randint(0, 256, (number, 3, 16, 16), dtype=torch.uint8, generator=generator),
        target=torch.arange(number) % 2,
        is_test=torch.arange(number) % 5 == 0,
        groups=tuple(str(index % 3) for index in range(number)),
        names=tuple(f"{index}.png" for index in range(number)),
    )


def equal(a, b):
    tensors = ("inputs", "target", "is_test")
    rest = ("kind", "classes", "groups", "names")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors) and all(
        getattr(a, name) == getattr(b, name) for name in rest
    )


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(6):
            image = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "pets" / name / f"{index}.png")
    return tmp_path / "pets"


def load(folder):
    return load_dataset(str(folder), cache_dir=folder.parent / "cache")


def cached(folder):
    return list((folder.parent / "cache").iterdir())


def test_round_trip(tmp_path):
    write_cache(tmp_path / "x.safetensors", samples())
    assert equal(read_cache(tmp_path / "x.safetensors"), samples())
    assert read_cache(tmp_path / "y.safetensors") is None


def test_a_hit_equals_a_fresh_decode(folder, monkeypatch):
    fresh = load(folder)
    monkeypatch.setattr("cssoftmax.data.load.decode_images", None)
    hit = load(folder)
    assert torch.equal(fresh.train.inputs, hit.train.inputs)
    assert torch.equal(fresh.test.inputs, hit.test.inputs)
    assert (fresh.fingerprint, fresh.classes) == (hit.fingerprint, hit.classes)
    assert len(cached(folder)) == 1


def test_changed_content_is_decoded_again(folder):
    before = load(folder)
    path = folder / "cat/0.png"
    times = path.stat()
    Image.new("RGB", (16, 16)).save(path)
    os.utime(path, (times.st_atime, times.st_mtime))
    assert load(folder).fingerprint != before.fingerprint
    assert len(cached(folder)) == 2


@pytest.mark.parametrize("place", [0.0, 0.02, 0.2, 0.6, 0.99])
def test_a_flipped_byte_is_reported_and_rebuilt(folder, caplog, place):
    fresh = load(folder)
    (path,) = cached(folder)
    good = path.read_bytes()
    position = int(place * len(good))
    path.write_bytes(good[:position] + bytes([good[position] ^ 0x01]) + good[position + 1 :])
    with caplog.at_level(logging.WARNING):
        again = load(folder)
    assert "damaged" in caplog.text
    assert torch.equal(fresh.train.inputs, again.train.inputs)
    caplog.clear()
    load(folder)
    assert not caplog.text


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file_is_rebuilt(folder, caplog, keep):
    fresh = load(folder)
    (path,) = cached(folder)
    path.write_bytes(path.read_bytes()[:keep])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load(folder).train.inputs, fresh.train.inputs)
    assert "damaged" in caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning(folder, caplog):
    (folder.parent / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert len(load(folder).train.target) == 10
    assert "cannot write the cache" in caplog.text


def _killed_writer(path):
    import cssoftmax.data.cache as cache

    def half(tensors, aside, metadata):
        with open(aside, "wb") as file:  # noqa: PTH123
            file.write(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)

    cache.save_file = half
    cache.write_cache(path, samples())


def _writer(path, seed):
    for _ in range(10):
        write_cache(path, samples(seed, number=400))


def test_a_killed_writer_leaves_no_half_file(tmp_path):
    path = tmp_path / "x.safetensors"
    process = multiprocessing.get_context("fork").Process(target=_killed_writer, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert read_cache(path) is None
    assert not path.exists()
    (abandoned,) = tmp_path.iterdir()
    os.utime(abandoned, (0, 0))
    write_cache(path, samples())
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_spoil_it(tmp_path, caplog):
    path = tmp_path / "x.safetensors"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_writer, args=(path, seed)) for seed in (1, 2)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        found = read_cache(path)
        assert found is None or equal(found, samples(1, 400)) or equal(found, samples(2, 400))
    assert [process.exitcode for process in processes] == [0, 0]
    assert "damaged" not in caplog.text
    assert list(tmp_path.iterdir()) == [path]
