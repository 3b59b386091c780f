"""Samples as a person sees and hears them."""

import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from cssoftmax.data import DataError, load_dataset, pictures, recordings


def image(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_small_grey_pictures_are_kept_as_they_are():
    pixels = torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8)
    for content, original in zip(pictures(pixels), pixels, strict=True):
        assert (image(content) == original.permute(1, 2, 0).numpy()).all()


def test_large_pictures_are_shrunk_in_proportion_and_look_the_same():
    ramp = torch.linspace(0, 255, 200).byte().expand(3, 100, 200)
    (content,) = pictures(ramp[None])
    assert image(content).shape == (48, 96, 3) and len(content) < 2000
    assert image(content)[24, 48].mean() == pytest.approx(127, abs=8)


def test_recordings_are_found_again_by_their_place_in_the_source(tones, tmp_path):
    dataset = load_dataset(str(tones), cache_dir=tmp_path / "cache")
    rows = dataset.test.rows.tolist()
    for content, target in zip(recordings(str(tones), None, rows), dataset.test.target.tolist(), strict=True):
        sound, rate = soundfile.read(io.BytesIO(content))
        pitch = np.abs(np.fft.rfft(sound)).argmax() * rate / len(sound)
        assert (pitch > 1000) == (dataset.classes[target] == "high")


def test_many_recordings_are_cut_short(tones, monkeypatch):
    monkeypatch.setattr("cssoftmax.data.preview.SECONDS", (0.1, 0.1))
    alone, *together = recordings(str(tones), None, [0]) + recordings(str(tones), None, range(20))
    durations = [soundfile.info(io.BytesIO(content)).duration for content in (alone, together[0])]
    assert durations[1] < durations[0] - 0.05


def test_pictures_cannot_be_heard(make_photos):
    with pytest.raises(DataError, match="holds images"):
        recordings(str(make_photos()), None, [0])
