"""Pictures, a small trained run, and a disk of a few kilobytes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # processes.py, which these tests share


def pictures(folder, number=10):
    """Noise of two levels, 8 x 8 pixels, one class a level."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for label, level in (("day", 150), ("night", 0)):
        (folder / label).mkdir(parents=True)
        for index in range(number):
            pixels = level + generator.integers(0, 100, (8, 8))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def _apart(trained, tmp_path, monkeypatch):
    """Every test has a cache of its own, and lines are not broken."""
    monkeypatch.setenv("CSSOFTMAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CSSOFTMAX_CC", "0")
    monkeypatch.delenv("CSSOFTMAX_DATA", raising=False)


@pytest.fixture
def photos(tmp_path):
    return pictures(tmp_path / "photos")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run that was trained and evaluated; not to be written to."""
    from cssoftmax import jobs, report, runs

    folder = tmp_path_factory.mktemp("trained")
    changes = {"network": "lenet", "width": 2, "embedding_size": 4, "epochs": 2, "batch_size": 8}
    source = runs.Source(str(pictures(folder / "photos")), cache_dir=folder / "cache")
    run = jobs.train(source, folder / "run", recipe_changes=changes, cpu=True)
    report.write_report([run], folder / "report")
    return run


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of that many bytes, or makes the one that is there as large, or read-only."""
    place = tmp_path / "disk"

    def mounted(size, read_only=False):
        options = ["remount"] if place.exists() else []
        options += ["ro"] if read_only else ["rw", f"size={size}"]
        place.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a file system, and not in every container")
        return place

    yield mounted
    subprocess.run(["umount", str(place)], capture_output=True, check=False)
