"""The samples that a person should look at first."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from cssoftmax.metrics import class_margins, hardest_pairs, surest_errors, typical_samples


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 4), st.booleans())
def test_the_hardest_pair_is_the_hardest_of_all_and_no_sample_comes_twice(seed, samples, classes, same):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (samples,), generator=generator)
    pairs, cosines = hardest_pairs(x, y, 5, same=same)
    assert len(pairs) <= 5 and len(set(pairs.flatten().tolist())) == pairs.numel()
    assert ((y[pairs[:, 0]] == y[pairs[:, 1]]) == same).all()
    every = normalize(x, dim=1) @ normalize(x, dim=1).T
    assert torch.allclose(cosines, every[pairs[:, 0], pairs[:, 1]])
    wanted = torch.triu((y[:, None] == y) == same, diagonal=1)
    assert (len(pairs) > 0) == bool(wanted.any())
    if len(pairs):
        hardest = every[wanted].min() if same else every[wanted].max()
        assert cosines[0].item() == pytest.approx(hardest.item(), abs=1e-6)  # found in float32
        assert (cosines.diff() * (1 if same else -1) >= -1e-6).all()


def test_only_errors_are_errors_and_the_surest_comes_first():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [2.0, 2.0]])
    assert surest_errors(logits, torch.tensor([0, 0, 1, 1]), 5).tolist() == [2, 1]
    assert surest_errors(logits, torch.tensor([0, 1, 0, 0]), 5).tolist() == []


def test_the_typical_sample_is_the_nearest_to_the_mean_direction():
    x = torch.tensor([[9.0, 0.0], [1.0, 0.2], [1.0, 1.0], [0.0, 1.0]])
    assert typical_samples(x, torch.tensor([0, 0, 0, 2])) == {0: 1, 2: 3}


def test_a_margin_is_the_lead_of_the_own_cosine():
    x = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    margins = class_margins(x, 3 * torch.eye(2), torch.tensor([1, 1]))
    assert margins.tolist() == pytest.approx([-1.0, 0.0])
    assert class_margins(x, torch.ones(1, 2), torch.tensor([0, 0])).tolist() == [math.inf, math.inf]
