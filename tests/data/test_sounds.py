"""Sounds become log-mel spectrograms of one shape."""

import io

import numpy as np
import pytest
import torch

from cssoftmax.data import DataError, load_dataset
from cssoftmax.data.sound import LogMel, log_mel

soundfile = pytest.importorskip("soundfile")
librosa = pytest.importorskip("librosa")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CSSOFTMAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CSSOFTMAX_DATA", raising=False)


def tone(frequency, seconds=0.5, rate=8000, channels=1):
    wave = 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def write_folder(root, suffix=".wav", rate=8000, number=5, channels=1):
    for name, frequency in (("high", 2000), ("low", 300)):
        (root / name).mkdir(parents=True)
        for index in range(number):
            wave = tone(frequency + 10 * index, rate=rate, channels=channels)
            soundfile.write(root / name / f"{index}{suffix}", wave, rate)


@pytest.mark.parametrize("frequency", [300, 1000, 3000])
def test_a_tone_peaks_in_its_mel_band(frequency):
    parameters = LogMel(sample_rate=8000, duration=0.5, n_fft=512, hop=128)
    spectrogram = log_mel(tone(frequency)[None, :, 0], parameters)[0]
    centres = librosa.mel_frequencies(n_mels=64 + 2, fmin=0, fmax=4000)[1:-1]
    nearest = np.abs(centres - frequency).argmin()
    assert abs(int(spectrogram.mean(axis=1).argmax()) - int(nearest)) <= 1
    assert spectrogram.max() == 0
    assert spectrogram.min() >= -80


def test_silence_is_the_floor_and_each_clip_has_its_own_peak():
    parameters = LogMel(sample_rate=8000, duration=0.5)
    wave = tone(440)[:, 0]
    silent, loud, soft = log_mel(np.stack([0 * wave, wave, wave / 100]), parameters)
    assert (silent == -80).all()
    assert np.allclose(loud, soft, atol=1e-3)


@pytest.mark.parametrize(("suffix", "rate", "channels"), [(".wav", 8000, 1), (".flac", 16000, 2), (".ogg", 44100, 1)])
def test_folder_of_sounds(tmp_path, suffix, rate, channels):
    write_folder(tmp_path / "tones", suffix, rate, channels=channels)
    dataset = load_dataset(str(tmp_path / "tones"))
    assert (dataset.kind, dataset.classes) == ("sound", ("high", "low"))
    assert dataset.train.inputs.dtype == torch.float32
    assert dataset.train.inputs.shape[:3] == (8, 1, 64)
    peaks = dataset.train.inputs.mean(dim=3).argmax(dim=2).flatten()
    assert peaks[dataset.train.target == 0].min() > peaks[dataset.train.target == 1].max()


def test_rates_and_durations_may_differ(tmp_path):
    write_folder(tmp_path / "tones", rate=8000)
    soundfile.write(tmp_path / "tones/low/long.wav", tone(300, seconds=2.0, rate=22050, channels=2), 22050)
    soundfile.write(tmp_path / "tones/low/short.wav", tone(300, seconds=0.01), 8000)
    dataset = load_dataset(str(tmp_path / "tones"))
    assert dataset.train.inputs.isfinite().all()


def test_named_parameters_and_speakers(tmp_path):
    import pyarrow.parquet

    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "audio": datasets.Audio(sampling_rate=8000),
            "label": datasets.ClassLabel(names=["high", "low"]),
            "speaker": datasets.ClassLabel(names=["ann", "bob"]),
        }
    )

    def clip(index):
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(2000 - 1500 * (index % 2) + index), 8000, format="FLAC")
        return {"bytes": buffer.getvalue(), "path": f"{index}.flac"}

    (tmp_path / "fsdd").mkdir()
    for split, number in (("train", 12), ("test", 4)):
        rows = {
            "audio": [clip(index) for index in range(number)],
            "label": [index % 2 for index in range(number)],
            "speaker": [index // 2 % 2 for index in range(number)],
        }
        table = pyarrow.Table.from_pydict(rows, schema=features.arrow_schema)
        pyarrow.parquet.write_table(table, tmp_path / f"fsdd/{split}-00000-of-00001.parquet")
    official = load_dataset("fsdd", data_root=tmp_path)
    assert official.train.inputs.shape == (12, 1, 64, 63)
    assert set(official.train.groups) == set(official.test.groups) == {"ann", "bob"}
    held_out = load_dataset("fsdd", data_root=tmp_path, test_group="bob")
    assert set(held_out.train.groups) == {"ann"}
    assert held_out.test.groups == ("bob",) * 8
    assert len(held_out.train.target) == 8
    with pytest.raises(DataError, match="choose from ann, bob"):
        load_dataset("fsdd", data_root=tmp_path, test_group="carl")
    with pytest.raises(DataError, match="holds sounds"):
        load_dataset("fsdd", data_root=tmp_path, image_size=32)


@pytest.mark.parametrize("content", [b"", b"not a sound"])
def test_damaged_sound_is_named(tmp_path, content):
    write_folder(tmp_path / "tones")
    (tmp_path / "tones/low/3.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"tones/low/3\.wav: cannot be decoded") as caught:
        load_dataset(str(tmp_path / "tones"))
    assert "\n" not in str(caught.value)


def test_empty_sounds_and_bad_values_are_named(tmp_path):
    for number, wave in enumerate((np.zeros(0, np.float32), np.full(800, np.nan, np.float32))):
        root = tmp_path / str(number)
        write_folder(root)
        soundfile.write(root / "low/3.wav", wave, 8000, subtype="FLOAT")
        with pytest.raises(DataError, match=r"low/3\.wav"):
            load_dataset(str(root))


def test_images_and_sounds_in_one_folder_are_refused(tmp_path):
    from PIL import Image

    write_folder(tmp_path / "tones")
    Image.new("L", (8, 8)).save(tmp_path / "tones/low/cover.png")
    with pytest.raises(DataError, match="both images and sounds"):
        load_dataset(str(tmp_path / "tones"))
