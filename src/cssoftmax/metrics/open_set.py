"""Open set: can samples of classes that were never trained on be told from those of the known ones, to reject them?"""

import torch
from torch import Tensor

from cssoftmax.metrics._checks import directions


def max_cosine(embeddings: Tensor, class_weights: Tensor) -> Tensor:
    """The cosine of each embedding to its nearest class weight, (N,), float64.

    Args:
        embeddings: (N, D), finite.
        class_weights: (C, D), or (C, K, D) with K centres a class; finite.

    >>> max_cosine(torch.tensor([[3.0, 0.0], [-1.0, 0.0]]), torch.eye(2)).tolist()
    [1.0, 0.0]
    """
    weights = directions(class_weights.reshape(-1, class_weights.shape[-1]), "class_weights")
    return (directions(embeddings) @ weights.T).amax(1)


def max_log_odds(logits: Tensor) -> Tensor:
    """The largest softmax probability p of each row of logits (N, C), as log(p / (1 - p)), so that none ties at 1.

    Returns:
        (N,), float64; it orders samples as p does. inf where there is one class.

    >>> bool(max_log_odds(torch.tensor([[900.0, 0.0]])) < max_log_odds(torch.tensor([[901.0, 0.0]])))
    True
    """
    scores = logits.double()
    best, taken = scores.max(1)
    others = scores.scatter(1, taken[:, None], -torch.inf).logsumexp(1)
    return best - others


def unknown_auroc(known: Tensor, unknown: Tensor) -> float:
    """How well a score tells known classes from unknown ones: the area under the ROC, 0.5 at chance, 1 at best.

    It is the probability that a sample of a known class scores higher than one of an unknown class; ties count half.

    Args:
        known: (N,) scores of samples of known classes, the higher the surer; finite.
        unknown: (M,) scores of samples of unknown classes; finite.

    Raises:
        ValueError: no samples on one side, or scores that are not finite.

    >>> unknown_auroc(torch.tensor([0.9, 0.4]), torch.tensor([0.5, 0.1]))
    0.75
    """
    import sklearn.metrics

    for name, scores in (("known", known), ("unknown", unknown)):
        if scores.ndim != 1 or len(scores) == 0 or not scores.isfinite().all():
            raise ValueError(f"{name}: expected finite scores (N,), at least one, got shape {tuple(scores.shape)}")
    is_known = torch.cat([torch.ones(len(known)), torch.zeros(len(unknown))])
    return float(sklearn.metrics.roc_auc_score(is_known.numpy(), torch.cat([known, unknown]).double().numpy()))
