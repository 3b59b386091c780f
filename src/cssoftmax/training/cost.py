"""What a training costs."""

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cssoftmax.classifier import Classifier, as_input
from cssoftmax.data import Split
from cssoftmax.data.augment import smaller
from cssoftmax.recipes import Recipe
from cssoftmax.training import proxy as proxies


def flops(model: Classifier, split: Split, recipe: Recipe, proxy: Classifier | None = None) -> float:
    """Operations of the matrix products and convolutions of a training, forward and backward; evaluation aside."""
    sample = as_input(split.inputs[:1])
    one = _of_a_sample(model, sample, proxy)
    if recipe.low_resolution:
        one += recipe.low_resolution * (_of_a_sample(model, smaller(sample), proxy) - one)
    return one * len(split.target) * recipe.epochs


def _of_a_sample(model: Classifier, sample: Tensor, proxy: Classifier | None) -> float:
    if proxy is None:
        return _forward_and_backward(model, sample)
    forward = 1 / 3 + 2 / 3 * 0.5 / proxies.LEARNS_EVERY  # of the half that it chose it goes backward, too
    return 0.5 * _forward_and_backward(model, sample) + forward * _forward_and_backward(proxy, sample)


def _forward_and_backward(model: Classifier, sample: Tensor) -> float:
    weight = model.loss.weight
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(sample.to(weight.device)).sum().backward()
    model.zero_grad()
    head = 3 * 2 * weight.numel()
    return float(counter.get_total_flops() + head)
