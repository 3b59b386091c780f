"""Muon against the singular value decomposition, PyTorch's own on matrices, and a step by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cssoftmax.training.muon import orthogonal, turn_weights


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def turning(weight, lr=0.1, momentum=0.6):
    group = {"params": [weight], "muon": True}
    optimizer = torch.optim.SGD([group], lr=lr, momentum=momentum, nesterov=True, weight_decay=0.5)
    turn_weights(optimizer)
    return optimizer


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_all_directions_of_a_matrix_become_about_as_long(rows, columns, seed):
    values = torch.logspace(0, -2, min(rows, columns))
    left, _, right = torch.linalg.svd(matrix(rows, columns, seed), full_matrices=False)
    found = orthogonal(left @ values.diag() @ right, 8)
    assert found.shape == (rows, columns)
    lengths = torch.linalg.svdvals(found)
    assert lengths.min() > 0.65 and lengths.max() < 1.25
    in_its_directions = left.T @ found @ right.T  # the same singular vectors, in the same order
    torch.testing.assert_close(in_its_directions, in_its_directions.diag().diag(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
def test_steps_go_where_those_of_pytorch_s_go(shape, autocast):
    weight, other = nn.Parameter(matrix(*shape)), nn.Parameter(matrix(*shape))
    length = weight.norm().item()
    optimizer = turning(weight, lr=0.05)
    peer = torch.optim.Muon([other], lr=1.0, momentum=0.6, weight_decay=0.0, ns_steps=3)
    for step in range(4):
        before, start = weight.detach().clone(), other.detach().clone()
        gradient = matrix(*shape, seed=step + 1)
        weight.grad, other.grad = gradient.clone(), gradient.clone()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            optimizer.step()
        assert weight.dtype == torch.float32
        peer.step()
        direction = (start - other.detach()) / math.sqrt(max(1, shape[0] / shape[1]))
        turned = before - 0.05 * length * direction / math.sqrt(min(shape))
        bfloat16 = 0.05 * length / math.sqrt(min(shape)) * 2**-6  # in which PyTorch iterates, on numbers up to 1
        torch.testing.assert_close(weight.detach(), turned * length / turned.norm(), rtol=0, atol=bfloat16)


def test_filters_turn_as_the_rows_of_a_matrix_in_either_memory_format():
    flat = nn.Parameter(matrix(6, 18))
    filters = [nn.Parameter(flat.detach().clone().view(6, 2, 3, 3)) for _ in range(2)]
    filters[1].data = filters[1].data.to(memory_format=torch.channels_last)
    optimizers = [turning(weight) for weight in (flat, *filters)]
    for step in range(3):
        gradient = matrix(6, 18, seed=step + 1)
        for weight, optimizer in zip((flat, *filters), optimizers, strict=True):
            weight.grad = gradient.clone().view(weight.shape)
            optimizer.step()
    for weight in filters:
        torch.testing.assert_close(weight.flatten(1), flat)


@given(lr=st.floats(0.001, 0.3), seed=st.integers(0, 99), scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e10]))
def test_a_step_turns_by_about_its_rate_and_keeps_the_length_however_long_the_gradient(lr, seed, scale):
    weight = nn.Parameter(3 * matrix(8, 20, seed))
    before = weight.detach().clone()
    weight.grad = scale * matrix(8, 20, seed + 100)
    turning(weight, lr=lr).step()
    assert weight.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)
    turned = (weight / weight.norm() - before / before.norm()).norm().item()
    assert turned < 1.25 * lr
    if scale > 1e-10:  # shorter ones are all but zero
        assert turned > 0.4 * lr


def test_a_gradient_of_zero_leaves_a_weight_as_it_is_and_none_leaves_its_momentum():
    weight = nn.Parameter(matrix(3, 5))
    before = weight.detach().clone()
    optimizer = turning(weight)
    optimizer.step()
    assert not optimizer.state
    weight.grad = torch.zeros(3, 5)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before)
