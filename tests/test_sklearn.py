"""A scikit-learn estimator like any other, and a better embedding than plain softmax's."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from cssoftmax.sklearn import CSSoftmaxClassifier


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:900], y[:900], X[900:], y[900:]


@parametrize_with_checks([CSSoftmaxClassifier(max_iter=30)])
def test_scikit_learn_calls_it_an_estimator(estimator, check):
    check(estimator)


def test_it_classifies_and_embeds(digits):
    X, y, X_test, y_test = digits
    classifier = CSSoftmaxClassifier(max_iter=20, random_state=0).fit(X, y)
    assert classifier.score(X_test, y_test) > 0.9
    embeddings = classifier.transform(X_test)
    assert embeddings.shape == (897, 32) and embeddings.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1)
    proba = classifier.predict_proba(X_test)
    np.testing.assert_allclose(proba.sum(1), 1)
    assert (classifier.classes_[proba.argmax(1)] == classifier.predict(X_test)).all()
    assert classifier.loss_curve_[-1] < classifier.loss_curve_[0]
    assert list(classifier.get_feature_names_out())[:2] == ["cssoftmaxclassifier0", "cssoftmaxclassifier1"]


def test_a_seed_repeats_a_fit_and_leaves_the_global_one_alone(digits):
    import torch

    X, y, X_test, _ = digits
    before = torch.random.get_rng_state()
    first, second = (CSSoftmaxClassifier(max_iter=2, random_state=3).fit(X, y).transform(X_test) for _ in range(2))
    assert (first == second).all()
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("loss", ["cosface", "arcface", "subcenter-arcface", "magface", "adacos"])
def test_every_loss_serves(loss):
    X, y = make_blobs(120, centers=3, random_state=0)
    assert CSSoftmaxClassifier(loss=loss, max_iter=20, random_state=0).fit(X, y).score(X, y) > 0.9


def test_embeddings_of_another_network_get_class_weights_alone():
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.normal(size=(16, 16)))[0][:5]
    y = np.repeat(np.array(["a", "b", "c", "d", "e"]), 40)
    X = np.repeat(directions, 40, axis=0) + 0.15 * generator.normal(size=(200, 16))
    classifier = CSSoftmaxClassifier(embedding_size=None, random_state=0).fit(X.astype(np.float32), y)
    assert classifier.score(X, y) > 0.97
    np.testing.assert_allclose(classifier.transform(X), X / np.linalg.norm(X, axis=1, keepdims=True), atol=1e-6)
    assert classifier.transform(X.astype(np.float32)).dtype == np.float32


def test_it_works_in_a_pipeline_and_a_grid_search(digits):
    X, y, X_test, y_test = digits
    pipeline = make_pipeline(StandardScaler(), CSSoftmaxClassifier(max_iter=5, random_state=0))
    search = GridSearchCV(pipeline, {"cssoftmaxclassifier__margin": [0.0, 0.3]}, cv=2).fit(X[:400], y[:400])
    assert search.best_score_ > 0.8
    retrieval = make_pipeline(CSSoftmaxClassifier(max_iter=10, random_state=0), KNeighborsClassifier(5))
    assert retrieval.fit(X, y).score(X_test, y_test) > 0.9
    assert cross_val_score(clone(search.best_estimator_), X[:300], y[:300], cv=2).mean() > 0.7
    again = pickle.loads(pickle.dumps(search))
    assert (again.predict(X_test) == search.predict(X_test)).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"loss": "hinge"}, "loss: 'hinge' is not one of cs-softmax"),
        ({"margin": 1.5}, r"margin: 1.5 is outside \[0, 1\)"),
        ({"loss": "softmax", "margin": 0.1}, "margin: softmax has no such setting"),
        ({"embedding_size": 0}, "embedding_size: 0 is not a whole number"),
        ({"hidden_layer_sizes": (8, -1)}, r"hidden_layer_sizes\[1\]: -1 is not"),
        ({"max_iter": 2.5}, "max_iter: 2.5 is not"),
        ({"learning_rate_init": 0}, "learning_rate_init: 0 is not"),
        ({"alpha": -1.0}, "alpha: -1.0 is not"),
    ],
)
def test_a_parameter_out_of_range_is_named(parameters, message):
    X, y = make_blobs(30, centers=2, random_state=0)
    with pytest.raises(ValueError, match=message):
        CSSoftmaxClassifier(**parameters).fit(X, y)


def test_the_package_itself_does_not_import_scikit_learn():
    code = (
        "import sys, cssoftmax; sys.exit(bool({'sklearn', 'accelerate', 'transformers', 'typer'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
