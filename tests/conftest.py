"""Hypothesis without deadlines (a shared machine stutters) and without a database; small folders of real files."""

import multiprocessing
import os

import numpy as np
import pytest
import torch
from hypothesis import settings

# Tests run in as many processes as there are cores: one thread each, and in what they start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# Triton reads it when first imported. On a machine with a GPU, TRITON_INTERPRET=0 runs the kernels there.
os.environ.setdefault("TRITON_INTERPRET", "1")

# What processes of the "forkserver" need not import again: after a backward pass none may be forked from this one.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    [*(f"cssoftmax.{name}" for name in ("cli", "comparison", "jobs", "report", "sharded"))]
    + ["torch.distributed.checkpoint", "torch.distributed.fsdp"]
)

settings.register_profile("suite", deadline=None, max_examples=40, database=None, print_blob=True)
settings.load_profile("suite")


@pytest.fixture
def make_photos(tmp_path):
    """Writes a folder of PNG images, 8 x 8 in colour, of two classes: one dark, one bright."""
    from PIL import Image

    def make(name="photos", number=12, size=8, seed=0):
        generator = np.random.default_rng(seed)
        for label, level in (("day", 150), ("night", 0)):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = level + generator.integers(0, 100, (size, size, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
        return tmp_path / name

    return make


@pytest.fixture
def tones(tmp_path):
    """A folder of WAV files, 0.1 s at 8 kHz, of two classes: high tones and low ones."""
    import soundfile

    time = np.arange(800) / 8000
    for label, frequency in (("high", 2000), ("low", 300)):
        folder = tmp_path / "tones" / label
        folder.mkdir(parents=True)
        for index in range(10):
            wave = 0.5 * np.sin(2 * np.pi * (frequency + 10 * index) * time)
            soundfile.write(folder / f"{index}.wav", wave, 8000)
    return tmp_path / "tones"
