"""Agreement with pytorch-metric-learning, an independent implementation, away from cosine +-1."""

import math

import pytest
import torch

from cssoftmax import ArcFaceLoss, CosFaceLoss, NormFaceLoss, SphereFaceLoss, SubCenterArcFaceLoss

pml = pytest.importorskip("pytorch_metric_learning.losses")

# Its class weights are transposed, ArcFace's margin is in degrees, and NormFace is its softmax with a temperature.
PAIRS = {
    "cosface": (
        lambda: CosFaceLoss(16, 10, margin=0.35, scale=30.0),
        lambda: pml.CosFaceLoss(10, 16, margin=0.35, scale=30),
    ),
    "arcface": (
        lambda: ArcFaceLoss(16, 10, margin=0.5, scale=30.0),
        lambda: pml.ArcFaceLoss(10, 16, margin=math.degrees(0.5), scale=30),
    ),
    "arcface, past pi": (
        lambda: ArcFaceLoss(16, 10, margin=1.4, scale=10.0),
        lambda: pml.ArcFaceLoss(10, 16, margin=math.degrees(1.4), scale=10),
    ),
    "subcenter-arcface": (
        lambda: SubCenterArcFaceLoss(16, 10, margin=0.5, sub_centers=3, scale=30.0),
        lambda: pml.SubCenterArcFaceLoss(
            num_classes=10, embedding_size=16, margin=math.degrees(0.5), scale=30, sub_centers=3
        ),
    ),
    "sphereface": (
        lambda: SphereFaceLoss(16, 10, margin=4, annealing=0.0),
        lambda: pml.SphereFaceLoss(10, 16, margin=4, scale=1),
    ),
    "normface": (
        lambda: NormFaceLoss(16, 10, scale=20.0),
        lambda: pml.NormalizedSoftmaxLoss(10, 16, temperature=1 / 20),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("seed", range(5))
def test_same_values_and_gradients(name, seed):
    torch.manual_seed(seed)
    make_ours, make_theirs = PAIRS[name]
    ours, theirs = make_ours(), make_theirs()
    ours.weight.data.copy_(theirs.W.data.T)
    x, y = torch.randn(200, 16), torch.randint(10, (200,))
    if name == "arcface, past pi":
        assert (torch.nn.functional.cosine_similarity(x, ours.weight[y]) < -math.cos(1.4)).any()
    embedded = [x.clone().requires_grad_() for _ in range(2)]
    if name == "normface":  # it normalises only the class weights by itself
        values = ours(embedded[0], y), theirs(torch.nn.functional.normalize(embedded[1]), y)
    else:
        values = ours(embedded[0], y), theirs(embedded[1], y)
    torch.testing.assert_close(values[0], values[1])
    for value in values:
        value.backward()
    torch.testing.assert_close(embedded[0].grad, embedded[1].grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad, theirs.W.grad.T, rtol=1e-3, atol=1e-5)
