"""Facts of the real data sets; run where ``CSSOFTMAX_DATA`` names a folder that holds them."""

import os
from pathlib import Path

import pytest
import torch

from cssoftmax.data import channel_statistics, load_dataset

ROOT = Path(os.environ.get("CSSOFTMAX_DATA") or "no-such-folder")


@pytest.fixture(autouse=True)
def _needs(request):
    name = request.node.name.split("_")[1]
    if not (ROOT / name).is_dir():
        pytest.skip(f"CSSOFTMAX_DATA names no folder that holds {name}")


def test_mnist():
    dataset = load_dataset("mnist")
    assert dataset.train.inputs.shape == (60000, 1, 28, 28)
    assert dataset.test.inputs.shape == (10000, 1, 28, 28)
    mean, std = channel_statistics(dataset.train)
    torch.testing.assert_close(torch.cat([mean, std]), torch.tensor([0.1307, 0.3081]), atol=1e-4, rtol=0)


def test_cifar10():
    dataset = load_dataset("cifar10")
    assert dataset.classes[:2] == ("airplane", "automobile")
    assert dataset.train.target.bincount().tolist() == [5000] * 10
    assert dataset.test.target.bincount().tolist() == [1000] * 10
    mean, std = channel_statistics(dataset.train)
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-4, rtol=0)


def test_cifar100():
    dataset = load_dataset("cifar100")
    assert len(dataset.classes) == 100
    assert dataset.train.target.bincount().tolist() == [500] * 100
    assert len(dataset.repeated) == 10


def test_fsdd():
    dataset = load_dataset("fsdd")
    assert (len(dataset.train.target), len(dataset.test.target)) == (2700, 300)
    assert dataset.train.inputs.shape[1:] == (1, 64, 63)
    held_out = load_dataset("fsdd", test_group="jackson")
    assert (len(held_out.train.target), len(held_out.test.target)) == (2500, 500)
    assert "jackson" not in held_out.train.groups


def test_esc10():
    folds = [load_dataset("esc10", test_group=str(fold)) for fold in range(1, 6)]
    assert [len(fold.test.target) for fold in folds] == [80] * 5
    assert all(fold.test.target.bincount().tolist() == [8] * 10 for fold in folds)
    assert load_dataset("esc10").fingerprint == folds[0].fingerprint
