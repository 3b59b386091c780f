"""A trained run at work: anybody's images and sounds to embeddings, classes and decisions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cssoftmax import files, hub, metrics, runs
from cssoftmax.classifier import Classifier, as_input
from cssoftmax.data import Preprocessing, prepare
from cssoftmax.data.prepare import Array, Raw

Decision = Literal["class", "pair"]

PAIRS = 100_000
"""Pairs of different classes that the threshold of :meth:`Embedder.verify` is found with, at most."""
ENROLLED = "enrolled.safetensors"


@dataclass(frozen=True)
class Prediction:
    """What an embedding is taken for.

    Attributes:
        label: the class, or None for unknown: ``cosine`` is below the threshold.
        nearest: the class that came nearest, known or not.
        cosine: of the embedding to it.
    """

    label: str | None
    nearest: str
    cosine: float


@dataclass(frozen=True)
class Verification:
    """Whether two are of the same class: whether ``cosine``, between their embeddings, reaches ``threshold``."""

    same: bool
    cosine: float
    threshold: float


@dataclass(frozen=True)
class Calibration:
    """Cosines of what should be rejected, of the split that a run was evaluated on.

    Both are estimates: classes that were not trained on can be nearer to a known one, and to each other.

    Attributes:
        split: "test", or "validation" where the run held a part of the training split out.
        scores: "class", (M,): cosines of blends (:func:`cssoftmax.data.blends`) of the split's samples to their nearest
            class: they stand in for samples of unknown classes. "pair", (P,): cosines of pairs of different classes.
    """

    split: str
    scores: dict[Decision, Tensor]


class Embedder:
    """A trained network with its classes, ready for images or sounds of anybody's.

    Preprocessing is the run's own, the same code as in training. Everything is computed in float32.

    Attributes:
        classes: those trained on, then those enrolled.
        preprocessing: how an image or a sound becomes an input.
        digest: of the network's weights; embeddings of equal digests can be compared.

    >>> embedder = Embedder.load("runs/digits-cs-softmax-0")  # doctest: +SKIP
    >>> embedder.embed(["seven.png", "one.png"]).shape  # doctest: +SKIP
    (2, 32)
    """

    def __init__(
        self,
        model: Classifier,
        config: Mapping[str, Any],
        calibration: Calibration | None,
        enrolled: Mapping[str, Tensor] | None = None,
        device: str | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.eval().to(self.device)
        self.config = dict(config)
        self.calibration = calibration
        self.enrolled = dict(enrolled or {})
        self.preprocessing: Preprocessing = runs.preprocessing(config)
        self.digest = _digest(model)

    @classmethod
    def load(cls, run_or_file: str | Path, *, network: str | None = None, device: str | None = None) -> Self:
        """Loads a run's folder, the one file that :meth:`save` (``cssoftmax export``) wrote, or a model of the hub.

        Args:
            run_or_file: a path, or ``hf:owner/name``.
            network: again the import path of a network that is code of the user's; see :func:`cssoftmax.jobs.resume`.
            device: by default "cuda" where there is one.

        Raises:
            cssoftmax.runs.JobError: there is neither, or it is damaged; one line that names the file and the remedy.
        """
        path = hub.fetch(str(run_or_file)[3:]) if str(run_or_file).startswith("hf:") else Path(run_or_file)
        if path.is_file():
            return cls(*_read(path, network), device=device)
        config = runs.read_config(path)
        model = runs.load_model(path, config, network=network)
        return cls(model, config, _calibration(path, model), _read_enrolled(path / ENROLLED, model), device)

    @property
    def classes(self) -> tuple[str, ...]:
        return (*self.config["classes"], *self.enrolled)

    def embed(
        self,
        items: Sequence[Raw],
        *,
        sample_rate: int | None = None,
        batch_size: int = 256,
        names: Sequence[str] | None = None,
    ) -> Array:
        """Embeddings, float32 (N, D), each of length one: their inner products are cosines.

        Args:
            items: N paths, encoded files (bytes), arrays or ``PIL`` images: pixels uint8 (H, W) or (H, W, 3); waveforms
                floating-point (samples,) or (samples, channels).
            sample_rate: of waveforms, in Hz; by default the one trained at.
            batch_size: items that are decoded and held at a time.
            names: what errors call the items; by default their paths, or numbers.

        Raises:
            cssoftmax.data.DataError: an item cannot be decoded; the message names it.
        """
        return self._embed(items, sample_rate, batch_size, names).cpu().numpy()

    def predict(
        self,
        items: Sequence[Raw],
        *,
        far: float = 0.05,
        sample_rate: int | None = None,
        batch_size: int = 256,
    ) -> list[Prediction]:
        """The class of each item, or unknown.

        The class is the one of the largest logit, or an enrolled one that is nearer by cosine. It is unknown where the
        cosine is below :meth:`threshold`.

        Args:
            far: false acceptance rate: the share of samples of unknown classes that may be taken for a known one.
            items, sample_rate, batch_size: as in :meth:`embed`.
        """
        threshold, names = self.threshold(far), self.classes
        best, cosines = self._nearest(self._embed(items, sample_rate, batch_size, unit=False))
        return [
            Prediction(names[index] if cosine >= threshold else None, names[index], cosine)
            for index, cosine in zip(best.tolist(), cosines.tolist(), strict=True)
        ]

    def verify(self, a: Raw, b: Raw, *, far: float = 0.01, sample_rate: int | None = None) -> Verification:
        """Whether two items are of the same class, known or not.

        Args:
            a, b: as in :meth:`embed`.
            far: false acceptance rate: the share of pairs of different classes that may be called the same.
            sample_rate: as in :meth:`embed`.
        """
        x, y = self._embed([a, b], sample_rate).double().cpu()
        cosine, threshold = float(x @ y), self.threshold(far, "pair")
        return Verification(cosine >= threshold, cosine, threshold)

    def enroll(self, name: str, items: Sequence[Raw], *, sample_rate: int | None = None) -> None:
        """Makes a class known from a few examples, without training: by the mean direction of their embeddings.

        A class that was enrolled before is replaced. ``save_enrolled`` keeps it.

        Raises:
            cssoftmax.runs.JobError: the network was trained on a class of that name.
            cssoftmax.data.DataError: an item cannot be decoded.
        """
        if name in self.config["classes"] or not name:
            raise runs.JobError(f"name: {name!r} is a class that was trained on; give the new one another name")
        mean = self._embed(items, sample_rate).mean(0)
        self.enrolled[name] = normalize(mean, dim=0).cpu()

    def calibrate(self, items: Sequence[Raw], *, sample_rate: int | None = None) -> None:
        """Sets the threshold of :meth:`predict` on samples of classes that are not known, where there are some.

        That is better than the stand-ins of the evaluation: the more like what will come, the truer the rate.
        """
        _, cosines = self._nearest(self._embed(items, sample_rate, unit=False))
        pairs = self.calibration.scores["pair"] if self.calibration else torch.zeros(0)
        self.calibration = Calibration("given", {"class": cosines.cpu(), "pair": pairs})

    def threshold(self, far: float, decision: Decision = "class") -> float:
        """The cosine from which :meth:`predict` ("class") or :meth:`verify` ("pair") accepts.

        Args:
            far: the share of what should be rejected that is accepted, on the split of ``calibration``.
            decision: see above.

        Raises:
            cssoftmax.runs.JobError: there is no calibration, or ``far`` is out of range.
        """
        if self.calibration is None or not len(self.calibration.scores[decision]):
            raise runs.JobError("no evaluation to find a threshold with; `cssoftmax evaluate RUN` makes one")
        try:
            return metrics.far_threshold(self.calibration.scores[decision], far)
        except ValueError as error:
            raise runs.JobError(str(error)) from error

    def shared_config(self) -> dict[str, Any]:
        """The run's config without the places of its data on this machine."""
        return {**self.config, "source": {"name": Path(self.config["source"]["name"]).name}}

    def save(self, path: str | Path) -> None:
        """Everything in one safetensors file: weights, classes, preprocessing, calibration, enrolled classes."""
        config = self.shared_config()
        header: dict[str, Any] = {"format": 1, "config": config, "enrolled": list(self.enrolled)}
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"enrolled.{index}": value for index, value in enumerate(self.enrolled.values())}
        if self.calibration is not None:
            header["calibration"] = {"split": self.calibration.split}
            tensors |= {f"calibration.{name}": value for name, value in self.calibration.scores.items()}
        files.write_tensors(Path(path), tensors, {"cssoftmax": json.dumps(header, ensure_ascii=False)})

    def save_enrolled(self, run_or_file: str | Path) -> None:
        """Writes the enrolled classes to the run's folder or the file that this was loaded from."""
        if str(run_or_file).startswith("hf:"):
            raise runs.JobError(f"{run_or_file}: classes cannot be kept on the hub; export it, and enroll in the file")
        path = Path(run_or_file)
        if path.is_file():
            self.save(path)
        else:
            tensors = {str(index): value for index, value in enumerate(self.enrolled.values())}
            files.write_tensors(path / ENROLLED, tensors, {"classes": json.dumps(list(self.enrolled))})

    def _embed(
        self,
        items: Sequence[Raw],
        sample_rate: int | None = None,
        batch_size: int = 256,
        names: Sequence[str] | None = None,
        *,
        unit: bool = True,
    ) -> Tensor:
        if isinstance(items, str | Path | bytes):
            raise TypeError("items: a list of images or sounds is needed, not one; put it into brackets")
        batches = []
        for first in range(0, len(items), batch_size):
            rows = slice(first, first + batch_size)
            called = names and names[rows]
            batches.append(
                self._network(prepare(items[rows], self.preprocessing, sample_rate=sample_rate, names=called))
            )
        found = torch.cat(batches) if batches else torch.zeros(0, self.config["recipe"]["embedding_size"])
        return normalize(found, dim=1) if unit else found

    def _network(self, inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            embeddings: Tensor = self.model(as_input(inputs.to(self.device))).float()
        return embeddings

    def _nearest(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Of each embedding (N, D), the class (N,) and the cosine to it (N,)."""
        if not len(embeddings):
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        with torch.inference_mode():
            best = self.model.loss.logits(embeddings).argmax(1, keepdim=True)
            cosines = _class_cosines(self.model, embeddings).gather(1, best)
            if self.enrolled:
                directions = torch.stack(list(self.enrolled.values())).to(self.device)
                others = normalize(embeddings, dim=1) @ directions.T
                best = torch.cat(
                    [best, len(self.config["classes"]) + torch.arange(others.shape[1]).expand_as(others)], 1
                )
                cosines = torch.cat([cosines, others], 1)
            nearest = cosines.argmax(1, keepdim=True)
            return best.gather(1, nearest)[:, 0], cosines.gather(1, nearest)[:, 0]


def _class_cosines(model: Classifier, embeddings: Tensor) -> Tensor:
    """(N, C): of several class weights a class, the nearest one's."""
    weight = normalize(model.loss.weight.detach().to(embeddings.device).float(), dim=1)
    cosines = normalize(embeddings, dim=1) @ weight.T
    return cosines.view(len(embeddings), model.loss.num_classes, model.loss.sub_centers).amax(2)


def _digest(model: Classifier) -> str:
    digest = blake2b(digest_size=16)
    for name, value in sorted(model.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _calibration(run: Path, model: Classifier) -> Calibration | None:
    path = run / "evaluation.safetensors"
    if not path.exists():
        return None
    try:
        _, tensors = files.read_tensors(path)
        embeddings, target = tensors["embeddings"].float(), tensors["target"].long()
        split = json.loads((run / "summary.json").read_text(encoding="utf-8"))["split"]
        strangers = tensors["blends"].float()
        scores, same = metrics.pair_scores(embeddings, target, max_pairs=PAIRS)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise runs.JobError(f"{path}: cannot be used ({line}); `cssoftmax evaluate {run}` writes it anew") from error
    return Calibration(split, {"class": _class_cosines(model, strangers).amax(1), "pair": scores[~same].float()})


def _read_enrolled(path: Path, model: Classifier) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    try:
        metadata, tensors = files.read_tensors(path)
        found = {name: tensors[str(index)] for index, name in enumerate(json.loads(metadata["classes"]))}
        if any(value.shape != (model.loss.in_features,) for value in found.values()):
            raise ValueError("of another network")
    except (ValueError, KeyError, TypeError) as error:
        raise runs.JobError(f"{path}: cannot be used ({error}); delete it and enroll anew") from error
    return found


def _read(path: Path, network: str | None) -> tuple[Classifier, dict[str, Any], Calibration | None, dict[str, Tensor]]:
    try:
        metadata, tensors = files.read_tensors(path)
        header = json.loads(metadata["cssoftmax"])
        config = dict(header["config"])
        found = header.get("calibration")
        calibration = None
        if found is not None:
            scores: dict[Decision, Tensor] = {
                "class": tensors["calibration.class"],
                "pair": tensors["calibration.pair"],
            }
            calibration = Calibration(found["split"], scores)
        enrolled = {name: tensors[f"enrolled.{index}"] for index, name in enumerate(header["enrolled"])}
    except (ValueError, KeyError, TypeError) as error:
        raise runs.JobError(
            f"{path}: not a file that `cssoftmax export --format safetensors` wrote ({error}); export the run anew"
        ) from error
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    return runs.restore(path, config, weights, network=network), config, calibration, enrolled
