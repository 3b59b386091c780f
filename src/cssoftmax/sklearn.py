"""The losses as a scikit-learn estimator: numpy in, numpy out."""

import math
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn.functional import normalize

from cssoftmax.losses import LOSSES, build
from cssoftmax.wiring import param_groups

Array = np.ndarray[Any, Any]


class CSSoftmaxClassifier(ClassNamePrefixFeaturesOutMixin, ClassifierMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A multi-layer perceptron, or nothing, in front of a cosine-softmax loss.

    It classifies features, and its :meth:`transform` gives embeddings of length one for nearest-neighbour search,
    clustering or verification. On embeddings that another network computed, ``embedding_size=None`` trains the class
    weights alone. Trained with Adam; the learning rate rises for the first tenth of all steps and falls along half a
    cosine to zero.

    Args:
        loss: a name in :data:`cssoftmax.losses.LOSSES`.
        margin, scale, weight_update: factors of the loss; None is its default, and those it does not have stay None.
        hidden_layer_sizes: of the perceptron's hidden layers, with rectifiers.
        embedding_size: D, its outputs; None takes the features themselves for embeddings.
        batch_size: samples a step, at most.
        learning_rate_init: the highest learning rate.
        alpha: weight decay of the perceptron's weights.
        max_iter: epochs.
        random_state: of weights and order; an int repeats a fit exactly.

    Attributes:
        classes_: (C,), sorted.
        n_features_in_: features F.
        n_iter_: epochs trained.
        loss_curve_: the mean loss of each epoch.
        network_: the fitted module from features to embeddings; standardises first, if it is a perceptron.
        loss_: the fitted loss, which holds the class weights.

    Computes in float32 where the features are, else in float64.

    See also: ``sklearn.neural_network.MLPClassifier``, whose parameter names these are.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = CSSoftmaxClassifier(random_state=0).fit(X, y)
    >>> classifier.score(X, y) > 0.95, classifier.transform(X).shape
    (True, (150, 32))
    """

    def __init__(
        self,
        *,
        loss: str = "cs-softmax",
        margin: float | None = None,
        scale: float | None = None,
        weight_update: float | None = None,
        hidden_layer_sizes: tuple[int, ...] = (100,),
        embedding_size: int | None = 32,
        batch_size: int = 128,
        learning_rate_init: float = 0.01,
        alpha: float = 1e-4,
        max_iter: int = 50,
        random_state: Any = None,
    ) -> None:
        self.loss = loss
        self.margin = margin
        self.scale = scale
        self.weight_update = weight_update
        self.hidden_layer_sizes = hidden_layer_sizes
        self.embedding_size = embedding_size
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.alpha = alpha
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Trains on features X (N, F) and labels y (N,) of at least two classes.

        Raises:
            ValueError: a parameter, the features or the labels are not what they should be; the message names them.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y: one class only; give samples of at least two classes")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._train(torch.tensor(X), torch.tensor(labels))
        self.n_iter_ = self.max_iter
        return self

    def transform(self, X: Any) -> Array:
        """Embeddings of length one, (N, D)."""
        return self._run(X, lambda embeddings: normalize(embeddings, dim=1))

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the classes in the order of ``classes_``, (N, C)."""
        return self._run(X, lambda embeddings: self.loss_.logits(embeddings).softmax(1))

    def predict(self, X: Any) -> Array:
        """The most probable class of each sample, (N,)."""
        chosen = self._run(X, lambda embeddings: self.loss_.logits(embeddings).argmax(1))
        found: Array = self.classes_[chosen]
        return found

    @property
    def _n_features_out(self) -> int:
        return int(self.loss_.in_features)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _check_parameters(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss: {self.loss!r} is not one of {', '.join(LOSSES)}")
        whole: dict[str, Any] = {"batch_size": self.batch_size, "max_iter": self.max_iter}
        whole |= {} if self.embedding_size is None else {"embedding_size": self.embedding_size}
        whole |= {f"hidden_layer_sizes[{i}]": size for i, size in enumerate(self.hidden_layer_sizes)}
        for name, value in whole.items():
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name}: {value!r} is not a whole number of at least 1")
        real: list[tuple[str, Any, float]] = [
            ("learning_rate_init", self.learning_rate_init, 1e-12),
            ("alpha", self.alpha, 0.0),
        ]
        for name, number, least in real:
            if not isinstance(number, Real) or not least <= float(number) < 1e3:
                raise ValueError(f"{name}: {number!r} is not a number in [{least:g}, 1000)")

    def _train(self, x: Tensor, y: Tensor) -> None:
        factors = {"margin": self.margin, "scale": self.scale, "weight_update": self.weight_update}
        given = {name: value for name, value in factors.items() if value is not None}
        size = x.shape[1] if self.embedding_size is None else self.embedding_size
        self.network_ = nn.Identity() if self.embedding_size is None else self._perceptron(x, size)
        self.loss_ = build(self.loss, size, len(self.classes_), **given).to(x.dtype)
        groups = param_groups(self.network_, self.loss_, lr=self.learning_rate_init, weight_decay=self.alpha)
        optimizer = torch.optim.AdamW(groups)
        steps = -(-len(x) // self.batch_size) * self.max_iter
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share((step + 0.5) / steps))
        self.loss_curve_: list[float] = []
        self.network_.train()
        self.loss_.train()
        for _ in range(self.max_iter):
            total = 0.0
            for rows in torch.split(torch.randperm(len(x)), self.batch_size):
                value = self.loss_(self.network_(x[rows]), y[rows])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                schedule.step()
                total += float(value.detach()) * len(rows)
            if not np.isfinite(total):
                raise ValueError("learning_rate_init: the loss became infinite or NaN; lower it, or scale the features")
            self.loss_curve_.append(total / len(x))
        self.network_.eval()
        self.loss_.eval()

    def _perceptron(self, x: Tensor, size: int) -> nn.Sequential:
        layers: list[nn.Module] = [_Standardize(x)]
        widths = [x.shape[1], *self.hidden_layer_sizes]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs, dtype=x.dtype), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], size, dtype=x.dtype))

    def _run(self, X: Any, function: Any) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        with torch.inference_mode():
            batches = torch.split(torch.tensor(X).to(self.loss_.weight.dtype), 4096)
            parts = [function(self.network_(batch)) for batch in batches]
            found: Array = torch.cat(parts).numpy()
        return found


def _share(done: float) -> float:
    """Of the highest learning rate, where this share of the training is done."""
    return min(done / 0.1, 0.5 + 0.5 * math.cos(math.pi * (done - 0.1) / 0.9), 1.0)


class _Standardize(nn.Module):
    """Features (N, F) less their mean over their standard deviation; those that are constant become 0."""

    mean: Tensor
    std: Tensor

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        std = x.std(0, correction=0)
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("std", torch.where(std > 0, std, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
