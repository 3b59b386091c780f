"""A stranger's file becomes what it would have become in training."""

import io
from dataclasses import asdict

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from cssoftmax.data import DataError, LogMel, Pixels, load_dataset, prepare, preprocessing_of


@pytest.fixture
def load(tmp_path):
    def load(folder, **options):
        return load_dataset(str(folder), cache_dir=tmp_path / "cache", **options)

    return load


def all_inputs(dataset):
    return {tuple(x.flatten().tolist()) for split in (dataset.train, dataset.test) for x in split.inputs}


def test_images_of_a_data_set_prepared_one_by_one_are_those_of_the_data_set(make_photos, load):
    photos = make_photos(number=5, size=12)
    Image.new("L", (30, 20), 90).save(photos / "day" / "grey.png")
    for options, size in (({}, 32), ({"image_size": 8}, 8)):
        dataset = load(photos, **options)
        assert dataset.preprocessing == Pixels(3, size, size)
        files = sorted(photos.rglob("*.png"))
        one_by_one = torch.cat([prepare([file], dataset.preprocessing) for file in files])
        assert {tuple(x.flatten().tolist()) for x in one_by_one} == all_inputs(dataset)


def test_sounds_of_a_data_set_prepared_one_by_one_are_those_of_the_data_set(tones, load):
    dataset = load(tones)
    assert isinstance(dataset.preprocessing, LogMel)
    together = torch.cat([dataset.train.inputs, dataset.test.inputs])
    for file in sorted(tones.rglob("*.wav"))[:4]:
        alone = prepare([str(file)], dataset.preprocessing)
        assert (together - alone).abs().amax((1, 2, 3)).min() < 1e-3  # decibels


def test_the_cache_remembers_how_sounds_were_transformed(tones, load):
    assert load(tones).preprocessing == load(tones).preprocessing


def test_paths_bytes_arrays_and_images_are_the_same_thing(make_photos):
    file = next(make_photos().rglob("*.png"))
    image = Image.open(file)
    pixels = Pixels(3, 8, 8)
    same = prepare([file, str(file), file.read_bytes(), np.asarray(image), image], pixels)
    assert same.dtype == torch.uint8 and same.shape == (5, 3, 8, 8)
    assert (same == same[:1]).all()
    assert prepare([file], Pixels(1, 4, 6)).shape == (1, 1, 4, 6)


def test_a_waveform_is_brought_to_the_rate_of_the_training():
    log_mel = LogMel(sample_rate=8000, duration=0.5, n_fft=256, hop=128)
    time = np.arange(16000) / 16000
    wave = np.sin(2 * np.pi * 440 * time)
    file = io.BytesIO()
    soundfile.write(file, wave, 16000, format="WAV", subtype="FLOAT")
    from_file, from_array = prepare([file.getvalue()], log_mel), prepare([wave], log_mel, sample_rate=16000)
    torch.testing.assert_close(from_file, from_array)
    torch.testing.assert_close(prepare([np.stack([wave, wave], 1)], log_mel, sample_rate=16000), from_array)
    loudest = from_array[0, 0].mean(1).argmax()
    assert prepare([wave], log_mel)[0, 0].mean(1).argmax() < loudest  # at its rate it would be an octave lower


@pytest.mark.parametrize("preprocessing", [Pixels(3, 8, 9), LogMel(8000, 1.0)])
def test_preprocessing_is_read_back_as_written(preprocessing):
    assert preprocessing_of(asdict(preprocessing)) == preprocessing


@pytest.mark.parametrize(
    ("items", "preprocessing", "message"),
    [
        ([], Pixels(1, 8, 8), "no images or sounds given"),
        (["nowhere.png"], Pixels(1, 8, 8), "nowhere.png: no such file"),
        ([b"not an image"], Pixels(1, 8, 8), "item 0: cannot be decoded"),
        ([np.zeros((8, 8))], Pixels(1, 8, 8), r"item 0: an image is uint8 \(H, W\).* not float64"),
        ([np.zeros((8, 8, 3), np.uint8), 7], Pixels(1, 8, 8), "item 1: int is not a path"),
        ([b"not a sound"], LogMel(8000, 1.0), "item 0: cannot be decoded"),
        ([np.zeros(0, np.float32)], LogMel(8000, 1.0), "item 0: an empty sound"),
        ([np.zeros(8, np.int16)], LogMel(8000, 1.0), "item 0: a waveform is floating-point"),
        ([np.full(8, np.nan)], LogMel(8000, 1.0), "item 0: holds values that are not numbers"),
    ],
)
def test_what_cannot_be_prepared_is_named_in_one_line(items, preprocessing, message):
    with pytest.raises(DataError, match=message) as caught:
        prepare(items, preprocessing)
    assert "\n" not in str(caught.value)


def test_a_description_of_neither_is_refused():
    with pytest.raises(ValueError, match="neither images nor sounds"):
        preprocessing_of({"height": 3})
