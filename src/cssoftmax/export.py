"""A trained run as a file for other programs, checked against PyTorch before it is written."""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cssoftmax import __version__, files, hub
from cssoftmax.card import model_card
from cssoftmax.classifier import Classifier
from cssoftmax.data import LogMel, Pixels, Preprocessing
from cssoftmax.embedder import Embedder
from cssoftmax.runs import JobError

Format = Literal["onnx", "torch-export", "safetensors"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}

TOLERANCE = 1e-4
"""Largest difference of an embedding's entry (of length one), and of a logit over the largest one, to PyTorch's."""
BATCHES = (1, 2, 5)
"""Batch sizes that are checked."""


class Exported(nn.Module):
    """Inputs as :func:`cssoftmax.data.prepare` makes them, to embeddings of length one (N, D) and logits (N, C)."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.dtype == torch.uint8:
            inputs = inputs.float() / 255
        embeddings = self.model.network(inputs)
        return normalize(embeddings, dim=1), self.model.loss.logits(embeddings)


def export(embedder: Embedder, path: Path, format: Format = "onnx") -> float:
    """Writes the network and its class weights to ``path``, once they give what PyTorch gives.

    - onnx: for onnxruntime and others; input "inputs", outputs "embeddings" and "logits", the first dimension free;
      classes, preprocessing and scale in the model's metadata (``metadata_props``).
    - torch-export: ``torch.export.load(path).module()`` runs it without this package; the metadata are in the extra
      file "cssoftmax.json".
    - safetensors: for :meth:`cssoftmax.embedder.Embedder.load`, with calibration and enrolled classes.

    Returns:
        The largest difference to PyTorch's outputs that was found.

    Raises:
        JobError: a package is missing, the network cannot be exported, or the file's outputs differ from PyTorch's by
            more than ``TOLERANCE``; nothing is written.
    """
    if format not in get_args(Format):
        raise JobError(f"format: {format!r} is not one of {', '.join(get_args(Format))}")
    writers = {"onnx": _onnx, "torch-export": _torch_export, "safetensors": _safetensors}
    module = Exported(embedder.model.cpu().eval()).eval()
    try:
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder) / f"model{SUFFIXES[format]}"
            difference = _difference(module, writers[format](embedder, module, aside), embedder.preprocessing)
            if not difference <= TOLERANCE:
                raise JobError(f"{path}: not written, its outputs differ from PyTorch's by {difference:.1e}")
            files.write_bytes(path, aside.read_bytes())
    except ImportError as error:
        raise JobError(
            f"format: {format} needs {error.name}, which is not installed; `pip install 'cssoftmax[export]'`"
        ) from error
    finally:
        embedder.model.to(embedder.device)
    return difference


def publish(embedder: Embedder, run: Path, repository: str, *, private: bool = False) -> str:
    """Uploads a run to the Hugging Face hub: model card, settings, measures, and the file that `Embedder.load` takes.

    Nothing of the data, and no path of this machine, goes with them. Returns the address.

    Raises:
        JobError: the run was not evaluated.
        cssoftmax.hub.HubError: the hub cannot be reached, or refuses.
    """
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{run}: no evaluated run here; `cssoftmax evaluate {run}` makes it one") from error
    config = embedder.shared_config()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        embedder.save(folder / hub.MODEL)
        files.write_json(folder / "config.json", config)
        files.write_json(folder / "summary.json", summary)
        card = model_card(config, summary).replace('Embedder.load("RUN")', f'Embedder.load("hf:{repository}")')
        (folder / "README.md").write_text(card, encoding="utf-8")
        return hub.push(folder, repository, private=private)


def metadata(embedder: Embedder) -> dict[str, str]:
    """What a program needs to know to feed an exported model, and to read what it says."""
    loss = embedder.model.loss
    return {
        "classes": json.dumps(embedder.config["classes"], ensure_ascii=False),
        "preprocessing": json.dumps(described(embedder.preprocessing)),
        "loss": str(embedder.config["loss"]["name"]),
        "scale": str(float(loss.scale)),
        "dataset": str(embedder.config["dataset"]),
        "weights": embedder.digest,
        "cssoftmax": __version__,
    }


def described(preprocessing: Preprocessing) -> dict[str, Any]:
    """The preprocessing in numbers and words.

    >>> described(Pixels(1, 28, 28))["dtype"]
    'uint8'
    """
    if isinstance(preprocessing, Pixels):
        return {
            "kind": "image",
            **asdict(preprocessing),
            "dtype": "uint8",
            "steps": "grey if channels is 1, else RGB; resize (bicubic) to cover height x width, cut out the centre; "
            "pixels 0..255, channels first",
        }
    return {
        "kind": "sound",
        **asdict(preprocessing),
        "dtype": "float32",
        "steps": "mean of channels; resample to sample_rate; cut or zero-pad about the centre to duration seconds; "
        "librosa.feature.melspectrogram(n_fft, hop_length=hop, n_mels=mels); 10 log10 of the power over its largest "
        "value, at least -80",
    }


def _inputs(preprocessing: Preprocessing, samples: int) -> Tensor:
    """Inputs of the right shape, type and range, random but the same each time."""
    generator = torch.Generator().manual_seed(samples)
    if isinstance(preprocessing, Pixels):
        shape = samples, preprocessing.channels, preprocessing.height, preprocessing.width
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return -80 * torch.rand(samples, 1, preprocessing.mels, _frames(preprocessing), generator=generator)


def _frames(log_mel: LogMel) -> int:
    return 1 + round(log_mel.duration * log_mel.sample_rate) // log_mel.hop


def _difference(module: nn.Module, run: Callable[[Tensor], list[Any]], preprocessing: Preprocessing) -> float:
    worst = 0.0
    for samples in BATCHES:
        inputs = _inputs(preprocessing, samples)
        with torch.inference_mode():
            expected = module(inputs)
        for right, got in zip(expected, run(inputs), strict=True):
            size = max(1.0, float(right.abs().max()))
            if tuple(np.shape(got)) != tuple(right.shape):
                return float("inf")
            worst = max(worst, float(np.abs(np.asarray(got) - right.numpy()).max()) / size)
    return worst


def _onnx(embedder: Embedder, module: nn.Module, path: Path) -> Callable[[Tensor], list[Any]]:
    import onnxruntime
    import onnxscript  # noqa: F401  what torch.onnx builds on

    with _quiet():
        try:
            program = torch.onnx.export(
                _traced(embedder, module).run_decompositions(
                    {torch.ops.aten.adaptive_max_pool2d.default: _adaptive_max_pool2d}
                ),
                input_names=["inputs"],
                output_names=["embeddings", "logits"],
                verbose=False,
            )
        except Exception as error:  # whatever of the network it does not know
            raise _not_exportable(error) from error
    assert program is not None
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        assert value.shape is not None
        value.shape[0] = "batch"
    program.model.metadata_props.update(metadata(embedder))
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda inputs: list(session.run(["embeddings", "logits"], {"inputs": inputs.numpy()}))


def _torch_export(embedder: Embedder, module: nn.Module, path: Path) -> Callable[[Tensor], list[Any]]:
    with _quiet():
        try:
            content = io.BytesIO()
            torch.export.save(
                _traced(embedder, module), content, extra_files={"cssoftmax.json": json.dumps(metadata(embedder))}
            )
        except Exception as error:  # whatever of the network it does not know
            raise _not_exportable(error) from error
        path.write_bytes(content.getvalue())
        loaded = torch.export.load(str(path)).module()
    return lambda inputs: [output.detach().numpy() for output in loaded(inputs)]


def _safetensors(embedder: Embedder, module: nn.Module, path: Path) -> Callable[[Tensor], list[Any]]:
    embedder.save(path)
    again = Exported(Embedder.load(path, network=embedder.config["recipe"]["network"], device="cpu").model)

    def run(inputs: Tensor) -> list[Any]:
        with torch.inference_mode():
            return [output.numpy() for output in again(inputs)]

    return run


def _traced(embedder: Embedder, module: nn.Module) -> torch.export.ExportedProgram:
    inputs = _inputs(embedder.preprocessing, 2)
    return torch.export.export(module, (inputs,), dynamic_shapes={"inputs": {0: torch.export.Dim("batch")}})


def _adaptive_max_pool2d(inputs: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    """Of operators that ONNX has; the indices, which no network here asks for, are left at 0."""
    height, width = (
        [slice(cell * length // cells, -(-(cell + 1) * length // cells)) for cell in range(cells)]
        for length, cells in zip(inputs.shape[-2:], size, strict=True)
    )
    rows = [torch.stack([inputs[..., row, column].amax((-2, -1)) for column in width], -1) for row in height]
    values = torch.stack(rows, -2)
    return values, torch.zeros_like(values, dtype=torch.int64)


def _not_exportable(error: Exception) -> JobError:
    return JobError(f"this network cannot be exported: {(str(error).splitlines() or [type(error).__name__])[0]}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters talk of their own insides."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
