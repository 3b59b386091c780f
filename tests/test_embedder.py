"""A trained run at work, on files that it was never shown."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cssoftmax import jobs, runs
from cssoftmax.classifier import as_input
from cssoftmax.data import DataError, blends, load_dataset
from cssoftmax.embedder import Embedder
from cssoftmax.runs import JobError, Source


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on digits that is right nine times in ten."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    changes = {"width": 8, "embedding_size": 16, "epochs": 3}
    return jobs.train(Source("digits"), folder, recipe_changes=changes, cpu=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The test split of digits as PNG files, by class."""
    folder, split = tmp_path_factory.mktemp("files"), load_dataset("digits").test
    found = {}
    for index, (pixels, label) in enumerate(zip(split.inputs[:, 0], split.target.tolist(), strict=True)):
        path = folder / f"{label}-{index}.png"
        Image.fromarray(pixels.numpy()).save(path)
        found.setdefault(label, []).append(path)
    return found


def every(files):
    return sorted((path for paths in files.values() for path in paths), key=lambda path: int(path.stem.split("-")[1]))


def test_files_embed_as_the_data_set_did(digits, files):
    evaluated = load_file(digits / "evaluation.safetensors")["embeddings"]
    vectors = Embedder.load(digits).embed(every(files), batch_size=100)
    assert vectors.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(vectors), torch.nn.functional.normalize(evaluated, dim=1))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_predictions_are_those_of_the_evaluation(digits, files):
    logits = load_file(digits / "evaluation.safetensors")["logits"]
    predictions = Embedder.load(digits).predict(every(files))
    assert [int(prediction.nearest) for prediction in predictions] == logits.argmax(1).tolist()


@pytest.mark.parametrize("far", [0.0, 0.01, 0.2, 1.0])
def test_the_threshold_holds_its_false_acceptance_rate_where_it_was_set(digits, files, far):
    embedder, dataset = Embedder.load(digits), load_dataset("digits")
    strangers = blends(dataset.test, 5000, seed=0)
    assert embedder.calibration.split == "test"
    pictures = list(strangers[:, 0].numpy())
    accepted = [prediction.label is not None for prediction in embedder.predict(pictures, far=far)]
    assert far - 2 / len(pictures) <= sum(accepted) / len(pictures) <= far + 1 / len(pictures)  # one for rounding
    pairs = embedder.calibration.scores["pair"]
    assert (pairs.double() >= embedder.threshold(far, "pair")).double().mean() <= far
    embedder.calibrate(files[3])
    given = [prediction.label is not None for prediction in embedder.predict(files[3], far=far)]
    assert far - 1 / len(given) <= sum(given) / len(given) <= far + 1 / len(given)


def test_a_picture_of_nothing_is_unknown(digits):
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 30), dtype=np.uint8)
    assert sum(prediction.label is None for prediction in Embedder.load(digits).predict(list(noise))) >= 15


def test_two_of_a_class_are_the_same_and_two_of_two_are_not(digits, files):
    embedder = Embedder.load(digits)
    same = [embedder.verify(*files[label][:2], far=0.1).same for label in range(10)]
    different = [embedder.verify(files[label][0], files[(label + 1) % 10][0]).same for label in range(10)]
    assert sum(same) >= 8 and sum(different) <= 1
    a, b = embedder.embed([files[3][0], files[5][0]])
    assert embedder.verify(files[3][0], files[5][0]).cosine == pytest.approx(float(a @ b), abs=1e-6)


def test_a_class_is_enrolled_by_the_mean_direction_of_its_examples(tmp_path, files):
    changes = {"width": 8, "epochs": 8}
    source = Source("digits", held_out_classes=("8", "9"))
    run = jobs.train(source, tmp_path / "run", recipe_changes=changes, cpu=True)
    embedder = Embedder.load(run)
    assert embedder.classes == tuple("01234567")
    for name in ("8", "9"):
        embedder.enroll(name, files[int(name)][:10])
    mean = embedder.embed(files[8][:10]).mean(0)
    np.testing.assert_allclose(embedder.enrolled["8"], mean / np.linalg.norm(mean), rtol=1e-5)
    embedder.save_enrolled(run)
    again = Embedder.load(run)
    assert again.classes == tuple("0123456789")
    new = {name: [prediction.nearest for prediction in again.predict(files[int(name)][10:])] for name in "89"}
    assert sum(found.count(name) for name, found in new.items()) / sum(map(len, new.values())) > 0.25  # chance: 0.1
    old = [prediction.nearest for prediction in again.predict(files[0])]
    assert old.count("0") / len(old) > 0.8


def test_one_file_holds_all_of_a_run(digits, files, tmp_path):
    embedder = Embedder.load(digits)
    embedder.enroll("new", files[2][:3])
    embedder.save(tmp_path / "model.safetensors")
    again = Embedder.load(tmp_path / "model.safetensors")
    assert again.classes == embedder.classes
    assert again.predict(every(files)[:50]) == embedder.predict(every(files)[:50])
    assert again.threshold(0.05, "pair") == embedder.threshold(0.05, "pair")
    assert again.digest == embedder.digest
    assert str(digits) not in (tmp_path / "model.safetensors").read_bytes().decode("latin-1")
    again.enroll("newer", files[1][:3])
    again.save_enrolled(tmp_path / "model.safetensors")
    assert Embedder.load(tmp_path / "model.safetensors").classes[-2:] == ("new", "newer")


@pytest.mark.parametrize("loss", ["softmax", "subcenter-arcface", "magface"])
def test_every_kind_of_class_weight_serves(make_photos, tmp_path, loss):
    photos = make_photos()
    changes = {"width": 2, "embedding_size": 4, "epochs": 2, "batch_size": 8}
    run = jobs.train(Source(str(photos), cache_dir=tmp_path), tmp_path / "run", loss=loss, recipe_changes=changes)
    embedder = Embedder.load(run)
    predictions = embedder.predict(sorted(photos.rglob("*.png")))
    assert all(-1.001 <= prediction.cosine <= 1.001 for prediction in predictions)
    inputs = [as_input(load_dataset(str(photos), cache_dir=tmp_path).test.inputs)]
    with torch.inference_mode():
        logits = embedder.model.loss.logits(embedder.model(inputs[0]))
    evaluated = load_file(run / "evaluation.safetensors")["logits"]
    torch.testing.assert_close(logits, evaluated, rtol=1e-4, atol=1e-4)


def test_sounds_embed_from_files_and_waveforms(tones, tmp_path):
    import soundfile

    changes = {"width": 8, "embedding_size": 8, "epochs": 40, "batch_size": 8}
    run = jobs.train(Source(str(tones), cache_dir=tmp_path / "cache"), tmp_path / "run", recipe_changes=changes)
    embedder = Embedder.load(run)
    paths = sorted(tones.rglob("*.wav"))
    assert [p.nearest for p in embedder.predict(paths)] == [path.parent.name for path in paths]
    waves = [soundfile.read(path)[0] for path in paths[:3]]
    np.testing.assert_allclose(embedder.embed(waves), embedder.embed(paths[:3]), atol=1e-5)


def test_a_run_of_before_preprocessing_was_written_down_still_loads(digits, files, tmp_path):
    config = runs.read_config(digits)
    del config["preprocessing"]
    assert runs.preprocessing(config) == Embedder.load(digits).preprocessing
    with pytest.raises(JobError, match="does not say how sounds became spectrograms"):
        runs.preprocessing(config | {"kind": "sound"})


def test_what_cannot_be_used_is_one_line(digits, files, tmp_path, monkeypatch):
    embedder = Embedder.load(digits)
    with pytest.raises(DataError, match=r"nowhere.png: no such file"):
        embedder.predict(["nowhere.png"])
    with pytest.raises(TypeError, match="a list of images or sounds is needed"):
        embedder.embed(str(files[0][0]))
    with pytest.raises(JobError, match="'3' is a class that was trained on"):
        embedder.enroll("3", files[3][:1])
    with pytest.raises(JobError, match="far: expected a rate from 0 to 1"):
        embedder.threshold(1.5)
    with pytest.raises(JobError, match="no run here"):
        Embedder.load(tmp_path)
    (tmp_path / "other.safetensors").write_bytes((digits / "weights.safetensors").read_bytes())
    with pytest.raises(JobError, match=r"other.safetensors: not a file that `cssoftmax export") as caught:
        Embedder.load(tmp_path / "other.safetensors")
    assert "\n" not in str(caught.value)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "weights.safetensors"):
        (bare / name).write_bytes((digits / name).read_bytes())
    with pytest.raises(JobError, match="no evaluation to find a threshold with"):
        Embedder.load(bare).predict(files[0][:1])
    (bare / "enrolled.safetensors").write_bytes(b"damaged")
    with pytest.raises(JobError, match=r"enrolled.safetensors: cannot be used"):
        Embedder.load(bare)
    assert json.loads((bare / "config.json").read_text())["classes"][3] == "3"
