"""Measures of the logits: is the class right, and is its probability?"""

import torch
from torch import Tensor
from torch.nn import functional as F

from cssoftmax.metrics._checks import logits_and_labels, positive


def top_k_accuracy(logits: Tensor, target: Tensor, k: int = 1) -> float:
    """The fraction of samples whose class is among the ``k`` largest logits, from 0 to 1.

    Of equal logits the one of the lower class number counts as larger, as in ``argmax``; so logits that are all equal
    are right for ``k`` classes only, not for all.

    Args:
        logits: (N, C), finite.
        target: (N,), integers from 0 to C - 1.
        k: at least 1; above C it counts as C.

    Raises:
        ValueError: shapes that do not fit, no samples, classes out of range, logits that are not finite, k below 1.
        TypeError: logits that are not floating-point, a target or k that is not integer.

    >>> logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    >>> top_k_accuracy(logits, torch.tensor([0, 1])), top_k_accuracy(logits, torch.tensor([0, 1]), k=2)
    (0.5, 1.0)
    """
    scores, classes = logits_and_labels(logits, target)
    own = scores.gather(1, classes[:, None])
    lower = torch.arange(scores.shape[1]) < classes[:, None]
    before = (scores > own) | ((scores == own) & lower)
    return float((before.sum(1) < positive(k, "k")).double().mean())


def negative_log_likelihood(logits: Tensor, target: Tensor) -> float:
    """The mean of -log softmax(logits)[target], in nats: cross entropy without smoothing or margin.

    Args:
        logits: (N, C), finite.
        target: (N,), integers from 0 to C - 1.

    Raises:
        ValueError: shapes that do not fit, no samples, classes out of range, logits that are not finite.
        TypeError: logits that are not floating-point, a target that is not integer.

    >>> round(negative_log_likelihood(torch.zeros(3, 10), torch.tensor([0, 4, 9])), 4)  # log 10
    2.3026
    """
    return float(F.cross_entropy(*logits_and_labels(logits, target)))


def expected_calibration_error(logits: Tensor, target: Tensor, bins: int = 15) -> float:
    """How far confidence is from accuracy, from 0 to 1 (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Samples are put into ``bins`` equally wide bins by confidence, the largest softmax probability. The error is the
    mean over samples of | accuracy - mean confidence | of the sample's bin. Confidences have float32 precision.

    Args:
        logits: (N, C), finite.
        target: (N,), integers from 0 to C - 1.
        bins: at least 1.

    Raises:
        ValueError: shapes that do not fit, no samples, classes out of range, logits that are not finite, bins below 1.
        TypeError: logits that are not floating-point, a target or bins that is not integer.

    >>> even = torch.zeros(4, 2)  # confidence 1/2
    >>> round(expected_calibration_error(even, torch.tensor([0, 1, 0, 1])), 4)
    0.0
    >>> round(expected_calibration_error(even, torch.tensor([0, 0, 0, 0])), 4)
    0.5
    """
    # Imported here: it takes seconds, and no command but those that measure needs it.
    from torchmetrics.functional.classification import multiclass_calibration_error

    scores, classes = logits_and_labels(logits, target)
    positive(bins, "bins")
    if scores.shape[1] == 1:
        return 0.0
    # torchmetrics gives a confidence of 1 a bin of its own, beyond the last; the definition puts it into the last.
    probabilities = scores.softmax(1).clamp(max=1 - 2**-24)
    return float(multiclass_calibration_error(probabilities, classes, num_classes=scores.shape[1], n_bins=bins))


def confusion_matrix(logits: Tensor, target: Tensor) -> Tensor:
    """How many samples of each class (row) are taken for each class (column): (C, C), int64.

    A sample is taken for the class of its largest logit; of equal ones, for the lowest class number.

    Args:
        logits: (N, C), finite.
        target: (N,), integers from 0 to C - 1.

    Raises:
        ValueError: shapes that do not fit, no samples, classes out of range, logits that are not finite.
        TypeError: logits that are not floating-point, a target that is not integer.

    >>> confusion_matrix(torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0]]), torch.tensor([0, 1, 1]))
    tensor([[1, 0],
            [1, 1]])
    """
    import sklearn.metrics

    scores, classes = logits_and_labels(logits, target)
    taken = scores.numpy().argmax(1)  # NumPy promises the first of equal ones, PyTorch does not
    return torch.from_numpy(sklearn.metrics.confusion_matrix(classes.numpy(), taken, labels=range(scores.shape[1])))
