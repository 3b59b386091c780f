"""What a training costs."""

from torch.utils.flop_counter import FlopCounterMode

from cssoftmax.classifier import Classifier, as_input
from cssoftmax.data import Split
from cssoftmax.training import proxy as proxies


def flops(model: Classifier, split: Split, epochs: int, proxy: Classifier | None = None) -> float:
    """Operations of the matrix products and convolutions of a training, forward and backward; evaluation aside."""
    seen = len(split.target) * epochs
    if proxy is None:
        return _flops_of_a_sample(model, split) * seen
    forward = 1 / 3 + 2 / 3 * 0.5 / proxies.LEARNS_EVERY  # of the half that it chose it goes backward, too
    return (0.5 * _flops_of_a_sample(model, split) + forward * _flops_of_a_sample(proxy, split)) * seen


def _flops_of_a_sample(model: Classifier, split: Split) -> float:
    weight, inputs = model.loss.weight, as_input(split.inputs[:1])
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(inputs.to(weight.device)).sum().backward()
    model.zero_grad()
    head = 3 * 2 * weight.numel()
    return float(counter.get_total_flops() + head)
