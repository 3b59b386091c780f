"""Files for other programs say what PyTorch says."""

import json
import sys

import numpy as np
import pytest
import torch

from cssoftmax import export as exporting
from cssoftmax import jobs
from cssoftmax.data import load_dataset, prepare
from cssoftmax.embedder import Embedder
from cssoftmax.export import export
from cssoftmax.runs import JobError, Source


def trained(source, folder, **options):
    changes = {"width": 2, "embedding_size": 4, "epochs": 1, "batch_size": 8} | options.pop("changes", {})
    return jobs.train(
        Source(str(source), cache_dir=folder / "cache"), folder / "run", recipe_changes=changes, **options
    )


def test_onnx_runs_on_any_number_of_images_and_says_how_to_prepare_them(make_photos, tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    photos = make_photos(size=11)  # a size that adaptive pooling does not divide
    embedder = Embedder.load(trained(photos, tmp_path, loss="subcenter-arcface", changes={"network": "lenet"}))
    path = tmp_path / "model.onnx"
    assert export(embedder, path, "onnx") < 1e-5
    model = onnx.load(path)
    onnx.checker.check_model(model)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"]) == ["day", "night"]
    preprocessing = json.loads(metadata["preprocessing"])
    assert (preprocessing["height"], preprocessing["channels"], preprocessing["dtype"]) == (11, 3, "uint8")
    session = onnxruntime.InferenceSession(str(path))
    assert session.get_inputs()[0].shape == ["batch", 3, 11, 11]
    files = sorted(photos.rglob("*.png"))
    for number in (1, 7):
        inputs = prepare(files[:number], embedder.preprocessing).numpy()
        embeddings, logits = session.run(["embeddings", "logits"], {"inputs": inputs})
        np.testing.assert_allclose(embeddings, embedder.embed(files[:number]), atol=1e-5)
        assert logits.shape == (number, 2)


def test_onnx_holds_the_texture_of_sounds(tones, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    run = trained(tones, tmp_path, changes={"network": "texturenet"})
    assert export(Embedder.load(run), tmp_path / "model.onnx", "onnx") < 1e-4  # onnxruntime's outputs to PyTorch's


def test_torch_export_needs_nothing_of_this_package(tones, tmp_path):
    run = trained(tones, tmp_path)
    embedder = Embedder.load(run)
    path = tmp_path / "model.pt2"
    assert export(embedder, path, "torch-export") < 1e-5
    extra = {"cssoftmax.json": ""}
    module = torch.export.load(str(path), extra_files=extra).module()
    metadata = json.loads(extra["cssoftmax.json"])
    assert json.loads(metadata["preprocessing"])["kind"] == "sound"
    split = load_dataset(str(tones), cache_dir=tmp_path / "c").test
    embeddings, logits = module(split.inputs)
    with torch.inference_mode():
        vectors = embedder.model(split.inputs)
        torch.testing.assert_close(logits, embedder.model.loss.logits(vectors))
        torch.testing.assert_close(embeddings, torch.nn.functional.normalize(vectors, dim=1))


def test_safetensors_is_loaded_here(make_photos, tmp_path):
    photos = make_photos()
    embedder = Embedder.load(trained(photos, tmp_path))
    path = tmp_path / "model.safetensors"
    assert export(embedder, path, "safetensors") == 0
    files = sorted(photos.rglob("*.png"))
    assert Embedder.load(path).predict(files) == embedder.predict(files)


def test_what_differs_from_pytorch_is_not_written(make_photos, tmp_path, monkeypatch):
    embedder = Embedder.load(trained(make_photos(), tmp_path))

    def wrong(embedder, module, path):
        path.write_bytes(b"wrong")
        return lambda inputs: [output.numpy() + 1e-3 for output in module(inputs)]

    monkeypatch.setattr(exporting, "_safetensors", wrong)
    with torch.no_grad(), pytest.raises(JobError, match="not written, its outputs differ from PyTorch's by 1"):
        export(embedder, tmp_path / "model.safetensors", "safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_what_cannot_be_exported_is_one_line(make_photos, tmp_path, monkeypatch):
    embedder = Embedder.load(trained(make_photos(), tmp_path))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(JobError, match=r"onnx needs .*; `pip install 'cssoftmax\[export"):
            export(embedder, tmp_path / "model.onnx", "onnx")
    with pytest.raises(JobError, match="format: 'pickle' is not one of onnx, torch-export, safetensors"):
        export(embedder, tmp_path / "model", "pickle")

    def branching(inputs):
        return inputs.flatten(1)[:, :4] * (2 if inputs.sum() > 0 else 1)

    embedder.model.network.forward = branching
    with pytest.raises(JobError, match="this network cannot be exported: ") as caught:
        export(embedder, tmp_path / "model.pt2", "torch-export")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.pt2").exists()
